/* lockstep generate: random valid programs. */
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "cli.h"
#include "forms/forms.h"
#include "generate/generate.h"
#include "no_memory.h"
#include "words.h"

typedef struct generate_options {
  uint32_t count;
  uint64_t seed;
  bool seeded;
  const char *directory;
  generator_options generator;
} generate_options;

static const struct argp_option option_table[] = {
    {"count", 'n', "N", 0, "How many programs (1)", 0},
    {"seed", 's', "SEED", 0, "The same seed gives the same programs on the same CPU (random)", 0},
    {"output", 'o', "DIR", 0, "Write entries here, each under its name; without it they are shown", 0},
    {"max-instructions", 'm', "N", 0, "Length of the longest program, 1 to 64 (64)", 0},
    {"fault-percent", 'f', "N", 0, "Programs that fault on purpose, of 100 (5)", 0},
    {0}};

static uint64_t number(struct argp_state *state, const char *name, const char *text, uint64_t least,
                       uint64_t most) {
  char *end;
  errno = 0;
  uint64_t value = strtoull(text, &end, 0);
  if (*text == 0 || *text == '-' || *end != 0 || errno != 0 || value < least || value > most)
    argp_error(state, "--%s takes a number from %llu to %llu", name, (unsigned long long)least,
               (unsigned long long)most);
  return value;
}

static error_t parse_option(int key, char *argument, struct argp_state *state) {
  generate_options *options = state->input;
  switch (key) {
  case 'n':
    options->count = (uint32_t)number(state, "count", argument, 1, 100000000);
    return 0;
  case 's':
    options->seed = number(state, "seed", argument, 0, UINT64_MAX);
    options->seeded = true;
    return 0;
  case 'o':
    options->directory = directory_argument(state, argument);
    return 0;
  case 'm':
    options->generator.instructions_max = (uint32_t)number(state, "max-instructions", argument, 1, 64);
    return 0;
  case 'f':
    options->generator.fault_percent = (uint32_t)number(state, "fault-percent", argument, 0, 100);
    return 0;
  case ARGP_KEY_ARG:
    argp_error(state, "unexpected argument '%s'", printable(argument));
    return EINVAL;
  default:
    return ARGP_ERR_UNKNOWN;
  }
}

/* A generator for what this CPU runs. */
static ls_status make_generator(const generator_options *options, generator **gen, ls_error *error) {
  uint8_t *support = calloc(forms_count(), 1);
  *gen = NULL;
  ls_status status =
      support != NULL ? forms_probe_here(support, error) : no_memory(error, "a table of forms");
  if (status == LS_OK)
    *gen = generator_create(support, options);
  if (status == LS_OK && *gen == NULL)
    status = no_memory(error, "a generator");
  free(support);
  return status;
}

/* Shows the program, or writes it and counts those that are new. */
static bool put(const generate_options *options, const testcase *test, uint32_t *written) {
  char name[33], why[512];
  if (options->directory == NULL) {
    progress_hide();
    return show_print(stdout, test) && !ferror(stdout);
  }
  int saved = entry_save(options->directory, test, name, why, sizeof why);
  if (saved < 0)
    cli_complain("%s", why);
  *written += saved > 0;
  return saved >= 0;
}

static void print_end(const generate_options *options, uint32_t made, uint32_t written) {
  printf("%u %s written to %s, seed %llu", written, word_for(written, "entry", "entries"),
         printable(options->directory), (unsigned long long)options->seed);
  if (written < made)
    printf("; %s there already", word_for(made - written, "another was", "the others were"));
  if (interrupt_cuts(made, options->count))
    printf("; interrupted after %u of %u programs", made, options->count);
  putchar('\n');
}

static int generate_all(const generate_options *options, generator *gen) {
  static testcase test;
  rng r = {options->seed};
  uint32_t made = 0, written = 0;
  bool fine = true;
  progress_begin("generating", "programs", options->count);
  while (made < options->count && fine && !interrupt_noted()) {
    progress_at(made);
    generate_program(gen, &r, &test);
    fine = put(options, &test, &written);
    made += fine;
  }
  progress_end();
  if (options->directory != NULL && (made > 0 || fine))
    print_end(options, made, written);
  if (!fine)
    return CLI_BAD;
  return interrupt_cuts(made, options->count) ? CLI_INTERRUPTED + interrupt_noted() : CLI_OK;
}

int cmd_generate(int argc, char **argv) {
  const struct argp parser = {
      option_table,
      parse_option,
      NULL,
      "Makes random valid programs with their initial state and memory, from the instruction forms that this "
      "CPU runs.\vExample: lockstep generate -n 100 -s 1 -o new-entries\n\n" CLI_EXIT_CODES,
      cli_help,
      NULL,
      NULL};
  generate_options options = {.count = 1, .generator = {.fault_percent = UINT32_MAX}};
  generator *gen;
  ls_error error = {0};
  argp_parse(&parser, argc, argv, 0, NULL, &options);
  if (!options.seeded && getrandom(&options.seed, sizeof options.seed, 0) != sizeof options.seed)
    options.seed = 1;
  interrupt_watch();
  if (make_generator(&options.generator, &gen, &error) != LS_OK)
    return cli_failed("the generator could not be made", &error);
  if (options.directory == NULL)
    printf("# seed %llu\n", (unsigned long long)options.seed);
  int status = generate_all(&options, gen);
  generator_destroy(gen);
  return status;
}

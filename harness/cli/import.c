/* lockstep import: machine code from elsewhere, as entries. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "blocks.h"
#include "cli.h"
#include "import/import.h"
#include "import/import_counters.h"
#include "oracle/affinity.h"

typedef struct import_options {
  bool json, raw, no_run, verbose, anywhere;
  const char *directory;
  const char **files;
  int count;
} import_options;

static const struct argp_option option_table[] = {
    {"anywhere", 'a', NULL, 0, "The entries are run even where the CPU lacks what they need", 0},
    {"json", 'j', NULL, 0, "Print one JSON object", 0},
    {"no-run", 'n', NULL, 0, "Do not look for initial values by running the blocks in the reference", 0},
    {"output", 'o', "DIR", 0, "Write entries here, each under its name; without it only report", 0},
    {"raw", 'r', NULL, 0, "The files are machine code as it is, a block each", 0},
    {"verbose", 'v', NULL, 0, "List all blocks, not only those that do not run to their end", 0},
    {0}};

static error_t parse_option(int key, char *argument, struct argp_state *state) {
  import_options *options = state->input;
  switch (key) {
  case 'j':
    options->json = true;
    return 0;
  case 'a':
    options->anywhere = true;
    return 0;
  case 'n':
    options->no_run = true;
    return 0;
  case 'o':
    options->directory = directory_argument(state, argument);
    return 0;
  case 'r':
    options->raw = true;
    return 0;
  case 'v':
    options->verbose = true;
    return 0;
  case ARGP_KEY_ARG:
    options->files[options->count++] = argument;
    return 0;
  case ARGP_KEY_NO_ARGS:
    argp_error(state, "no FILE is given (- is standard input)");
    return EINVAL;
  default:
    return ARGP_ERR_UNKNOWN;
  }
}

typedef struct import_sum {
  const import_options *options;
  ls_executor *reference;
  size_t total, exits, faults, others, refused, unreadable, written, replaced;
  bool write_failed;
  json_t *blocks, *errors; /* NULL without --json */
} import_sum;

static void unreadable(import_sum *sum, const char *source, const char *why) {
  sum->unreadable++;
  if (sum->errors != NULL)
    json_array_append_new(sum->errors, json_pack("{so ss}", "source", json_text(source), "why", why));
  cli_complain("%s: %s", source, why);
}

static void count_block(import_sum *sum, const import_report *report) {
  sum->total++;
  sum->replaced += report->replaced;
  if (report->status != IMPORT_OK)
    sum->refused++;
  else if (report->ran && report->stop.kind == LS_STOP_EXIT)
    sum->exits++;
  else if (report->ran && report->stop.kind == LS_STOP_FAULT)
    sum->faults++;
  else
    sum->others++;
}

static void block_json(import_sum *sum, const char *source, const import_report *report, const char *name) {
  json_t *value =
      json_pack("{so ss}", "source", json_text(source), "status", import_status_name(report->status));
  if (report->status != IMPORT_OK)
    json_object_set_new(value, "offset", json_integer((json_int_t)report->offset));
  if (report->ran) {
    json_object_set_new(value, "stop", json_stop(&report->stop));
    json_object_set_new(value, "runs", json_integer(report->runs));
  }
  if (report->replaced > 0)
    json_object_set_new(value, "replaced", json_integer(report->replaced));
  if (name != NULL)
    json_object_set_new(value, "entry", json_string(name));
  json_array_append_new(sum->blocks, value);
}

static void block_text(const import_sum *sum, const char *source, const import_report *report) {
  bool fine = report->status == IMPORT_OK && (!report->ran || report->stop.kind == LS_STOP_EXIT);
  if (fine && !sum->options->verbose)
    return;
  printf("%s: ", source);
  if (report->status == IMPORT_FS_GS)
    printf("refused: the instruction at byte %zu has an fs: or gs: operand, which are the host's\n",
           report->offset);
  else if (report->status == IMPORT_UNDECODED)
    printf("refused: byte %zu begins no instruction; the block must end before it\n", report->offset);
  else if (report->status == IMPORT_TOO_LONG)
    printf("refused: more than %d instructions; split the block\n", TESTCASE_INSTRUCTIONS_MAX);
  else if (report->status != IMPORT_OK)
    printf("refused: %s\n", import_status_name(report->status));
  else if (report->ran)
    print_stop(&report->stop);
  else
    puts("imported, not run");
}

static void import_one(import_sum *sum, const char *source, const block *b) {
  static testcase test;
  import_report report;
  char name[33] = "", why[512];
  int saved = 0;
  import_status status = sum->reference ? import_block(&test, b->code, b->size, sum->reference, &report)
                                        : import_attempt(&test, b->code, b->size, 0, &report);
  if (status == IMPORT_OK && report.ran && report.stop.kind == LS_STOP_FUEL &&
      counters_shorten(&test, sum->reference, &report) != LS_OK)
    status = IMPORT_SYSTEM;
  if (status == IMPORT_SYSTEM) {
    unreadable(sum, source, cli_reason(&report.error));
    return;
  }
  count_block(sum, &report);
  if (sum->options->anywhere)
    test.cpu |= TESTCASE_ANYWHERE;
  if (status == IMPORT_OK && sum->options->directory != NULL)
    saved = entry_save(sum->options->directory, &test, name, why, sizeof why);
  if (saved < 0) {
    cli_complain("%s", why);
    sum->write_failed = true;
    return;
  }
  sum->written += saved > 0;
  if (sum->blocks != NULL)
    block_json(sum, source, &report, name[0] ? name : NULL);
  else
    block_text(sum, source, &report);
}

/* Nothing that Lockstep takes: a mistake about the file rather than a block that it refuses. */
static bool is_too_large(const block *b) {
  return b->size > (size_t)TESTCASE_INSTRUCTIONS_MAX * LS_INSTRUCTION_MAX;
}

static const char too_large[] = "too large: a block has at most 256 instructions, each of at most 15 bytes; "
                                "is this machine code, a block on each line?";
static_assert(TESTCASE_INSTRUCTIONS_MAX == 256 && LS_INSTRUCTION_MAX == 15, "as too_large says");

static void import_file(import_sum *sum, const char *path) {
  char why[256], source[4096];
  size_t size;
  block_list list = {0};
  uint8_t *content = file_read(path, 256u << 20, &size, why, sizeof why);
  if (content == NULL) {
    unreadable(sum, path, why);
    return;
  }
  if (!blocks_parse(&list, content, size, sum->options->raw))
    unreadable(sum, path, "out of memory");
  else if (list.count == 0)
    unreadable(sum, path,
               "holds no machine code; a line of hex is a block, and --raw takes bytes as they are");
  for (size_t i = 0; i < list.count && !sum->write_failed; i++) {
    const block *b = &list.blocks[i];
    if (b->line > 0)
      snprintf(source, sizeof source, "%s:%u", path, b->line);
    else
      snprintf(source, sizeof source, "%s", path);
    if (is_too_large(b))
      unreadable(sum, source, too_large);
    else if (b->code != NULL)
      import_one(sum, source, b);
    else if (i > 0 || list.count == 1 || !b->header)
      unreadable(sum, source, b->why);
  }
  blocks_free(&list);
  free(content);
}

static void summary(import_sum *sum) {
  if (sum->blocks != NULL) {
    json_print(json_pack("{so si si si si si si si so}", "blocks", sum->blocks, "total", (int)sum->total,
                         "exit", (int)sum->exits, "fault", (int)sum->faults, "other", (int)sum->others,
                         "refused", (int)sum->refused, "replaced", (int)sum->replaced, "written",
                         (int)sum->written, "errors", sum->errors));
    return;
  }
  printf("%zu blocks: %zu run to their end, %zu fault, %zu %s, %zu refused", sum->total, sum->exits,
         sum->faults, sum->others, sum->reference ? "stop otherwise" : "not run", sum->refused);
  if (sum->replaced > 0)
    printf("; %zu instructions whose result varies replaced by moves", sum->replaced);
  if (sum->options->directory != NULL)
    printf("; %zu new entries in %s", sum->written, sum->options->directory);
  putchar('\n');
}

static int import_status_of(const import_sum *sum) {
  if (sum->write_failed || sum->unreadable > 0 || sum->total == 0)
    return CLI_BAD;
  return sum->refused > 0 ? CLI_OPEN : CLI_OK;
}

static int import_all(const import_options *options) {
  import_sum sum = {.options = options};
  ls_error error = {0};
  affinity pin;
  affinity_pin(&pin); /* before there is a child, which inherits it */
  if (!options->no_run &&
      ls_executor_create(LS_PTRACE, import_layout(), NULL, &sum.reference, &error) != LS_OK)
    return cli_failed("no reference to try initial values in (--no-run imports without)", &error);
  sum.blocks = options->json ? json_array() : NULL;
  sum.errors = options->json ? json_array() : NULL;
  for (int i = 0; i < options->count && !sum.write_failed; i++)
    import_file(&sum, options->files[i]);
  summary(&sum);
  ls_executor_destroy(sum.reference);
  affinity_release(&pin);
  return import_status_of(&sum);
}

int cmd_import(int argc, char **argv) {
  const struct argp parser = {option_table,
                              parse_option,
                              "FILE...",
                              "Turns blocks of machine code into entries. A file holds lines of hex, csv "
                              "whose last hex column is the "
                              "code, or raw bytes; - is standard input. Addresses are redirected into the "
                              "sandbox, and initial values "
                              "are looked for with which the block runs to its end.\v"
                              "Example: echo 4801c8 | lockstep import -o corpus/mine -\n\n" CLI_EXIT_CODES,
                              cli_help,
                              NULL,
                              NULL};
  import_options options = {.files = calloc((size_t)argc, sizeof *options.files)};
  if (options.files == NULL)
    return CLI_BAD;
  argp_parse(&parser, argc, argv, 0, NULL, &options);
  int status = import_all(&options);
  free(options.files);
  return status;
}

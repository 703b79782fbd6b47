/* lockstep: finds the sub-command and runs it. */
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli.h"

static int cmd_help(int argc, char **argv);

typedef struct command {
  const char *name, *what;
  int (*run)(int argc, char **argv);
} command;

static const command commands[] = {
    {"run", "replay entries in both executors and compare", cmd_run},
    {"show", "an entry as text: disassembly, links, initial state", cmd_show},
    {"generate", "make random valid programs", cmd_generate},
    {"import", "turn machine code (hex, csv, raw bytes) into entries", cmd_import},
    {"forms", "which instruction forms there are, run here, are excluded", cmd_forms},
    {"bench", "measure the executors against bare floors", cmd_bench},
    {"stats", "what a fuzzing run did", cmd_stats},
    {"help", "this list, what COMMAND --help says, or exit-codes", cmd_help},
};

enum { COMMANDS = sizeof commands / sizeof commands[0] };

typedef struct choice {
  int at; /* of the sub-command in argv; 0 = none given */
} choice;

enum { WORD_MAX = 15 };

static size_t smaller(size_t a, size_t b) {
  return a < b ? a : b;
}

/* Edits (insert, delete, replace, swap neighbours) between two words of at most WORD_MAX letters. */
static size_t edits(const char *a, const char *b) {
  size_t table[WORD_MAX + 1][WORD_MAX + 1], rows = strlen(a), columns = strlen(b);
  for (size_t i = 0; i <= rows; i++)
    for (size_t j = 0; j <= columns; j++) {
      if (i == 0 || j == 0) {
        table[i][j] = i + j;
        continue;
      }
      size_t other = table[i - 1][j - 1] + (a[i - 1] != b[j - 1]);
      table[i][j] = smaller(other, smaller(table[i - 1][j], table[i][j - 1]) + 1);
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
        table[i][j] = smaller(table[i][j], table[i - 2][j - 2] + 1);
    }
  return table[rows][columns];
}

static const command *find(const char *name) {
  for (size_t i = 0; i < COMMANDS; i++)
    if (strcmp(commands[i].name, name) == 0)
      return &commands[i];
  return NULL;
}

static const char *nearest(const char *name) {
  const command *best = NULL;
  size_t length = strlen(name), least = smaller(3, (length + 1) / 2); /* fewer than half of its letters */
  if (length > WORD_MAX)
    return NULL;
  for (size_t i = 0; i < COMMANDS; i++) {
    size_t distance = edits(name, commands[i].name);
    if (distance < least) {
      least = distance;
      best = &commands[i];
    }
  }
  return best == NULL ? NULL : best->name;
}

static error_t parse_option(int key, char *argument, struct argp_state *state) {
  choice *chosen = state->input;
  (void)argument;
  if (key == ARGP_KEY_ARG) {
    chosen->at = state->next - 1;
    state->next = state->argc;
    return 0;
  }
  if (key == ARGP_KEY_NO_ARGS) {
    argp_state_help(state, stderr, ARGP_HELP_STD_HELP & ~(unsigned)ARGP_HELP_EXIT_OK);
    exit(CLI_USAGE);
  }
  return ARGP_ERR_UNKNOWN;
}

/* The list of commands, in --help's text behind the options. */
static char *help_filter(int key, const char *text, void *input) {
  (void)input;
  if (key != ARGP_KEY_HELP_POST_DOC)
    return (char *)(uintptr_t)text;
  char *all = NULL;
  size_t size;
  FILE *memory = open_memstream(&all, &size);
  if (memory == NULL)
    return (char *)(uintptr_t)text;
  fputs("Commands (each has --help):\n", memory);
  for (size_t i = 0; i < COMMANDS; i++)
    fprintf(memory, "  %-10s %s\n", commands[i].name, commands[i].what);
  fprintf(memory, "\nExample: lockstep run corpus/\n\n%s", text);
  fclose(memory);
  return all;
}

static error_t parse_help(int key, char *argument, struct argp_state *state) {
  (void)argument;
  if (key != 'h')
    return ARGP_ERR_UNKNOWN;
  argp_state_help(state, state->out_stream, ARGP_HELP_STD_HELP);
  return 0;
}

static const struct argp_option help_options[] = {{NULL, 'h', NULL, 0, "The same as --help", -1}, {0}};
static const struct argp help_parser = {.options = help_options, .parser = parse_help};
const struct argp_child cli_help[] = {{&help_parser, 0, NULL, 0}, {0}};

static int unknown(const char *name) {
  const char *hint = nearest(name);
  if (hint != NULL)
    cli_complain("there is no command '%s'; did you mean '%s'? `lockstep --help` lists all", name, hint);
  else
    cli_complain("there is no command '%s'; `lockstep --help` lists them", name);
  return CLI_USAGE;
}

/* argp ends the process itself after --help, --usage and --version. */
static void at_exit(int status, void *unused) {
  (void)unused;
  if (status == CLI_OK && !cli_flush())
    _exit(CLI_BAD);
}

static int dispatch(const command *chosen, int argc, char **argv) {
  char *name;
  if (asprintf(&name, "lockstep %s", chosen->name) < 0)
    return CLI_BAD;
  argv[0] = name;
  int status = chosen->run(argc, argv);
  if (!cli_flush() && status != CLI_DIFFERENCE)
    status = CLI_BAD;
  free(name);
  return status;
}

static const struct argp parser = {.parser = parse_option,
                                   .args_doc = "COMMAND [ARGUMENT...]",
                                   .doc = "Runs x86-64 machine code in the calling thread and under ptrace, "
                                          "and compares where both ended up.\v" CLI_EXIT_CODES,
                                   .children = cli_help,
                                   .help_filter = help_filter};

static void print_exit_codes(void) {
  puts("Every command ends with one of these; where several apply, the first of 1, 130 and 143, 4, 5, 77.\n"
       "    0  all is well; run: all entries that could be compared are the same\n"
       "    1  a difference was found\n"
       "    2  wrong usage\n"
       "    3  no reference executor is possible here: tracing is not permitted, or no child can be made\n"
       "    4  a file is unreadable, unwritable or damaged, there was nothing to do, or this system\n"
       "       refuses what guests need (memory, timers, signals)\n"
       "    5  entries were inconclusive or refused\n"
       "   77  all entries were skipped for want of a feature of the CPU\n"
       "  130  interrupted by SIGINT (Ctrl-C): what was done until then is printed, files are complete\n"
       "  143  the same, by SIGTERM");
}

/* lockstep help [COMMAND]. argp_help() would leave out the options that argp adds itself. */
static int cmd_help(int argc, char **argv) {
  const command *about = argc > 1 ? find(argv[1]) : NULL;
  char name[] = "lockstep", option[] = "--help", *arguments[] = {name, option, NULL};
  if (argc > 1 && strcmp(argv[1], "exit-codes") == 0) {
    print_exit_codes();
    return CLI_OK;
  }
  if (argc > 1 && about == NULL && argv[1][0] != '-')
    return unknown(argv[1]);
  if (about != NULL && about->run != cmd_help)
    return dispatch(about, 2, arguments);
  argp_parse(&parser, 2, arguments, 0, NULL, NULL);
  return CLI_OK;
}

/* What is opened first would take the number of a standard stream that is closed, and get what is printed.
 * In its place comes one that cannot be used either: reading the first, and writing the others, fails. */
static void occupy_streams(void) {
  static const int flags[] = {O_WRONLY, O_RDONLY, O_RDONLY};
  for (int fd = 0; fd <= STDERR_FILENO; fd++)
    if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", flags[fd]) < 0) /* takes the lowest number that is free */
      _exit(CLI_BAD);
}

int main(int argc, char **argv) {
  choice chosen = {0};
  static char version[32];
  snprintf(version, sizeof version, "lockstep %d.%d", LS_VERSION_MAJOR, LS_VERSION_MINOR);
  argp_program_version = version;
  occupy_streams();
  signal(SIGXFSZ, SIG_IGN); /* so that the write fails, and is reported, in place of a silent end */
  on_exit(at_exit, NULL);
  argp_err_exit_status = CLI_USAGE;
  argp_parse(&parser, argc, argv, ARGP_IN_ORDER, NULL, &chosen);
  if (chosen.at == 0)
    return CLI_USAGE;
  const command *sub = find(argv[chosen.at]);
  return sub == NULL ? unknown(argv[chosen.at]) : dispatch(sub, argc - chosen.at, argv + chosen.at);
}

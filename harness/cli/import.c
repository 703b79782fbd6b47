/* lockstep import: machine code from elsewhere, as entries. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "blocks.h"
#include "cli.h"
#include "import/import.h"
#include "import/import_counters.h"
#include "oracle/affinity.h"
#include "seen.h"
#include "words.h"

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
  size_t total, exits, faults, others, refused, unreadable, written, replaced, repeated;
  size_t begun; /* of the files */
  bool write_failed;
  seen_blocks *seen;       /* NULL: no memory for it, so all are run */
  json_t *cut;             /* where it was interrupted, or NULL */
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

static void block_json(import_sum *sum, const char *source, const imported *what) {
  const import_report *report = &what->report;
  json_t *value =
      json_pack("{so ss}", "source", json_text(source), "status", import_status_name(report->status));
  if (report->status != IMPORT_OK)
    json_object_set_new(value, "offset", json_integer((json_int_t)report->offset));
  if (report->ran) {
    json_object_set_new(value, "stop", json_stop(&report->stop));
    json_object_set_new(value, "runs", json_integer(what->again ? 0 : report->runs));
  }
  if (report->replaced > 0)
    json_object_set_new(value, "replaced", json_integer(report->replaced));
  if (what->name[0] != 0)
    json_object_set_new(value, "entry", json_string(what->name));
  if (what->again)
    json_object_set_new(value, "again", json_true());
  json_array_append_new(sum->blocks, value);
}

static void block_text(const import_sum *sum, const char *source, const import_report *report) {
  bool fine = report->status == IMPORT_OK && (!report->ran || report->stop.kind == LS_STOP_EXIT);
  if (fine && !sum->options->verbose)
    return;
  progress_hide();
  printf("%s: ", printable(source));
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

static import_status make_test(import_sum *sum, const block *b, testcase *test, import_report *report) {
  if (sum->reference == NULL)
    return import_attempt(test, b->code, b->size, 0, report);
  import_status status = import_block(test, b->code, b->size, sum->reference, report);
  if (status == IMPORT_OK && report->stop.kind == LS_STOP_FUEL &&
      counters_shorten(test, sum->reference, report) != LS_OK)
    status = IMPORT_SYSTEM;
  return status;
}

/* Makes an entry of a block that was not there before. False: it is no block's doing, and was said. */
static bool import_new(import_sum *sum, const char *source, const block *b, imported *what) {
  static testcase test;
  char why[512];
  int saved = 0;
  import_status status = make_test(sum, b, &test, &what->report);
  if (status == IMPORT_SYSTEM) {
    unreadable(sum, source, cli_reason(&what->report.error));
    return false;
  }
  if (sum->options->anywhere)
    test.cpu |= TESTCASE_ANYWHERE;
  if (status == IMPORT_OK && sum->options->directory != NULL)
    saved = entry_save(sum->options->directory, &test, what->name, why, sizeof why);
  sum->written += saved > 0;
  if (saved < 0) {
    cli_complain("%s", why);
    sum->write_failed = true;
  }
  return saved >= 0;
}

/* The same bytes give the same entry: it is there already. */
static void import_one(import_sum *sum, const char *source, const block *b) {
  imported what = {.name = ""};
  what.again = seen_find(sum->seen, b->code, b->size, &what);
  if (!what.again && !import_new(sum, source, b, &what))
    return;
  if (!what.again)
    seen_add(sum->seen, b->code, b->size, &what);
  sum->repeated += what.again;
  count_block(sum, &what.report);
  if (sum->blocks != NULL)
    block_json(sum, source, &what);
  else
    block_text(sum, source, &what.report);
}

/* Nothing that Lockstep takes: a mistake about the file rather than a block that it refuses. */
static bool is_too_large(const block *b) {
  return b->size > (size_t)TESTCASE_INSTRUCTIONS_MAX * LS_INSTRUCTION_MAX;
}

static const char too_large[] = "too large: a block has at most 256 instructions, each of at most 15 bytes; "
                                "is this machine code, a block on each line?";
static_assert(TESTCASE_INSTRUCTIONS_MAX == 256 && LS_INSTRUCTION_MAX == 15, "as too_large says");

static void import_line(import_sum *sum, const char *path, const block_list *list, size_t i) {
  const block *b = &list->blocks[i];
  char source[4096];
  if (b->line > 0)
    snprintf(source, sizeof source, "%s:%u", path, b->line);
  else
    snprintf(source, sizeof source, "%s", path);
  if (is_too_large(b))
    unreadable(sum, source, too_large);
  else if (b->code != NULL)
    import_one(sum, source, b);
  else if (i > 0 || list->count == 1 || !b->header)
    unreadable(sum, source, b->why != NULL ? b->why : "out of memory");
}

static void import_list(import_sum *sum, const char *path, const block_list *list) {
  size_t i = 0;
  progress_begin("importing", "blocks", list->count);
  for (; i < list->count && !sum->write_failed && !interrupt_noted(); i++) {
    progress_at(i);
    import_line(sum, path, list, i);
  }
  progress_end();
  sum->cut = interrupt_cuts(i, list->count) ? interrupt_json(i, list->count) : NULL;
  if (sum->cut != NULL)
    json_object_set_new(sum->cut, "source", json_text(path));
}

static void import_file(import_sum *sum, const char *path) {
  char why[256];
  size_t size;
  block_list list = {0};
  uint8_t *content = file_read(path, 256u << 20, &size, why, sizeof why);
  if (content == NULL) {
    if (!interrupt_noted())
      unreadable(sum, path, why);
    return;
  }
  if (!blocks_parse(&list, content, size, sum->options->raw))
    unreadable(sum, path, "out of memory");
  else if (list.count == 0)
    unreadable(sum, path,
               "holds no machine code; a line of hex is a block, and --raw takes bytes as they are");
  import_list(sum, path, &list);
  blocks_free(&list);
  free(content);
  sum->begun++;
}

/* ---- Sums -------------------------------------------------------------------------------------------- */

static bool cut_short(const import_sum *sum) {
  return sum->cut != NULL || interrupt_cuts(sum->begun, (size_t)sum->options->count);
}

/* In the middle of a file, or before the first block of one. */
static json_t *cut_json(const import_sum *sum) {
  if (sum->cut != NULL)
    return json_incref(sum->cut);
  json_t *files = interrupt_json(sum->begun, (size_t)sum->options->count);
  if (json_is_object(files))
    json_object_set_new(files, "source", json_null());
  return files;
}

static void summary_json(import_sum *sum) {
  json_print(json_pack(
      "{so sI sI sI sI sI sI sI sI so so}", "blocks", sum->blocks, "total", (json_int_t)sum->total, "exit",
      (json_int_t)sum->exits, "fault", (json_int_t)sum->faults, "other", (json_int_t)sum->others, "refused",
      (json_int_t)sum->refused, "replaced", (json_int_t)sum->replaced, "again", (json_int_t)sum->repeated,
      "written", (json_int_t)sum->written, "errors", sum->errors, "interrupted", cut_json(sum)));
}

static void print_cut(const import_sum *sum) {
  if (sum->cut != NULL)
    printf("; interrupted after %lld of %lld blocks of %s",
           (long long)json_integer_value(json_object_get(sum->cut, "after")),
           (long long)json_integer_value(json_object_get(sum->cut, "of")),
           printable(sum->options->files[sum->begun - 1]));
  else if (cut_short(sum))
    printf("; interrupted after %zu of %d %s", sum->begun, sum->options->count,
           word_for((size_t)sum->options->count, "file", "files"));
}

static void summary_text(const import_sum *sum) {
  printf("%zu %s: %zu %s to %s end, %zu %s, %zu %s, %zu refused", sum->total,
         word_for(sum->total, "block", "blocks"), sum->exits, word_for(sum->exits, "runs", "run"),
         word_for(sum->exits, "its", "their"), sum->faults, word_for(sum->faults, "faults", "fault"),
         sum->others,
         sum->reference == NULL ? "not run" : word_for(sum->others, "stops otherwise", "stop otherwise"),
         sum->refused);
  if (sum->repeated > 0)
    printf("; %zu of them %s an earlier block", sum->repeated, word_for(sum->repeated, "repeats", "repeat"));
  if (sum->replaced > 0)
    printf("; %zu %s whose result varies replaced by moves", sum->replaced,
           word_for(sum->replaced, "instruction", "instructions"));
  if (sum->options->directory != NULL)
    printf("; %zu new %s in %s", sum->written, word_for(sum->written, "entry", "entries"),
           printable(sum->options->directory));
  print_cut(sum);
  putchar('\n');
}

static int import_status_of(const import_sum *sum) {
  if (cut_short(sum))
    return CLI_INTERRUPTED + interrupt_noted();
  if (sum->write_failed || sum->unreadable > 0 || sum->total == 0)
    return CLI_BAD;
  return sum->refused > 0 ? CLI_OPEN : CLI_OK;
}

static int import_all(const import_options *options) {
  import_sum sum = {.options = options};
  ls_error error = {0};
  affinity pin;
  interrupt_watch();
  affinity_pin(&pin); /* before there is a child, which inherits it */
  if (!options->no_run &&
      ls_executor_create(LS_PTRACE, import_layout(), NULL, &sum.reference, &error) != LS_OK)
    return cli_failed("no reference to try initial values in (--no-run imports without)", &error);
  sum.blocks = options->json ? json_array() : NULL;
  sum.errors = options->json ? json_array() : NULL;
  sum.seen = seen_create();
  for (int i = 0; i < options->count && !sum.write_failed && !interrupt_noted(); i++)
    import_file(&sum, options->files[i]);
  if (options->json)
    summary_json(&sum);
  else
    summary_text(&sum);
  json_decref(sum.cut);
  seen_destroy(sum.seen);
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

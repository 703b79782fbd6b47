/* lockstep run: replays entries in both executors. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli.h"
#include "feedback/drill.h"
#include "feedback/keep.h"
#include "oracle/oracle.h"
#include "oracle/report.h"
#include "words.h"

typedef struct run_options {
  bool json, any, quiet;
  unsigned listed; /* a bit for each verdict whose paths alone are printed; 0: the usual */
  uint32_t limit_ms;
  feature_set without;
  file_list files;
} run_options;

static const struct argp_option option_table[] = {
    {"any", 'a', NULL, 0, "Take files that are no entries too: their bytes are the program", 0},
    {"json", 'j', NULL, 0, "Print one JSON object", 0},
    {"limit", 'l', "MS", 0, "CPU time that one run may take (200)", 0},
    {"list", 'L', "VERDICT,...", 0, "Print the paths of entries with these verdicts and nothing else", 0},
    {"quiet", 'q', NULL, 0, "Do not list entries that are the same or skipped", 0},
    {"without", 'w', "FEATURE,...", 0,
     "Skip what needs these features (avx512f, say), as a CPU without them would", 0},
    {0}};

static unsigned parse_verdicts(struct argp_state *state, const char *names) {
  unsigned set = 0;
  for (const char *at = names;; at++) {
    size_t length = strcspn(at, ",");
    int v = 0;
    while (v < VERDICTS &&
           (strlen(verdict_name((verdict)v)) != length || strncmp(verdict_name((verdict)v), at, length) != 0))
      v++;
    if (v == VERDICTS)
      argp_error(state, "--list takes same, different, inconclusive, refused, skipped; not '%s'",
                 printable(at));
    set |= 1u << v;
    at += length;
    if (*at == 0)
      return set;
  }
}

static error_t parse_option(int key, char *argument, struct argp_state *state) {
  run_options *options = state->input;
  char *end;
  unsigned long limit;
  switch (key) {
  case 'a':
    options->any = true;
    return 0;
  case 'j':
    options->json = true;
    return 0;
  case 'l':
    limit = strtoul(argument, &end, 10);
    if (*end != 0 || limit == 0 || limit > 60000)
      argp_error(state, "--limit takes 1 to 60000 milliseconds");
    options->limit_ms = (uint32_t)limit;
    return 0;
  case 'L':
    options->listed = parse_verdicts(state, argument);
    return 0;
  case 'q':
    options->quiet = true;
    return 0;
  case 'w':
    options->without = features_argument(state, argument);
    return 0;
  case ARGP_KEY_ARG:
    files_collect(&options->files, argument);
    return 0;
  case ARGP_KEY_NO_ARGS:
    argp_error(state, "no FILE or DIR is given");
    return EINVAL;
  default:
    return ARGP_ERR_UNKNOWN;
  }
}

static testcase test; /* the one that runs */

/* What a replay adds up to. */
typedef struct tally {
  const run_options *options;
  oracle *o;
  size_t verdicts[VERDICTS], unreadable, strangers; /* the latter: of the unreadable, what is no entry */
  bool unkept;     /* something could not be kept (LOCKSTEP_KEEP, LOCKSTEP_FINDINGS) */
  size_t begun;    /* of the files; interrupted: as many as were done */
  json_t *entries; /* NULL without --json */
  json_t *errors;  /* of the files' list */
  json_t *skipped; /* how many for which reason */
  json_t *others;  /* how many inputs of which fuzz target were found, which are no entries */
  int failed;      /* exit status for what keeps this host from running anything, or 0 */
} tally;

static json_t *piece_json(const difference *d) {
  size_t count;
  const ls_register *registers = ls_registers(&count);
  json_t *value = json_pack("{ss}", "piece", piece_name(d->piece));
  if (d->piece == PIECE_REGISTER && d->row < count)
    json_object_set_new(value, "register", json_string(registers[d->row].name));
  if (d->piece == PIECE_MEMORY) {
    json_object_set_new(value, "window", json_integer(d->window));
    json_object_set_new(value, "offset", json_integer((json_int_t)d->offset));
    json_object_set_new(value, "length", json_integer(d->length));
  }
  if (d->piece == PIECE_HOST) {
    uint64_t before, after;
    memcpy(&before, d->a, sizeof before);
    memcpy(&after, d->b, sizeof after);
    json_object_set_new(value, "what", json_string(d->name));
    json_object_set_new(value, "before", json_hex(before));
    json_object_set_new(value, "after", json_hex(after));
  }
  return value;
}

static void add_one(json_t *counts, const char *key) {
  json_object_set_new(counts, key, json_integer(json_integer_value(json_object_get(counts, key)) + 1));
}

static bool is_listed(const tally *sum, const oracle_result *result) {
  if (sum->options->listed)
    return sum->options->listed >> result->verdict & 1;
  return !sum->options->quiet || (result->verdict != VERDICT_SAME && result->verdict != VERDICT_SKIPPED);
}

static void entry_json(tally *sum, const char *path, const oracle_result *result) {
  json_t *entry =
      json_pack("{so ss ss}", "file", json_text(path), "verdict", verdict_name(result->verdict), "reason",
                result->reason == REASON_NONE ? "" : oracle_reason_name(result->reason));
  if (result->detail != NULL)
    json_object_set_new(entry, "detail", json_text(result->detail));
  if (result->verdict == VERDICT_SAME || result->verdict == VERDICT_DIFFERENT)
    json_object_set_new(entry, "stop", json_stop(&result->reference.stop));
  if (result->verdict == VERDICT_DIFFERENT) {
    json_t *differences = json_array();
    json_object_set_new(entry, "thread_stop", json_stop(&result->thread.stop));
    for (uint32_t i = 0; i < result->differences.kept; i++)
      json_array_append_new(differences, piece_json(&result->differences.list[i]));
    json_object_set_new(entry, "differences", differences);
  }
  json_array_append_new(sum->entries, entry);
}

static void entry_text(tally *sum, const char *path, const oracle_result *result) {
  progress_hide();
  if (sum->options->listed) {
    puts(isatty(STDOUT_FILENO) ? printable(path) : path); /* as it is for programs */
    return;
  }
  printf("%-12s %s: ", verdict_name(result->verdict), printable(path));
  if (result->verdict == VERDICT_SAME || result->verdict == VERDICT_DIFFERENT)
    print_stop(&result->reference.stop);
  else if (result->verdict == VERDICT_SKIPPED)
    puts(result->detail);
  else
    printf("%s%s%s\n", oracle_reason_sentence(result->reason), result->detail ? ": " : "",
           result->detail ? result->detail : "");
  if (result->verdict == VERDICT_DIFFERENT) {
    char name[33];
    testcase_name(&test, name);
    report_difference(stdout, &test, result, sum->o);
    if (keep_findings() != NULL && !sum->unkept)
      printf("FINDING %s/%s\n", keep_findings(), name);
  }
}

static void unreadable(tally *sum, const char *path, const char *why) {
  sum->unreadable++;
  json_array_append_new(sum->errors, json_trouble(path, why));
  cli_complain("%s: %s", path, why);
}

/* No entry is to blame, and the next one would meet the same. `path`: the one that was tried, or NULL. */
static void host_failed(tally *sum, const char *path, const ls_error *error) {
  const char *why = cli_reason(error);
  json_array_append_new(sum->errors,
                        path != NULL ? json_trouble(path, why) : json_pack("{so}", "why", json_text(why)));
  sum->failed = cli_failed("this host cannot run guests", error);
}

/* Complains once: what comes next would most often meet the same. */
static void keep(tally *sum, const oracle_result *result) {
  const char *folder = keep_folder();
  if (result->verdict == VERDICT_DIFFERENT)
    folder = keep_findings();
  if (sum->unkept || !folder ||
      (result->verdict == VERDICT_DIFFERENT ? keep_finding(folder, &test) : keep_open(folder, &test, result)))
    return;
  const char *why = strerror(errno);
  sum->unkept = true;
  json_array_append_new(sum->errors, json_trouble(folder, why));
  cli_complain("%s: nothing more is kept there: %s", folder, why);
}

static void run_file(tally *sum, const char *path) {
  static oracle_result result;
  ls_error error = {0};
  char why[256];
  loaded what = entry_load(path, sum->options->any, &test, why, sizeof why);
  if (what == LOADED_NOTHING && interrupt_noted()) {
    sum->begun--; /* before the end of standard input came */
    return;
  }
  if (what != LOADED_ENTRY) {
    const char *target = target_of_input(path);
    sum->strangers += target == NULL && what == LOADED_STRANGER;
    if (target != NULL)
      add_one(sum->others, target);
    else
      unreadable(sum, path, why);
    return;
  }
  error.status = oracle_run(sum->o, &test, &result, &error);
  if (error.status != LS_OK) {
    host_failed(sum, path, &error);
    return;
  }
  sum->verdicts[result.verdict]++;
  if (result.verdict == VERDICT_SKIPPED)
    add_one(sum->skipped, result.detail);
  keep(sum, &result);
  if (!is_listed(sum, &result))
    return;
  if (sum->entries != NULL)
    entry_json(sum, path, &result);
  else
    entry_text(sum, path, &result);
}

static size_t other_inputs(const tally *sum) {
  size_t all = 0;
  const char *target;
  json_t *count;
  json_object_foreach(sum->others, target, count) {
    all += (size_t)json_integer_value(count);
  }
  return all;
}

static size_t tally_count(const tally *sum) {
  size_t count = 0;
  for (unsigned v = 0; v < VERDICTS; v++)
    count += sum->verdicts[v];
  return count;
}

/* Files and directories that could not be read, or are no entries. */
static size_t unusable(const tally *sum) {
  return sum->options->files.bad + sum->unreadable;
}

/* Was it interrupted before all was done? */
static bool cut_short(const tally *sum) {
  return !sum->failed && interrupt_cuts(sum->begun, sum->options->files.count);
}

static void summary_json(tally *sum) {
  const size_t *v = sum->verdicts;
  json_print(json_pack("{so si si si si si sO sO so so}", "entries", sum->entries, "same",
                       (int)v[VERDICT_SAME], "different", (int)v[VERDICT_DIFFERENT], "inconclusive",
                       (int)v[VERDICT_INCONCLUSIVE], "refused", (int)v[VERDICT_REFUSED], "skipped",
                       (int)v[VERDICT_SKIPPED], "skipped_because", sum->skipped, "inputs_of_other_targets",
                       sum->others, "errors", json_incref(sum->errors), "interrupted",
                       cut_short(sum) ? interrupt_json(sum->begun, sum->options->files.count) : json_null()));
}

/* "283 entries skipped: needs …", "51 files skipped: they are inputs of …" */
static void print_skipped(const tally *sum) {
  const char *why;
  json_t *count;
  json_object_foreach(sum->skipped, why, count) {
    printf("%" JSON_INTEGER_FORMAT " skipped: %s\n", json_integer_value(count), why);
  }
  json_object_foreach(sum->others, why, count) {
    if (json_integer_value(count) == 1)
      printf("1 file skipped: it is an input of %s, not an entry\n", why);
    else
      printf("%" JSON_INTEGER_FORMAT " files skipped: they are inputs of %s, not entries\n",
             json_integer_value(count), why);
  }
}

static void summary_text(const tally *sum) {
  const size_t *v = sum->verdicts;
  print_skipped(sum);
  printf("%zu %s: %zu same, %zu different, %zu inconclusive, %zu refused", tally_count(sum),
         word_for(tally_count(sum), "entry", "entries"), v[VERDICT_SAME], v[VERDICT_DIFFERENT],
         v[VERDICT_INCONCLUSIVE], v[VERDICT_REFUSED]);
  if (v[VERDICT_SKIPPED] > 0)
    printf(", %zu skipped", v[VERDICT_SKIPPED]);
  if (unusable(sum) > 0)
    printf("; %zu %s could not be used", unusable(sum), word_for(unusable(sum), "file", "files"));
  if (cut_short(sum))
    printf("; interrupted after %zu of %zu %s", sum->begun, sum->options->files.count,
           word_for(sum->options->files.count, "file", "files"));
  putchar('\n');
}

static int run_status(const tally *sum) {
  if (sum->verdicts[VERDICT_DIFFERENT] > 0)
    return CLI_DIFFERENCE;
  if (sum->failed)
    return sum->failed;
  if (cut_short(sum))
    return CLI_INTERRUPTED + interrupt_noted();
  if (unusable(sum) > 0 || sum->unkept || tally_count(sum) == 0)
    return CLI_BAD;
  if (sum->verdicts[VERDICT_INCONCLUSIVE] + sum->verdicts[VERDICT_REFUSED] > 0)
    return CLI_OPEN;
  return sum->verdicts[VERDICT_SAME] == 0 ? CLI_SKIPPED : CLI_OK;
}

/* Can the next file be run? Not once a signal was noted, for which standard input is no end of waiting. */
static bool ready(const char *path) {
  if (strcmp(path, "-") == 0) {
    fflush(stdout);
    interrupt_wait(STDIN_FILENO);
  }
  return !interrupt_noted();
}

static void run_files(tally *sum) {
  const file_list *files = &sum->options->files;
  oracle_options settings = {
      .limit_ms = sum->options->limit_ms, .pin = true, .without = sum->options->without};
  ls_error error = {0};
  if (!drill_prepare(&settings, &test)) {
    cli_complain("LOCKSTEP_DRILL: '%s' is no mnemonic", printable(getenv("LOCKSTEP_DRILL")));
    sum->failed = CLI_USAGE;
    return;
  }
  error.status = oracle_create(&settings, &sum->o, &error);
  if (error.status != LS_OK) {
    host_failed(sum, NULL, &error);
    return;
  }
  progress_begin("running", "files", files->count);
  while (sum->begun < files->count && !sum->failed && ready(files->paths[sum->begun])) {
    progress_at(sum->begun);
    run_file(sum, files->paths[sum->begun++]);
  }
  progress_end();
  if (!sum->failed && files->bad == 0 && sum->strangers > 0 &&
      sum->strangers == files->count - other_inputs(sum))
    cli_complain("nothing was run: %s; `lockstep import` makes entries of machine code",
                 sum->strangers == 1 ? "the file is no entry" : "none of the files is an entry");
  oracle_destroy(sum->o);
}

static int run_all(const run_options *options) {
  tally sum = {.options = options, .errors = options->files.errors};
  sum.entries = options->json ? json_array() : NULL;
  sum.skipped = json_object();
  sum.others = json_object();
  if (options->files.count > 0)
    run_files(&sum);
  else if (options->files.bad == 0)
    cli_complain("nothing to run: no file was found; `lockstep generate -n 100 -o DIR` makes entries");
  if (options->json)
    summary_json(&sum);
  else if (!options->listed &&
           (tally_count(&sum) + unusable(&sum) + other_inputs(&sum) > 0 || cut_short(&sum)))
    summary_text(&sum);
  json_decref(sum.skipped);
  json_decref(sum.others);
  return run_status(&sum);
}

int cmd_run(int argc, char **argv) {
  const struct argp parser = {
      option_table,
      parse_option,
      "FILE|DIR...",
      "Replays entries in the reference and in the calling thread and compares everything. Directories are "
      "searched for files.\vExample: lockstep run --quiet corpus/\n\n" CLI_EXIT_CODES,
      cli_help,
      NULL,
      NULL};
  run_options options = {.files.errors = json_array()};
  interrupt_watch(); /* before directories are listed, which may take a while */
  argp_parse(&parser, argc, argv, 0, NULL, &options);
  int status = run_all(&options);
  files_free(&options.files);
  return status;
}

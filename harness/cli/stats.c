/* lockstep stats: adds up what fuzzing processes wrote about themselves, for ci/fuzz and for people. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli.h"
#include "feedback/stats.h"
#include "words.h"

enum { OPTION_JSON = 'j', OPTION_FINDING = 'f', OPTION_ALSO = 'a' };

typedef struct arguments {
  bool json, trouble;
  unsigned files, named; /* accounts that were added; findings on the command line, whether there or not */
  size_t read, all;      /* of the files on the command line */
  stats sum;
  json_t *findings, *errors;
  json_t *also; /* inputs of other fuzz targets: how many, by name */
} arguments;

/* Nothing more once a signal was noted. */
static void add_file(arguments *a, const char *path) {
  static stats one;
  a->all++;
  if (interrupt_noted())
    return;
  progress_at(a->read++);
  int why = stats_read(&one, path);
  if (why) {
    const char *reason = why == EINVAL ? "not an account of this build: name a file that a fuzz "
                                         "target of it wrote under LOCKSTEP_STATS"
                                       : strerror(why);
    json_array_append_new(a->errors, json_trouble(path, reason));
    cli_complain("%s: %s", path, reason);
    a->trouble = true;
    return;
  }
  stats_add(&a->sum, &one);
  a->files++;
}

static void add_finding(arguments *a, const char *path) {
  a->named++;
  if (access(path, F_OK) == 0) {
    json_array_append_new(a->findings, json_text(path));
    return;
  }
  const char *reason = strerror(errno);
  json_array_append_new(a->errors, json_trouble(path, reason));
  cli_complain("%s: %s", path, reason);
  a->trouble = true;
}

/* TARGET=COUNT. */
static void add_target(arguments *a, char *text, const struct argp_state *state) {
  char *sign = strchr(text, '='), *end = sign;
  unsigned long long count = sign ? strtoull(sign + 1, &end, 10) : 0;
  if (!sign || sign == text || end == sign + 1 || *end)
    argp_error(state, "--also takes the name of a fuzz target, '=' and a number, not '%s'", printable(text));
  *sign = 0;
  json_object_set_new(a->also, text, json_integer((json_int_t)count));
}

static double seconds(const stats *s) {
  return s->ended - s->begun;
}

static double rate(const stats *s) {
  return seconds(s) > 0 ? (double)s->programs / seconds(s) : 0;
}

/* Counts by reason, those that are not 0. */
static json_t *json_reasons(const uint64_t counts[ORACLE_REASONS]) {
  json_t *reasons = json_object();
  for (int i = REASON_NONE + 1; i < ORACLE_REASONS; i++)
    if (counts[i])
      json_object_set_new(reasons, oracle_reason_name((oracle_reason)i), json_integer((json_int_t)counts[i]));
  return reasons;
}

static unsigned above_limits(const stats *s) {
  unsigned count = 0;
  for (int i = REASON_NONE + 1; i < ORACLE_REASONS; i++)
    count += stats_above_limit(s, (oracle_reason)i);
  return count;
}

static json_t *above_limits_json(const stats *s) {
  json_t *names = json_array();
  for (int i = REASON_NONE + 1; i < ORACLE_REASONS; i++)
    if (stats_above_limit(s, (oracle_reason)i))
      json_array_append_new(names, json_string(oracle_reason_name((oracle_reason)i)));
  return names;
}

static int stats_status(const arguments *a) {
  if (a->sum.counts.verdicts[VERDICT_DIFFERENT] > 0)
    return CLI_DIFFERENCE;
  if (interrupt_cuts(a->read, a->all))
    return CLI_INTERRUPTED + interrupt_noted();
  if (a->trouble)
    return CLI_BAD;
  return above_limits(&a->sum) > 0 ? CLI_OPEN : CLI_OK;
}

static void print_json(const arguments *a) {
  const stats *s = &a->sum;
  const uint64_t *v = s->counts.verdicts;
  json_t *top =
      json_pack("{s:I, s:f, s:f, s:i, s:i, s:I, s:I, s:I, s:I, s:I, s:o, s:o, s:o, s:O, s:O, s:O, s:o}",
                "programs", s->programs, "seconds", seconds(s), "per_second", rate(s), "forms_allowed",
                s->forms_allowed, "forms_seen", s->forms_seen, "same", v[VERDICT_SAME], "different",
                v[VERDICT_DIFFERENT], "inconclusive", v[VERDICT_INCONCLUSIVE], "refused", v[VERDICT_REFUSED],
                "skipped", v[VERDICT_SKIPPED], "reasons", json_reasons(s->counts.reasons), "once",
                json_reasons(s->counts.once), "above_limit", above_limits_json(s), "also", a->also,
                "findings", a->findings, "errors", a->errors, "interrupted", interrupt_json(a->read, a->all));
  json_dumpf(top, stdout, JSON_COMPACT); /* one line: ci/fuzz ends with it */
  putchar('\n');
  json_decref(top);
}

static double percent(uint64_t part, uint64_t whole) {
  return whole ? 100.0 * (double)part / (double)whole : 0;
}

static void print_stops(const oracle_counts *c) {
  const char *before = "  ended by        ";
  for (int i = 0; i < LS_STOP_KINDS; i++)
    if (c->stops[i]) {
      printf("%s%s %llu", before, ls_stop_kind_name((ls_stop_kind)i), (unsigned long long)c->stops[i]);
      before = "  ";
    }
  if (before[2] != 0)
    printf("  ended by        nothing");
  putchar('\n');
}

static void print_people(const arguments *a) {
  const stats *s = &a->sum;
  const uint64_t *v = s->counts.verdicts;
  printf("%llu %s ran in both executors in %.1f s: %.0f a second (%u %s)\n", (unsigned long long)s->programs,
         word_for(s->programs, "program", "programs"), seconds(s), rate(s), a->files,
         word_for(a->files, "process", "processes"));
  if (s->forms_allowed) /* a replay makes no programs, and does not ask */
    printf("  forms           %u of %u allowed ones were executed (%.1f %%)\n", s->forms_seen,
           s->forms_allowed, percent(s->forms_seen, s->forms_allowed));
  print_stops(&s->counts);
  for (int i = 0; i < VERDICTS; i++)
    printf("  %-15s %llu (%.3f %%)\n", verdict_name((verdict)i), (unsigned long long)v[i],
           percent(v[i], s->programs));
  for (int i = REASON_NONE + 1; i < ORACLE_REASONS; i++)
    if (s->counts.reasons[i])
      printf("    %-18s %llu: %s\n", oracle_reason_name((oracle_reason)i),
             (unsigned long long)s->counts.reasons[i], oracle_reason_sentence((oracle_reason)i));
  for (int i = REASON_NONE + 1; i < ORACLE_REASONS; i++)
    if (s->counts.once[i])
      printf("  once only       %llu %s, which did not come again\n", (unsigned long long)s->counts.once[i],
             oracle_reason_name((oracle_reason)i));
  for (int i = REASON_NONE + 1; i < ORACLE_REASONS; i++)
    if (stats_above_limit(s, (oracle_reason)i))
      printf("TOO MANY %s: %.4f %% of all programs, and %.4f %% are explained\n",
             oracle_reason_name((oracle_reason)i), percent(s->counts.reasons[i], s->programs),
             100 * stats_limit((oracle_reason)i));
  const char *target;
  json_t *count;
  json_object_foreach(a->also, target, count)
      printf("  %-15s %lld %s\n", printable(target), (long long)json_integer_value(count),
             word_for((size_t)json_integer_value(count), "input", "inputs"));
  for (size_t i = 0; i < json_array_size(a->findings); i++)
    printf("FINDING %s\n", printable(json_string_value(json_array_get(a->findings, i))));
  if (!a->named && v[VERDICT_DIFFERENT] == 0)
    puts("nothing diverged");
  if (interrupt_cuts(a->read, a->all))
    printf("interrupted after %zu of %zu %s\n", a->read, a->all, word_for(a->all, "file", "files"));
}

static error_t parse(int key, char *value, struct argp_state *state) {
  arguments *a = state->input;
  switch (key) {
  case OPTION_JSON:
    a->json = true;
    return 0;
  case OPTION_FINDING:
    add_finding(a, value);
    return 0;
  case OPTION_ALSO:
    add_target(a, value, state);
    return 0;
  case ARGP_KEY_ARG:
    add_file(a, value);
    return 0;
  case ARGP_KEY_NO_ARGS:
    argp_error(state, "name at least one file written under LOCKSTEP_STATS");
    return 0;
  default:
    return ARGP_ERR_UNKNOWN;
  }
}

int cmd_stats(int argc, char **argv) {
  static const struct argp_option options[] = {
      {"json", OPTION_JSON, NULL, 0, "Print one line of JSON", 0},
      {"finding", OPTION_FINDING, "FILE", 0, "A reproducer to be listed", 0},
      {"also", OPTION_ALSO, "TARGET=N", 0, "N inputs that another fuzz target ran, to be listed", 0},
      {0},
  };
  static const struct argp argp = {
      options,
      parse,
      "FILE...",
      "Adds up the accounts of fuzzing processes, which each write one to the file named by "
      "LOCKSTEP_STATS.\v" CLI_EXIT_CODES
      "\n\nExample: LOCKSTEP_STATS=account replay_fuzz_run corpus/fuzz_run; lockstep stats account",
      cli_help,
      NULL,
      NULL};
  static arguments a;
  a.findings = json_array();
  a.also = json_object();
  a.errors = json_array();
  stats_init(&a.sum);
  interrupt_watch();
  progress_begin("adding up", "files", 0);
  if (argp_parse(&argp, argc, argv, 0, NULL, &a) != 0)
    return CLI_USAGE;
  progress_end();
  stats_finish(&a.sum);
  if (a.json)
    print_json(&a);
  else if (a.files)
    print_people(&a);
  json_decref(a.findings);
  json_decref(a.also);
  json_decref(a.errors);
  return stats_status(&a);
}

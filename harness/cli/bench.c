/* lockstep bench: what runs cost, each measured against a bare floor in the same run. Absolute times drift
 * from minute to minute; floor and measured thing take turns, and the median of the ratios is what counts. */
#include <argp.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench_rows.h"
#include "cli.h"
#include "oracle/affinity.h"
#include "words.h"

enum { ROUNDS_DEFAULT = 25, ROUNDS_MAX = 1001, OPTION_JSON = 'j', OPTION_ROUNDS = 'r', OPTION_VECTORS = 'v' };

typedef struct arguments {
  int rounds;
  bool json;
  ls_vectors vectors; /* LS_VECTORS_AUTO: each width that there is */
  char **names;       /* of the rows wanted, NULL at the end; none: all */
} arguments;

typedef struct place {
  int cpu, other; /* this thread's; where a suite's own thread goes; -1: wherever */
} place;

typedef struct result {
  double floor_ns, ns, ratio;
} result;

static int by_value(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

static double median(double *values, int count) {
  qsort(values, (size_t)count, sizeof *values, by_value);
  return values[count / 2];
}

/* ---- Time ---- */

static clockid_t watch_clock;
static double watch_ns;

static double now(void) {
  struct timespec t;
  clock_gettime(watch_clock, &t);
  return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

void bench_pause(void) {
  watch_ns += now();
}

void bench_go_on(void) {
  watch_ns -= now();
}

/* Nanoseconds a time, or an item. */
static double time_loop(const bench_row *row, void *suite, bench_loop loop, int times) {
  watch_clock = row->clock ? row->clock : CLOCK_MONOTONIC;
  watch_ns = 0;
  bench_go_on();
  loop(suite, times);
  bench_pause();
  return watch_ns / times / (row->items > 0 ? row->items : 1);
}

/* What a ratio is divided by: the ratio of the two floors, or 1. */
static double ratio_of_floors(const bench_row *row, void *suite, int times) {
  if (!row->floor_of_floor)
    return 1;
  double bare = time_loop(row, suite, row->floor_of_floor, times);
  return time_loop(row, suite, row->floor_of_ours, times) / bare;
}

/* How many of the rounds of all rows are over. */
static size_t rounds_done, rounds_wanted;

/* False: it was interrupted, and the row has no result. */
static bool measure(void *suite, const bench_row *row, int rounds, result *r) {
  static double floors[ROUNDS_MAX], ours[ROUNDS_MAX], ratios[ROUNDS_MAX];
  time_loop(row, suite, row->floor, row->times / 4 + 1); /* warm up */
  time_loop(row, suite, row->ours, row->times / 4 + 1);
  ratio_of_floors(row, suite, row->times / 4 + 1);
  for (int i = 0; i < rounds; i++, rounds_done++) {
    progress_at(rounds_done);
    if (interrupt_noted())
      return false;
    floors[i] = time_loop(row, suite, row->floor, row->times);
    ours[i] = time_loop(row, suite, row->ours, row->times);
    ratios[i] = ours[i] / floors[i] / ratio_of_floors(row, suite, row->times);
  }
  *r = (result){median(floors, rounds), median(ours, rounds), median(ratios, rounds)};
  return true;
}

/* ---- Showing ---- */

static bool is_met(const bench_row *row, const result *r) {
  double got = row->goal == BENCH_NS_AT_MOST ? r->ns : r->ratio;
  return row->goal == BENCH_AT_LEAST ? got >= row->target : got <= row->target;
}

static void print_row(const bench_row *row, const result *r) {
  static const char *const relations[] = {
      [BENCH_AT_MOST] = "<=", [BENCH_AT_LEAST] = ">=", [BENCH_NS_AT_MOST] = "ns <="};
  printf("%-24s %12.1f %12.1f %8.*f   ", row->name, r->floor_ns, r->ns, r->ratio < 10 ? 3 : 2, r->ratio);
  if (row->goal == BENCH_NONE)
    printf("for information\n");
  else
    printf("%s %-5g %s\n", relations[row->goal], row->target, is_met(row, r) ? "met" : "MISSED");
  fflush(stdout);
}

static void add_row(json_t *rows, const bench_row *row, ls_vectors vectors, const result *r) {
  static const char *const relations[] = {
      [BENCH_AT_MOST] = "at most", [BENCH_AT_LEAST] = "at least", [BENCH_NS_AT_MOST] = "at most, of ns"};
  json_t *object = json_pack("{s:s, s:f, s:f, s:f}", "name", row->name, "floor_ns", r->floor_ns, "ns", r->ns,
                             "ratio", r->ratio);
  json_object_set_new(object, "vectors",
                      row->without_vectors ? json_null() : json_string(ls_vectors_name(vectors)));
  json_object_set_new(object, "met", row->goal == BENCH_NONE ? json_null() : json_boolean(is_met(row, r)));
  if (row->goal != BENCH_NONE) {
    json_object_set_new(object, "target", json_real(row->target));
    json_object_set_new(object, "target_is", json_string(relations[row->goal]));
  }
  json_array_append_new(rows, object);
}

static bool is_wanted(const bench_row *row, char *const *names) {
  bool wanted = !*names;
  for (; *names; names++)
    wanted |= strcmp(*names, row->name) == 0;
  return wanted;
}

/* ---- All rows ---- */

static const bench_suite *const suites[] = {&bench_runs, &bench_control};
enum { SUITES = sizeof suites / sizeof suites[0] };

/* Rows without vectors are measured with the last width alone. */
static bool is_due(const bench_row *row, const arguments *a, bool last) {
  return is_wanted(row, a->names) && (last || !row->without_vectors);
}

static ls_status run_suite(const bench_suite *suite, const arguments *a, const bench_setting *setting,
                           bool last, json_t *rows, ls_error *error) {
  void *made = NULL;
  for (size_t i = 0; i < suite->count && !interrupt_noted(); i++) {
    const bench_row *row = &suite->rows[i];
    result r;
    if (!is_due(row, a, last))
      continue;
    if (!made && !(made = suite->create(setting, error)))
      return error->status;
    if (!measure(made, row, a->rounds, &r))
      break;
    progress_hide();
    if (a->json)
      add_row(rows, row, setting->vectors, &r);
    else
      print_row(row, &r);
  }
  if (made)
    suite->destroy(made);
  return LS_OK;
}

static void print_end(const arguments *a, const place *where, json_t *rows) {
  if (!a->json) {
    printf("medians of %d %s; ratio = median of the rounds' ratios\n", a->rounds,
           word_for((size_t)a->rounds, "round", "rounds"));
    if (interrupt_cuts(rounds_done, rounds_wanted))
      printf("interrupted after %zu of %zu rounds: the other rows are not there\n", rounds_done,
             rounds_wanted);
    if (where->other >= 0)
      printf("this thread on CPU %d, guests that requests go to in a thread on CPU %d\n", where->cpu,
             where->other);
    else
      printf("this thread and guests that requests go to share a CPU, or are not pinned\n");
    return;
  }
  json_t *top = json_pack("{s:s, s:i, s:i, s:O, s:o}", "vectors", ls_vectors_name(ls_vectors_available()),
                          "cpu", where->cpu, "guest_cpu", where->other, "rows", rows, "interrupted",
                          interrupt_json(rounds_done, rounds_wanted));
  json_dumpf(top, stdout, JSON_INDENT(2));
  putchar('\n');
  json_decref(top);
}

static ls_status run_width(const arguments *a, const bench_setting *setting, bool last, json_t *rows,
                           ls_error *error) {
  ls_status status = LS_OK;
  if (!a->json)
    printf("%-24s %12s %12s %8s   %s\n", ls_vectors_name(setting->vectors), "floor ns", "ns", "ratio",
           "target");
  for (size_t i = 0; i < SUITES && !status; i++)
    status = run_suite(suites[i], a, setting, last, rows, error);
  return status;
}

static size_t count_rounds(const arguments *a, ls_vectors first, ls_vectors last) {
  size_t rows = 0;
  for (ls_vectors width = first; width <= last; width++)
    for (size_t i = 0; i < SUITES; i++)
      for (size_t j = 0; j < suites[i]->count; j++)
        rows += is_due(&suites[i]->rows[j], a, width == last);
  return rows * (size_t)a->rounds;
}

static ls_status run_all(const arguments *a, const place *where, ls_error *error) {
  ls_vectors first = a->vectors ? a->vectors : LS_VECTORS_SSE;
  ls_vectors last = a->vectors ? a->vectors : ls_vectors_available();
  json_t *rows = json_array();
  ls_status status = LS_OK;
  rounds_wanted = count_rounds(a, first, last);
  interrupt_watch();
  progress_begin("measuring", "rounds", rounds_wanted);
  for (ls_vectors width = first; width <= last && !status && !interrupt_noted(); width++) {
    const bench_setting setting = {where->other, width};
    status = run_width(a, &setting, width == last, rows, error);
  }
  progress_end();
  if (!status)
    print_end(a, where, rows);
  json_decref(rows);
  return status;
}

void bench_give_up(const char *what, const char *why) {
  cli_complain("bench: %s: %s", what, why);
  exit(CLI_BAD);
}

/* ---- The command ---- */

/* A CPU that this thread may run on, but not that which it is pinned to. */
static place find_place(const affinity *pin) {
  if (pin->cpu >= 0)
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
      if (cpu != pin->cpu && CPU_ISSET((unsigned)cpu, &pin->before))
        return (place){pin->cpu, cpu};
  return (place){pin->cpu, -1};
}

static bool is_row(const char *name) {
  for (size_t i = 0; i < SUITES; i++)
    for (size_t j = 0; j < suites[i]->count; j++)
      if (strcmp(suites[i]->rows[j].name, name) == 0)
        return true;
  return false;
}

/* " thread thread_x87 …" */
static const char *all_rows(void) {
  static char names[1024];
  for (size_t i = 0; i < SUITES; i++)
    for (size_t j = 0; j < suites[i]->count; j++) {
      size_t length = strlen(names);
      snprintf(names + length, sizeof names - length, " %s", suites[i]->rows[j].name);
    }
  return names;
}

static void parse_vectors(arguments *a, const char *value, const struct argp_state *state) {
  static const char *const names[] = {"all", "sse", "avx", "avx512"};
  unsigned width = LS_VECTORS_AUTO;
  while (width <= LS_VECTORS_AVX512 && strcmp(value, names[width]) != 0)
    width++;
  if (width > LS_VECTORS_AVX512)
    argp_error(state, "--vectors takes sse, avx, avx512 or all");
  if (width > ls_vectors_available())
    argp_error(state, "this machine has %s, not %s", ls_vectors_name(ls_vectors_available()), value);
  a->vectors = (ls_vectors)width;
}

static error_t parse(int key, char *value, struct argp_state *state) {
  arguments *a = state->input;
  char *end;
  long rounds;
  switch (key) {
  case OPTION_VECTORS:
    parse_vectors(a, value, state);
    return 0;
  case OPTION_JSON:
    a->json = true;
    return 0;
  case OPTION_ROUNDS:
    rounds = strtol(value, &end, 10);
    if (*end != 0 || rounds < 1 || rounds > ROUNDS_MAX)
      argp_error(state, "--rounds takes a number from 1 to %d", ROUNDS_MAX);
    a->rounds = (int)rounds;
    return 0;
  case ARGP_KEY_ARGS:
    a->names = state->argv + state->next;
    for (char **name = a->names; *name; name++)
      if (!is_row(*name))
        argp_error(state, "there is no row '%s'; there are:%s", printable(*name), all_rows());
    return 0;
  default:
    return ARGP_ERR_UNKNOWN;
  }
}

int cmd_bench(int argc, char **argv) {
  static const struct argp_option options[] = {
      {"json", OPTION_JSON, NULL, 0, "Print one JSON object", 0},
      {"vectors", OPTION_VECTORS, "WIDTH", 0,
       "Run with vectors as wide as that alone: sse, avx or avx512 (default: all that there are)", 0},
      {"rounds", OPTION_ROUNDS, "N", 0, "How often floor and measured thing take turns (default 25)", 0},
      {0},
  };
  static const struct argp argp = {
      options,
      parse,
      "[ROW...]",
      "Measures what runs and requests cost, each against a bare floor in "
      "the same run.\v"
      "A ratio is the measured time over its floor's; the target stands beside it. That of "
      "reference_over_thread is divided by the ratio of the floors of both. Nothing else should keep the "
      "machine busy meanwhile.\n\nExample: lockstep bench --json thread\n\n" CLI_EXIT_CODES,
      cli_help,
      NULL,
      NULL};
  arguments a = {.rounds = ROUNDS_DEFAULT, .names = argv + argc};
  if (argp_parse(&argp, argc, argv, 0, NULL, &a) != 0)
    return CLI_USAGE;
  affinity pin;
  affinity_pin(&pin);
  const place where = find_place(&pin);
  ls_error error;
  ls_status status = run_all(&a, &where, &error);
  affinity_release(&pin);
  if (!status)
    return interrupt_cuts(rounds_done, rounds_wanted) ? CLI_INTERRUPTED + interrupt_noted() : CLI_OK;
  cli_complain("bench: %s", cli_reason(&error));
  return status == LS_ERR_NO_REFERENCE ? CLI_NO_REFERENCE : CLI_BAD;
}

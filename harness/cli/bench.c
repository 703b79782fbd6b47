/* lockstep bench: what runs cost, each measured against a bare floor in the same run. Absolute times drift
 * from minute to minute; floor and measured thing take turns, and the median of the ratios is what counts. */
#include <argp.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>

#include "bench_rows.h"
#include "cli.h"
#include "oracle/affinity.h"

enum { ROUNDS_DEFAULT = 25, ROUNDS_MAX = 1001, OPTION_JSON = 'j', OPTION_ROUNDS = 'r' };

typedef struct arguments {
  int rounds;
  bool json;
} arguments;

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

static result measure(bench *b, const bench_row *row, int rounds) {
  static double floors[ROUNDS_MAX], ours[ROUNDS_MAX], ratios[ROUNDS_MAX];
  bench_time(b, row->floor, row->times / 4 + 1); /* warm up */
  bench_time(b, row->ours, row->times / 4 + 1);
  for (int i = 0; i < rounds; i++) {
    floors[i] = bench_time(b, row->floor, row->times);
    ours[i] = bench_time(b, row->ours, row->times);
    ratios[i] = ours[i] / floors[i];
  }
  return (result){median(floors, rounds), median(ours, rounds), median(ratios, rounds)};
}

static void print_row(const bench_row *row, const result *r) {
  bool met = row->at_least ? r->ratio >= row->target : r->ratio <= row->target;
  printf("%-22s %12.1f %12.1f %8.2f   %s %-5g %s\n", row->name, r->floor_ns, r->ns, r->ratio,
         row->at_least ? ">=" : "<=", row->target, met ? "met" : "MISSED");
  fflush(stdout);
}

static void add_row(json_t *rows, const bench_row *row, const result *r) {
  json_array_append_new(rows, json_pack("{s:s, s:f, s:f, s:f, s:f, s:s}", "name", row->name, "floor_ns",
                                        r->floor_ns, "ns", r->ns, "ratio", r->ratio, "target", row->target,
                                        "target_is", row->at_least ? "at least" : "at most"));
}

static void run_rows(bench *b, const arguments *a) {
  json_t *rows = json_array();
  if (!a->json)
    printf("%-22s %12s %12s %8s   %s\n", "", "floor ns", "ns", "ratio", "target");
  size_t count;
  const bench_row *table = bench_rows(&count);
  for (size_t i = 0; i < count; i++) {
    result r = measure(b, &table[i], a->rounds);
    if (a->json)
      add_row(rows, &table[i], &r);
    else
      print_row(&table[i], &r);
  }
  if (a->json) {
    json_t *top = json_pack("{s:s, s:o}", "vectors", ls_vectors_name(ls_vectors_available()), "rows", rows);
    json_dumpf(top, stdout, JSON_INDENT(2));
    putchar('\n');
    json_decref(top);
  } else {
    printf("medians of %d rounds; ratio = median of the rounds' ratios; vectors: %s\n", a->rounds,
           ls_vectors_name(ls_vectors_available()));
    json_decref(rows);
  }
}

static error_t parse(int key, char *value, struct argp_state *state) {
  arguments *a = state->input;
  char *end;
  long rounds;
  switch (key) {
  case OPTION_JSON:
    a->json = true;
    return 0;
  case OPTION_ROUNDS:
    rounds = strtol(value, &end, 10);
    if (*end != 0 || rounds < 1 || rounds > ROUNDS_MAX)
      argp_error(state, "--rounds takes a number from 1 to %d", ROUNDS_MAX);
    a->rounds = (int)rounds;
    return 0;
  case ARGP_KEY_ARG:
    argp_error(state, "unexpected argument '%s'", value);
    return 0;
  default:
    return ARGP_ERR_UNKNOWN;
  }
}

int cmd_bench(int argc, char **argv) {
  static const struct argp_option options[] = {
      {"json", OPTION_JSON, NULL, 0, "Print one JSON object", 0},
      {"rounds", OPTION_ROUNDS, "N", 0, "How often floor and measured thing take turns (default 25)", 0},
      {0},
  };
  static const struct argp argp = {options,
                                   parse,
                                   NULL,
                                   "Measures what runs cost, each against a bare floor in the same run.\v"
                                   "A ratio is the measured time over its floor's; the target stands beside "
                                   "it. Nothing else should keep the "
                                   "machine busy meanwhile.\n\nExample: lockstep bench --json",
                                   NULL,
                                   NULL,
                                   NULL};
  arguments a = {.rounds = ROUNDS_DEFAULT};
  if (argp_parse(&argp, argc, argv, 0, NULL, &a) != 0)
    return CLI_USAGE;
  affinity pin;
  affinity_pin(&pin);
  ls_error error;
  bench *b = bench_create(&error);
  if (!b) {
    fprintf(stderr, "lockstep bench: %s\n", error.text);
    return error.status == LS_ERR_NO_REFERENCE ? CLI_NO_REFERENCE : CLI_BAD;
  }
  run_rows(b, &a);
  bench_destroy(b);
  affinity_release(&pin);
  return CLI_OK;
}

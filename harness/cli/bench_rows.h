/* What `lockstep bench` measures: suites of rows, and the loops behind them. */
#ifndef CLI_BENCH_ROWS_H
#define CLI_BENCH_ROWS_H

#include <stdbool.h>
#include <time.h>

#include "lockstep.h"

/* Does its thing `times` times. `suite` is what the suite's `create` made. */
typedef void (*bench_loop)(void *suite, int times);

typedef enum bench_goal {
  BENCH_AT_MOST,    /* the ratio of ours to the floor */
  BENCH_AT_LEAST,   /* the same */
  BENCH_NS_AT_MOST, /* ours alone */
  BENCH_NONE        /* for information */
} bench_goal;

typedef struct bench_row {
  const char *name;
  bench_loop floor, ours;
  int times; /* a round */
  double target;
  bench_goal goal;
  double items;    /* nanoseconds are given for one of so many things done each time; 0 = 1 */
  clockid_t clock; /* CLOCK_MONOTONIC, or CLOCK_THREAD_CPUTIME_ID; 0 = the former */
  /* Both or none: the ratio is divided by that of these two, measured in the same round. */
  bench_loop floor_of_floor, floor_of_ours;
  bool without_vectors; /* the same whatever their width is: measured once */
} bench_row;

/* What a suite is made for. */
typedef struct bench_setting {
  int other;          /* CPU to which a thread of the suite's own goes, unless it is negative */
  ls_vectors vectors; /* how wide they are in all of it; never LS_VECTORS_AUTO */
} bench_setting;

typedef struct bench_suite {
  /* NULL and an error if something that is measured cannot be had here. */
  void *(*create)(const bench_setting *setting, ls_error *error);
  void (*destroy)(void *suite);
  const bench_row *rows;
  size_t count;
} bench_suite;

extern const bench_suite bench_runs, bench_control;

/* What a loop does between the two is not counted. */
void bench_pause(void);
void bench_go_on(void);

/* Prints both and ends the benchmark. */
_Noreturn void bench_give_up(const char *what, const char *why);

#endif

/* What `lockstep bench` measures: the rows, and the loops behind them. */
#ifndef CLI_BENCH_ROWS_H
#define CLI_BENCH_ROWS_H

#include <stdbool.h>

#include "lockstep.h"

typedef struct bench bench;

typedef struct bench_row {
  const char *name;
  void (*floor)(bench *b, int times);
  void (*ours)(bench *b, int times);
  int times; /* a round */
  double target;
  bool at_least; /* else at most */
} bench_row;

const bench_row *bench_rows(size_t *count);

/* NULL and an error if something that is measured cannot be had here. */
bench *bench_create(ls_error *error);
void bench_destroy(bench *b);

/* Nanoseconds a time. */
double bench_time(bench *b, void (*loop)(bench *b, int times), int times);

#endif

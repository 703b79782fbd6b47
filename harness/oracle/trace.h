/* Step by step through a program in both executors. */
#ifndef HARNESS_TRACE_H
#define HARNESS_TRACE_H

#include "oracle/oracle.h"

typedef struct trace_point {
  uint64_t step;    /* the first step, from 1 on, after which the executors differ; 0: none when stepped */
  uint64_t address; /* of the instruction that this step executed */
  bool ended;       /* they do not differ when stepped, and come to this end */
  ls_outcome end;   /* canonical */
} trace_point;

/* Finds the first instruction after which the two executors differ, for a test whose verdict is different.
 * Takes about as many stepped runs as the step's number has bits, twice. */
ls_status trace_first_difference(oracle *o, const testcase *test, trace_point *point, ls_error *error);

#endif

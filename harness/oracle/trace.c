#include "oracle/trace.h"

/* No program is stepped further: fuel bounds what is worth looking at. */
#define STEPS_MAX (UINT64_C(1) << 16)

typedef struct stepper {
  oracle *o;
  const testcase *test;
  ls_outcome reference, thread;
  ls_status status; /* of the last attempt */
  ls_error *error;
} stepper;

typedef enum after { AFTER_SAME, AFTER_ENDED, AFTER_DIFFERENT, AFTER_FAILED } after;

static after look(stepper *s, uint64_t steps) {
  bool equal;
  s->status = oracle_step(s->o, s->test, steps, &s->reference, &s->thread, &equal, s->error);
  if (s->status)
    return AFTER_FAILED;
  if (!equal)
    return AFTER_DIFFERENT;
  return s->reference.stop.kind == LS_STOP_STEPS ? AFTER_SAME : AFTER_ENDED;
}

/* The least number of steps after which they differ, given that they do after `high` and do not after `low`.
 * Nothing of the kind if an attempt fails: s->status. */
static uint64_t bisect(stepper *s, uint64_t low, uint64_t high) {
  while (high - low > 1 && !s->status) {
    uint64_t middle = low + (high - low) / 2;
    if (look(s, middle) == AFTER_DIFFERENT)
      high = middle;
    else
      low = middle;
  }
  return high;
}

static uint64_t address_before(stepper *s, uint64_t step) {
  if (step == 1)
    return testcase_layout()->windows[TESTCASE_CODE].address;
  look(s, step - 1);
  return s->reference.state.rip;
}

ls_status trace_first_difference(oracle *o, const testcase *test, trace_point *point, ls_error *error) {
  stepper s = {.o = o, .test = test, .error = error};
  *point = (trace_point){0};
  for (uint64_t steps = 1; steps <= STEPS_MAX; steps *= 2) {
    after what = look(&s, steps);
    point->ended = what == AFTER_ENDED;
    if (point->ended)
      point->end = s.reference;
    if (what == AFTER_FAILED || what == AFTER_ENDED)
      return s.status;
    if (what != AFTER_DIFFERENT)
      continue;
    point->step = bisect(&s, steps / 2, steps);
    if (!s.status)
      point->address = address_before(&s, point->step);
    return s.status;
  }
  return LS_OK;
}

/* A guest of the reference that is run in pieces, and somebody else who rings for it: for the one test
 * program that includes it. Everything but ringing is for the thread of the tests. */
#ifndef TESTS_PTRACE_ATTENTION_H
#define TESTS_PTRACE_ATTENTION_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <time.h>

#include "child.h"
#include "executor.h"
#include "must.h"
#include "places.h"
#include "raw.h"
#include "states.h"

enum { SLOT = 12, DEADLINE_S = 60 };

#define MS UINT64_C(1000000)

static ls_executor *executor;
static ls_image *image;
static ls_outcome outcome;

/* ---- Time --------------------------------------------------------------------------------------------- */

static inline uint64_t nanoseconds(clockid_t clock) {
  struct timespec now;
  assert_int_equal(clock_gettime(clock, &now), 0);
  return (uint64_t)now.tv_sec * 1000 * MS + (uint64_t)now.tv_nsec;
}

static inline bool too_late(uint64_t since) {
  return nanoseconds(CLOCK_MONOTONIC) - since > DEADLINE_S * 1000 * MS;
}

static inline void set_tick(uint64_t ns) {
  executor->tick_ns = ns;
  executor->ops->changed(executor);
}

/* ---- Running ------------------------------------------------------------------------------------------ */

static inline void load(const char *code, size_t size) {
  static ls_instruction pieces[RAW_PIECES];
  const ls_program program = raw_program(code, size, pieces);
  must(ls_image_build(image, &program, &layout, &error));
  must(ls_executor_load(executor, image, &error));
  executor->time_left = TIME_ENDLESS;
}

#define LOAD(code) load(code, sizeof code - 1)

static _Atomic uint64_t segments; /* begun */

static inline ls_stop_kind go(const ls_run *run, uint64_t address) {
  segments++;
  must(executor_go(executor, run, address, &outcome, &error));
  return outcome.stop.kind;
}

/* Goes on in place, at the RIP that was left. */
static inline ls_stop_kind go_on(uint64_t steps) {
  return go(&(ls_run){.state = &outcome.state, .uses = LS_USES_X87, .steps = steps}, outcome.state.rip);
}

/* ---- A guest that counts ------------------------------------------------------------------------------ */

/* lea r15, [r15+1]; lea r14, [r14+3]; jmp to the start: no flag changes, and the two registers and RIP say
 * whether every instruction was executed just once. */
#define COUNTING "\x4d\x8d\x7f\x01\x4d\x8d\x76\x03\xeb\xf6"

/* ---- Somebody else who rings -------------------------------------------------------------------------- */

static struct {
  pthread_t thread;
  uint32_t longest; /* random part of the pause before a ring, in turns of an empty loop */
  _Atomic int64_t pause;
  bool rings;
  _Atomic bool stop;
} ringer;

static inline void call_guest(void) {
  *executor->attention = 1;
  executor->ops->interrupt(executor, 0);
}

/* Once in each segment, at a random moment. */
static inline void *ring(void *unused) {
  (void)unused;
  for (uint64_t n = 0; !ringer.stop;) {
    if (n == segments)
      continue;
    n = segments;
    for (volatile int64_t i = ringer.pause + (int64_t)(mix(n) % ringer.longest); i > 0; i--) {
    }
    call_guest();
  }
  return NULL;
}

static inline void start_ringing(void *(*how)(void *), uint32_t longest) {
  ringer.longest = longest;
  ringer.pause = 0;
  ringer.stop = false;
  assert_int_equal(pthread_create(&ringer.thread, NULL, how, NULL), 0);
  ringer.rings = true;
}

static inline void stop_ringing(void) {
  if (!ringer.rings)
    return;
  ringer.stop = true;
  pthread_join(ringer.thread, NULL);
  ringer.rings = false;
  *executor->attention = 0;
}

/* ---- Around each test --------------------------------------------------------------------------------- */

static inline int setup(void **unused) {
  (void)unused;
  ls_layout_default(&layout, SLOT);
  must(ls_executor_create(LS_PTRACE, &layout, NULL, &executor, &error));
  image = ls_image_create();
  return 0;
}

static inline int teardown(void **unused) {
  (void)unused;
  stop_ringing();
  ls_executor_destroy(executor);
  ls_image_destroy(image);
  executor = NULL;
  return 0;
}

#define WITH_EXECUTOR(test)          cmocka_unit_test_setup_teardown(test, setup, teardown)
#define WITH_EXECUTOR_OF(part, test) PART(part, test, setup, teardown)

#endif

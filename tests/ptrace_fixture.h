/* An executor of the reference's kind for each test: for the one test program that includes it. */
#ifndef TESTS_PTRACE_FIXTURE_H
#define TESTS_PTRACE_FIXTURE_H

#include <stdlib.h>

#include "child.h"
#include "flags.h"
#include "must.h"
#include "places.h"
#include "raw.h"

enum { SLOT = 7 };

#define INNER (G ^ 0x1000000000)

typedef struct fixture {
  ls_executor *executor;
  ls_image *image;
} fixture;

static inline void load(fixture *f, const void *code, size_t size) {
  static ls_instruction pieces[RAW_PIECES];
  const ls_program program = raw_program(code, size, pieces);
  must(ls_image_build(f->image, &program, &layout, &error));
  must(ls_executor_load(f->executor, f->image, &error));
}

static inline void start_state(ls_state *s) {
  ls_state_init(s);
  s->gpr[LS_RSP] = S + 0x800;
}

static inline void run_ok(fixture *f, const ls_run *run, ls_outcome *outcome) {
  memset(outcome, 0xa5, sizeof *outcome);
  must(ls_executor_run(f->executor, run, outcome, &error));
}

static inline int setup(void **state) {
  fixture *f = calloc(1, sizeof *f);
  const uint64_t trapping = RFLAGS_CLEAN | RFLAGS_TF;
  *state = f;
  must(ls_executor_create(LS_PTRACE, &layout, NULL, &f->executor, &error));
  memcpy((uint8_t *)ls_executor_memory(f->executor, CONSTANTS) + (C_TF - C), &trapping, sizeof trapping);
  f->image = ls_image_create();
  return 0;
}

static inline int teardown(void **state) {
  fixture *f = *state;
  ls_executor_destroy(f->executor);
  ls_image_destroy(f->image);
  free(f);
  return 0;
}

#define WITH_EXECUTOR(test)          cmocka_unit_test_setup_teardown(test, setup, teardown)
#define WITH_EXECUTOR_OF(part, test) PART(part, test, setup, teardown)

#endif

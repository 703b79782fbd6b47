/* What every test program includes: cmocka and what it needs before it. */
#ifndef TESTS_CHECK_H
#define TESTS_CHECK_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "lockstep.h"

#undef skip /* a test that does not run must be seen: see PART */

/* ---- Parts -------------------------------------------------------------------------------------------- */

/* CTest runs a program several times, each as a test of its own that says in its name what the machine lacks
 * for it (tests/CMakeLists.txt). These choose what is run; by hand, without them, it is everything but the
 * parts, in both kinds, with the widest vectors:
 *   LOCKSTEP_TEST_PART=part        of the tests only those of this part
 *   LOCKSTEP_TEST_KIND=thread|child   only this kind of executor
 *   LOCKSTEP_TEST_VECTORS=sse|avx|avx512   as on a CPU that has no more (narrow.c) */

/* A test that wants something of the machine that the others of its program do not. */
#define PART(part, test, setup, teardown)                                                                    \
  { part ": " #test, test, setup, teardown, NULL }

enum { PARTS_MAX = 64 };

static inline const char *chosen_part(void) {
  return getenv("LOCKSTEP_TEST_PART");
}

/* For a test that stands in a part as well, where it does more. */
static inline bool in_part(const char *part) {
  return chosen_part() && strcmp(chosen_part(), part) == 0;
}

static inline bool is_chosen(const struct CMUnitTest *test) {
  const char *part = chosen_part(), *end = strstr(test->name, ": ");
  if (!part || !end)
    return !part && !end;
  return strlen(part) == (size_t)(end - test->name) && strncmp(test->name, part, strlen(part)) == 0;
}

/* Runs those that are chosen; that there are none is a failure. */
static inline int run_chosen(const char *name, const struct CMUnitTest *tests, size_t count,
                             CMFixtureFunction setup, CMFixtureFunction teardown) {
  struct CMUnitTest chosen[PARTS_MAX];
  size_t chosen_count = 0;
  for (size_t i = 0; i < count && chosen_count < PARTS_MAX; i++)
    if (is_chosen(&tests[i]))
      chosen[chosen_count++] = tests[i];
  if (!chosen_count || count > PARTS_MAX) {
    printf("%s: no test to run\n", name);
    return 1;
  }
  return _cmocka_run_group_tests(name, chosen, chosen_count, setup, teardown);
}

#undef cmocka_run_group_tests
#define cmocka_run_group_tests(tests, setup, teardown)                                                       \
  run_chosen(#tests, tests, sizeof(tests) / sizeof *(tests), setup, teardown)

/* ---- Executors ---------------------------------------------------------------------------------------- */

/* Makes a reference executor. If it cannot be made, says why and returns 1, for main to return. */
static inline int open_reference(const ls_layout *layout, ls_executor **reference) {
  ls_error why = {.text = ""};
  if (ls_executor_create(LS_PTRACE, layout, NULL, reference, &why) == LS_OK)
    return 0;
  printf("no reference executor: %s\n", why.text);
  return 1;
}

/* Is this kind of executor to be tried? */
static inline bool is_wanted(ls_kind kind) {
  const char *wanted = getenv("LOCKSTEP_TEST_KIND");
  if (wanted && strcmp(wanted, "thread") != 0 && strcmp(wanted, "child") != 0) {
    printf("LOCKSTEP_TEST_KIND=%s: thread or child\n", wanted);
    exit(2);
  }
  return !wanted || (strcmp(wanted, "thread") == 0) == (kind == LS_SIGNAL);
}

#endif

/* What every test program includes: cmocka and what it needs before it. */
#ifndef TESTS_CHECK_H
#define TESTS_CHECK_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "lockstep.h"

enum { TEST_SKIPPED = 77 };

/* Of tests that leave out what test_machine is skipped for. */
#define REFUSES_32_BIT "this system refuses 32-bit code: test_machine is shown as skipped for it\n"

/* Says why on standard output; for `return skip_test("…")` from main. */
static inline int skip_test(const char *why) {
  printf("SKIPPED: %s\n", why);
  return TEST_SKIPPED;
}

/* Makes a reference executor: *reference. If it cannot be made, what main returns then, having said why:
 * TEST_SKIPPED where the machine does not allow one, 1 where it fails in any other way. */
static inline int open_reference(const ls_layout *layout, ls_executor **reference) {
  ls_error why = {.text = ""};
  ls_status status = ls_executor_create(LS_PTRACE, layout, NULL, reference, &why);
  if (status == LS_OK)
    return 0;
  if (status == LS_ERR_NO_REFERENCE)
    return skip_test(why.text);
  printf("no reference executor: %s\n", why.text);
  return 1;
}

/* The same, but only to know: 0, there can be one. */
static inline int find_reference(const ls_layout *layout) {
  ls_executor *reference = NULL;
  int missing = open_reference(layout, &reference);
  ls_executor_destroy(reference);
  return missing;
}

/* What main returns of a program all of whose tests want a reference. */
static inline int run_with_reference(const ls_layout *layout, const struct CMUnitTest *tests, size_t count) {
  int missing = find_reference(layout);
  return missing ? missing : _cmocka_run_group_tests("tests", tests, count, NULL, NULL);
}

#define RUN_WITH_REFERENCE(layout, tests) run_with_reference(layout, tests, sizeof(tests) / sizeof *(tests))

#endif

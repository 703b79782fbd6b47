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

/* Says why on standard output; for `return skip("…")` from main. */
static inline int skip_test(const char *why) {
  printf("SKIPPED: %s\n", why);
  return TEST_SKIPPED;
}

#endif

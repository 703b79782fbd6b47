/* Calls that must succeed, or the running test fails: for programs and headers that keep one `error` for all
 * of them. */
#ifndef TESTS_MUST_H
#define TESTS_MUST_H

#include "check.h"

static ls_error error;

static inline void must(ls_status status) {
  if (status)
    fail_msg("%s: %s", ls_status_name(status), error.text);
}

#endif

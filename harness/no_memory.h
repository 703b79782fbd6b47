/* Filling in an ls_error where it is the harness that has no memory: whoever returns LS_ERR_MEMORY owes a
 * sentence. */
#ifndef HARNESS_NO_MEMORY_H
#define HARNESS_NO_MEMORY_H

#include <errno.h>
#include <stdio.h>

#include "lockstep.h"

/* "no memory for " and `what`; returns LS_ERR_MEMORY. `error` may be NULL. */
static inline ls_status no_memory(ls_error *error, const char *what) {
  if (error) {
    *error = (ls_error){.status = LS_ERR_MEMORY, .sys_errno = ENOMEM, .index = LS_NONE};
    snprintf(error->text, sizeof error->text, "no memory for %s", what);
  }
  return LS_ERR_MEMORY;
}

#endif

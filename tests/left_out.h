/* Rows of tables that are left out since the machine has a fault that they would show: an emulator's. */
#ifndef TESTS_LEFT_OUT_H
#define TESTS_LEFT_OUT_H

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* LOCKSTEP_TEST_LEAVE_OUT has the names of rows, each followed by '|'. ci/machines sets it, to rows of
 * ci/vm/rows whose fault it has shown to be there. */
static inline bool left_out(const char *name) {
  static char said[4096];
  const char *names = getenv("LOCKSTEP_TEST_LEAVE_OUT");
  size_t length = strlen(name);
  for (; names && *names; names += strcspn(names, "|"), names += *names == '|')
    if (strncmp(names, name, length) == 0 && names[length] == '|') {
      if (!strstr(said, name) && strlen(said) + length < sizeof said)
        printf("left out: %s\n", strcat(said, name) + strlen(said) - length);
      return true;
    }
  return false;
}

#endif

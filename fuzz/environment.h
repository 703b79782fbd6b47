/* What the targets that run test cases read from the environment. */
#ifndef FUZZ_ENVIRONMENT_H
#define FUZZ_ENVIRONMENT_H

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "forms/features.h"

/* LOCKSTEP_WITHOUT=FEATURE,...: the processor is taken to lack these. A name that is no feature's ends the
 * process with `status`: a run that was to be without something must not be one with it. */
static inline feature_set features_hidden(int status) {
  const char *names = getenv("LOCKSTEP_WITHOUT"), *at;
  feature_set set;
  size_t length;
  if (!names || !*names)
    return 0;
  if (features_parse(names, &set, &at, &length))
    return set;
  fprintf(stderr, "lockstep: LOCKSTEP_WITHOUT: '%.*s' is no feature\n", (int)length, at);
  _exit(status);
}

#endif

/* What judging a program that was inspected (inspect.c) and telling about it (report.c) share. Internal to
 * them. */
#ifndef HARNESS_INSPECT_INSPECT_INNER_H
#define HARNESS_INSPECT_INSPECT_INNER_H

#include "inspect/inspect.h"

enum { SIGHTS_MAX = JOURNALS * LOOKS_MAX };

struct inspector {
  reference *reference;
  crew *crew;
  subject subject;
  plan plan;
  inspect_ending expected, got, again;
  sight sights[SIGHTS_MAX], *order[SIGHTS_MAX];
  const look *looks[SIGHTS_MAX]; /* what each sight was made from */
  uint32_t count;
  bool struck;
  check_result check;
  const char *trouble; /* what is wrong, or NULL */
  const look *at;      /* what was seen then, or NULL */
  inspect_verdict verdict;
  oracle_reason reason; /* it was left out */
  inspect_counts counts;
};

#endif

/* What a fuzzing process did, in a file that outlives it: rewritten every second or so and at the end, so
 * that Ctrl-C or a crash loses at most that much. Read again by `lockstep stats` of the same build. */
#ifndef HARNESS_STATS_H
#define HARNESS_STATS_H

#include "forms/forms.h"
#include "oracle/oracle.h"

enum { STATS_FORMS_MAX = 1 << 15 };

typedef struct stats {
  char magic[8];          /* "LSSTATS" */
  uint32_t size;          /* of this structure: another build's file is not read */
  uint32_t forms;         /* forms_count() */
  uint64_t programs;      /* run in at least the reference */
  double begun, ended;    /* CLOCK_MONOTONIC in seconds, the same for all processes of a machine */
  uint32_t forms_allowed; /* 0: not known, nothing was generated */
  uint32_t forms_seen;    /* of the allowed ones; filled in by stats_finish */
  oracle_counts counts;
  uint8_t allowed[STATS_FORMS_MAX / 8], seen[STATS_FORMS_MAX / 8];
} stats;

void stats_init(stats *s);
void stats_see(stats *s, form_id form);
void stats_allow(stats *s, form_id form);

/* Counts the allowed forms and those of them that were seen. */
void stats_finish(stats *s);

/* The largest share of all programs that a reason for an inconclusive or refused verdict may have:
 * docs/INTERNALS.md explains that many, and more is a fault of ours until it is explained. 1 where there is
 * no limit. */
double stats_limit(oracle_reason reason);

/* Is the reason's count above its limit, by more than chance explains? */
bool stats_above_limit(const stats *s, oracle_reason reason);

/* Adds `more` to `sum`, whose time becomes that from the earlier begin to the later end. */
void stats_add(stats *sum, const stats *more);

/* A new account that lives in the file `path`, which is replaced; in memory alone where that is NULL. It is
 * never taken away. NULL, with errno set, if the file cannot be made or the disk has no room for it. */
stats *stats_open(const char *path);

/* Reads a file. Returns 0, or errno; a file of another kind or build is EINVAL. */
int stats_read(stats *s, const char *path);

#endif

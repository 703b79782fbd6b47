/* Judges what was seen of a running program against its trace: the states between its instructions, in order,
 * from a single-stepped run of the reference. Knows nothing of controllers and threads.
 *
 * A trace consists of segments, one for each value of the loop's counter, which are asked for as they are
 * needed: most of a long run is never looked at. A place in it is (segment, entry). */
#ifndef HARNESS_INSPECT_CHECK_H
#define HARNESS_INSPECT_CHECK_H

#include <stdbool.h>

#include "lockstep.h"

/* The state before an instruction. */
typedef struct trace_entry {
  uint64_t hash;        /* of the canonical state without rip */
  uint64_t rip;         /* in the layout of the reference */
  uint32_t instruction; /* index, or LS_NONE: rip is at none */
  bool repeats;         /* a repeated string instruction: states may be seen between its repetitions */
} trace_entry;

typedef enum trace_end {
  TRACE_GOES_ON, /* the next segment follows */
  TRACE_ENDS,    /* the program ends with the last entry's instruction */
  TRACE_CUT      /* what follows is not known */
} trace_end;

typedef struct trace_segment {
  const trace_entry *entries;
  uint32_t count; /* 0 with TRACE_ENDS: the program never gets here */
  trace_end end;
} trace_segment;

/* Where segments come from. The result is valid until the check is over; a segment with no entries and
 * TRACE_CUT is one that cannot be had. */
typedef struct trace {
  trace_segment (*segment)(void *context, uint64_t number);
  void *context;
} trace;

/* What a sight must be, compared with the earlier sight `from`. */
typedef enum sight_relation {
  SIGHT_FREE,     /* anything that is no earlier than what was seen before */
  SIGHT_SAME,     /* the guest was paused all the time */
  SIGHT_STEPS,    /* `count` instructions further on */
  SIGHT_UNTIL,    /* the next time that `instruction` is about to be executed, again if it was there */
  SIGHT_NO_STEPS, /* no sight: the program ended before it had executed `count` instructions */
  SIGHT_NO_UNTIL  /* no sight: the program ended before it came to `target` */
} sight_relation;

typedef struct sight {
  uint64_t begin, end; /* when it was taken, by one clock for all threads: no two moments are equal */
  uint64_t segment, hash;
  uint64_t rip;         /* 0: the layout is another one */
  uint32_t instruction; /* LS_NONE: at none */
  sight_relation relation;
  const struct sight *from; /* NULL with SIGHT_FREE */
  uint64_t count;
  uint32_t target;
  /* Filled in by the check. */
  uint64_t offset; /* the earliest entry it can be */
  bool known;      /* offset is: it was found in the trace */
  bool between;    /* it was seen between repetitions of that entry's instruction */
} sight;

typedef struct check_result {
  uint32_t checked, unknown; /* sights that were found; that lie where the trace is cut */
  uint32_t counted;          /* relations that were proved */
  uint32_t at;               /* index of the sight at fault */
  const char *trouble;       /* what is wrong with it, or NULL */
} check_result;

/* Judges `count` sights, in any order. `exact`: relations hold; without, threads worked against each other,
 * and only the states and their order count. True: nothing is wrong. */
bool check_sights(const trace *t, sight *const *sights, uint32_t count, bool exact, check_result *result);

#endif

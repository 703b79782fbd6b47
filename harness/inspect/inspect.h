/* A random program is inspected while it runs, and must neither notice nor show what it does not do: it ends
 * as the undisturbed reference does, and every state that was seen on the way is one that the reference goes
 * through, in its order. */
#ifndef HARNESS_INSPECT_INSPECT_H
#define HARNESS_INSPECT_INSPECT_H

#include "inspect/crew.h"

typedef enum inspect_verdict {
  INSPECT_SAME,
  INSPECT_DIFFERENT,
  INSPECT_LEFT_OUT /* it may not run in this process, or says nothing: the reason tells why */
} inspect_verdict;

typedef struct inspect_counts {
  uint64_t programs; /* that ran in a controller */
  uint64_t left_out[ORACLE_REASONS];
  uint64_t struck; /* programs that at least one request caught between start and end */
  uint64_t proved; /* programs of which every sight was found in the trace; */
  uint64_t cut;    /* of which some were not, since their trace is too long; */
  uint64_t unseen; /* of which nothing was seen but before and after */
  uint64_t looped, moved, wild, by_reference; /* programs with a loop; reloaded in another order; … */
  uint64_t sights[3];                         /* looks by ls_activity */
  uint64_t checked, unknown;                  /* sights found in the trace; where it is cut */
  uint64_t relations;                         /* counts of steps and the like that were proved */
  uint64_t stops[LS_STOP_KINDS];
  /* Interrupts that struck code which stays, by where: an instruction of the program, inserted code, the
   * gate, the host on its way in or out or elsewhere. */
  uint64_t in_body, in_inserted, in_gate, in_host;
} inspect_counts;

typedef struct inspector inspector;

/* LS_ERR_NO_REFERENCE where tracing is not possible. */
ls_status inspector_create(inspector **out, const crew_options *options, ls_error *error);
void inspector_destroy(inspector *i);

/* From now on the processor is taken to lack these features: programs that need them are left out. */
void inspector_hide(inspector *i, feature_set without);

/* Takes any bytes (inspect/subject.h). Errors are the host's. */
ls_status inspector_run(inspector *i, const uint8_t *data, size_t size, inspect_verdict *what,
                        ls_error *error);

/* Why the last program was left out; REASON_NONE: it was not. */
oracle_reason inspector_reason(const inspector *i);

/* What was wrong with the last run; NULL: nothing. */
const char *inspector_trouble(const inspector *i);

/* All about it. */
void inspector_report(FILE *to, inspector *i);

/* Sets a counter for each kind of thing that the last run did: what caught the guest at which form of
 * instruction, what was answered, how it ended. `size` is a power of two. */
void inspector_note(const inspector *i, uint8_t *counters, size_t size);

const inspect_counts *inspector_counts(const inspector *i);
void inspector_print_counts(FILE *to, const inspector *i);

/* The executor in which it can be found out what instructions this machine has. */
ls_executor *inspector_reference(const inspector *i);

#endif

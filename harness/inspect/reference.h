/* The reference of an inspected program: may it run in this process, how does it end, and which states does
 * it go through. */
#ifndef HARNESS_INSPECT_REFERENCE_H
#define HARNESS_INSPECT_REFERENCE_H

#include "inspect/check.h"
#include "inspect/subject.h"
#include "oracle/oracle.h"

typedef struct reference reference;

/* How a run ended. */
typedef struct inspect_ending {
  ls_stop stop;
  ls_state state; /* canonical */
  ls_window code; /* the window that was in force */
  uint8_t memory[TESTCASE_WINDOWS][8192];
} inspect_ending;

/* LS_ERR_NO_REFERENCE where tracing is not possible. Used by the thread that made it. */
ls_status reference_create(reference **out, ls_error *error);
void reference_destroy(reference *r);

/* From now on the processor is taken to lack these features, and what rests on them. */
void reference_hide(reference *r, feature_set without);

/* Lays it out and runs it. LS_OK with *reason REASON_NONE: it may run in this process, and *ending is how it
 * ends; with another reason: it may not, or says nothing. Takes away s->movable from a program whose end
 * depends on the order of its instructions, or on where its code is; gives fuel to one that would never end.
 */
ls_status reference_run(reference *r, subject *s, oracle_reason *reason, inspect_ending *ending,
                        ls_error *error);

/* What the reference laid out. */
const ls_image *reference_image(const reference *r);

ls_executor *reference_child(const reference *r);

/* The states that the program goes through, which are found out when they are asked for, up to a bound for
 * each program. Segment n is the one in which the counter is s->iterations - n. */
trace reference_trace(reference *r);

/* Number of the segment that a state lies in, or UINT64_MAX: in none. */
uint64_t reference_segment(const subject *s, const ls_state *state);

/* Of a canonical state without rip. */
uint64_t reference_hash(const ls_state *canonical);

/* The state of an entry of the trace, by stepping once more. False if it cannot be had. */
bool reference_state(reference *r, uint64_t segment, uint64_t offset, ls_state *state);

/* An error of the reference while it traced: what was asked for then is not known. */
ls_status reference_trouble(const reference *r);

#endif

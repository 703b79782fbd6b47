/* What a run did, as numbers that lead a fuzzer: new behaviour of the machine, not new branches of the
 * harness. */
#ifndef HARNESS_BEHAVIOUR_H
#define HARNESS_BEHAVIOUR_H

#include "forms.h"
#include "oracle.h"
#include "testcase.h"

enum {
  BEHAVIOUR_FORMS = 1 << 15,  /* room for all forms: seen to complete in a run */
  BEHAVIOUR_FAULTS = 1 << 12, /* hashes of (form, signal, code): what faulted how */
  BEHAVIOUR_FLAGS = 1 << 12,  /* hashes of (last form, status flags) after a clean exit */
  BEHAVIOUR_STOPS = 1 << 10,  /* hashes of (stop kind, part, window and alignment of a fault's address) */
  BEHAVIOUR_ACCESS = 1 << 10, /* hashes of the shape of memory operands (scan_info.access) */
  BEHAVIOUR_SIZE = BEHAVIOUR_FORMS + BEHAVIOUR_FAULTS + BEHAVIOUR_FLAGS + BEHAVIOUR_STOPS + BEHAVIOUR_ACCESS
};

/* Sets counters[…] (BEHAVIOUR_SIZE bytes, zero before) for a test that both executors ran. */
void behaviour_note(const testcase *test, const oracle_result *result, uint8_t *counters);

/* Calls `seen` for each form that was executed for sure: those on the straight way from the entry to the
 * first branch that may go either way, and the one that stopped. Not more is known without a trace. */
void behaviour_forms(const testcase *test, const oracle_result *result,
                     void (*seen)(form_id form, void *context), void *context);

#endif

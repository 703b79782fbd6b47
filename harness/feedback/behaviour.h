/* What a run did, as numbers that lead a fuzzer: new behaviour of the machine, not new branches of the
 * harness.
 *
 * The tables are coarse on purpose. An engine keeps an input for every counter that is new and pays for each
 * it keeps, at once and with every input after: with one counter for each of the 14,000 forms libFuzzer spent
 * more time on its corpus than on running programs. That all forms are met is the generator's business. */
#ifndef HARNESS_BEHAVIOUR_H
#define HARNESS_BEHAVIOUR_H

#include "forms/forms.h"
#include "oracle/oracle.h"
#include "testcase/testcase.h"

enum {
  BEHAVIOUR_STOPS = 1 << 11, /* (mnemonic that stopped it or was last, stop kind) */
  BEHAVIOUR_FAULTS =
      1 << 10, /* (category of the instruction, signal, code, window and alignment of the address) */
  BEHAVIOUR_FLAGS = 1 << 9,  /* (category of the last instruction, status flags) after a clean exit */
  BEHAVIOUR_ACCESS = 1 << 9, /* shapes of memory operands (scan_info.access) */
  BEHAVIOUR_SIZE = BEHAVIOUR_STOPS + BEHAVIOUR_FAULTS + BEHAVIOUR_FLAGS + BEHAVIOUR_ACCESS
};

/* Sets counters[…] (BEHAVIOUR_SIZE bytes, zero before) for a test that both executors ran. Each table is
 * indexed by a hash of what stands beside its size. */
void behaviour_note(const testcase *test, const oracle_result *result, uint8_t *counters);

/* Calls `seen` for each form that was executed for sure: those on the straight way from the entry to the
 * first branch that may go either way, and the one that stopped. Not more is known without a trace. */
void behaviour_forms(const testcase *test, const oracle_result *result,
                     void (*seen)(form_id form, void *context), void *context);

#endif

/* What the instruction that is about to be stepped does to stepping by the trap flag. Internal to src/signal;
 * everything here is signal safe, and runs with whatever FS is: no TLS. */
#ifndef LOCKSTEP_SIGNAL_STEPPING_H
#define LOCKSTEP_SIGNAL_STEPPING_H

#include "thread.h"

/* What an instruction about to be stepped does to stepping. */
typedef enum step_effect {
  STEP_PLAIN,
  STEP_REPEATS,      /* a repeated string instruction: traps after every repetition */
  STEP_PUSHES_FLAGS, /* PUSHF: would show the guest our TF */
  STEP_SETS_TF       /* POPF or IRET of an image with TF: from here on TF is the guest's */
} step_effect;

/* Notes in record->coming_at and coming what the instruction at `rip` will do. */
HIDDEN void stepping_expect(thread_record *record, const signal_executor *executor, uint64_t rip,
                            uint64_t rsp);

/* Guest memory through this process's alias, or NULL if [address, address + size) lies in no window. */
HIDDEN uint8_t *stepping_memory(const sandbox *box, uint64_t address, uint64_t size);

#endif

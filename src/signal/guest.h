/* The in-thread executor as its own files see it. Internal to src/signal. */
#ifndef LOCKSTEP_SIGNAL_GUEST_H
#define LOCKSTEP_SIGNAL_GUEST_H

#include "../executor.h"
#include "gate.h"

typedef struct signal_executor {
  ls_executor base;
  gate_data *data; /* at inner + GATE_CODE */
  gate_enter enter;
  uint64_t inner;      /* gate_inner(layout.gate), where the exit is */
  uint64_t resume;     /* address in the gate at which a thread leaves that the handler has stopped */
  uint64_t unstarted;  /* the same for one that has not yet begun to run the guest */
  uint64_t enter_at;   /* address of `enter`: from here to code_end the gate loads the state */
  uint64_t code_end;   /* address of the end of the gate's code */
  uint64_t serial;     /* unique in the process and its children; never 0 */
  uint32_t gate_flags; /* GATE_FSGSBASE or 0 */
} signal_executor;

#endif

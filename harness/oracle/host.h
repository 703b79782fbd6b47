/* Looks after the host: what a run in the calling thread must leave as it was although no outcome shows it. A
 * change is noted, and put back, so that the harness can go on and say what happened. */
#ifndef HARNESS_HOST_H
#define HARNESS_HOST_H

#include <stdbool.h>
#include <stdint.h>

/* What host_registers_call (host_call.S) sees around a call; 16-bit and 32-bit registers are zero-extended.
 */
typedef struct host_registers {
  uint64_t rbx, rbp, r12, r13, r14, r15; /* to be there at the call; after it, what is there */
  uint64_t rflags, mxcsr, fcw, ds, es, fs, gs;
  uint64_t fs_base, gs_base; /* with FSGSBASE */
} host_registers;

enum { HOST_NAME = 24, HOST_CHANGES_MAX = 16 };

typedef struct host_change {
  char name[HOST_NAME]; /* "mxcsr", "alternate stack", "handler of signal 11" */
  uint64_t before, after;
} host_change;

/* All zero to begin with. */
typedef struct host_watch {
  uint64_t calls;
  bool knows_cpu, fsgsbase, in_use_asked; /* whether the CPU is asked for bases, and for what is in use */
  uint32_t count; /* of changes in the last call; only the first HOST_CHANGES_MAX are kept */
  host_change changes[HOST_CHANGES_MAX];
} host_watch;

/* Calls function(context) in this thread and compares, before and after it: the registers above (of RFLAGS
 * the control flags), whether upper halves of YMM are in use, the alternate signal stack and, in the first
 * and then in every 64th call, the signal mask and the handlers of all signals. Returns whether something has
 * changed; w->changes says what, and it has been put back. Some 100 ns. */
bool host_call(host_watch *w, void (*function)(void *), void *context);

#endif

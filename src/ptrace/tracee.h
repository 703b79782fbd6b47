/* The reference child: made, kept, ended. Internal to src/ptrace.
 *
 * Nothing is mapped in it but the guest's windows and guards and the gate (stub.h); the vsyscall page, which
 * is not a mapping, cannot be taken away, but a seccomp filter stops calls to it; and the vDSO where the
 * kernel has sealed it. It holds no descriptor, ignores no signal and handles none, and has a timer of CPU
 * time, the kernel's included, whose SIGPROF stops it every tick: the deadline of every wait. It dies with
 * the thread that made it (PR_SET_PDEATHSIG, PTRACE_O_EXITKILL). */
#ifndef LOCKSTEP_PTRACE_TRACEE_H
#define LOCKSTEP_PTRACE_TRACEE_H

#include <stdbool.h>
#include <sys/types.h>

#include "lockstep.h"
#include "sandbox.h"
#include "stub.h"

typedef struct tracee {
  pid_t pid;       /* 0: there is none */
  uint64_t tracer; /* the thread that may use ptrace on it, by a number that no other thread gets */
  int fd;          /* memfd of the gate area, -1: none */
  gate_in *in;     /* aliases of the shared pages, NULL: none */
  gate_out *out;
  uint8_t *alias; /* of the whole memfd */
  bool sealed;    /* the start failed because memory is sealed */
  uint64_t gate;  /* layout.gate */
  uint64_t inner; /* where the stub and the shared pages lie in the child */
  uint64_t load;  /* addresses in the child: the way in for these vectors, ... */
  uint64_t step;  /* ... the one that ends in a stop, so that the tracer sets general registers */
} tracee;

/* The address in the child of a label of stub.S. */
uint64_t tracee_label(const tracee *child, const uint8_t *label);

/* Makes the gate area for a sandbox. On failure nothing is owned. */
ls_status tracee_open(tracee *child, const sandbox *box, ls_vectors vectors, ls_error *error);

/* Makes the process and brings it to its first stop, ready to run; the caller has none. LS_ERR_NO_REFERENCE
 * says why tracing is not possible, LS_ERR_ADDRESS which window the kernel would not map. */
ls_status tracee_start(tracee *child, const sandbox *box, uint64_t tick_ns, ls_error *error);

/* May the calling thread use ptrace on it? If there is one at all. */
bool tracee_is_mine(const tracee *child);

/* Kills and reaps it, if there is one and it is still this process's. In any thread, also after the tracer's
 * end. */
void tracee_end(tracee *child);

/* Drops the gate area, in this process alone; a process must have been ended or be another process's. */
void tracee_close(tracee *child);

#endif

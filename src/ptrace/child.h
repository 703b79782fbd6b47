/* The child's own code between fork and the stub. Internal to src/ptrace. */
#ifndef LOCKSTEP_PTRACE_CHILD_H
#define LOCKSTEP_PTRACE_CHILD_H

#include <stdint.h>
#include <sys/types.h>

typedef struct child_setup {
  pid_t parent;
  int gate_fd, guest_fd; /* the descriptors to keep */
  const uint32_t *go;    /* shared: becomes 1 once the child is traced */
  uint64_t inner;        /* where the stub and its data go */
  uint64_t start;        /* the stub's start-up code in it */
} child_setup;

/* Exit codes of a child that got no further. */
enum { CHILD_ORPHAN = 1, CHILD_NOT_TRACED, CHILD_NO_GATE };

/* Forks. Returns the child's id, or a negative errno; does not return in the child, which puts itself in
 * order and goes on in the stub. All signals must be blocked. */
pid_t child_fork(const child_setup *setup);

/* The same for a child that asks to trace a process that does not exist, which has no effect, and exits:
 * where a seccomp filter ends those that do, it dies by SIGSYS. `unused` is NULL. */
pid_t child_try_to_trace(const child_setup *unused);

#endif

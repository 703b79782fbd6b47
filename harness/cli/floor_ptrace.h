/* Bare ptrace. The floor of a reference run: a child that makes system calls, stopped at each by
 * PTRACE_SYSEMU, its general registers read once a stop. And what a debugger does that looks at a process
 * that runs. */
#ifndef CLI_FLOOR_PTRACE_H
#define CLI_FLOOR_PTRACE_H

#include <stdint.h>
#include <sys/types.h>

#include "floor.h"

/* Returns the child, stopped, or -1. It inherits the caller's CPU mask. */
pid_t floor_ptrace_start(void);

/* One round trip: resume, wait, GETREGS. 0, or -1. */
int floor_ptrace_trip(pid_t child);

/* A seized child that spins with the vectors of *start, that wide, on CPU `cpu` if that is not negative;
 * stopped when this returns. Or -1. It shares `spinner` with this process. */
pid_t floor_ptrace_spin(const ls_state *start, floor_spinner *spinner, int cpu, ls_vectors vectors);

/* Lets it run; stops it. 0, or -1. */
int floor_ptrace_go(pid_t child);
int floor_ptrace_stop(pid_t child);

/* One look at it while it runs: PTRACE_INTERRUPT, wait, all registers, go on. 0, or -1. */
int floor_ptrace_look(pid_t child);

void floor_ptrace_end(pid_t child);

#endif

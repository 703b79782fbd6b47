/* The floor of a reference run: a child that makes system calls, stopped at each by PTRACE_SYSEMU, its
 * general registers read once a stop. */
#ifndef CLI_FLOOR_PTRACE_H
#define CLI_FLOOR_PTRACE_H

#include <stdint.h>
#include <sys/types.h>

/* Returns the child, stopped, or -1. It inherits the caller's CPU mask. */
pid_t floor_ptrace_start(void);

/* One round trip: resume, wait, GETREGS. 0, or -1. */
int floor_ptrace_trip(pid_t child);

void floor_ptrace_end(pid_t child);

#endif

/* Wait statuses of a traced child, decoded once. Internal to src/ptrace. */
#ifndef LOCKSTEP_PTRACE_WAIT_H
#define LOCKSTEP_PTRACE_WAIT_H

#include <stdbool.h>
#include <sys/types.h>

/* What happened, and how to go on from it. */
typedef enum wait_event {
  WAIT_SYSCALL, /* about to make a system call (PTRACE_O_TRACESYSGOOD) */
  WAIT_SIGNAL,  /* a signal is about to be delivered: resuming with 0 suppresses it */
  WAIT_GROUP,   /* a group stop, or its end, seen through PTRACE_SEIZE: resume */
  WAIT_DEAD,    /* exited or killed, and reaped: there is no process any more */
  WAIT_NOTHING  /* wait_until only: nothing happened in time */
} wait_event;

typedef struct wait_report {
  wait_event event;
  int signal; /* WAIT_SIGNAL: which; WAIT_DEAD: that killed it, or 0 */
  int code;   /* WAIT_DEAD without a signal: the exit code */
} wait_report;

wait_report wait_decode(int status);

/* Blocks until something happens to `pid`, which must be running under ptrace with its tick armed: the tick
 * is the deadline, for CPU time in user mode or the kernel; one that sleeps there, which no guest can bring
 * about, would have none. A process that is not this thread's to wait for is WAIT_DEAD. */
wait_report wait_for(pid_t pid);

/* The same for a child whose tick is not armed: polls for at most `milliseconds`, with 0 once. */
wait_report wait_until(pid_t pid, int milliseconds);

#endif

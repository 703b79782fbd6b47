/* The reference executor's structure and the steps of a run that running through and stepping share. Internal
 * to src/ptrace. */
#ifndef LOCKSTEP_PTRACE_EXECUTOR_H
#define LOCKSTEP_PTRACE_EXECUTOR_H

#include <signal.h>
#include <stdatomic.h>
#include <sys/user.h>

#include "executor.h"
#include "tracee.h"

typedef struct ptrace_executor {
  ls_executor base;
  _Atomic uint32_t attention; /* what base.attention points to */
  _Atomic pid_t running;      /* the child while it is resumed, else 0: whom `interrupt` rings */
  _Atomic uint64_t resumed;   /* when that was, CLOCK_MONOTONIC, nanoseconds */
  tracee child;
  clockid_t clock;   /* of the child's CPU time */
  uint64_t ticked;   /* what it showed at the last tick, or at the child's start */
  int64_t uncounted; /* ns of the guest's time that no sample stands for yet; less than a period either way */
  uint64_t left;     /* RIP of the stop after a clean run */
  uint64_t cs, ss;   /* selectors that the child's stub runs with */
  uint64_t gs_base;  /* of the guest: 0 or POISON_GS */
  bool foreign;      /* this run met what is not the guest's: LS_TOUCHED_FOREIGN */
  bool vsyscall;     /* this run ended in a call to the vsyscall page; x->info is its SIGSYS */
  uint8_t *area;     /* for PTRACE_GETREGSET */
  size_t area_size;
  struct user_regs_struct regs; /* last read or written */
  siginfo_t info;               /* of the last fault */
  ls_state start;               /* of this run; the caller's may be where the outcome goes */
} ptrace_executor;

typedef enum run_event {
  RUN_SYSCALL, /* the guest's or the stub's own, or a call to the vsyscall page (x->vsyscall) */
  RUN_FAULT,   /* x->info tells which; a trap after a single step too */
  RUN_TIMEOUT,
  RUN_INTERRUPTED, /* attention is asked for, or a sample due; x->regs are read */
  RUN_LOST         /* no child any more */
} run_event;

/* Resumes the child with a ptrace request until something ends the run, or does not if attention is asked for
 * already. Signals sent from outside, group stops and ticks within the limit do not end it. */
run_event executor_resume(ptrace_executor *x, int request);

/* CPU time of the child, nanoseconds. */
uint64_t executor_cpu_time(const ptrace_executor *x);

/* LS_STOP_… of an event other than RUN_LOST. */
ls_stop_kind executor_stop_kind(run_event event);

/* Puts `run`'s state in place for one of the stub's ways in; false if the child is lost. */
bool executor_enter(ptrace_executor *x, const ls_run *run, uint64_t entry, uint64_t way_in, uint64_t rsp);

/* Is the child in the way in, by x->regs: a fault there is a state that the CPU refuses, an interruption one
 * before the guest's first instruction. A guest that jumps there has its own stack. */
bool executor_in_load(const ptrace_executor *x);

/* Reads the whole state by ptrace, x->regs too; false if the child is lost. Notes whether RIP is where it has
 * no business; at the inner gate's first byte the state's is the gate's, whose jump led there. */
bool executor_capture(ptrace_executor *x, ls_state *state);

/* Completes the outcome of a run that did not end by leaving; outcome->state is what executor_capture read.
 */
ls_status executor_stopped(ptrace_executor *x, const ls_run *run, ls_stop_kind kind, ls_outcome *outcome);

/* The outcome of a run that was interrupted before the guest's first instruction. */
ls_status executor_not_started(ptrace_executor *x, const ls_run *run, uint64_t entry, ls_outcome *outcome);

/* Errors: ends what is left of the child; says that a state does not load. */
ls_status executor_lost(ptrace_executor *x, ls_error *error);
ls_status executor_bad_state(ls_error *error, const char *what);

/* A run with run->steps > 0 (step.c); run->state is not outcome->state. */
ls_status executor_run_steps(ptrace_executor *x, const ls_run *run, uint64_t entry, ls_outcome *outcome,
                             ls_error *error);

#endif

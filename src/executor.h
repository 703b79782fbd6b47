/* What both executors share, and the seam between lockstep.h and each of them. Internal. */
#ifndef LOCKSTEP_EXECUTOR_H
#define LOCKSTEP_EXECUTOR_H

#include <signal.h>

#include "flags.h"
#include "lockstep.h"
#include "sandbox.h"

/* A kind of stop that lockstep.h does not know: the guest left because executor->attention asked for it or a
 * sample is due, and can go on at state.rip (executor_go). */
#define LS_STOP_INTERRUPTED LS_STOP_KINDS

/* For what a run mostly does without: kept out of functions that every run goes through, so that these are
 * short and save few registers. */
#define RARE __attribute__((cold, noinline))

/* Of what mostly has the value already, in every run: the stores behind those of a register file wait for
 * them, one a cycle, while loads and comparisons beside them take nothing. */
#define ENSURE(place, value)                                                                                 \
  do                                                                                                         \
    if ((place) != (value))                                                                                  \
      (place) = (value);                                                                                     \
  while (0)

typedef struct executor_ops {
  /* Runs from guest address `entry` with the control cells and executor->time_left as they are; arguments
   * checked, an image loaded. Fills outcome->state (rip: where it stopped, or the gate's address after a jump
   * to it), outcome->touched and of outcome->stop all but instruction, part and id; after a jump to the gate,
   * which is LS_STOP_EXIT, only the kind. run->state may be &outcome->state: then that holds the state to go
   * on with after every interruption, and is as it was if nothing ran.
   *
   * While *executor->attention is not 0 no guest runs: it is not entered, or leaves once `interrupt` has
   * rung, and the stop is LS_STOP_INTERRUPTED; so it is with a tick while executor->sampling. A guest that is
   * on its way out already stops as it would have. */
  ls_status (*run)(ls_executor *executor, const ls_run *run, uint64_t entry, ls_outcome *outcome,
                   ls_error *error);
  /* Called first in every run, load and reset in a process that has forked: makes the executor this
   * process's own. */
  ls_status (*forked)(ls_executor *executor, ls_error *error);
  /* Makes the guest that thread `tid` runs, or is about to run, look at *executor->attention, which was set
   * before. From any thread; what it rings in vain is forgotten. */
  void (*interrupt)(ls_executor *executor, int tid);
  /* Has the guest that runs had the CPU since it was entered? Who interrupts it without pause waits for that
   * in between, or it would never get anywhere: it would be asked again before it is in. From any thread. */
  bool (*inside)(ls_executor *executor);
  /* The layout's code window or tick_ns has changed: the next run takes them up. From any thread, while no
   * guest runs. */
  void (*changed)(ls_executor *executor);
  int (*stops_syscalls)(ls_executor *executor);
  void (*destroy)(ls_executor *executor); /* frees the executor too, but not its sandbox's contents */
} executor_ops;

struct ls_executor {
  const executor_ops *ops;
  ls_kind kind;
  ls_vectors vectors; /* resolved */
  ls_options options; /* resolved: no zeros */
  const ls_image *image;
  struct control_cells *control; /* layout.control as this process sees it */
  sandbox box;
  _Atomic uint32_t *attention; /* set by create; 0 but for controllers */
  uint64_t tick_ns;            /* period of the timer */
  uint64_t time_left;          /* ns of CPU time until the run times out; TIME_ENDLESS */
  bool ticked;                 /* a tick has come since time_begin */
  bool sampling;
  uint32_t sample_ticks; /* with sampling: ticks since somebody set it to 0 */
};

#define TIME_ENDLESS UINT64_MAX

/* The most that can pass between two of the kernel's clock interrupts: CONFIG_HZ is 100 or more. */
#define TIME_CLOCK_NS UINT64_C(10000000)

/* From now on time is charged to a new run, which may use `limit_ms` (0: it has no limit). One tick more than
 * that, since the first comes at any time after the start. */
static inline void time_begin(ls_executor *executor, uint64_t limit_ms) {
  uint64_t left = limit_ms ? limit_ms * UINT64_C(1000000) + executor->tick_ns : TIME_ENDLESS;
  ENSURE(executor->time_left, left);
  ENSURE(executor->ticked, false);
}

/* A tick: `ns` have passed since the last. Charges the run with what is its own of that, and returns it: of
 * what passed before its first tick, at most one tick, for the rest belongs to earlier runs or to the host;
 * after that, no more than a tick can be late by, since more was not seen by any clock interrupt (a
 * hypervisor had taken the CPU away). The time is up when time_left is 0. Called by the signal handler too.
 */
static inline uint64_t time_charge(ls_executor *executor, uint64_t ns) {
  uint64_t most = executor->tick_ns + (executor->ticked ? TIME_CLOCK_NS : 0);
  ns = ns < most ? ns : most;
  executor->ticked = true;
  if (executor->time_left != TIME_ENDLESS)
    executor->time_left -= ns < executor->time_left ? ns : executor->time_left;
  return ns;
}

/* The same; returns how many ticks that makes, at least 1. */
static inline uint32_t time_passes(ls_executor *executor, uint64_t ns) {
  uint64_t ticks = (time_charge(executor, ns) + executor->tick_ns / 2) / executor->tick_ns;
  return ticks ? (uint32_t)ticks : 1;
}

/* The guest has jumped to the gate: completes *outcome with the exit point that it took. */
void executor_left(const ls_executor *executor, ls_outcome *outcome);

/* What executor_go does with the outcome of a guest that has not jumped to the gate. */
RARE ls_status executor_stopped_inside(ls_executor *executor, const ls_run *run, ls_outcome *outcome,
                                       ls_error *error);

/* Goes on with a guest, or starts it: as ops->run, and says in outcome->stop where in the image it stopped. A
 * stop at the gate becomes that at an exit point. What the kernel does to a guest with a non-canonical RSP is
 * no stop: it goes on. */
static inline ls_status executor_go(ls_executor *executor, const ls_run *run, uint64_t address,
                                    ls_outcome *outcome, ls_error *problem) {
  ls_status status = executor->ops->run(executor, run, address, outcome, problem);
  if (!status && outcome->stop.kind != LS_STOP_EXIT)
    return executor_stopped_inside(executor, run, outcome, problem);
  if (!status)
    executor_left(executor, outcome);
  return status;
}

/* In a process that has forked: makes the executor this process's own. Else nothing. */
ls_status executor_own(ls_executor *executor, ls_error *error);

/* Each makes its own structure with `struct ls_executor` as first member. `base` holds everything but ops and
 * is moved into it on success; on failure the caller still owns base's sandbox, which the signal executor
 * maps at the guest's addresses. */
ls_status signal_executor_create(ls_executor *base, ls_executor **executor, ls_error *error);
ls_status ptrace_executor_create(ls_executor *base, ls_executor **executor, ls_error *error);

/* By what 4-level paging translates: with LA57 more is. */
static inline bool is_canonical(uint64_t address) {
  enum { UNUSED_BITS = 16 };
  return (uint64_t)((int64_t)(address << UNUSED_BITS) >> UNUSED_BITS) == address;
}

/* May a fault that the kernel reports in this state be an interrupt's (executor.c, go_past)? A single step
 * that meets it is repeated so many times before it is believed. */
enum { INTERRUPTS_IN_A_ROW = 16 };

static inline bool may_be_interrupt(int signal, int code, const ls_state *state) {
  return signal == SIGSEGV && code == SI_KERNEL && !(state->rflags & RFLAGS_TF) &&
         !is_canonical(state->gpr[LS_RSP]);
}

/* The way out of the guest. Guest code jumps to layout.gate, where one page holds the same bytes in every
 * executor: a jump through a pointer to gate_inner, and int3 besides; the rest of LS_GATE_SIZE there is
 * without access. So whatever a guest does at the gate, it does in both. The executor's own code and data,
 * LS_GATE_SIZE of them at gate_inner, are out of reach of any displacement from anywhere else, and nothing
 * the guest starts with points there. */
static inline uint64_t gate_inner(uint64_t gate) {
  return gate ^ UINT64_C(0x1000000000);
}

/* Writes that page, LS_PAGE bytes. */
void gate_page_write(uint8_t *page, uint64_t gate);

/* What the emitted exit points and fuel counters write at layout.control. The emitter, and nothing else,
 * writes code that uses these offsets. */
typedef struct control_cells {
  uint64_t exit; /* index of the exit point that was taken */
  uint64_t fuel; /* units left */
  uint64_t save; /* RCX while fuel is counted */
  uint64_t reserved[5];
} control_cells;

/* An exit point of an image, by the index it leaves in control_cells.exit. */
typedef struct image_exit {
  ls_stop stop;    /* of who leaves there, whole: LS_STOP_EXIT or LS_STOP_FUEL, and whose link it is */
  uint64_t offset; /* of its first byte in the image */
} image_exit;

/* The id of instruction `index`, which the program has. */
uint64_t image_id(const ls_image *image, uint32_t index);

/* Was the image built for the code window, control and gate of this layout? */
bool image_fits(const ls_image *image, const ls_layout *layout);

#endif

/* A controller from inside: who may touch what, and what its files do for each other. Internal to
 * src/controller.
 *
 *   execute.c   the thread in ls_execute: runs the guest, answers, goes on
 *   requests.c  the other threads: get, change, pause, step, cancel
 *   reload.c    new code
 *   sampling.c  samples
 *   place.c     where in the program a guest stands, and where it goes on
 *   goal.c      a step or a run to an instruction that somebody waits for
 *   mailbox.c   who has the guest */
#ifndef LOCKSTEP_CONTROLLER_H
#define LOCKSTEP_CONTROLLER_H

#include <pthread.h>
#include <stdatomic.h>

#include "../executor.h"
#include "goal.h"
#include "ids.h"
#include "mailbox.h"
#include "sampling.h"

/* How a guest goes on once it is let go. */
typedef enum command {
  COMMAND_NONE,
  COMMAND_CANCEL, /* not at all */
  COMMAND_GONE    /* not at all: its instruction is gone, guest.gone */
} command;

/* What the mailbox's word gives to one thread at a time. */
typedef struct guest {
  ls_outcome outcome;       /* the state; of an idle guest the stop too, canonical */
  ls_run run;               /* its state is outcome's */
  goal *goal;               /* that somebody waits for, or NULL */
  goal *reached;            /* the same, done: to be told once the guest waits */
  uint64_t deadline;        /* of its thread's CPU time, ns; 0: none, or the executor counts itself */
  uint32_t entered;         /* how often since */
  uint64_t sampled;         /* on the same clock: what samples stand for before it is counted */
  uint64_t entry_id, entry; /* of the last run: an instruction and its address in the code in force; or 0 */
  bool paused;              /* without a goal it waits */
  command command;
  uint64_t gone;
} guest;

/* Of a guest that is in a run. */
static inline ls_activity guest_activity(const guest *g) {
  return g->paused && !g->goal ? LS_PAUSED : LS_RUNNING;
}

/* A program laid out, and its ids. */
typedef struct code {
  ls_image *image;
  ids ids;
} code;

/* What a caller asks of a running guest. Written by the caller that has the turn before the word becomes
 * POSTED. */
typedef struct request {
  bool copy; /* state and position, and the guest goes on; else it waits */
  ls_state *state;
  ls_position *position; /* either may be NULL */
} request;

struct ls_controller {
  guest guest;
  ls_executor *executor;
  mailbox box;
  request request;
  code codes[2];
  uint32_t current;              /* index of the code in force; changed by who has the guest and the turn */
  bool loaded;                   /* there is code */
  _Atomic uint32_t executing;    /* threads in exit callbacks: they need it although their runs are over */
  _Atomic(const void *) runner;  /* that thread (see self), or NULL */
  _Atomic(const void *) visitor; /* the thread that is in a visitor, or NULL */
  pthread_mutex_t turn;          /* callers */
  pthread_mutex_t building;      /* the code not in force; taken before turn */
  sampler sampler;
  ls_exit_callback on_exit;
  void *context;
  const uint32_t *now;              /* fork_epoch() */
  _Atomic uint32_t epoch, renewing; /* *now of the process that it is good in; that it is made good in */
};

/* The calling thread: what tells it from all others is the address. */
typedef struct controller_thread {
  uint32_t asked_in; /* process, by its fork_epoch(), in which the kernel was asked for the id */
  int tid;
} controller_thread;

extern _Thread_local controller_thread controller_current
    __attribute__((tls_model("initial-exec"), visibility("hidden")));

static inline const void *controller_self(void) {
  return &controller_current;
}

/* Begins a call other than ls_execute: LS_ERR_BUSY from inside a visitor or a sample callback. */
ls_status controller_enter(ls_controller *c, ls_error *error);

/* Of a process that has forked. */
void controller_start_anew(ls_controller *c);

/* After a fork the guest is idle, and no other thread is in any call. (The page that tells is wiped by fork,
 * and set by fork_epoch in whoever asks first.) */
static inline void controller_renew(ls_controller *c) {
  if (*c->now != atomic_load_explicit(&c->epoch, memory_order_acquire))
    controller_start_anew(c);
}

/* For who has the guest: in a process that has forked, its memory and code become this process's own, as they
 * were when it forked. */
ls_status controller_own(ls_controller *c, ls_error *error);

static inline const code *controller_code(const ls_controller *c) {
  return &c->codes[c->current];
}

/* ---- execute.c ---- */

/* In how many exit callbacks of the controller this thread is; they count in this process from now on.
 * `forget`: it is being destroyed, and ls_execute has no use for it behind them. */
uint32_t execute_callbacks(const ls_controller *c, bool forget);

/* ---- requests.c: for callers that have the turn ---- */

typedef enum hold {
  HOLD_IDLE,   /* the guest is in no run */
  HOLD_GUEST,  /* it waits between two instructions */
  HOLD_NOTHING /* it has answered and runs on */
} hold;

/* Takes the turn and then the guest. On failure neither. */
ls_status guest_hold(ls_controller *c, hold *how, ls_error *error);

/* Gives both back. */
void guest_release(ls_controller *c, hold how);

/* ---- place.c: for who has the guest ---- */

/* Where the guest is about to execute, or stopped. */
ls_position place_now(const ls_controller *c, ls_activity activity);

/* The address of instruction `id` in the code in force, or 0. */
uint64_t place_of(const ls_controller *c, uint64_t id);

/* Carries out what was inserted where the guest stands. False if that led out of the program: then
 * outcome.stop says how. */
bool place_settle(ls_controller *c);

/* The guest, which waits, stands at the same instruction of `new` as of the code in force, or is told that it
 * is gone. */
void place_move(ls_controller *c, const code *new_code);

/* ---- sampling.c ---- */

/* Delivers a sample if one is due. For the thread in ls_execute. */
void sample_if_due(ls_controller *c);

#endif

/* The thread in ls_execute. The guest runs until something ends the run or somebody wants something: then it
 * has left through the gate, its state is in memory, and it is entered again where it was. */
#include <signal.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "../error.h"
#include "../flags.h"
#include "controller.h"

enum { INT3 = 0xcc, CS_USER = 0x33 };

/* CPU time of this thread, ns. */
static uint64_t thread_time(void) {
  enum { NS_PER_S = 1000000000 };
  struct timespec now;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return (uint64_t)now.tv_sec * NS_PER_S + (uint64_t)now.tv_nsec;
}

/* ---- Breakpoints: only while the guest runs ---- */

typedef struct breakpoint {
  uint64_t address; /* 0: none */
  uint8_t *byte;    /* in the alias */
  uint8_t original;
} breakpoint;

static breakpoint plant(const ls_controller *c, uint64_t address) {
  const sandbox *box = &c->executor->box;
  breakpoint b = {.address = address};
  if (!address)
    return b;
  b.byte = box->alias + box->offset[LS_CODE_WINDOW] + (address - box->layout.windows[LS_CODE_WINDOW].address);
  b.original = *b.byte;
  *b.byte = INT3;
  return b;
}

static void remove_breakpoint(const breakpoint *b) {
  if (b->address)
    *b->byte = b->original;
}

/* A guest that met it stands at the instruction; a trap of its own int3 there is the same to it. */
static bool struck(const breakpoint *b, ls_outcome *outcome) {
  const ls_stop *stop = &outcome->stop;
  if (!b->address || stop->kind != LS_STOP_FAULT || stop->signal != SIGTRAP || stop->code != SI_KERNEL ||
      outcome->state.rip != b->address + 1)
    return false;
  outcome->state.rip = b->address;
  return true;
}

/* ---- Goals ---- */

static void reach(guest *g) {
  g->reached = g->goal;
  g->goal = NULL;
}

static bool is_at(const ls_controller *c, uint64_t id) {
  ls_position now = place_now(c, LS_RUNNING);
  return now.instruction != LS_NONE && now.id == id;
}

/* An instruction has been executed. */
static void count_step(ls_controller *c) {
  goal *wanted = c->guest.goal;
  if (!wanted)
    return;
  wanted->moved = true;
  if (wanted->kind == GOAL_STEPS ? --wanted->left == 0 : is_at(c, wanted->id))
    reach(&c->guest);
}

/* Says how far the guest may go now: one instruction, or to a breakpoint. */
static breakpoint aim(ls_controller *c) {
  guest *g = &c->guest;
  bool one = g->goal->kind == GOAL_STEPS || !g->goal->moved;
  g->run.steps = one;
  return plant(c, one ? 0 : place_of(c, g->goal->id));
}

/* The instruction may have gone with the code it was in. */
static void drop_lost_goal(ls_controller *c) {
  goal *wanted = c->guest.goal;
  if (!wanted || wanted->kind != GOAL_INSTRUCTION || place_of(c, wanted->id))
    return;
  c->guest.goal = NULL;
  goal_conclude(wanted, LS_ERR_ARGUMENT);
}

/* ---- Answering ---- */

static void answer(ls_controller *c) {
  const request *asked = &c->request;
  if (asked->state)
    *asked->state = c->guest.outcome.state;
  if (asked->position)
    *asked->position = place_now(c, guest_activity(&c->guest));
}

/* Somebody may have asked first: then the guest waits for that. */
static void wait_for_release(ls_controller *c) {
  goal *reached = c->guest.reached;
  c->guest.reached = NULL;
  mailbox_set(&c->box, MAILBOX_HELD);
  goal_conclude(reached, LS_OK);
  mailbox_wait_for_release(&c->box);
}

/* Answers whoever has asked, and waits while the guest is paused: no instruction is executed any more once it
 * has been seen to be. False: it shall not go on. */
static bool answer_all(ls_controller *c) {
  const guest *g = &c->guest;
  for (;;) {
    bool posted = mailbox_look(&c->box) == MAILBOX_POSTED;
    if (posted && c->request.copy) {
      answer(c);
      mailbox_set(&c->box, MAILBOX_FREE);
    } else if (posted || guest_activity(g) == LS_PAUSED) {
      wait_for_release(c);
      if (g->command)
        return false;
      drop_lost_goal(c);
    } else {
      return true;
    }
  }
}

/* ---- Time that is not the guest's ---- */

/* What this thread does between two of these is done for others. */
static uint64_t begin_for_others(const ls_controller *c) {
  return c->guest.deadline ? thread_time() : 0;
}

static void end_for_others(ls_controller *c, uint64_t begun) {
  if (!c->guest.deadline)
    return;
  uint64_t taken = thread_time() - begun;
  c->guest.deadline += taken;
  c->guest.sampled += taken;
}

static bool attend(ls_controller *c) {
  uint64_t begun = begin_for_others(c);
  bool on = answer_all(c);
  end_for_others(c, begun);
  return on;
}

/* In the thread: the weight that ticks give to a sample, less what others had of their time. What is left of
 * a period is the next one's; with no period to stand for there is no sample. Time before this run, or of
 * another thread's clock, makes the difference large, or small beyond what rounding does: then ticks count.
 */
static void correct_weight(ls_controller *c, uint64_t now) {
  ls_executor *executor = c->executor;
  guest *g = &c->guest;
  int64_t period = (int64_t)executor->tick_ns, own = (int64_t)(now - g->sampled);
  int64_t weight = own < 0 ? 0 : (own + period / 2) / period;
  bool known = own >= -period && weight <= executor->sample_ticks;
  if (known)
    executor->sample_ticks = (uint32_t)weight;
  g->sampled = known ? g->sampled + (uint64_t)(weight * period) : now;
}

static void take_sample(ls_controller *c) {
  guest *g = &c->guest;
  if (!c->executor->sample_ticks)
    return;
  if (c->executor->kind != LS_SIGNAL) {
    sample_if_due(c);
    return;
  }
  uint64_t begun = thread_time();
  correct_weight(c, begun);
  sample_if_due(c);
  uint64_t taken = thread_time() - begun;
  g->sampled += taken;
  if (g->deadline)
    g->deadline += taken;
}

/* ---- A run ---- */

static void end_by_command(ls_controller *c) {
  guest *g = &c->guest;
  ls_position now = place_now(c, LS_RUNNING);
  bool gone = g->command == COMMAND_GONE;
  g->outcome.stop = (ls_stop){.kind = gone ? LS_STOP_GONE : LS_STOP_CANCELLED,
                              .instruction = gone ? LS_NONE : now.instruction,
                              .part = now.part,
                              .id = gone ? g->gone : now.id};
}

/* Of a guest that stands before an instruction. */
static void time_out(ls_controller *c) {
  ls_position now = place_now(c, LS_RUNNING);
  c->guest.outcome.stop =
      (ls_stop){.kind = LS_STOP_TIMEOUT, .instruction = now.instruction, .part = now.part, .id = now.id};
}

/* In the thread used-up ticks only say that it is time to look at the clock: one that meets the guest may
 * stand for time that went into answers and samples, and of a guest that is stepped or asked without pause
 * most come while it does not run, where nobody counts them. */
static bool is_out_of_time(ls_controller *c, bool timeout) {
  enum { EVERY = 64 };
  guest *g = &c->guest;
  if (!g->deadline)
    return timeout;
  if (!timeout && ++g->entered % EVERY)
    return false;
  uint64_t now = thread_time();
  if (now >= g->deadline)
    return true;
  c->executor->time_left = g->deadline - now;
  return false;
}

/* What a stop means that is not the guest's own. False: it is the end of the run. */
static bool goes_on(ls_controller *c, const breakpoint *target) {
  ls_outcome *outcome = &c->guest.outcome;
  uint32_t kind = outcome->stop.kind;
  if (kind == LS_STOP_EXIT)
    return false;
  if (struck(target, outcome)) {
    reach(&c->guest);
    return true;
  }
  if (kind != LS_STOP_STEPS && kind != LS_STOP_INTERRUPTED && kind != LS_STOP_TIMEOUT)
    return false;
  if (!place_settle(c))
    return false;
  if (kind == LS_STOP_STEPS)
    count_step(c);
  take_sample(c);
  if (!is_out_of_time(c, kind == LS_STOP_TIMEOUT))
    return true;
  time_out(c);
  return false;
}

static ls_status run_guest(ls_controller *c, ls_error *error) {
  guest *g = &c->guest;
  ls_outcome *outcome = &g->outcome;
  for (;;) {
    if ((g->paused || mailbox_look(&c->box) != MAILBOX_FREE) && !attend(c)) {
      end_by_command(c);
      return LS_OK;
    }
    breakpoint target = {.address = 0};
    ENSURE(g->run.steps, 0);
    if (g->goal)
      target = aim(c);
    ls_status status = executor_go(c->executor, &g->run, outcome->state.rip, outcome, error);
    remove_breakpoint(&target);
    if (status || !goes_on(c, &target))
      return status;
  }
}

/* ---- Beginning and ending ---- */

static int thread_id(const ls_controller *c) {
  uint32_t epoch = atomic_load_explicit(&c->epoch, memory_order_relaxed);
  if (controller_current.asked_in != epoch)
    controller_current = (controller_thread){.asked_in = epoch, .tid = (int)syscall(SYS_gettid)};
  return controller_current.tid;
}

static uint64_t entry_of(ls_controller *c, uint64_t id) {
  guest *g = &c->guest;
  if (!g->entry || g->entry_id != id) {
    g->entry = place_of(c, id);
    g->entry_id = id;
  }
  return g->entry;
}

/* Becomes the thread that runs the guest, unless there is one. */
static ls_status begin(ls_controller *c, ls_error *error) {
  const void *self = controller_self();
  if (atomic_load_explicit(&c->visitor, memory_order_relaxed) == self)
    return error_set(error, LS_ERR_BUSY, 0, LS_NONE, "a visitor cannot run the guest it visits");
  if (!mailbox_begin(&c->box, self, thread_id(c)))
    return error_set(error, LS_ERR_BUSY, 0, LS_NONE, "the guest of this controller runs already");
  atomic_store_explicit(&c->runner, self, memory_order_relaxed);
  return LS_OK;
}

/* The reference counts single steps by the child's clock itself. */
static void set_limit(ls_controller *c, uint32_t limit_ms) {
  ls_executor *executor = c->executor;
  time_begin(executor, limit_ms);
  uint64_t deadline = limit_ms && executor->kind == LS_SIGNAL ? thread_time() + executor->time_left : 0;
  ENSURE(c->guest.deadline, deadline);
}

static ls_status prepare(ls_controller *c, uint64_t id, const ls_limits *limits, ls_error *error) {
  ls_executor *executor = c->executor;
  ls_state *state = &c->guest.outcome.state;
  uint64_t address = entry_of(c, id);
  if (!address)
    return error_set(error, LS_ERR_ARGUMENT, 0, LS_NONE, "%s",
                     c->loaded ? "the code has no instruction of that id"
                               : "no code: ls_update_code comes first");
  ls_status status = sandbox_forked(&executor->box) ? controller_own(c, error) : LS_OK;
  if (status)
    return status;
  ENSURE(executor->sample_ticks, 0);
  executor->control->exit = UINT64_MAX;
  uint64_t fuel = limits && limits->fuel ? limits->fuel : UINT64_MAX;
  ENSURE(executor->control->fuel, fuel);
  set_limit(c, limits ? limits->limit_ms : 0);
  state->rip = address;
  ENSURE(state->cs, CS_USER); /* the gate reads it together with SS, which takes long just after a store */
  ENSURE(state->fs, 0);
  ENSURE(state->gs, 0);
  return LS_OK;
}

/* Behind its end the controller may be gone, unless `executing` keeps it. A run that did not come about does
 * not end a pause. */
static inline __attribute__((always_inline)) void end(ls_controller *c, bool ran) {
  guest *g = &c->guest;
  goal *left = g->goal;
  if (left)
    g->goal = NULL;
  if (ran)
    ENSURE(g->paused, false);
  ENSURE(g->command, COMMAND_NONE);
  if (g->outcome.state.rflags & RFLAGS_RF) /* set where an instruction has faulted */
    g->outcome.state.rflags &= ~(uint64_t)RFLAGS_RF;
  atomic_store_explicit(&c->runner, NULL, memory_order_relaxed);
  mailbox_end(&c->box, controller_self(), thread_id(c));
  if (left)
    goal_conclude(left, LS_ERR_IDLE);
}

/* ---- The exit callback, which may destroy the controller ---- */

typedef struct callback {
  const ls_controller *controller; /* NULL: destroyed */
  struct callback *outer;          /* that the same thread is in */
  uint32_t epoch;                  /* of the process in which `executing` counts it */
} callback;

static _Thread_local callback *innermost;

uint32_t execute_callbacks(const ls_controller *c, bool forget) {
  uint32_t count = 0;
  for (callback *at = innermost; at; at = at->outer)
    if (at->controller == c) {
      count++;
      at->controller = forget ? NULL : c;
      at->epoch = *fork_epoch();
    }
  return count;
}

/* Keeps the controller for itself until the callback has returned, unless that destroys it. */
RARE static void end_and_call_back(ls_controller *c, const ls_stop *stop) {
  callback now = {.controller = c, .outer = innermost, .epoch = atomic_load(&c->epoch)};
  atomic_fetch_add(&c->executing, 1);
  end(c, true);
  innermost = &now;
  c->on_exit(c, stop, c->context);
  innermost = now.outer;
  if (now.controller && now.epoch == atomic_load(&c->epoch))
    atomic_fetch_sub(&c->executing, 1);
}

ls_status ls_execute(ls_controller *c, uint64_t id, const ls_limits *limits, ls_stop *stop, ls_error *error) {
  if (!c || !stop)
    return error_set(error, LS_ERR_ARGUMENT, 0, LS_NONE,
                     "ls_execute needs a controller and a place for the stop");
  controller_renew(c);
  ls_status status = begin(c, error);
  if (status)
    return status;
  status = prepare(c, id, limits, error);
  bool ran = !status;
  if (ran)
    status = run_guest(c, error);
  if (!status)
    *stop = c->guest.outcome.stop;
  if (!status && c->on_exit)
    end_and_call_back(c, stop);
  else
    end(c, ran);
  return status;
}

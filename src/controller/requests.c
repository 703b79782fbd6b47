/* The threads that ask. One at a time has the turn; if the guest runs, it is asked to leave, and answers or
 * waits. */
#include "../cpu.h"
#include "../error.h"
#include "../flags.h"
#include "controller.h"

/* ---- Having the guest ---- */

/* Not for ever: its thread may be waiting for a core. */
static void let_it_run(ls_controller *c) {
  enum { TRIES = 2000 };
  for (int i = 0; i < TRIES && mailbox_look(&c->box) == MAILBOX_FREE && mailbox_runner(&c->box); i++) {
    if (c->executor->ops->inside(c->executor))
      return;
    __builtin_ia32_pause();
  }
}

/* Asks whoever runs the guest, or takes it if it is idle. */
static hold ask(ls_controller *c) {
  mailbox_word word = MAILBOX_POSTED;
  while (word == MAILBOX_POSTED) {
    int runner = mailbox_runner(&c->box);
    if (runner) {
      c->executor->ops->interrupt(c->executor, runner);
      word = mailbox_wait_for_answer(&c->box);
    } else if (mailbox_own(&c->box, controller_self())) {
      return HOLD_IDLE;
    }
  }
  return word == MAILBOX_HELD ? HOLD_GUEST : HOLD_NOTHING;
}

/* Takes the turn, and the guest unless it can answer by itself. */
static ls_status request_hold(ls_controller *c, const request *what, hold *how, ls_error *error) {
  ls_status status = controller_enter(c, error);
  if (status)
    return status;
  pthread_mutex_lock(&c->turn);
  let_it_run(c);
  c->request = *what;
  *how = mailbox_post(&c->box) ? ask(c) : HOLD_GUEST; /* else it waits already */
  return LS_OK;
}

ls_status guest_hold(ls_controller *c, hold *how, ls_error *error) {
  return request_hold(c, &(request){.copy = false}, how, error);
}

void guest_release(ls_controller *c, hold how) {
  const guest *g = &c->guest;
  if (how == HOLD_IDLE || (how == HOLD_GUEST && (!g->paused || g->goal || g->command)))
    mailbox_set(&c->box, MAILBOX_FREE);
  pthread_mutex_unlock(&c->turn);
}

/* As guest_hold, of a guest that is in a run. */
static ls_status hold_running(ls_controller *c, ls_error *error) {
  if (!c)
    return error_set(error, LS_ERR_ARGUMENT, 0, LS_NONE, "this call needs a controller");
  hold how = HOLD_NOTHING;
  ls_status status = guest_hold(c, &how, error);
  if (status || how == HOLD_GUEST)
    return status;
  guest_release(c, how);
  return error_set(error, LS_ERR_IDLE, 0, LS_NONE, "the guest is idle: it has stopped, or was not started");
}

/* ---- Looking ---- */

static ls_activity activity_of(const ls_controller *c, hold how) {
  return how == HOLD_IDLE ? LS_IDLE : guest_activity(&c->guest);
}

ls_status ls_get_state(ls_controller *c, ls_state *state, ls_position *position, ls_error *error) {
  if (!c || (uintptr_t)state % _Alignof(ls_state))
    return error_set(error, LS_ERR_ARGUMENT, 0, LS_NONE,
                     "ls_get_state needs a controller, and a state aligned to %zu bytes", _Alignof(ls_state));
  const request what = {.copy = true, .state = state, .position = position};
  hold how;
  ls_status status = request_hold(c, &what, &how, error);
  if (status)
    return status;
  if (how != HOLD_NOTHING && state)
    *state = c->guest.outcome.state;
  if (how != HOLD_NOTHING && position)
    *position = place_now(c, activity_of(c, how));
  guest_release(c, how);
  return LS_OK;
}

/* ---- Changing ---- */

static ls_status check_state(const ls_state *state, ls_error *error) {
  if (state->rflags & ~(uint64_t)(RFLAGS_USER | RFLAGS_CLEAN))
    return error_set(error, LS_ERR_STATE, 0, LS_NONE, "RFLAGS has bits that user code cannot set");
  if (state->mxcsr & ~cpu()->mxcsr_mask)
    return error_set(error, LS_ERR_STATE, 0, LS_NONE, "MXCSR has bits that this CPU reserves");
  return LS_OK;
}

/* Where the guest goes on, from what a visitor has made of its position. */
static ls_status check_move(const ls_controller *c, const ls_position *was, const ls_position *now,
                            uint64_t *rip, ls_error *error) {
  if (now->id == was->id && now->instruction == was->instruction)
    return LS_OK;
  if (was->activity == LS_IDLE)
    return error_set(error, LS_ERR_IDLE, 0, LS_NONE, "an idle guest begins where ls_execute says");
  *rip = place_of(c, now->id);
  if (*rip)
    return LS_OK;
  return error_set(error, LS_ERR_ARGUMENT, 0, LS_NONE, "the code has no instruction of that id");
}

static void keep_selectors(const ls_state *from, ls_state *to) {
  to->cs = from->cs;
  to->ss = from->ss;
  to->ds = from->ds;
  to->es = from->es;
  to->fs = from->fs;
  to->gs = from->gs;
}

static ls_status visit(ls_controller *c, hold how, ls_state_visitor visitor, void *context, ls_error *error) {
  ls_state *state = &c->guest.outcome.state, changed = *state;
  const ls_position was = place_now(c, activity_of(c, how));
  ls_position now = was;
  atomic_store_explicit(&c->visitor, controller_self(), memory_order_relaxed);
  int discard = visitor(&changed, &now, context);
  atomic_store_explicit(&c->visitor, NULL, memory_order_relaxed);
  if (discard)
    return LS_OK;
  changed.rip = state->rip;
  keep_selectors(state, &changed);
  ls_status status = check_state(&changed, error);
  if (!status)
    status = check_move(c, &was, &now, &changed.rip, error);
  if (!status)
    *state = changed;
  return status;
}

ls_status ls_change_state(ls_controller *c, ls_state_visitor visitor, void *context, ls_error *error) {
  if (!c || !visitor)
    return error_set(error, LS_ERR_ARGUMENT, 0, LS_NONE, "ls_change_state needs a controller and a visitor");
  hold how;
  ls_status status = guest_hold(c, &how, error);
  if (status)
    return status;
  status = visit(c, how, visitor, context, error);
  guest_release(c, how);
  return status;
}

/* ---- Pausing and ending ---- */

/* Takes the place of the goal that somebody waits for. */
static void set_goal(guest *g, goal *now) {
  goal *before = g->goal;
  g->goal = now;
  goal_conclude(before, LS_ERR_SUPERSEDED);
}

static ls_status set_paused(ls_controller *c, bool paused, ls_error *error) {
  if (!c)
    return error_set(error, LS_ERR_ARGUMENT, 0, LS_NONE, "this call needs a controller");
  hold how;
  ls_status status = guest_hold(c, &how, error);
  if (status)
    return status;
  set_goal(&c->guest, NULL);
  c->guest.paused = paused;
  guest_release(c, how);
  return LS_OK;
}

ls_status ls_pause(ls_controller *c, ls_error *error) {
  return set_paused(c, true, error);
}

ls_status ls_resume(ls_controller *c, ls_error *error) {
  return set_paused(c, false, error);
}

ls_status ls_cancel(ls_controller *c, ls_error *error) {
  ls_status status = hold_running(c, error);
  if (status)
    return status;
  c->guest.command = COMMAND_CANCEL;
  guest_release(c, HOLD_GUEST);
  return LS_OK;
}

/* ---- Stepping ---- */

/* Of a guest that is held: lets it go and waits until the goal is reached or out of reach. */
static ls_status pursue(ls_controller *c, goal *wanted, ls_error *error) {
  set_goal(&c->guest, wanted);
  c->guest.paused = true;
  guest_release(c, HOLD_GUEST);
  switch (goal_wait(wanted)) {
  case LS_OK:
    return LS_OK;
  case LS_ERR_SUPERSEDED:
    return error_set(error, LS_ERR_SUPERSEDED, 0, LS_NONE,
                     "another caller paused, resumed or stepped the guest");
  case LS_ERR_ARGUMENT:
    return error_set(error, LS_ERR_ARGUMENT, 0, LS_NONE, "the instruction is gone: the code was replaced");
  default:
    return error_set(error, LS_ERR_IDLE, 0, LS_NONE, "the guest stopped before: ls_execute says why");
  }
}

ls_status ls_step(ls_controller *c, uint64_t count, ls_error *error) {
  if (!count)
    return error_set(error, LS_ERR_ARGUMENT, 0, LS_NONE, "a step is at least one instruction");
  goal steps = {.kind = GOAL_STEPS, .left = count};
  ls_status status = hold_running(c, error);
  return status ? status : pursue(c, &steps, error);
}

ls_status ls_run_until(ls_controller *c, uint64_t id, ls_error *error) {
  goal there = {.kind = GOAL_INSTRUCTION, .id = id};
  ls_status status = hold_running(c, error);
  if (status)
    return status;
  if (place_of(c, id)) {
    there.moved = place_now(c, LS_RUNNING).id != id;
    return pursue(c, &there, error);
  }
  guest_release(c, HOLD_GUEST);
  return error_set(error, LS_ERR_ARGUMENT, 0, LS_NONE, "the code has no instruction of that id");
}

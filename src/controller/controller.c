/* Making and ending a controller, and what concerns it as a whole. */
#include "controller.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "../error.h"

enum { STACK_WINDOW = 3 /* of ls_layout_default */ };

_Thread_local controller_thread controller_current;

/* ---- Forks ---- */

/* Was another thread in ls_update_code, which is not in this process? If it had already moved the code
 * window, the code for that was complete; else what it was making is left alone for good. */
static void settle_update(ls_controller *c) {
  if (pthread_mutex_trylock(&c->building) == 0) {
    pthread_mutex_unlock(&c->building);
    return;
  }
  if (!image_fits(controller_code(c)->image, ls_executor_layout(c->executor)) &&
      image_fits(c->codes[!c->current].image, ls_executor_layout(c->executor))) {
    c->current = !c->current;
    c->loaded = true;
  } else {
    c->codes[!c->current] = (code){.image = NULL};
  }
  c->guest.entry = 0;
}

/* Locks may have been held and the mailbox in use by threads that are not in this process. */
static void open_anew(ls_controller *c) {
  pthread_mutex_init(&c->turn, NULL);
  pthread_mutex_init(&c->building, NULL);
  mailbox_open(&c->box, c->executor->attention);
  c->guest.goal = c->guest.reached = NULL;
  c->guest.paused = false;
  c->guest.command = COMMAND_NONE;
  atomic_store(&c->runner, NULL);
  atomic_store(&c->visitor, NULL);
  atomic_store(&c->executing, execute_callbacks(c, false));
}

void controller_start_anew(ls_controller *c) {
  uint32_t now = *fork_epoch();
  uint32_t before = atomic_load(&c->renewing); /* of any process, should that have forked while it renewed */
  if (before != now && atomic_compare_exchange_strong(&c->renewing, &before, now)) {
    settle_update(c);
    open_anew(c);
    atomic_store_explicit(&c->epoch, now, memory_order_release);
  }
  while (atomic_load_explicit(&c->epoch, memory_order_acquire) != now)
    __builtin_ia32_pause();
}

/* Until now the other process may have written to it: new code, or an int3 to stop at. */
ls_status controller_own(ls_controller *c, ls_error *error) {
  sandbox *box = &c->executor->box;
  if (!sandbox_forked(box))
    return LS_OK;
  ls_status status = executor_own(c->executor, error);
  if (status || !c->loaded)
    return status;
  box->code_used = box->layout.windows[LS_CODE_WINDOW].size;
  return ls_executor_load(c->executor, controller_code(c)->image, error);
}

ls_status controller_enter(ls_controller *c, ls_error *error) {
  const void *self = controller_self();
  controller_renew(c);
  if (atomic_load_explicit(&c->visitor, memory_order_relaxed) != self &&
      atomic_load_explicit(&c->runner, memory_order_relaxed) != self)
    return LS_OK;
  return error_set(error, LS_ERR_BUSY, 0, LS_NONE,
                   "visitors and sample callbacks cannot call for the controller that called them");
}

/* ---- Making ---- */

/* Slots are tried from the one after that given last, since those before are likely to be in use. */
static ls_status make_executor(ls_controller *c, ls_kind kind, const ls_controller_options *options,
                               ls_error *error) {
  static atomic_uint next_slot;
  if (options->layout)
    return ls_executor_create(kind, options->layout, &options->executor, &c->executor, error);
  ls_status status = LS_ERR_ADDRESS;
  for (int tries = 0; tries < LS_LAYOUT_SLOTS && status == LS_ERR_ADDRESS; tries++) {
    ls_layout layout;
    ls_layout_default(&layout, atomic_fetch_add(&next_slot, 1) % LS_LAYOUT_SLOTS);
    status = ls_executor_create(kind, &layout, &options->executor, &c->executor, error);
    const ls_window *stack = &layout.windows[STACK_WINDOW];
    c->guest.outcome.state.gpr[LS_RSP] = stack->address + stack->size;
  }
  return status;
}

static ls_status fill_in(ls_controller *c, ls_kind kind, const ls_controller_options *options,
                         ls_error *error) {
  ls_state_init(&c->guest.outcome.state);
  c->guest.outcome.stop.instruction = LS_NONE;
  c->guest.run.state = &c->guest.outcome.state;
  c->guest.run.uses = options->flags & LS_WITHOUT_X87 ? 0 : LS_USES_X87;
  c->on_exit = options->on_exit;
  c->context = options->context;
  for (int i = 0; i < 2; i++)
    if (!(c->codes[i].image = ls_image_create()))
      return error_set(error, LS_ERR_MEMORY, ENOMEM, LS_NONE, "no memory for a controller");
  ls_status status = make_executor(c, kind, options, error);
  if (status)
    return status;
  open_anew(c);
  c->now = fork_epoch();
  atomic_store(&c->epoch, *c->now);
  atomic_store(&c->renewing, *c->now);
  return LS_OK;
}

static void free_parts(ls_controller *c) {
  ls_executor_destroy(c->executor);
  for (int i = 0; i < 2; i++) {
    ls_image_destroy(c->codes[i].image);
    ids_free(&c->codes[i].ids);
  }
  free(c->sampler.ring);
  free(c);
}

ls_status ls_controller_create(ls_kind kind, const ls_controller_options *options, ls_controller **controller,
                               ls_error *error) {
  static const ls_controller_options none;
  if (!controller || (kind != LS_SIGNAL && kind != LS_PTRACE) ||
      (options && options->flags & ~(uint32_t)LS_WITHOUT_X87))
    return error_set(error, LS_ERR_ARGUMENT, 0, LS_NONE,
                     "a controller needs a place, one of the two kinds, and no unknown flags");
  ls_controller *c = aligned_alloc(_Alignof(ls_controller), sizeof *c);
  if (!c)
    return error_set(error, LS_ERR_MEMORY, ENOMEM, LS_NONE, "no memory for a controller");
  memset(c, 0, sizeof *c);
  ls_status status = fill_in(c, kind, options ? options : &none, error);
  if (status)
    free_parts(c);
  else
    *controller = c;
  return status;
}

/* ---- Ending ---- */

/* A run may only be about to begin: then the next attempt finds it. Callbacks may take their time. */
static void wait_until_left(ls_controller *c) {
  const struct timespec moment = {.tv_nsec = 20000};
  uint32_t own = execute_callbacks(c, true);
  while (!mailbox_is_left(&c->box) || atomic_load(&c->executing) > own) {
    ls_cancel(c, NULL);
    nanosleep(&moment, NULL);
  }
  pthread_mutex_lock(&c->building); /* who has just answered its caller may still be on its way out */
  pthread_mutex_lock(&c->turn);
  pthread_mutex_unlock(&c->turn);
  pthread_mutex_unlock(&c->building);
}

void ls_controller_destroy(ls_controller *c) {
  if (!c)
    return;
  controller_renew(c);
  wait_until_left(c);
  pthread_mutex_destroy(&c->turn);
  pthread_mutex_destroy(&c->building);
  free_parts(c);
}

/* ---- Looking ---- */

/* The layout changes only under the turn, and not while the guest is in a run that does not wait: a visitor
 * or a sample callback has one or the other. True: the turn was taken. */
static bool hold_layout(ls_controller *c) {
  if (controller_enter(c, NULL) != LS_OK)
    return false;
  pthread_mutex_lock(&c->turn);
  return true;
}

static void release_layout(ls_controller *c, bool taken) {
  if (taken)
    pthread_mutex_unlock(&c->turn);
}

void ls_controller_layout(ls_controller *c, ls_layout *layout) {
  if (!c || !layout)
    return;
  bool taken = hold_layout(c);
  *layout = *ls_executor_layout(c->executor);
  release_layout(c, taken);
}

void *ls_controller_memory(ls_controller *c, uint32_t window) {
  return c ? ls_executor_memory(c->executor, window) : NULL;
}

void *ls_controller_pointer(ls_controller *c, uint64_t address, uint64_t size) {
  if (!c)
    return NULL;
  bool taken = hold_layout(c);
  void *pointer = ls_executor_pointer(c->executor, address, size);
  release_layout(c, taken);
  return pointer;
}

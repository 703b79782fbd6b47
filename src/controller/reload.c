/* New code: laid out while the guest runs, put in place while it waits. */
#include <errno.h>
#include <string.h>

#include "../error.h"
#include "../image.h"
#include "controller.h"

/* Lays the program out in the code that is not in force, for a window which is reserved if it is another than
 * the present one. */
static ls_status lay_out(ls_controller *c, const ls_program *program, code *next, ls_window *window,
                         ls_error *error) {
  sandbox *box = &c->executor->box;
  ls_layout layout = box->layout;
  *window = layout.windows[LS_CODE_WINDOW];
  if (!next->image && !(next->image = ls_image_create())) /* see settle_update */
    return error_set(error, LS_ERR_MEMORY, ENOMEM, LS_NONE, "no memory for code");
  ls_status status = image_lay_out(next->image, program, error); /* first: it looks at what the program is */
  if (!status)
    status = ids_build(&next->ids, program, error);
  if (status)
    return status;
  size_t size = image_size(next->image);
  bool grows = size > window->size;
  if (grows)
    status = sandbox_code_reserve(box, size, window, error);
  if (status)
    return status;
  layout.windows[LS_CODE_WINDOW] = *window;
  status = image_emit(next->image, program, &layout, error);
  if (status && grows)
    sandbox_code_abandon(box, window);
  return status;
}

/* While nobody runs it. Cannot fail: the image was made for this window, and the memory is this process's. */
static void put_in_place(ls_controller *c, hold how, const ls_window *window) {
  ls_executor *executor = c->executor;
  sandbox *box = &executor->box;
  const code *next = &c->codes[!c->current];
  if (how == HOLD_GUEST)
    place_move(c, next);
  if (window->address != box->layout.windows[LS_CODE_WINDOW].address) {
    sandbox_code_commit(box, window);
    executor->ops->changed(executor);
  }
  ls_executor_load(executor, next->image, NULL);
  c->current = !c->current;
  c->loaded = true;
  c->guest.entry = 0;
}

/* In a process that has forked, memory is still the other's too. */
static ls_status own_memory(ls_controller *c, ls_error *error) {
  hold how;
  ls_status status = guest_hold(c, &how, error);
  if (status)
    return status;
  status = controller_own(c, error);
  guest_release(c, how);
  return status;
}

static ls_status update(ls_controller *c, const ls_program *program, ls_error *error) {
  ls_window window;
  ls_status status = sandbox_forked(&c->executor->box) ? own_memory(c, error) : LS_OK;
  if (!status)
    status = lay_out(c, program, &c->codes[!c->current], &window, error);
  if (status)
    return status;
  hold how;
  status = guest_hold(c, &how, error);
  if (status)
    return status;
  put_in_place(c, how, &window);
  guest_release(c, how);
  return LS_OK;
}

ls_status ls_update_code(ls_controller *c, const ls_program *program, ls_error *error) {
  if (!c || !program)
    return error_set(error, LS_ERR_ARGUMENT, 0, LS_NONE, "ls_update_code needs a controller and a program");
  ls_status status = controller_enter(c, error); /* before the lock that a visitor would wait for itself */
  if (status)
    return status;
  pthread_mutex_lock(&c->building);
  status = update(c, program, error);
  pthread_mutex_unlock(&c->building);
  return status;
}

/* A shared library with a copy of Lockstep of its own, as hosts load them: test_copies.c does. */
#include "plugin.h"

#include <string.h>

static ls_status create(ls_kind kind, unsigned slot, ls_controller **controller, ls_error *error) {
  ls_layout layout;
  ls_layout_default(&layout, slot);
  return ls_controller_create(kind, &(ls_controller_options){.layout = &layout}, controller, error);
}

static ls_status run(ls_controller *controller, const uint8_t *code, uint8_t length, ls_stop *stop,
                     ls_error *error) {
  ls_instruction body = {.id = 1, .length = length, .next = LS_NONE, .jump = LS_NONE};
  memcpy(body.bytes, code, length);
  ls_status status = ls_update_code(controller, &(ls_program){.instructions = &body, .count = 1}, error);
  return status ? status : ls_execute(controller, 1, NULL, stop, error);
}

const plugin_functions plugin = {create, run, ls_controller_destroy, ls_thread_release};

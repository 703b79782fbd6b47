/* What a shared library that has a copy of Lockstep of its own offers: all that plugin.c
 * exports. */
#ifndef TESTS_PLUGIN_H
#define TESTS_PLUGIN_H

#include "lockstep.h"

typedef struct plugin_functions {
  ls_status (*create)(ls_kind kind, unsigned slot, ls_controller **controller, ls_error *error);
  /* One instruction of `length` bytes. */
  ls_status (*run)(ls_controller *controller, const uint8_t *code, uint8_t length, ls_stop *stop,
                   ls_error *error);
  void (*destroy)(ls_controller *controller);
  void (*release)(void); /* what the thread has lent */
} plugin_functions;

/* Of the copy that it is linked with. */
extern const plugin_functions plugin __attribute__((visibility("default")));

#endif

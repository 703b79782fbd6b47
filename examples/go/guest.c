#include "guest.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>

enum { FIRST = 1 }; /* ids count from here */

static ls_status give_code(ls_controller *guest, const uint8_t *bytes, const uint8_t *lengths, uint32_t count,
                           ls_error *error) {
  ls_instruction *instructions = calloc(count, sizeof *instructions);
  ls_program program = {.instructions = instructions, .count = count};
  if (!instructions)
    return LS_ERR_MEMORY;
  for (uint32_t i = 0; i < count; bytes += lengths[i++]) {
    ls_instruction *in = &instructions[i];
    in->id = FIRST + i;
    in->next = i + 1 < count ? i + 1 : LS_NONE;
    in->jump = LS_NONE;
    in->length = lengths[i];
    memcpy(in->bytes, bytes, lengths[i]);
  }
  ls_status status = ls_update_code(guest, &program, error);
  free(instructions);
  return status;
}

ls_controller *guest_create(const uint8_t *bytes, const uint8_t *lengths, uint32_t count, ls_error *error) {
  /* Go's handlers end the process if there is no alternate stack inside them. And SIGURG is Go's: one that
   * comes while a tick of the library's is pending is lost with the kernel, and Go sends that thread no other
   * before (runtime/signal_unix.go, preemptM). */
  const ls_controller_options options = {
      .executor = {.flags = LS_WITHOUT_AUTODISARM, .interrupt_signal = SIGRTMAX}};
  ls_controller *guest = NULL;
  if (ls_controller_create(LS_SIGNAL, &options, &guest, error))
    return NULL;
  if (give_code(guest, bytes, lengths, count, error) == LS_OK)
    return guest;
  ls_controller_destroy(guest);
  return NULL;
}

ls_status guest_run(ls_controller *guest, uint32_t limit_ms, ls_stop *stop, ls_error *error) {
  const ls_limits limits = {.limit_ms = limit_ms};
  return ls_execute(guest, FIRST, &limits, stop, error);
}

/* From an address to an instruction and back. */
#include "../flags.h"
#include "controller.h"
#include "inserted.h"

/* Where a running guest is about to execute: only the start of an instruction is one. */
static ls_position about_to(const ls_controller *c) {
  const ls_image *image = controller_code(c)->image;
  uint64_t rip = c->guest.outcome.state.rip;
  const ls_range *range = ls_image_find(image, rip);
  if (!range || range->part != LS_PART_BODY || ls_image_address(image, range->instruction) != rip)
    return (ls_position){.instruction = LS_NONE};
  return (ls_position){.id = image_id(image, range->instruction), .instruction = range->instruction};
}

static ls_position stopped_at(const ls_stop *stop) {
  return (ls_position){.id = stop->id, .instruction = stop->instruction, .part = stop->part};
}

ls_position place_now(const ls_controller *c, ls_activity activity) {
  ls_position position = {.instruction = LS_NONE};
  if (activity == LS_IDLE)
    position = stopped_at(&c->guest.outcome.stop);
  else if (c->loaded)
    position = about_to(c);
  position.activity = activity;
  return position;
}

uint64_t place_of(const ls_controller *c, uint64_t id) {
  if (!c->loaded)
    return 0;
  const code *now = controller_code(c);
  return ls_image_address(now->image, ids_find(&now->ids, id)); /* LS_NONE is no index of an instruction */
}

bool place_settle(ls_controller *c) {
  ls_outcome *outcome = &c->guest.outcome;
  outcome->state.rflags &= ~(uint64_t)RFLAGS_RF; /* set where a repeated instruction was interrupted */
  if (inserted_carry_out(controller_code(c)->image, c->executor->control, &outcome->state) == INSERTED_BODY)
    return true;
  executor_left(c->executor, outcome);
  return false;
}

/* Bodies have the same bytes in every layout, branch fields aside; a guest that has jumped into the middle of
 * one goes on in the middle, if the new one is as long. */
void place_move(ls_controller *c, const code *new_code) {
  guest *g = &c->guest;
  const ls_image *old = controller_code(c)->image;
  const ls_range *range = ls_image_find(old, g->outcome.state.rip);
  if (!range)
    return;
  uint64_t id = image_id(old, range->instruction);
  uint64_t offset = g->outcome.state.rip - ls_image_address(old, range->instruction);
  uint64_t to = ls_image_address(new_code->image, ids_find(&new_code->ids, id));
  const ls_range *now = to ? ls_image_find(new_code->image, to) : NULL;
  if (now && range->part == LS_PART_BODY && (!offset || now->length == range->length)) {
    g->outcome.state.rip = to + offset;
  } else {
    g->command = COMMAND_GONE;
    g->gone = id;
  }
}

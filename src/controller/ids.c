#include "ids.h"

#include <inttypes.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "error.h"

/* Every bit of an id changes about half of the bits that choose the slot, the low ones: ids can be counted
 * in steps of any power of two, be addresses, or differ in their upper half only. A one-to-one mapping of
 * 64-bit numbers by multiplication with odd constants and shifts. */
static uint32_t first_slot(uint64_t id, uint32_t mask) {
  id = (id ^ id >> 32) * UINT64_C(0x9e3779b97f4a7c15);
  id = (id ^ id >> 29) * UINT64_C(0xd6e8feb86659fd93);
  return (uint32_t)(id >> 32 ^ id) & mask;
}

/* The slot that holds `id`, or the free one where it would go. */
static uint32_t *slot_of(const ids *table, uint64_t id) {
  uint32_t at = first_slot(id, table->mask);
  while (table->slots[at] != LS_NONE && table->id[table->slots[at]] != id)
    at = (at + 1) & table->mask;
  return &table->slots[at];
}

static bool make_room(ids *table, uint32_t count, uint32_t slots) {
  if (count > table->id_room) {
    uint64_t *id = realloc(table->id, count * sizeof *id);
    if (!id)
      return false;
    table->id = id;
    table->id_room = count;
  }
  if (slots > table->slot_room) {
    uint32_t *bigger = realloc(table->slots, slots * sizeof *bigger);
    if (!bigger)
      return false;
    table->slots = bigger;
    table->slot_room = slots;
  }
  return true;
}

static ls_status occurs_twice(const ls_program *program, uint32_t first, uint32_t second, ls_error *error) {
  return error_set(error, LS_ERR_PROGRAM, 0, second,
                   "instructions %u and %u have the same id, %" PRIu64 " (0x%" PRIx64 ")", first, second,
                   program->instructions[second].id, program->instructions[second].id);
}

ls_status ids_build(ids *table, const ls_program *program, ls_error *error) {
  uint32_t slots = 2;
  while (slots < 2 * program->count)
    slots *= 2;
  table->count = 0;
  if (!make_room(table, program->count, slots))
    return error_set(error, LS_ERR_MEMORY, 0, LS_NONE, "no memory for the ids of %u instructions",
                     program->count);
  table->mask = slots - 1;
  memset(table->slots, 0xff, slots * sizeof *table->slots); /* LS_NONE */
  for (uint32_t i = 0; i < program->count; i++) {
    uint64_t id = program->instructions[i].id;
    uint32_t *slot = slot_of(table, id);
    if (*slot != LS_NONE)
      return occurs_twice(program, *slot, i, error);
    *slot = i;
    table->id[i] = id;
  }
  table->count = program->count;
  return LS_OK;
}

uint32_t ids_find(const ids *table, uint64_t id) {
  return table->count ? *slot_of(table, id) : LS_NONE;
}

void ids_free(ids *table) {
  free(table->id);
  free(table->slots);
  *table = (ids){0};
}

/* From a graph of instructions to an order of items with offsets; emit.c turns those into bytes.
 *
 * Chains are laid out along `next`. Where the next instruction already lies elsewhere a jump is inserted,
 * where a link leaves the program an exit point. What a branch needs besides (an exit point, a fuel counter)
 * stands behind all chains. An 8-bit branch field that cannot be sure to reach goes through an island: the
 * branch skips two bytes to a 32-bit jump, and a short jump before that carries on. Sure means: it reaches in
 * the layout in which every 8-bit branch has an island, since leaving islands out brings no two places
 * further apart. So two passes do, and the whole is linear. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "error.h"
#include "image.h"
#include "indirect.h"

/* ---- Is the program possible? ---- */

static ls_status refuse(ls_error *error, uint32_t index, const char *why) {
  return error_set(error, LS_ERR_PROGRAM, 0, index, "instruction %u: %s", index, why);
}

static int is_link(const ls_program *program, uint32_t link) {
  return link == LS_NONE || link < program->count;
}

/* 0 is what `jump` is if nobody sets it, and no link then; any other index is a mistake. */
static bool has_idle_link(const ls_instruction *in) {
  return in->field != LS_FIELD_BRANCH && in->jump != LS_NONE && in->jump != 0;
}

static const char *field_trouble(const ls_instruction *in) {
  if (has_idle_link(in))
    return "it has a jump link but no branch field: give it one, or LS_NONE or 0 as jump";
  if (in->field == LS_FIELD_NONE)
    return NULL;
  if (in->field != LS_FIELD_BRANCH && in->field != LS_FIELD_DATA)
    return "its field is of an unknown kind";
  if (in->field_size != 4 && !(in->field_size == 1 && in->field == LS_FIELD_BRANCH))
    return "a branch field is 1 or 4 bytes wide, a data field 4";
  if (in->field_offset + in->field_size > in->length)
    return "its field is not inside its bytes";
  return NULL;
}

static ls_status check_program(const ls_program *program, ls_error *error) {
  if (!program->instructions || !program->count || program->count > LS_PROGRAM_MAX)
    return error_set(error, LS_ERR_PROGRAM, 0, LS_NONE, "a program has 1 to %d instructions", LS_PROGRAM_MAX);
  if (program->flags & ~(uint32_t)LS_PROGRAM_FUEL)
    return error_set(error, LS_ERR_PROGRAM, 0, LS_NONE, "the program's flags have unknown bits");
  for (uint32_t i = 0; i < program->count; i++) {
    const ls_instruction *in = &program->instructions[i];
    if (!in->length || in->length > LS_INSTRUCTION_MAX)
      return refuse(error, i, "its length is not 1 to 15");
    if (in->flags & ~LS_NEVER_FALLS_THROUGH)
      return refuse(error, i, "its flags have unknown bits");
    if (!is_link(program, in->next) || !is_link(program, in->jump))
      return refuse(error, i, "a link goes to an instruction that does not exist");
    const char *trouble = field_trouble(in);
    if (trouble)
      return refuse(error, i, trouble);
  }
  return LS_OK;
}

/* ---- Room ---- */

/* Grows an array of a layout; if there is no memory it stays as it is, and the function ends. */
#define GROW(array, count)                                                                                   \
  do {                                                                                                       \
    void *bigger = realloc(array, (size_t)(count) * sizeof *(array));                                        \
    if (!bigger)                                                                                             \
      return 0;                                                                                              \
    (array) = bigger;                                                                                        \
  } while (0)

/* Each instruction has at most a body, an item for next and one for jump or before the body; each of those is
 * one or two ranges and at most one exit point. */
static int make_room(code_layout *code, uint32_t count) {
  if (count <= code->count_room)
    return 1;
  GROW(code->items, 3 * count);
  GROW(code->map, 4 * count);
  GROW(code->exits, 2 * count);
  GROW(code->stub, count);
  GROW(code->body, count);
  GROW(code->id, count);
  code->count_room = count;
  return 1;
}

/* ---- The order of items ---- */

static uint32_t add_item(code_layout *code, uint32_t instruction, item_kind kind) {
  code->items[code->item_count] = (item){.instruction = instruction, .kind = (uint8_t)kind};
  return code->item_count++;
}

/* Lays out `start` and what follows it until that leaves the program or joins what is laid out. */
static void lay_chain(code_layout *code, const ls_program *program, uint32_t start) {
  for (uint32_t i = start;;) {
    const ls_instruction *in = &program->instructions[i];
    if ((program->flags & LS_PROGRAM_FUEL) && is_indirect_branch(in))
      add_item(code, i, ITEM_COUNTER);
    code->body[i] = add_item(code, i, ITEM_BODY);
    if (in->flags & LS_NEVER_FALLS_THROUGH)
      return;
    if (in->next == LS_NONE) {
      add_item(code, i, ITEM_NEXT_EXIT);
      return;
    }
    if (code->body[in->next] != LS_NONE) {
      add_item(code, i, ITEM_NEXT_JUMP);
      return;
    }
    i = in->next;
  }
}

static void lay_stubs(code_layout *code, const ls_program *program) {
  for (uint32_t i = 0; i < program->count; i++) {
    const ls_instruction *in = &program->instructions[i];
    code->stub[i] = LS_NONE;
    if (in->field != LS_FIELD_BRANCH)
      continue;
    if (in->jump == LS_NONE)
      code->stub[i] = add_item(code, i, ITEM_JUMP_EXIT);
    else if ((program->flags & LS_PROGRAM_FUEL) && goes_back(code, i, in->jump))
      code->stub[i] = add_item(code, i, ITEM_JUMP_FUEL);
  }
}

/* ---- Offsets ---- */

static uint32_t item_size(const code_layout *code, const ls_program *program, const item *it) {
  const ls_instruction *in = &program->instructions[it->instruction];
  switch ((item_kind)it->kind) {
  case ITEM_BODY:
    return in->length + (it->island ? ISLAND_SIZE : 0);
  case ITEM_NEXT_JUMP:
    return (program->flags & LS_PROGRAM_FUEL) && goes_back(code, it->instruction, in->next) ? FUEL_SIZE
                                                                                            : JUMP_SIZE;
  case ITEM_NEXT_EXIT:
  case ITEM_JUMP_EXIT:
    return EXIT_SIZE;
  case ITEM_JUMP_FUEL:
  case ITEM_COUNTER:
    return FUEL_SIZE;
  }
  return 0;
}

static uint64_t set_offsets(code_layout *code, const ls_program *program) {
  uint64_t offset = 0;
  for (uint32_t n = 0; n < code->item_count; n++) {
    code->items[n].offset = (uint32_t)offset;
    offset += item_size(code, program, &code->items[n]);
  }
  return offset;
}

static int has_short_field(const ls_instruction *in) {
  return in->field == LS_FIELD_BRANCH && in->field_size == 1;
}

static void give_islands(code_layout *code, const ls_program *program) {
  for (uint32_t i = 0; i < program->count; i++)
    code->items[code->body[i]].island = (uint8_t)has_short_field(&program->instructions[i]);
}

/* Takes away the islands of branches that reach without one in the widest layout. */
static void take_islands(code_layout *code, const ls_program *program) {
  for (uint32_t i = 0; i < program->count; i++) {
    const ls_instruction *in = &program->instructions[i];
    if (!has_short_field(in))
      continue;
    uint32_t to = code->stub[i] != LS_NONE ? code->stub[i] : first_item(code, in->jump);
    int64_t distance = (int64_t)code->items[to].offset - code->items[code->body[i]].offset - in->length;
    if (distance >= INT8_MIN && distance <= INT8_MAX)
      code->items[code->body[i]].island = 0;
  }
}

_Static_assert(IMAGE_SIZE_MAX <= SANDBOX_CODE_MAX, "a code window can grow until any program fits");

static void lay_out(code_layout *code, const ls_program *program) {
  code->count = program->count;
  code->item_count = 0;
  memset(code->body, 0xff, program->count * sizeof *code->body); /* LS_NONE */
  for (uint32_t i = 0; i < program->count; i++) {
    code->id[i] = program->instructions[i].id;
    if (code->body[i] == LS_NONE)
      lay_chain(code, program, i);
  }
  lay_stubs(code, program);
  give_islands(code, program);
  set_offsets(code, program);
  take_islands(code, program);
  code->size = (set_offsets(code, program) + SLOT_SIZE - 1) / SLOT_SIZE * SLOT_SIZE + SLOT_SIZE;
}

/* ---- Both halves ---- */

ls_status image_lay_out(ls_image *image, const ls_program *program, ls_error *error) {
  ls_status status = check_program(program, error);
  if (status)
    return status;
  if (!make_room(&image->spare, program->count))
    return error_set(error, LS_ERR_MEMORY, 0, LS_NONE, "no memory for %u instructions", program->count);
  lay_out(&image->spare, program);
  return LS_OK;
}

size_t image_size(const ls_image *image) {
  return image->spare.size;
}

static int make_room_for_bytes(code_layout *code) {
  if (code->size <= code->bytes_room)
    return 1;
  GROW(code->bytes, code->size);
  code->bytes_room = code->size;
  return 1;
}

ls_status image_emit(ls_image *image, const ls_program *program, const ls_layout *layout, ls_error *error) {
  code_layout *code = &image->spare;
  const ls_window *window = &layout->windows[LS_CODE_WINDOW];
  if (code->size > window->size)
    return error_set(error, LS_ERR_PROGRAM, 0, LS_NONE,
                     "the program takes %zu bytes, the code window has %" PRIu64
                     ": give the layout a larger one",
                     code->size, window->size);
  if (!make_room_for_bytes(code))
    return error_set(error, LS_ERR_MEMORY, 0, LS_NONE, "no memory for %zu bytes of code", code->size);
  code->base = window->address;
  code->control = layout->control;
  code->gate = layout->gate;
  ls_status status = emit_layout(code, program, error);
  if (status)
    return status;
  code_layout before = image->now;
  image->now = image->spare;
  image->spare = before;
  return LS_OK;
}

ls_status ls_image_build(ls_image *image, const ls_program *program, const ls_layout *layout,
                         ls_error *error) {
  if (!image || !program || !layout)
    return error_set(error, LS_ERR_ARGUMENT, 0, LS_NONE, "a build needs an image, a program and a layout");
  ls_status status = image_lay_out(image, program, error);
  return status ? status : image_emit(image, program, layout, error);
}

/* The bytes of a code image. What is inserted between the program's own instructions changes neither flags
 * nor registers, so that the guest cannot tell: mov, lea, jrcxz and jmp only (SDM vol. 2: none of them
 * affects RFLAGS). */
#include <stddef.h>
#include <string.h>

#include "error.h"
#include "image.h"

enum { INT3 = 0xcc };

typedef struct writer {
  code_layout *code;
  const ls_program *program;
  uint32_t at; /* offset of the next byte */
} writer;

static void put(writer *w, const void *bytes, uint32_t size) {
  memcpy(w->code->bytes + w->at, bytes, size);
  w->at += size;
}

static void put32(writer *w, uint32_t value) {
  put(w, &value, sizeof value);
}

/* A displacement from behind itself and `more` bytes of immediate to guest address `target`. layout_check
 * sees to it that control is in reach, lay_out that the image is. */
static void put_relative(writer *w, uint64_t target, uint32_t more) {
  put32(w, (uint32_t)(target - (w->code->base + w->at + 4 + more)));
}

/* An instruction with RIP-relative operand: its bytes up to the displacement, and where that goes. */
static void put_rip(writer *w, const char opcode[3], uint64_t target) {
  put(w, opcode, 3);
  put_relative(w, target, 0);
}

static void put_jump(writer *w, uint32_t offset) {
  put(w, "\xe9", 1);
  put_relative(w, w->code->base + offset, 0);
}

static void add_range(writer *w, uint32_t from, uint32_t instruction, ls_part part) {
  w->code->map[w->code->range_count++] = (ls_range){from, w->at - from, instruction, part};
}

static uint64_t cell(const writer *w, size_t offset) {
  return w->code->control + offset;
}

static uint32_t offset_of(const writer *w, uint32_t instruction) {
  return w->code->items[first_item(w->code, instruction)].offset;
}

/* mov qword [rip+exit], index; jmp [rip+slot] */
static void emit_exit(writer *w, uint32_t instruction, ls_part part, ls_stop_kind kind) {
  code_layout *code = w->code;
  uint32_t index = code->exit_count++;
  code->exits[index] = (image_exit){
      .stop = {.kind = kind, .instruction = instruction, .part = part, .id = code->id[instruction]},
      .offset = w->at};
  put(w, "\x48\xc7\x05", 3);
  put_relative(w, cell(w, offsetof(control_cells, exit)), 4);
  put32(w, index);
  put(w, "\xff\x25", 2);
  put_relative(w, code->base + code->size - SLOT_SIZE, 0);
}

/* Counts one unit of fuel and goes to offset `target`, or leaves the program when there is none:
 *     mov [save], rcx;  mov rcx, [fuel];  jrcxz empty;  lea rcx, [rcx-1];  mov [fuel], rcx
 *     mov rcx, [save];  jmp target
 *   empty:
 *     mov rcx, [save];  (exit point) */
static void emit_fuel(writer *w, uint32_t instruction, ls_part part, uint32_t target) {
  uint64_t fuel = cell(w, offsetof(control_cells, fuel)), save = cell(w, offsetof(control_cells, save));
  put_rip(w, "\x48\x89\x0d", save);
  put_rip(w, "\x48\x8b\x0d", fuel);
  put(w, "\xe3\x17", 2); /* over lea, two mov, jmp: 4 + 7 + 7 + 5 */
  put(w, "\x48\x8d\x49\xff", 4);
  put_rip(w, "\x48\x89\x0d", fuel);
  put_rip(w, "\x48\x8b\x0d", save);
  put_jump(w, target);
  put_rip(w, "\x48\x8b\x0d", save);
  emit_exit(w, instruction, part, LS_STOP_FUEL);
}

/* Where the branch of an instruction goes: to its stub, or straight to its target. */
static uint32_t branch_target(const writer *w, uint32_t instruction) {
  uint32_t stub = w->code->stub[instruction];
  return stub != LS_NONE ? w->code->items[stub].offset
                         : offset_of(w, w->program->instructions[instruction].jump);
}

static void emit_island(writer *w, uint32_t instruction, uint32_t target) {
  uint32_t from = w->at;
  put(w, "\xeb\x05", 2);
  put_jump(w, target);
  add_range(w, from, instruction, LS_PART_JUMP);
}

static void fill_branch(writer *w, uint8_t *field, const ls_instruction *in, int island, uint32_t target) {
  int32_t distance = island ? 2 : (int32_t)target - (int32_t)w->at;
  memcpy(field, &distance, in->field_size);
}

static ls_status fill_data(const writer *w, uint8_t *field, uint32_t index, ls_error *error) {
  int64_t distance = (int64_t)(w->program->instructions[index].data - (w->code->base + w->at));
  if (distance < INT32_MIN || distance > INT32_MAX)
    return error_set(error, LS_ERR_PROGRAM, 0, index,
                     "instruction %u: its RIP-relative operand is more than 2 GiB away", index);
  int32_t narrow = (int32_t)distance;
  memcpy(field, &narrow, sizeof narrow);
  return LS_OK;
}

static ls_status emit_body(writer *w, const item *it, ls_error *error) {
  const ls_instruction *in = &w->program->instructions[it->instruction];
  uint32_t from = w->at;
  put(w, in->bytes, in->length);
  add_range(w, from, it->instruction, LS_PART_BODY);
  uint8_t *field = w->code->bytes + from + in->field_offset;
  if (in->field == LS_FIELD_DATA)
    return fill_data(w, field, it->instruction, error);
  if (in->field == LS_FIELD_BRANCH) {
    uint32_t target = branch_target(w, it->instruction);
    fill_branch(w, field, in, it->island, target);
    if (it->island)
      emit_island(w, it->instruction, target);
  }
  return LS_OK;
}

static void emit_next_jump(writer *w, uint32_t instruction) {
  uint32_t next = w->program->instructions[instruction].next;
  if ((w->program->flags & LS_PROGRAM_FUEL) && goes_back(w->code, instruction, next))
    emit_fuel(w, instruction, LS_PART_NEXT, offset_of(w, next));
  else
    put_jump(w, offset_of(w, next));
}

static ls_part part_of(const item *it) {
  if (it->kind == ITEM_COUNTER)
    return LS_PART_BEFORE;
  return it->kind == ITEM_NEXT_JUMP || it->kind == ITEM_NEXT_EXIT ? LS_PART_NEXT : LS_PART_JUMP;
}

static void emit_inserted(writer *w, const item *it) {
  uint32_t from = w->at;
  ls_part part = part_of(it);
  if (it->kind == ITEM_NEXT_JUMP)
    emit_next_jump(w, it->instruction);
  else if (it->kind == ITEM_JUMP_FUEL)
    emit_fuel(w, it->instruction, part, offset_of(w, w->program->instructions[it->instruction].jump));
  else if (it->kind == ITEM_COUNTER)
    emit_fuel(w, it->instruction, part, from + FUEL_SIZE);
  else
    emit_exit(w, it->instruction, part, LS_STOP_EXIT);
  add_range(w, from, it->instruction, part);
}

ls_status emit_layout(code_layout *code, const ls_program *program, ls_error *error) {
  writer w = {.code = code, .program = program};
  code->range_count = 0;
  code->exit_count = 0;
  for (uint32_t n = 0; n < code->item_count; n++) {
    const item *it = &code->items[n];
    if (it->kind == ITEM_BODY) {
      ls_status status = emit_body(&w, it, error);
      if (status)
        return status;
    } else {
      emit_inserted(&w, it);
    }
  }
  memset(code->bytes + w.at, INT3, code->size - SLOT_SIZE - w.at);
  memcpy(code->bytes + code->size - SLOT_SIZE, &code->gate, SLOT_SIZE);
  return LS_OK;
}

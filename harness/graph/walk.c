#include "graph/walk.h"

#include <string.h>

#include "forms/forms.h"

typedef struct walker {
  const walk_code *code;
  walk_visitor visitor;
  void *context;
  walk_result *result;
} walker;

/* An inserted instruction, decoded where it lies. */
typedef struct inserted {
  ZydisDecodedInstruction instruction;
  ZydisDecodedOperand operands[ZYDIS_MAX_OPERAND_COUNT];
  uint64_t address;
} inserted;

static bool fails(walker *w, uint64_t address, const char *trouble) {
  w->result->trouble = trouble;
  w->result->address = address;
  return false;
}

static uint64_t base_of(const walker *w) {
  return w->code->layout->windows[LS_CODE_WINDOW].address;
}

/* ---- Operands ---- */

static int register_index(ZydisRegister name) {
  return ZydisRegisterGetClass(name) == ZYDIS_REGCLASS_GPR64 ? ZydisRegisterGetId(name) : -1;
}

/* The address of a memory operand, if it is known: relative to RIP, or from a register that holds a constant.
 */
static bool address_of(const walk_state *s, const inserted *in, const ZydisDecodedOperand *o,
                       walk_value *address) {
  if (o->mem.index != ZYDIS_REGISTER_NONE || o->mem.segment == ZYDIS_REGISTER_FS ||
      o->mem.segment == ZYDIS_REGISTER_GS)
    return false;
  *address = (walk_value){.origin = WALK_CONSTANT};
  if (o->mem.base == ZYDIS_REGISTER_RIP)
    return ZYAN_SUCCESS(ZydisCalcAbsoluteAddress(&in->instruction, o, in->address, &address->number));
  int base = register_index(o->mem.base);
  if (base < 0)
    return false;
  *address = s->registers[base];
  address->number += (uint64_t)o->mem.disp.value;
  return true;
}

/* The control cell at a memory operand of 8 bytes, or -1. */
static int cell_of(const walker *w, const walk_state *s, const inserted *in, const ZydisDecodedOperand *o) {
  walk_value address;
  if (o->size != 64 || !address_of(s, in, o, &address) || address.origin != WALK_CONSTANT)
    return -1;
  uint64_t offset = address.number - w->code->layout->control;
  return offset % 8 == 0 && offset < LS_CONTROL_SIZE ? (int)(offset / 8) : -1;
}

/* Loads come from control cells, or from the image, which the guest cannot write. */
static bool load(const walker *w, const walk_state *s, const inserted *in, const ZydisDecodedOperand *o,
                 walk_value *value) {
  int cell = cell_of(w, s, in, o);
  walk_value address;
  if (cell >= 0) {
    *value = s->cells[cell];
    return true;
  }
  if (o->size != 64 || !address_of(s, in, o, &address) || address.origin != WALK_CONSTANT)
    return false;
  uint64_t offset = address.number - base_of(w);
  if (w->code->size < 8 || offset > w->code->size - 8)
    return false;
  *value = (walk_value){.origin = WALK_CONSTANT};
  memcpy(&value->number, w->code->bytes + offset, sizeof value->number);
  return true;
}

static bool read_operand(const walker *w, const walk_state *s, const inserted *in,
                         const ZydisDecodedOperand *o, walk_value *value) {
  switch (o->type) {
  case ZYDIS_OPERAND_TYPE_REGISTER: {
    int index = register_index(o->reg.value);
    if (index >= 0)
      *value = s->registers[index];
    return index >= 0;
  }
  case ZYDIS_OPERAND_TYPE_MEMORY:
    return o->mem.type == ZYDIS_MEMOP_TYPE_AGEN ? address_of(s, in, o, value) : load(w, s, in, o, value);
  case ZYDIS_OPERAND_TYPE_IMMEDIATE:
    *value = (walk_value){.origin = WALK_CONSTANT, .number = o->imm.value.u};
    return !o->imm.is_relative ||
           ZYAN_SUCCESS(ZydisCalcAbsoluteAddress(&in->instruction, o, in->address, &value->number));
  default:
    return false;
  }
}

static bool write_operand(const walker *w, walk_state *s, const inserted *in, const ZydisDecodedOperand *o,
                          const walk_value *value) {
  int index = o->type == ZYDIS_OPERAND_TYPE_REGISTER ? register_index(o->reg.value) : -1;
  int cell = o->type == ZYDIS_OPERAND_TYPE_MEMORY ? cell_of(w, s, in, o) : -1;
  if (index >= 0)
    s->registers[index] = *value;
  if (cell >= 0)
    s->cells[cell] = *value;
  return index >= 0 || cell >= 0;
}

/* ---- Effects ---- */

static bool changes_flags(const ZydisDecodedInstruction *in) {
  const ZydisAccessedFlags *f = in->cpu_flags;
  return f && (f->modified | f->set_0 | f->set_1 | f->undefined);
}

static bool follow(walker *w, walk_state s, uint32_t steps);

/* A branch on RCX being zero: the value is known, or that of a cell and both ways are walked. */
static bool fork_on_rcx(walker *w, walk_state *s, const inserted *in, uint64_t target, uint32_t steps) {
  const walk_value *rcx = &s->registers[LS_RCX];
  walk_state taken = *s;
  taken.address = target;
  if (rcx->origin == WALK_CONSTANT)
    return follow(w, rcx->number ? *s : taken, steps);
  if (rcx->origin != WALK_CELL || rcx->number != 0)
    return fails(w, in->address, "inserted code branches on a register of the guest");
  if (s->tested)
    return fails(w, in->address, "inserted code tests a cell twice");
  s->tested = taken.tested = true;
  s->tested_cell = taken.tested_cell = rcx->index;
  taken.zero = true;
  return follow(w, *s, steps) && follow(w, taken, steps);
}

static bool step(walker *w, walk_state *s, const inserted *in, uint32_t steps) {
  walk_value value;
  const ZydisDecodedOperand *o = in->operands;
  s->address = in->address + in->instruction.length;
  switch (in->instruction.mnemonic) {
  case ZYDIS_MNEMONIC_NOP:
    return follow(w, *s, steps);
  case ZYDIS_MNEMONIC_MOV:
  case ZYDIS_MNEMONIC_LEA:
    if (!read_operand(w, s, in, &o[1], &value) || !write_operand(w, s, in, &o[0], &value))
      return fails(w, in->address, "inserted code reads or writes what it must not");
    return follow(w, *s, steps);
  case ZYDIS_MNEMONIC_JMP:
    if (!read_operand(w, s, in, &o[0], &value) || value.origin != WALK_CONSTANT)
      return fails(w, in->address, "an inserted jump goes to a place that is not fixed");
    s->address = value.number;
    return follow(w, *s, steps);
  case ZYDIS_MNEMONIC_JRCXZ:
    return read_operand(w, s, in, &o[0], &value) && fork_on_rcx(w, s, in, value.number, steps);
  default:
    return fails(w, in->address, "inserted code contains an instruction that has no business there");
  }
}

/* Continues at s.address until the path ends. By value: the two ways of a fork have a state each. */
static bool follow(walker *w, walk_state s, uint32_t steps) {
  const walk_code *code = w->code;
  uint64_t offset = s.address - base_of(w);
  if (s.address == code->layout->gate || (offset < code->end && code->body[offset] != LS_NONE)) {
    if (w->result->count == WALK_PATHS)
      return fails(w, s.address, "inserted code has too many ways");
    w->result->paths[w->result->count++] = s;
    return true;
  }
  if (offset >= code->end)
    return fails(w, s.address, "control leaves the code");
  if (steps == WALK_STEPS_MAX)
    return fails(w, s.address, "inserted code goes in circles");
  inserted in = {.address = s.address};
  if (!harness_decode(code->bytes + offset, code->end - offset, &in.instruction, in.operands))
    return fails(w, s.address, "inserted code does not decode");
  if (changes_flags(&in.instruction))
    return fails(w, s.address, "inserted code changes a flag");
  const char *trouble = w->visitor(w->context, (uint32_t)offset, in.instruction.length, steps);
  if (trouble)
    return fails(w, s.address, trouble);
  return step(w, &s, &in, steps + 1);
}

bool walk(const walk_code *code, uint64_t address, walk_visitor visitor, void *context, walk_result *result) {
  walker w = {code, visitor, context, result};
  walk_state start = {.address = address};
  for (uint32_t i = 0; i < WALK_REGISTERS; i++)
    start.registers[i] = (walk_value){WALK_REGISTER, i, 0};
  for (uint32_t i = 0; i < WALK_CELLS; i++)
    start.cells[i] = (walk_value){WALK_CELL, i, 0};
  result->count = 0;
  result->trouble = NULL;
  result->address = address;
  return follow(&w, start, 0);
}

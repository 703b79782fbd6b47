#include <string.h>

#include "import/import_walk.h"

static const origin nothing;

/* ---- Origins ----------------------------------------------------------------------------------------- */

static void origin_add(origin *sum, const origin *more, int64_t factor) {
  for (uint32_t i = 0; i < more->count; i++) {
    uint32_t n = 0;
    while (n < sum->count && sum->terms[n].from != more->terms[i].from)
      n++;
    if (n == TERMS_MAX)
      continue;
    if (n == sum->count) {
      sum->terms[n].from = more->terms[i].from;
      sum->terms[n].factor = 0;
      sum->count++;
    }
    sum->terms[n].factor += more->terms[i].factor * factor;
  }
}

static origin origin_scaled(const origin *of, int64_t factor) {
  origin result = nothing;
  if (factor != 0)
    origin_add(&result, of, factor);
  return result;
}

static origin register_origin(const walk *w, ZydisRegister reg) {
  int number = general_number(reg);
  return number < 0 ? nothing : w->registers[number];
}

uint64_t register_value(const visited *v, ZydisRegister reg) {
  int number = general_number(reg);
  if (number < 0)
    return 0;
  uint64_t value = v->step->gpr[number];
  return ZydisRegisterGetClass(reg) == ZYDIS_REGCLASS_GPR32 ? (uint32_t)value : value;
}

/* ---- Memory operands --------------------------------------------------------------------------------- */

static bool is_memory(const ZydisDecodedOperand *operand) {
  return operand->type == ZYDIS_OPERAND_TYPE_MEMORY && operand->mem.type != ZYDIS_MEMOP_TYPE_VSIB;
}

bool is_plain_memory(const ZydisDecodedOperand *operand) {
  return operand->type == ZYDIS_OPERAND_TYPE_MEMORY && operand->mem.type == ZYDIS_MEMOP_TYPE_MEM;
}

bool is_written(const ZydisDecodedOperand *operand) {
  return (operand->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE) != 0;
}

origin address_origin(const walk *w, const ZydisDecodedOperand *operand) {
  origin result = register_origin(w, operand->mem.base), index = register_origin(w, operand->mem.index);
  if (operand->mem.index != ZYDIS_REGISTER_NONE)
    origin_add(&result, &index, operand->mem.scale ? operand->mem.scale : 1);
  return result;
}

cell operand_cell(const visited *v, const ZydisDecodedOperand *operand) {
  const ZydisDecodedOperandMem *mem = &operand->mem;
  cell place = {0, operand->size ? operand->size / 8 : 1};
  if (mem->base == ZYDIS_REGISTER_RIP) {
    place.address = v->address;
    return place;
  }
  place.address = register_value(v, mem->base) + (uint64_t)(mem->disp.has_displacement ? mem->disp.value : 0);
  place.address += register_value(v, mem->index) * (mem->scale ? mem->scale : 1);
  if (v->decoded.address_width == 32)
    place.address = (uint32_t)place.address;
  /* A push stores below RSP as it stood before. */
  if (operand->visibility == ZYDIS_OPERAND_VISIBILITY_HIDDEN && mem->base == ZYDIS_REGISTER_RSP &&
      is_written(operand))
    place.address -= place.size;
  return place;
}

static bool same_cell(const cell *a, const cell *b) {
  return a->address == b->address && a->size == b->size;
}

static bool overlap(const cell *a, const cell *b) {
  return a->address < b->address + b->size && b->address < a->address + a->size;
}

/* What a load yields: what the block stored there last, or else an initial value of memory. */
static origin load_origin(walk *w, const cell *place) {
  origin result = {1, {{0, 1}}};
  if (place->size > 8)
    return nothing;
  for (uint32_t i = w->store_count; i-- > 0;)
    if (overlap(&w->stores[i].place, place))
      return same_cell(&w->stores[i].place, place) ? w->stores[i].value : nothing;
  uint32_t n = 0;
  while (n < w->cell_count && !same_cell(&w->cells[n], place))
    n++;
  if (n == CELLS_MAX)
    return nothing;
  if (n == w->cell_count)
    w->cells[w->cell_count++] = *place;
  result.terms[0].from = REGISTERS + n;
  return result;
}

static void note_store(walk *w, const cell *place, const origin *value) {
  if (w->store_count < STORES_MAX)
    w->stores[w->store_count++] = (store){*place, *value};
}

static void note_access(walk *w, const visited *v, const ZydisDecodedOperand *operand) {
  if (w->access_count < ACCESSES_MAX)
    w->accesses[w->access_count++] =
        (memory_use){operand_cell(v, operand), is_written(operand), address_origin(w, operand)};
}

/* ---- Instructions ------------------------------------------------------------------------------------ */

origin operand_origin(walk *w, const visited *v, const ZydisDecodedOperand *operand) {
  if (operand->type == ZYDIS_OPERAND_TYPE_REGISTER)
    return register_origin(w, operand->reg.value);
  if (!is_memory(operand))
    return nothing;
  if (operand->mem.type == ZYDIS_MEMOP_TYPE_AGEN)
    return address_origin(w, operand);
  cell place = operand_cell(v, operand);
  return load_origin(w, &place);
}

static int64_t immediate(const ZydisDecodedOperand *operand) {
  return operand->type == ZYDIS_OPERAND_TYPE_IMMEDIATE ? operand->imm.value.s : 0;
}

static bool same_register(const ZydisDecodedOperand *a, const ZydisDecodedOperand *b) {
  return a->type == ZYDIS_OPERAND_TYPE_REGISTER && b->type == ZYDIS_OPERAND_TYPE_REGISTER &&
         a->reg.value == b->reg.value;
}

/* MOV of an immediate that is the address of something, in code linked to a fixed address. */
static origin immediate_origin(const visited *v) {
  const ZydisDecodedOperand *second = &v->operands[1];
  if (second->type != ZYDIS_OPERAND_TYPE_IMMEDIATE || v->operands[0].size < 32 ||
      immediate(second) < IMPORT_LINKED_MIN || v->decoded.raw.imm[0].size < 32)
    return nothing;
  return (origin){1, {{IMMEDIATES + v->step->instruction, 1}}};
}

/* What the first operand holds afterwards. */
static origin result_origin(walk *w, const visited *v) {
  const ZydisDecodedOperand *operands = v->operands;
  origin first = operand_origin(w, v, &operands[0]), second = operand_origin(w, v, &operands[1]);
  switch (v->decoded.mnemonic) {
  case ZYDIS_MNEMONIC_MOV:
    return operands[1].type == ZYDIS_OPERAND_TYPE_IMMEDIATE ? immediate_origin(v) : second;
  case ZYDIS_MNEMONIC_MOVZX:
  case ZYDIS_MNEMONIC_MOVSX:
  case ZYDIS_MNEMONIC_MOVSXD:
  case ZYDIS_MNEMONIC_MOVBE:
  case ZYDIS_MNEMONIC_LEA:
  case ZYDIS_MNEMONIC_POP:
    return v->decoded.mnemonic == ZYDIS_MNEMONIC_POP ? first : second;
  case ZYDIS_MNEMONIC_ADD:
  case ZYDIS_MNEMONIC_XADD:
  case ZYDIS_MNEMONIC_ADC:
    origin_add(&first, &second, 1);
    return first;
  case ZYDIS_MNEMONIC_SUB:
  case ZYDIS_MNEMONIC_SBB:
    if (same_register(&operands[0], &operands[1]))
      return nothing;
    origin_add(&first, &second, -1);
    return first;
  case ZYDIS_MNEMONIC_XOR:
    return same_register(&operands[0], &operands[1]) ? nothing : first;
  case ZYDIS_MNEMONIC_NEG:
    return origin_scaled(&first, -1);
  case ZYDIS_MNEMONIC_SHL:
    return origin_scaled(&first, INT64_C(1) << (immediate(&operands[1]) & 31));
  case ZYDIS_MNEMONIC_IMUL:
    if (v->decoded.operand_count_visible < 3)
      return nothing;
    return origin_scaled(&second, immediate(&operands[2]));
  case ZYDIS_MNEMONIC_INC:
  case ZYDIS_MNEMONIC_DEC:
  case ZYDIS_MNEMONIC_AND:
  case ZYDIS_MNEMONIC_OR:
  case ZYDIS_MNEMONIC_BTS:
  case ZYDIS_MNEMONIC_BTR:
  case ZYDIS_MNEMONIC_BTC:
    return first;
  default:
    return nothing;
  }
}

/* Writes a result to an operand. A write to 8 or 16 bits leaves a register the value it mostly is. */
static void write_operand(walk *w, const visited *v, const ZydisDecodedOperand *operand,
                          const origin *value) {
  if (operand->type == ZYDIS_OPERAND_TYPE_REGISTER) {
    int number = general_number(operand->reg.value);
    if (number >= 0 && operand->size >= 32)
      w->registers[number] = *value;
  } else if (is_memory(operand) && is_written(operand)) {
    cell place = operand_cell(v, operand);
    note_store(w, &place, value);
  }
}

/* Stack instructions and exchanges write more than one operand in ways of their own. True if done. */
static bool walk_special(walk *w, const visited *v, uint64_t after_rsp) {
  const ZydisDecodedOperand *operands = v->operands;
  uint64_t rsp = v->step->gpr[LS_RSP];
  cell below = {after_rsp, (uint32_t)(rsp - after_rsp)}, top = {rsp, (uint32_t)(after_rsp - rsp)};
  origin first = operand_origin(w, v, &operands[0]), second = operand_origin(w, v, &operands[1]);
  switch (v->decoded.mnemonic) {
  case ZYDIS_MNEMONIC_PUSH:
    note_store(w, &below, &first);
    return true;
  case ZYDIS_MNEMONIC_POP:
    first = load_origin(w, &top);
    write_operand(w, v, &operands[0], &first);
    return true;
  case ZYDIS_MNEMONIC_LEAVE:
    w->registers[LS_RSP] = w->registers[LS_RBP];
    w->registers[LS_RBP] = load_origin(w, &(cell){v->step->gpr[LS_RBP], 8});
    return true;
  case ZYDIS_MNEMONIC_XCHG:
    write_operand(w, v, &operands[0], &second);
    write_operand(w, v, &operands[1], &first);
    return true;
  case ZYDIS_MNEMONIC_CDQE:
  case ZYDIS_MNEMONIC_CWDE:
  case ZYDIS_MNEMONIC_CBW:
  case ZYDIS_MNEMONIC_TEST:
  case ZYDIS_MNEMONIC_CMP:
    return true;
  default:
    return false;
  }
}

/* A conditional move did what the registers show afterwards. */
static bool walk_conditional(walk *w, const visited *v, const trace_step *after) {
  if (v->decoded.meta.category != ZYDIS_CATEGORY_CMOV)
    return false;
  int number = general_number(v->operands[0].reg.value);
  origin second = operand_origin(w, v, &v->operands[1]);
  if (number >= 0 && after->gpr[number] != v->step->gpr[number])
    w->registers[number] = second;
  return true;
}

static void walk_instruction(walk *w, const visited *v, const trace_step *after) {
  for (unsigned i = 0; i < v->decoded.operand_count; i++)
    if (is_plain_memory(&v->operands[i]))
      note_access(w, v, &v->operands[i]);
  if (v->decoded.operand_count == 0 || walk_conditional(w, v, after) ||
      walk_special(w, v, after->gpr[LS_RSP]))
    return;
  origin value = result_origin(w, v);
  for (unsigned i = 0; i < v->decoded.operand_count; i++) {
    bool stack = v->operands[i].visibility == ZYDIS_OPERAND_VISIBILITY_HIDDEN &&
                 v->operands[i].type == ZYDIS_OPERAND_TYPE_REGISTER &&
                 (general_number(v->operands[i].reg.value) == LS_RSP);
    if (is_written(&v->operands[i]) && !stack)
      write_operand(w, v, &v->operands[i], i == 0 ? &value : &nothing);
  }
}

static bool visit(const walk *w, const trace_step *step, visited *v) {
  if (step->instruction == LS_NONE)
    return false;
  const ls_instruction *instruction = &w->test->instructions[step->instruction];
  v->step = step;
  v->address = instruction->data;
  return harness_decode(instruction->bytes, instruction->length, &v->decoded, v->operands);
}

bool walk_path(walk *w, testcase *test, const trace *path, visited *last) {
  if (path->count == 0)
    return false;
  w->test = test;
  w->cell_count = w->store_count = w->access_count = 0;
  for (source reg = 0; reg < REGISTERS; reg++)
    w->registers[reg] = (origin){1, {{reg, 1}}};
  for (uint32_t i = 0; i + 1 < path->count; i++)
    if (visit(w, &path->steps[i], last))
      walk_instruction(w, last, &path->steps[i + 1]);
  return visit(w, &path->steps[path->count - 1], last);
}

/* Follows where the values of a faulting block came from.
 *
 * The path that ran is known with the general registers before each of its instructions. Walking along it,
 * every register and every stored cell gets an origin: a sum of initial values (registers, or cells of memory
 * that were loaded) times factors. What is lost on the way (a shift to the right, a value from a vector)
 * counts as a constant. At the fault the origin of the address says which initial value to change, and by how
 * much: the concrete value is known, so only the factor matters. All earlier accesses whose addresses came
 * from the same initial value move with it and must stay inside the sandbox. */
#include <signal.h>
#include <string.h>

#include "forms.h"
#include "import_repair.h"

enum { TERMS_MAX = 4, CELLS_MAX = 64, STORES_MAX = 128, ACCESSES_MAX = 2 * TRACE_MAX, REGISTERS = 16 };

/* An initial value: register 0 … 15, or 16 + index of a loaded cell. */
typedef uint32_t source;

typedef struct origin {
  uint32_t count;
  struct {
    source from;
    int64_t factor;
  } terms[TERMS_MAX];
} origin;

typedef struct cell {
  uint64_t address;
  uint32_t size;
} cell;

typedef struct store {
  cell place;
  origin value;
} store;

typedef struct memory_use {
  cell place;
  bool write;
  origin address;
} memory_use;

typedef struct walk {
  testcase *test;
  unsigned place;
  origin registers[REGISTERS];
  uint32_t cell_count, store_count, access_count;
  cell cells[CELLS_MAX];
  store stores[STORES_MAX];
  memory_use accesses[ACCESSES_MAX];
} walk;

/* An instruction of the path with what is needed of it. */
typedef struct visited {
  const trace_step *step;
  uint64_t address; /* of a RIP-relative operand */
  ZydisDecodedInstruction decoded;
  ZydisDecodedOperand operands[ZYDIS_MAX_OPERAND_COUNT];
} visited;

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

static uint64_t register_value(const visited *v, ZydisRegister reg) {
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

static bool writes(const ZydisDecodedOperand *operand) {
  return (operand->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE) != 0;
}

static origin address_origin(const walk *w, const ZydisDecodedOperand *operand) {
  origin result = register_origin(w, operand->mem.base), index = register_origin(w, operand->mem.index);
  if (operand->mem.index != ZYDIS_REGISTER_NONE)
    origin_add(&result, &index, operand->mem.scale ? operand->mem.scale : 1);
  return result;
}

static cell operand_cell(const visited *v, const ZydisDecodedOperand *operand) {
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
      writes(operand))
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
        (memory_use){operand_cell(v, operand), writes(operand), address_origin(w, operand)};
}

/* ---- Instructions ------------------------------------------------------------------------------------ */

static origin operand_origin(walk *w, const visited *v, const ZydisDecodedOperand *operand) {
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

/* What the first operand holds afterwards. */
static origin result_origin(walk *w, const visited *v) {
  const ZydisDecodedOperand *operands = v->operands;
  origin first = operand_origin(w, v, &operands[0]), second = operand_origin(w, v, &operands[1]);
  switch (v->decoded.mnemonic) {
  case ZYDIS_MNEMONIC_MOV:
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
    return origin_scaled(&first, 1ll << (immediate(&operands[1]) & 31));
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
  } else if (is_memory(operand) && writes(operand)) {
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
    if (is_memory(&v->operands[i]) && v->operands[i].mem.type == ZYDIS_MEMOP_TYPE_MEM)
      note_access(w, v, &v->operands[i]);
  if (v->decoded.operand_count == 0 || walk_conditional(w, v, after) ||
      walk_special(w, v, after->gpr[LS_RSP]))
    return;
  origin value = result_origin(w, v);
  for (unsigned i = 0; i < v->decoded.operand_count; i++) {
    bool stack = v->operands[i].visibility == ZYDIS_OPERAND_VISIBILITY_HIDDEN &&
                 v->operands[i].type == ZYDIS_OPERAND_TYPE_REGISTER &&
                 (general_number(v->operands[i].reg.value) == LS_RSP);
    if (writes(&v->operands[i]) && !stack)
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

/* ---- Changing initial values ------------------------------------------------------------------------- */

static uint32_t window_of(const cell *place) {
  const ls_layout *layout = testcase_layout();
  for (uint32_t i = 0; i < layout->window_count; i++)
    if (place->address - layout->windows[i].address < layout->windows[i].size &&
        place->size <= layout->windows[i].size - (place->address - layout->windows[i].address))
      return i;
  return LS_NONE;
}

static bool patch_memory(testcase *test, uint32_t window, uint16_t offset, const uint8_t *bytes,
                         uint8_t size) {
  unsigned n = 0;
  while (n < test->patch_count && (test->patches[n].window != window || test->patches[n].offset != offset ||
                                   test->patches[n].length != size))
    n++;
  if (n == TESTCASE_PATCHES_MAX)
    return false;
  if (n == test->patch_count)
    test->patch_count++;
  /* Patches are applied in order: the newest has to be the last. */
  memmove(&test->patches[n], &test->patches[n + 1], (test->patch_count - 1 - n) * sizeof test->patches[0]);
  testcase_patch *patch = &test->patches[test->patch_count - 1];
  *patch = (testcase_patch){.window = (uint8_t)window, .length = size, .offset = offset};
  memcpy(patch->bytes, bytes, size);
  return true;
}

/* The initial value of a cell, zero-extended; false if it lies outside the windows that have contents. */
static bool cell_value(const testcase *test, const cell *place, uint32_t *window, uint64_t *value) {
  static testcase_contents contents;
  *window = window_of(place);
  if (*window == LS_NONE || *window == TESTCASE_CODE || place->size > 8)
    return false;
  testcase_contents_make(test, &contents);
  *value = 0;
  memcpy(value,
         (const uint8_t *)contents.window[*window] +
             (place->address - testcase_layout()->windows[*window].address),
         place->size);
  return true;
}

/* Adds to an initial value. A cell of less than 8 bytes must keep a value without sign. */
static bool source_add(walk *w, source from, uint64_t change) {
  if (from < REGISTERS) {
    w->test->state.gpr[from] += change;
    return true;
  }
  const cell *place = &w->cells[from - REGISTERS];
  uint32_t window;
  uint64_t value;
  if (!cell_value(w->test, place, &window, &value))
    return false;
  value += change;
  if (place->size < 8 && value >> (8 * place->size - 1) != 0)
    return false;
  uint16_t offset = (uint16_t)(place->address - testcase_layout()->windows[window].address);
  return patch_memory(w->test, window, offset, (const uint8_t *)&value, (uint8_t)place->size);
}

static int64_t factor_of(const origin *value, source from) {
  for (uint32_t i = 0; i < value->count; i++)
    if (value->terms[i].from == from)
      return value->terms[i].factor;
  return 0;
}

/* The range of addresses that move by `factor` for each one that `from` moves, up to now. */
typedef struct extent {
  uint64_t low, high; /* high: behind the last byte */
  bool write;
} extent;

static extent extent_of(const walk *w, const memory_use *fault, source from, int64_t factor) {
  extent e = {fault->place.address, fault->place.address + fault->place.size, fault->write};
  for (uint32_t i = 0; i < w->access_count; i++) {
    const memory_use *a = &w->accesses[i];
    if (factor_of(&a->address, from) != factor || window_of(&a->place) == LS_NONE)
      continue;
    if ((int64_t)(a->place.address - e.low) < 0)
      e.low = a->place.address;
    if ((int64_t)(a->place.address + a->place.size - e.high) > 0)
      e.high = a->place.address + a->place.size;
    e.write |= a->write;
  }
  return e;
}

/* Looks for a shift that brings the extent into window `window` and the fault's address to a multiple of
 * `alignment`, beginning at a place that depends on the source. */
static bool find_shift(const extent *e, uint32_t window, const memory_use *fault, int64_t factor,
                       uint64_t alignment, uint64_t start, uint64_t *shift) {
  const ls_window *target = &testcase_layout()->windows[window];
  uint64_t size = target->size - (window == TESTCASE_STACK ? LS_CONTROL_SIZE : 0), length = e->high - e->low;
  if (length > size || (e->write && !(target->access & LS_WRITE)))
    return false;
  uint64_t room = size - length + 1;
  for (uint64_t n = 0; n < room; n++) {
    uint64_t candidate = target->address + (start + n) % room - e->low;
    if ((int64_t)candidate % factor == 0 && (fault->place.address + candidate) % alignment == 0) {
      *shift = candidate;
      return true;
    }
  }
  return false;
}

static bool move_source(walk *w, const memory_use *fault, source from, int64_t factor, uint64_t alignment) {
  static const uint32_t orders[2][4] = {{TESTCASE_DATA, TESTCASE_CONST, TESTCASE_CODE, TESTCASE_STACK},
                                        {TESTCASE_STACK, TESTCASE_DATA, TESTCASE_CONST, TESTCASE_CODE}};
  extent e = extent_of(w, fault, from, factor);
  const uint32_t *order = orders[from == LS_RSP || from == LS_RBP];
  uint64_t start = 1024 + (from * 320 + w->place * 1472) % 4096, shift;
  for (unsigned i = 0; i < 4; i++)
    if (find_shift(&e, order[i], fault, factor, alignment, start, &shift))
      return source_add(w, from, (uint64_t)((int64_t)shift / factor));
  return false;
}

static bool fix_access(walk *w, const memory_use *fault) {
  static const uint64_t alignments[3] = {64, 16, 1};
  for (unsigned i = 0; i < 3; i++)
    for (uint32_t n = 0; n < fault->address.count; n++) {
      int64_t factor = fault->address.terms[n].factor;
      if (factor != 0 && fault->place.size <= (alignments[i] == 1 ? 16 : alignments[i]) &&
          move_source(w, fault, fault->address.terms[n].from, factor, alignments[i]))
        return true;
    }
  return false;
}

/* ---- Kinds of fault ---------------------------------------------------------------------------------- */

static bool access_bad(const memory_use *a) {
  uint32_t window = window_of(&a->place);
  return window == LS_NONE || (a->write && !(testcase_layout()->windows[window].access & LS_WRITE));
}

static bool fix_count(walk *w, const visited *v) {
  bool repeats =
      (v->decoded.attributes & (ZYDIS_ATTRIB_HAS_REP | ZYDIS_ATTRIB_HAS_REPE | ZYDIS_ATTRIB_HAS_REPNE)) != 0;
  uint64_t count = v->step->gpr[LS_RCX];
  const origin *from = &w->registers[LS_RCX];
  if (!repeats || count <= 16 || from->count == 0)
    return false;
  return from->terms[0].factor != 0 &&
         source_add(w, from->terms[0].from, (uint64_t)((int64_t)(8 - count) / from->terms[0].factor));
}

/* A memory fault: of the operands whose address is out of place, or else of those that want alignment. */
static bool fix_memory(walk *w, const visited *v) {
  if (fix_count(w, v))
    return true;
  for (unsigned pass = 0; pass < 2; pass++)
    for (unsigned i = 0; i < v->decoded.operand_count; i++) {
      const ZydisDecodedOperand *operand = &v->operands[i];
      if (!is_memory(operand) || operand->mem.type != ZYDIS_MEMOP_TYPE_MEM)
        continue;
      memory_use a = {operand_cell(v, operand), writes(operand), address_origin(w, operand)};
      bool misaligned = a.place.size >= 16 && a.place.address % a.place.size != 0;
      if ((pass == 0 ? access_bad(&a) : misaligned) && fix_access(w, &a))
        return true;
    }
  return false;
}

static bool set_value(walk *w, const origin *from, uint64_t now, uint64_t wanted) {
  if (now == wanted || from->count == 0 || from->terms[0].factor == 0)
    return false;
  int64_t change = (int64_t)(wanted - now);
  return change % from->terms[0].factor == 0 &&
         source_add(w, from->terms[0].from, (uint64_t)(change / from->terms[0].factor));
}

/* A division fails if the divisor is zero, or if the quotient does not fit: a small dividend over a divisor
 * that is not small always does. */
static bool fix_division(walk *w, const visited *v) {
  const ZydisDecodedOperand *divisor = &v->operands[0];
  uint64_t value = 0, mask = UINT64_MAX >> (64 - divisor->size);
  uint32_t window;
  origin from = operand_origin(w, v, divisor);
  if (divisor->type == ZYDIS_OPERAND_TYPE_REGISTER)
    value = register_value(v, divisor->reg.value);
  else if (is_memory(divisor)) {
    cell place = operand_cell(v, divisor);
    if (!cell_value(w->test, &place, &window, &value))
      return false;
  }
  value &= mask;
  if ((value == 0 || value > 0x7f) && set_value(w, &from, value, 0x65))
    return true;
  return set_value(w, &w->registers[LS_RDX], v->step->gpr[LS_RDX], 0) ||
         set_value(w, &w->registers[LS_RAX], v->step->gpr[LS_RAX], 0x1234);
}

bool repair_fault(testcase *test, const trace *path, const ls_stop *stop, unsigned place) {
  static walk w;
  visited v;
  if (path->count == 0)
    return false;
  w.test = test;
  w.place = place;
  w.cell_count = w.store_count = w.access_count = 0;
  for (source reg = 0; reg < REGISTERS; reg++)
    w.registers[reg] = (origin){1, {{reg, 1}}};
  for (uint32_t i = 0; i + 1 < path->count; i++)
    if (visit(&w, &path->steps[i], &v))
      walk_instruction(&w, &v, &path->steps[i + 1]);
  if (!visit(&w, &path->steps[path->count - 1], &v))
    return false;
  if (stop->signal == SIGFPE)
    return fix_division(&w, &v);
  return fix_memory(&w, &v);
}

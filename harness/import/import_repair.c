/* Puts initial values right. All earlier accesses whose addresses came from the value that is changed move
 * with it and must stay inside the sandbox. */
#include <signal.h>
#include <string.h>

#include "import/import_walk.h"

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

static bool immediate_add(ls_instruction *instruction, uint64_t change) {
  ZydisDecodedInstruction decoded;
  ZydisDecodedOperand operands[ZYDIS_MAX_OPERAND_COUNT];
  if (!harness_decode(instruction->bytes, instruction->length, &decoded, operands))
    return false;
  uint64_t value = decoded.raw.imm[0].value.u + change;
  if (value > INT32_MAX)
    return false;
  memcpy(instruction->bytes + decoded.raw.imm[0].offset, &value, decoded.raw.imm[0].size / 8);
  return true;
}

/* Adds to an initial value. A cell of less than 8 bytes must keep a value without sign. */
static bool source_add(walk *w, source from, uint64_t change) {
  if (from < REGISTERS) {
    w->test->state.gpr[from] += change;
    return true;
  }
  if (from >= IMMEDIATES)
    return immediate_add(&w->test->instructions[from - IMMEDIATES], change);
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

static bool set_value(walk *w, const origin *from, uint64_t now, uint64_t wanted) {
  if (now == wanted || from->count == 0 || from->terms[0].factor == 0 || from->terms[0].from >= IMMEDIATES)
    return false;
  int64_t change = (int64_t)(wanted - now);
  return change % from->terms[0].factor == 0 &&
         source_add(w, from->terms[0].from, (uint64_t)(change / from->terms[0].factor));
}

static bool fix_count(walk *w, const visited *v) {
  bool repeats =
      (v->decoded.attributes & (ZYDIS_ATTRIB_HAS_REP | ZYDIS_ATTRIB_HAS_REPE | ZYDIS_ATTRIB_HAS_REPNE)) != 0;
  uint64_t count = v->step->gpr[LS_RCX];
  const origin *from = &w->registers[LS_RCX];
  return repeats && count > 16 && set_value(w, from, count, 8);
}

/* A memory fault: of the operands whose address is out of place, or else of those that want alignment. */
static bool fix_memory(walk *w, const visited *v) {
  if (fix_count(w, v))
    return true;
  for (unsigned pass = 0; pass < 2; pass++)
    for (unsigned i = 0; i < v->decoded.operand_count; i++) {
      const ZydisDecodedOperand *operand = &v->operands[i];
      if (!is_plain_memory(operand))
        continue;
      memory_use a = {operand_cell(v, operand), is_written(operand), address_origin(w, operand)};
      bool misaligned = a.place.size >= 16 && a.place.address % a.place.size != 0;
      if ((pass == 0 ? access_bad(&a) : misaligned) && fix_access(w, &a))
        return true;
    }
  return false;
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
  else if (is_plain_memory(divisor)) {
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
  visited last;
  w.place = place;
  if (!walk_path(&w, test, path, &last))
    return false;
  return stop->signal == SIGFPE ? fix_division(&w, &last) : fix_memory(&w, &last);
}

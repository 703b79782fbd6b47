#include <string.h>

#include <xxhash.h>

#include "forms/forms.h"
#include "import/import.h"
#include "import/import_repair.h"
#include "rng.h"

const char *import_status_name(import_status status) {
  static const char *const names[] = {"ok", "empty", "undecoded", "too-long", "fs-gs", "system"};
  return status <= IMPORT_SYSTEM ? names[status] : "unknown";
}

/* ---- Cutting ----------------------------------------------------------------------------------------- */

enum { PLACES_MAX = 64, PLACE_SIZE = 64 };

/* A block on its way into a test case. */
typedef struct cutter {
  testcase *test;
  const uint8_t *code;
  size_t size;
  uint32_t place_count;
  uint64_t places[PLACES_MAX];               /* original addresses that have a place in the data window */
  size_t targets[TESTCASE_INSTRUCTIONS_MAX]; /* of each branch: offset in the block */
  uint32_t index_at[16 * TESTCASE_INSTRUCTIONS_MAX]; /* instruction that begins at an offset, or LS_NONE */
} cutter;

/* The place in the data window that stands for an original address. */
static uint64_t place_of(cutter *cut, uint64_t address) {
  const ls_window *data = &testcase_layout()->windows[TESTCASE_DATA];
  uint32_t place = 0;
  while (place < cut->place_count && cut->places[place] != address)
    place++;
  if (place == cut->place_count && place < PLACES_MAX)
    cut->places[cut->place_count++] = address;
  return data->address + PLACE_SIZE * (place % PLACES_MAX);
}

static bool thread_local_operand(const ZydisDecodedInstruction *decoded,
                                 const ZydisDecodedOperand *operands) {
  for (unsigned i = 0; i < decoded->operand_count; i++)
    if (operands[i].type == ZYDIS_OPERAND_TYPE_MEMORY && operands[i].mem.type != ZYDIS_MEMOP_TYPE_AGEN &&
        (operands[i].mem.segment == ZYDIS_REGISTER_FS || operands[i].mem.segment == ZYDIS_REGISTER_GS))
      return true;
  return false;
}

/* Registers (as numbers in an instruction) that get a constant in place of what no two runs share. */
static unsigned replaced_registers(ZydisMnemonic mnemonic, uint8_t registers[4]) {
  static const uint8_t order[4] = {LS_RAX, LS_RDX, LS_RCX, LS_RBX};
  memcpy(registers, order, sizeof order);
  switch (mnemonic) {
  case ZYDIS_MNEMONIC_RDTSC:
  case ZYDIS_MNEMONIC_XGETBV:
    return 2;
  case ZYDIS_MNEMONIC_RDTSCP:
    return 3;
  case ZYDIS_MNEMONIC_CPUID:
    return 4;
  default:
    return 0;
  }
}

static ls_instruction *cut_append(cutter *cut, const uint8_t *bytes, uint8_t length) {
  testcase *test = cut->test;
  ls_instruction *instruction = &test->instructions[test->count++];
  *instruction = (ls_instruction){.next = test->count, .jump = LS_NONE, .length = length};
  memcpy(instruction->bytes, bytes, length);
  return instruction;
}

/* MOV r32, imm32 for each register: moves change no flags, and neither do the instructions replaced. */
static void cut_replacement(cutter *cut, const uint8_t *registers, unsigned count) {
  for (unsigned i = 0; i < count; i++) {
    const uint8_t move[5] = {(uint8_t)(0xb8 + registers[i]), (uint8_t)(0x10 + i), 0, 0, 0};
    cut_append(cut, move, sizeof move);
  }
}

static void set_field(ls_instruction *instruction, ls_field field, uint8_t offset, uint8_t bits) {
  instruction->field = (uint8_t)field;
  instruction->field_offset = offset;
  instruction->field_size = bits / 8;
}

/* Is the displacement the address of a table? */
static bool absolute_table(const ZydisDecodedInstruction *decoded) {
  return decoded->raw.disp.size == 32 && decoded->raw.disp.value >= IMPORT_LINKED_MIN;
}

/* A memory operand without registers, or with RIP, or with an index and a displacement that was the address
 * of a table. LEA of such a form is arithmetic and stays as it is, unless it is RIP-relative. */
static void cut_memory(cutter *cut, ls_instruction *instruction, const ZydisDecodedInstruction *decoded,
                       const ZydisDecodedOperand *operand, size_t end) {
  const ZydisDecodedOperandMem *mem = &operand->mem;
  uint8_t bits = decoded->raw.disp.size, offset = decoded->raw.disp.offset;
  if (mem->base == ZYDIS_REGISTER_RIP && bits == 32) {
    set_field(instruction, LS_FIELD_DATA, offset, bits);
    instruction->data = place_of(cut, end + (uint64_t)decoded->raw.disp.value);
  } else if (((mem->base == ZYDIS_REGISTER_NONE && bits >= 32) || absolute_table(decoded)) &&
             mem->type != ZYDIS_MEMOP_TYPE_AGEN) {
    uint64_t address = place_of(cut, ~(uint64_t)decoded->raw.disp.value);
    memcpy(instruction->bytes + offset, &address, bits / 8);
  }
}

static void cut_branch(cutter *cut, ls_instruction *instruction, const ZydisDecodedInstruction *decoded,
                       size_t end) {
  uint8_t bits = decoded->raw.imm[0].size;
  if (bits != 8 && bits != 32)
    return;
  set_field(instruction, LS_FIELD_BRANCH, decoded->raw.imm[0].offset, bits);
  cut->targets[cut->test->count - 1] = end + (uint64_t)decoded->raw.imm[0].value.s;
}

static void cut_flags(ls_instruction *instruction, const ZydisDecodedInstruction *decoded) {
  bool stops = decoded->mnemonic == ZYDIS_MNEMONIC_UD0 || decoded->mnemonic == ZYDIS_MNEMONIC_UD1 ||
               decoded->mnemonic == ZYDIS_MNEMONIC_UD2;
  if (!stops && decoded->meta.category != ZYDIS_CATEGORY_UNCOND_BR &&
      decoded->meta.category != ZYDIS_CATEGORY_RET)
    return;
  instruction->flags = LS_NEVER_FALLS_THROUGH;
  instruction->next = LS_NONE;
}

static void cut_instruction(cutter *cut, size_t offset, const ZydisDecodedInstruction *decoded,
                            const ZydisDecodedOperand *operands) {
  size_t end = offset + decoded->length;
  ls_instruction *instruction = cut_append(cut, cut->code + offset, decoded->length);
  for (unsigned i = 0; i < decoded->operand_count_visible; i++)
    if (operands[i].type == ZYDIS_OPERAND_TYPE_MEMORY)
      cut_memory(cut, instruction, decoded, &operands[i], end);
    else if (operands[i].type == ZYDIS_OPERAND_TYPE_IMMEDIATE && operands[i].imm.is_relative)
      cut_branch(cut, instruction, decoded, end);
  cut_flags(instruction, decoded);
}

static void link_branches(cutter *cut) {
  for (uint32_t i = 0; i < cut->test->count; i++) {
    ls_instruction *instruction = &cut->test->instructions[i];
    if (instruction->field == LS_FIELD_BRANCH && cut->targets[i] < cut->size)
      instruction->jump = cut->index_at[cut->targets[i]];
  }
}

static import_status cut_one(cutter *cut, size_t *offset, import_report *report) {
  ZydisDecodedInstruction decoded;
  ZydisDecodedOperand operands[ZYDIS_MAX_OPERAND_COUNT];
  uint8_t registers[4];
  if (!harness_decode(cut->code + *offset, cut->size - *offset, &decoded, operands))
    return IMPORT_UNDECODED;
  if (thread_local_operand(&decoded, operands))
    return IMPORT_FS_GS;
  unsigned replaced = replaced_registers(decoded.mnemonic, registers);
  if (cut->test->count + (replaced ? replaced : 1) > TESTCASE_INSTRUCTIONS_MAX)
    return IMPORT_TOO_LONG;
  cut->index_at[*offset] = cut->test->count;
  if (replaced > 0)
    cut_replacement(cut, registers, replaced);
  else
    cut_instruction(cut, *offset, &decoded, operands);
  report->replaced += replaced > 0;
  *offset += decoded.length;
  return IMPORT_OK;
}

static import_status cut_block(cutter *cut, import_report *report) {
  import_status status = IMPORT_OK;
  if (cut->size == 0)
    return IMPORT_EMPTY;
  if (cut->size >= sizeof cut->index_at / sizeof cut->index_at[0])
    return IMPORT_TOO_LONG;
  memset(cut->index_at, 0xff, sizeof cut->index_at);
  memset(cut->targets, 0xff, sizeof cut->targets);
  cut->test->count = 0;
  report->replaced = 0;
  for (size_t offset = 0; status == IMPORT_OK && offset < cut->size;) {
    report->offset = offset;
    status = cut_one(cut, &offset, report);
  }
  link_branches(cut);
  return status;
}

/* ---- Initial values ---------------------------------------------------------------------------------- */

enum { ARITHMETIC_FLAGS = 0x8d5 }; /* CF PF AF ZF SF OF */

/* Which general registers are read as a base, or as an index, before the block writes them. */
typedef struct roles {
  uint32_t base, index;
} roles;

static uint32_t general_bit(ZydisRegister reg) {
  int number = general_number(reg);
  return number < 0 ? 0 : 1u << number;
}

static roles roles_of(const testcase *test) {
  roles found = {0, 0};
  uint32_t written = 0;
  for (uint32_t i = 0; i < test->count; i++) {
    ZydisDecodedInstruction decoded;
    ZydisDecodedOperand operands[ZYDIS_MAX_OPERAND_COUNT];
    uint32_t writes = 0;
    if (!harness_decode(test->instructions[i].bytes, test->instructions[i].length, &decoded, operands))
      continue;
    for (unsigned n = 0; n < decoded.operand_count; n++) {
      const ZydisDecodedOperand *operand = &operands[n];
      if (operand->type == ZYDIS_OPERAND_TYPE_MEMORY && operand->mem.type == ZYDIS_MEMOP_TYPE_MEM) {
        *(absolute_table(&decoded) ? &found.index : &found.base) |= general_bit(operand->mem.base) & ~written;
        found.index |= general_bit(operand->mem.index) & ~written;
      } else if (operand->type == ZYDIS_OPERAND_TYPE_REGISTER &&
                 operand->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE)
        writes |= general_bit(operand->reg.value);
    }
    written |= writes;
  }
  found.index &= ~found.base;
  return found;
}

/* A value for a register that is no address, nearer to zero the later the attempt: a block that uses part of
 * it as an index can run only with a small one. */
static uint64_t plain_value(rng *r, unsigned attempt) {
  if (attempt % 4 == 3)
    return 0;
  if (attempt % 4 == 2)
    return rng_below(r, 4);
  return attempt % 4 == 1 ? rng_below(r, 0x10000) : rng_next(r) >> rng_below(r, 64);
}

static void initial_values(testcase *test, uint64_t seed, unsigned attempt) {
  const ls_layout *layout = testcase_layout();
  roles found = roles_of(test);
  rng r = {seed + attempt};
  for (unsigned reg = 0; reg < 16; reg++) {
    uint64_t place = 2048 + 64 * ((reg * 5 + attempt) % 32);
    if (found.base >> reg & 1)
      test->state.gpr[reg] = layout->windows[TESTCASE_DATA].address + place;
    else
      test->state.gpr[reg] = found.index >> reg & 1 ? rng_below(&r, 32) : plain_value(&r, attempt);
  }
  test->state.gpr[LS_RSP] = layout->windows[TESTCASE_STACK].address + 2048;
  if (found.base >> LS_RBP & 1)
    test->state.gpr[LS_RBP] = layout->windows[TESTCASE_STACK].address + 2048 + 512;
  test->state.rflags |= rng_next(&r) & ARITHMETIC_FLAGS;
  test->vectors = (uint8_t)(attempt < 8 ? 1 + rng_below(&r, 255) : 0);
  testcase_vectors(test->vectors, &test->state);
  test->fill[TESTCASE_DATA] = attempt % 4 == 0 ? 2 : 0; /* small integers, or zero */
}

import_status import_attempt(testcase *test, const uint8_t *code, size_t size, unsigned attempt,
                             import_report *report) {
  cutter cut;
  memset(report, 0, sizeof *report);
  testcase_init(test);
  cut.test = test;
  cut.code = code;
  cut.size = size;
  cut.place_count = 0;
  report->status = cut_block(&cut, report);
  if (report->status != IMPORT_OK) {
    testcase_init(test);
    return report->status;
  }
  testcase_normalise(test);
  initial_values(test, XXH3_64bits(code, size), attempt);
  test->cpu = testcase_cpu();
  testcase_normalise(test);
  return IMPORT_OK;
}

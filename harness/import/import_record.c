#include "import/import_record.h"

#include <assert.h>
#include <string.h>

enum {
  REGISTERS = 16,
  LOG_WINDOW = TESTCASE_WINDOWS,
  LOG_SIZE = TESTCASE_INSTRUCTIONS_MAX * REGISTERS * 8,
  LOG_AT = 0x300000, /* in the layout's slot of 4 MiB, far from the other windows */
  MOVE_LENGTH = 8,
  RECORDED_MAX = TESTCASE_INSTRUCTIONS_MAX * (1 + REGISTERS)
};

/* A block and its moves at their largest fit into the code window of 64 KiB. */
static_assert(TESTCASE_INSTRUCTIONS_MAX * (LS_INSTRUCTION_MAX + REGISTERS * MOVE_LENGTH) < 0xa000, "room");

/* The program with its moves. */
static struct {
  uint32_t count, logged;
  ls_instruction instructions[RECORDED_MAX];
  uint32_t owner[RECORDED_MAX];                /* of each: the instruction of the test */
  uint32_t first[TESTCASE_INSTRUCTIONS_MAX];   /* place in the log of what an instruction wrote, … */
  uint16_t written[TESTCASE_INSTRUCTIONS_MAX]; /* … a bit for each register, in the order of their numbers */
} recorded;

const ls_layout *record_layout(void) {
  static ls_layout layout;
  if (layout.window_count == 0) {
    layout = *testcase_layout();
    uint64_t slot = layout.windows[TESTCASE_CODE].address & ~UINT64_C(0x3fffff);
    layout.windows[LOG_WINDOW] = (ls_window){slot + LOG_AT, LOG_SIZE, LS_READ | LS_WRITE, 0};
    layout.window_count = LOG_WINDOW + 1;
  }
  return &layout;
}

static bool loads_flags(ZydisMnemonic mnemonic) {
  switch (mnemonic) {
  case ZYDIS_MNEMONIC_POPF:
  case ZYDIS_MNEMONIC_POPFD:
  case ZYDIS_MNEMONIC_POPFQ:
  case ZYDIS_MNEMONIC_IRET:
  case ZYDIS_MNEMONIC_IRETD:
  case ZYDIS_MNEMONIC_IRETQ:
    return true;
  default:
    return false;
  }
}

bool record_possible(const testcase *test) {
  for (uint32_t i = 0; i < test->count; i++) {
    const ls_instruction *in = &test->instructions[i];
    ZydisDecodedInstruction decoded;
    ZydisDecodedOperand operands[ZYDIS_MAX_OPERAND_COUNT];
    if ((in->next != LS_NONE && in->next != i + 1) || (in->field == LS_FIELD_BRANCH && in->jump != LS_NONE) ||
        !harness_decode(in->bytes, in->length, &decoded, operands) || loads_flags(decoded.mnemonic))
      return false;
  }
  return true;
}

/* A bit for each general register that it writes, or may. */
static uint16_t written_by(const ls_instruction *in) {
  ZydisDecodedInstruction decoded;
  ZydisDecodedOperand operands[ZYDIS_MAX_OPERAND_COUNT];
  unsigned written = 0;
  if (!harness_decode(in->bytes, in->length, &decoded, operands))
    return 0;
  for (unsigned i = 0; i < decoded.operand_count; i++)
    if (operands[i].type == ZYDIS_OPERAND_TYPE_REGISTER &&
        operands[i].actions & ZYDIS_OPERAND_ACTION_MASK_WRITE) {
      int number = general_number(operands[i].reg.value);
      written |= number < 0 ? 0 : 1u << number;
    }
  return (uint16_t)written;
}

static ls_instruction *append(const ls_instruction *in, uint32_t owner) {
  ls_instruction *added = &recorded.instructions[recorded.count];
  *added = *in;
  recorded.owner[recorded.count++] = owner;
  return added;
}

/* mov [place], reg: REX.W 89 /r with an address of 32 bits and no register. */
static void append_move(unsigned reg, uint32_t owner) {
  uint32_t place = (uint32_t)(record_layout()->windows[LOG_WINDOW].address + 8 * recorded.logged++);
  ls_instruction move = {
      .next = recorded.count + 1,
      .jump = LS_NONE,
      .length = MOVE_LENGTH,
      .bytes = {(uint8_t)(0x48 | (reg >> 3) << 2), 0x89, (uint8_t)((reg & 7) << 3 | 4), 0x25}};
  memcpy(move.bytes + 4, &place, sizeof place);
  append(&move, owner);
}

/* Instruction `i` and, if another follows, its moves. */
static void append_recorded(const testcase *test, uint32_t i) {
  const ls_instruction *in = &test->instructions[i];
  ls_instruction *own = append(in, i);
  own->id = i;
  recorded.first[i] = recorded.logged;
  recorded.written[i] = 0;
  if (in->next == LS_NONE)
    return;
  own->next = recorded.count;
  recorded.written[i] = written_by(in);
  for (unsigned reg = 0; reg < REGISTERS; reg++)
    if (recorded.written[i] >> reg & 1)
      append_move(reg, i);
}

ls_status record_build(const testcase *test, ls_image *image, ls_error *error) {
  recorded.count = recorded.logged = 0;
  for (uint32_t i = 0; i < test->count; i++)
    append_recorded(test, i);
  const ls_program program = {
      .instructions = recorded.instructions, .count = recorded.count, .flags = LS_PROGRAM_FUEL};
  return ls_image_build(image, &program, record_layout(), error);
}

static void add_step(trace *path, uint32_t instruction, const uint64_t *gpr) {
  trace_step *step = &path->steps[path->count++];
  step->instruction = instruction;
  memcpy(step->gpr, gpr, sizeof step->gpr);
}

void record_read(const testcase *test, ls_executor *reference, ls_stop *stop, trace *path) {
  const uint64_t *log = ls_executor_memory(reference, LOG_WINDOW);
  uint64_t gpr[REGISTERS];
  path->count = 0;
  path->overflow = false;
  if (stop->instruction == LS_NONE) /* outside the program: no instruction is to blame */
    return;
  stop->instruction = recorded.owner[stop->instruction];
  memcpy(gpr, test->state.gpr, sizeof gpr);
  for (uint32_t i = 0; i <= stop->instruction; i++) {
    add_step(path, i, gpr);
    const uint64_t *from = log + recorded.first[i];
    for (unsigned reg = 0; reg < REGISTERS; reg++)
      if (recorded.written[i] >> reg & 1)
        gpr[reg] = *from++;
  }
}

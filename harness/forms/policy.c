/* The policy: what is generated and what runs in the thread. Rows here, claims in policy.inc. */
#include "forms/policy.h"

#include <stdlib.h>

typedef enum row_id {
  ROW_ORDINARY,
  ROW_X87,
  ROW_STRINGS,
  ROW_BRANCHES,
  ROW_INDIRECT_BRANCHES,
  ROW_SELECTORS,
  ROW_FLAGS,
  ROW_SYSCALL,
  ROW_BREAKPOINTS,
  ROW_UNDEFINED,
  ROW_PRIVILEGED,
  ROW_IO,
  ROW_SHADOW_STACK,
  ROW_TIME,
  ROW_RANDOM,
  ROW_PROCESSOR,
  ROW_SAVE_AREA,
  ROW_RESTORE_IMAGE,
  ROW_DESCRIPTOR_TABLES,
  ROW_FS_GS,
  ROW_FAR_BRANCHES,
  ROW_NARROW_BRANCHES,
  ROW_INTERRUPTS,
  ROW_SYSENTER,
  ROW_TRANSACTIONS,
  ROW_WAITING,
  ROW_PROTECTION_KEYS,
  ROW_KEY_LOCKER,
  ROW_ENCLAVES,
  ROW_USER_INTERRUPTS,
  ROW_DEVICES,
  ROW_PROFILING,
  ROW_PLATFORM,
  ROWS
} row_id;

static const policy_row rows[ROWS] = {
    [ROW_ORDINARY] = {"ordinary", POLICY_RUN, "its result follows from registers and memory"},
    [ROW_X87] = {"x87", POLICY_RUN, "x87 and MMX state has to be loaded and stored, which costs time"},
    [ROW_STRINGS] = {"strings", POLICY_RUN, "repeats as often as RCX says, which has to be bounded"},
    [ROW_BRANCHES] = {"branches", POLICY_RUN, "its target is a link of the program"},
    [ROW_INDIRECT_BRANCHES] = {"indirect-branches", POLICY_RUN,
                               "goes to an address from a register or memory, which has to be prepared"},
    [ROW_SELECTORS] = {"selectors", POLICY_RUN,
                       "loads DS, ES or SS, which faults unless the selector is one that Linux has"},
    [ROW_FLAGS] = {"flags", POLICY_RUN, "can set flags that stop the program or do not survive the kernel"},

    [ROW_SYSCALL] = {"syscall", POLICY_SYSCALL, "stops the program where it can be trapped"},

    [ROW_BREAKPOINTS] = {"breakpoints", POLICY_FAULT, "a trap that user programs may raise"},
    [ROW_UNDEFINED] = {"undefined", POLICY_FAULT, "undefined on purpose, or in user mode: #UD"},
    [ROW_PRIVILEGED] = {"privileged", POLICY_FAULT, "only the kernel may do this: #GP"},
    [ROW_IO] = {"io", POLICY_FAULT, "Linux gives programs no I/O ports unless asked: #GP"},
    [ROW_SHADOW_STACK] = {"shadow-stack", POLICY_FAULT, "writes shadow stacks, which no guest has: #UD"},

    [ROW_TIME] = {"time", POLICY_EXCLUDE, "reads a clock or a counter of events"},
    [ROW_RANDOM] = {"random", POLICY_EXCLUDE, "reads random numbers"},
    [ROW_PROCESSOR] = {"processor", POLICY_EXCLUDE,
                       "tells which core runs it, or which of its state is in use"},
    [ROW_SAVE_AREA] = {"save-area", POLICY_EXCLUDE,
                       "stores x87 pointers and in-use bits, which depend on what ran before the program"},
    [ROW_RESTORE_IMAGE] = {"restore-image", POLICY_EXCLUDE, "needs a valid image of the registers in memory"},
    [ROW_DESCRIPTOR_TABLES] = {"descriptor-tables", POLICY_EXCLUDE,
                               "reads the kernel's tables, which differ between cores and kernels"},
    [ROW_FS_GS] = {"fs-gs", POLICY_EXCLUDE,
                   "uses or changes FS or GS, by which the thread's own data is found"},
    [ROW_FAR_BRANCHES] = {"far-branches", POLICY_EXCLUDE,
                          "can reach 32-bit code, or return to another state"},
    [ROW_NARROW_BRANCHES] = {"narrow-branches", POLICY_EXCLUDE,
                             "a near branch under a 66 prefix: AMD and Intel differ in its width"},
    [ROW_INTERRUPTS] = {"interrupts", POLICY_EXCLUDE,
                        "enters the kernel, which answers some vectors in its own way (0x80)"},
    [ROW_SYSENTER] = {"sysenter", POLICY_EXCLUDE,
                      "on Intel a 32-bit system call, which is not trapped; on AMD undefined"},
    [ROW_TRANSACTIONS] = {"transactions", POLICY_EXCLUDE, "a transaction may abort at any time"},
    [ROW_WAITING] = {"waiting", POLICY_EXCLUDE, "waits for other cores or for a time"},
    [ROW_PROTECTION_KEYS] = {"protection-keys", POLICY_EXCLUDE, "would take the host's access to its memory"},
    [ROW_KEY_LOCKER] = {"key-locker", POLICY_EXCLUDE, "depends on a key that only the kernel knows"},
    [ROW_ENCLAVES] = {"enclaves", POLICY_EXCLUDE, "enters or manages enclaves"},
    [ROW_USER_INTERRUPTS] = {"user-interrupts", POLICY_EXCLUDE, "sends or changes interrupts of this thread"},
    [ROW_DEVICES] = {"devices", POLICY_EXCLUDE, "writes to devices"},
    [ROW_PROFILING] = {"profiling", POLICY_EXCLUDE, "changes a profiler's state, which is not part of ours"},
    [ROW_PLATFORM] = {"platform", POLICY_EXCLUDE,
                      "speaks to a hypervisor, to firmware or to the memory system"},
};

static const uint8_t mnemonic_rows[ZYDIS_MNEMONIC_MAX_VALUE + 1] = {
#define C(row, mnemonic) [ZYDIS_MNEMONIC_##mnemonic] = ROW_##row,
#include "forms/policy.inc"
#undef C
};

static const uint8_t isa_set_rows[ZYDIS_ISA_SET_MAX_VALUE + 1] = {
#define I(row, set) [ZYDIS_ISA_SET_##set] = ROW_##row,
#include "forms/policy.inc"
#undef I
};

static const uint8_t category_rows[ZYDIS_CATEGORY_MAX_VALUE + 1] = {
#define K(row, category) [ZYDIS_CATEGORY_##category] = ROW_##row,
#include "forms/policy.inc"
#undef K
};

const policy_row *policy_rows(size_t *count) {
  *count = ROWS;
  return rows;
}

/* ---- By operands ------------------------------------------------------------------------------------- */

static bool is_fs_gs(ZydisRegister reg) {
  return reg == ZYDIS_REGISTER_FS || reg == ZYDIS_REGISTER_GS;
}

/* Memory through FS or GS. An address that is only computed (LEA) or only named (long NOPs) is none. */
static bool touches_fs_gs(const ZydisDecodedInstruction *instruction, const ZydisDecodedOperand *operands) {
  if (!(instruction->attributes & (ZYDIS_ATTRIB_HAS_SEGMENT_FS | ZYDIS_ATTRIB_HAS_SEGMENT_GS)) ||
      instruction->meta.category == ZYDIS_CATEGORY_WIDENOP)
    return false;
  for (unsigned i = 0; i < instruction->operand_count; i++) {
    if (operands[i].type == ZYDIS_OPERAND_TYPE_MEMORY && operands[i].mem.type != ZYDIS_MEMOP_TYPE_AGEN &&
        is_fs_gs(operands[i].mem.segment))
      return true;
  }
  return false;
}

/* MOV and POP: what matters is whether they write a segment, control or debug register, or (MOV) read one of
 * the last two. */
static row_id move_row(const ZydisDecodedInstruction *instruction, const ZydisDecodedOperand *operands) {
  const ZydisDecodedOperand *to = &operands[0];
  if (to->type == ZYDIS_OPERAND_TYPE_REGISTER && is_fs_gs(to->reg.value))
    return ROW_FS_GS;
  for (unsigned i = 0; i < instruction->operand_count_visible; i++) {
    if (operands[i].type != ZYDIS_OPERAND_TYPE_REGISTER)
      continue;
    const ZydisRegisterClass class = ZydisRegisterGetClass(operands[i].reg.value);
    if (class == ZYDIS_REGCLASS_CONTROL || class == ZYDIS_REGCLASS_DEBUG || class == ZYDIS_REGCLASS_TEST)
      return ROW_PRIVILEGED;
    if (class == ZYDIS_REGCLASS_SEGMENT && i == 0)
      return ROW_SELECTORS;
  }
  return ROW_ORDINARY;
}

static bool has_operand_size_prefix(const ZydisDecodedInstruction *instruction) {
  for (unsigned i = 0; i < instruction->raw.prefix_count; i++) {
    if (instruction->raw.prefixes[i].value == 0x66)
      return true;
  }
  return false;
}

static row_id branch_row(const ZydisDecodedInstruction *instruction, const ZydisDecodedOperand *operands) {
  if (instruction->meta.branch_type == ZYDIS_BRANCH_TYPE_FAR)
    return ROW_FAR_BRANCHES;
  if (has_operand_size_prefix(instruction))
    return ROW_NARROW_BRANCHES;
  if (instruction->meta.category == ZYDIS_CATEGORY_RET || operands[0].type == ZYDIS_OPERAND_TYPE_IMMEDIATE ||
      instruction->operand_count_visible > 1)
    return ROW_BRANCHES;
  return ROW_INDIRECT_BRANCHES;
}

/* INT 3 and INT 4: the two vectors that Linux opens to programs and answers with a signal (idt_data in
 * arch/x86/kernel/idt.c: SYSG). */
static row_id interrupt_row(const ZydisDecodedOperand *operands) {
  const uint64_t vector = operands[0].type == ZYDIS_OPERAND_TYPE_IMMEDIATE ? operands[0].imm.value.u : 0;
  return vector == 3 || vector == 4 ? ROW_BREAKPOINTS : ROW_INTERRUPTS;
}

static row_id table_row(const ZydisDecodedInstruction *instruction) {
  uint8_t row = mnemonic_rows[instruction->mnemonic];
  if (row == ROW_ORDINARY)
    row = isa_set_rows[instruction->meta.isa_set];
  if (row == ROW_ORDINARY)
    row = category_rows[instruction->meta.category];
  return row;
}

static row_id row_of(const ZydisDecodedInstruction *instruction, const ZydisDecodedOperand *operands) {
  row_id row = table_row(instruction);
  if (rows[row].action == POLICY_EXCLUDE)
    return row == ROW_INTERRUPTS ? interrupt_row(operands) : row;
  if (touches_fs_gs(instruction, operands))
    return ROW_FS_GS;
  if (row == ROW_BRANCHES)
    return branch_row(instruction, operands);
  if (instruction->mnemonic == ZYDIS_MNEMONIC_MOV || instruction->mnemonic == ZYDIS_MNEMONIC_POP)
    return move_row(instruction, operands);
  if (row == ROW_ORDINARY && policy_uses_x87(instruction, operands))
    return ROW_X87;
  return row;
}

const policy_row *policy_of(const ZydisDecodedInstruction *instruction, const ZydisDecodedOperand *operands) {
  return &rows[row_of(instruction, operands)];
}

const policy_row *policy_of_form(form_id form) {
  static uint8_t *form_rows; /* kept for the life of the process */
  if (form_rows == NULL) {
    uint8_t *made = malloc(forms_count());
    for (form_id i = 0; i < forms_count() && made; i++) {
      form_example example;
      form_decode(i, &example);
      made[i] = (uint8_t)row_of(&example.instruction, example.operands);
    }
    if (!made) {
      form_example example;
      form_decode(form, &example);
      return policy_of(&example.instruction, example.operands);
    }
    form_rows = made;
  }
  return &rows[form_rows[form]];
}

/* ---- x87 and MMX ------------------------------------------------------------------------------------- */

static const bool x87_isa_sets[ZYDIS_ISA_SET_MAX_VALUE + 1] = {
    [ZYDIS_ISA_SET_X87] = true,        [ZYDIS_ISA_SET_SSE3X87] = true,  [ZYDIS_ISA_SET_FCMOV] = true,
    [ZYDIS_ISA_SET_PENTIUMMMX] = true, [ZYDIS_ISA_SET_SSE2MMX] = true,  [ZYDIS_ISA_SET_SSSE3MMX] = true,
    [ZYDIS_ISA_SET_FXSAVE] = true,     [ZYDIS_ISA_SET_FXSAVE64] = true, [ZYDIS_ISA_SET_XSAVE] = true,
    [ZYDIS_ISA_SET_XSAVEC] = true,     [ZYDIS_ISA_SET_XSAVEOPT] = true, [ZYDIS_ISA_SET_XSAVES] = true,
};

static bool is_x87_register(ZydisRegister reg) {
  return (reg >= ZYDIS_REGISTER_ST0 && reg <= ZYDIS_REGISTER_ST7) ||
         (reg >= ZYDIS_REGISTER_MM0 && reg <= ZYDIS_REGISTER_MM7) || reg == ZYDIS_REGISTER_X87CONTROL ||
         reg == ZYDIS_REGISTER_X87STATUS || reg == ZYDIS_REGISTER_X87TAG;
}

bool policy_uses_x87(const ZydisDecodedInstruction *instruction, const ZydisDecodedOperand *operands) {
  switch (instruction->mnemonic) {
  case ZYDIS_MNEMONIC_XGETBV: /* of the same ISA set as XSAVE */
  case ZYDIS_MNEMONIC_XSETBV:
    return false;
  case ZYDIS_MNEMONIC_FEMMS:
  case ZYDIS_MNEMONIC_CVTPI2PS: /* with a memory operand too it may enter MMX mode (SDM vol. 2) */
  case ZYDIS_MNEMONIC_CVTPI2PD:
    return true;
  default:
    break;
  }
  if (x87_isa_sets[instruction->meta.isa_set])
    return true;
  for (unsigned i = 0; i < instruction->operand_count; i++) {
    if (operands[i].type == ZYDIS_OPERAND_TYPE_REGISTER && is_x87_register(operands[i].reg.value))
      return true;
  }
  return false;
}

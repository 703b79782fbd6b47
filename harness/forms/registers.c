#include "forms/registers.h"

uint32_t gpr_number(ZydisRegister reg) {
  ZydisRegisterClass class = ZydisRegisterGetClass(reg);
  if (class < ZYDIS_REGCLASS_GPR8 || class > ZYDIS_REGCLASS_GPR64)
    return LS_NONE;
  uint32_t id = (uint32_t)ZydisRegisterGetId(reg);
  return class == ZYDIS_REGCLASS_GPR8 && id >= 4 ? id - 4 : id; /* AH to BH follow BL in Zydis's order */
}

uint16_t written_gprs(const ZydisDecodedInstruction *in, const ZydisDecodedOperand *operands) {
  uint16_t mask = 0;
  for (unsigned i = 0; i < in->operand_count; i++) {
    if (operands[i].type != ZYDIS_OPERAND_TYPE_REGISTER ||
        !(operands[i].actions & ZYDIS_OPERAND_ACTION_MASK_WRITE))
      continue;
    uint32_t gpr = gpr_number(operands[i].reg.value);
    if (gpr != LS_NONE)
      mask |= (uint16_t)(1 << gpr);
  }
  return mask;
}

static bool is_vector(ZydisRegister reg) {
  ZydisRegisterClass class = ZydisRegisterGetClass(reg);
  return class >= ZYDIS_REGCLASS_XMM && class <= ZYDIS_REGCLASS_ZMM;
}

uint32_t written_vectors(const ZydisDecodedInstruction *in, const ZydisDecodedOperand *operands) {
  uint32_t mask = 0;
  for (unsigned i = 0; i < in->operand_count; i++) {
    if (operands[i].type == ZYDIS_OPERAND_TYPE_REGISTER && is_vector(operands[i].reg.value) &&
        (operands[i].actions & ZYDIS_OPERAND_ACTION_MASK_WRITE))
      mask |= 1u << ZydisRegisterGetId(operands[i].reg.value);
  }
  return mask;
}

uint16_t address_gprs(const ZydisDecodedInstruction *in, const ZydisDecodedOperand *operands) {
  uint16_t mask = 0;
  for (unsigned i = 0; i < in->operand_count; i++) {
    if (operands[i].type != ZYDIS_OPERAND_TYPE_MEMORY)
      continue;
    uint32_t base = gpr_number(operands[i].mem.base), index = gpr_number(operands[i].mem.index);
    mask |= (uint16_t)((base == LS_NONE ? 0 : 1 << base) | (index == LS_NONE ? 0 : 1 << index));
  }
  return mask;
}

/* What two instructions have in common when they are of the same form: a number computed from the decoded
 * instruction. Used by the tool that makes the catalogue (make_forms.c) and by the look-up in it (forms.c);
 * both must see the same version of Zydis. */
#ifndef HARNESS_FORM_SIGNATURE_H
#define HARNESS_FORM_SIGNATURE_H

#include <stdbool.h>
#include <stdint.h>

#include <Zydis/Zydis.h>

/* Finalizer of MurmurHash3's 64-bit variant: every bit of the input reaches every bit of the result. */
static inline uint64_t form_mix(uint64_t value) {
  value = (value ^ (value >> 33)) * 0xff51afd7ed558ccdu;
  value = (value ^ (value >> 33)) * 0xc4ceb9fe1a85ec53u;
  return value ^ (value >> 33);
}

/* The class of a register, FS and GS apart from the other segment registers since loading them is another
 * matter altogether (they carry bases that 64-bit code uses). */
static inline unsigned form_register_class(ZydisRegister reg) {
  if (reg == ZYDIS_REGISTER_FS || reg == ZYDIS_REGISTER_GS)
    return ZYDIS_REGCLASS_MAX_VALUE + 1;
  return (unsigned)ZydisRegisterGetClass(reg);
}

/* Kind and size of one operand. Registers count by class, memory by type and, for vector indices, by the
 * width of the index. Which base, index or displacement is no part of the form, and of an address that is
 * only computed (LEA) its width neither. */
static inline uint64_t form_operand_signature(const ZydisDecodedOperand *operand) {
  uint64_t detail = 0, index = 0, size = operand->size;
  if (operand->type == ZYDIS_OPERAND_TYPE_REGISTER)
    detail = form_register_class(operand->reg.value);
  if (operand->type == ZYDIS_OPERAND_TYPE_MEMORY)
    detail = (uint64_t)operand->mem.type;
  if (operand->type == ZYDIS_OPERAND_TYPE_MEMORY && operand->mem.type == ZYDIS_MEMOP_TYPE_VSIB)
    index = form_register_class(operand->mem.index);
  if (operand->type == ZYDIS_OPERAND_TYPE_MEMORY && operand->mem.type == ZYDIS_MEMOP_TYPE_AGEN)
    size = 0;
  return (uint64_t)operand->type | (uint64_t)operand->visibility << 3 | detail << 6 | index << 11 |
         size << 16;
}

/* Prefixes and AVX decorations that make another form of the same operands. */
static inline uint64_t form_decoration_signature(const ZydisDecodedInstruction *instruction) {
  const ZydisInstructionAttributes attributes = instruction->attributes;
  const ZydisDecodedInstructionAvx *avx = &instruction->avx;
  uint64_t decoration = (uint64_t)avx->mask.mode | (uint64_t)avx->rounding.mode << 3;
  if (!avx->broadcast.is_static)
    decoration |= (uint64_t)avx->broadcast.mode << 6;
  decoration |= (uint64_t)(avx->has_sae != 0) << 10;
  decoration |= (uint64_t)((attributes & ZYDIS_ATTRIB_HAS_LOCK) != 0) << 11;
  decoration |= (uint64_t)((attributes & (ZYDIS_ATTRIB_HAS_REP | ZYDIS_ATTRIB_HAS_REPE)) != 0) << 12;
  decoration |= (uint64_t)((attributes & ZYDIS_ATTRIB_HAS_REPNE) != 0) << 13;
  return decoration;
}

/* The width of what an instruction pushes or pops: PUSH imm8 and PUSH imm8 with a 66 prefix look alike in
 * their visible operands. Only where the stack pointer is a hidden operand: MOVDIR64B has hidden memory too.
 */
static inline uint64_t form_stack_signature(const ZydisDecodedInstruction *instruction,
                                            const ZydisDecodedOperand *operands) {
  uint64_t width = 0;
  bool moves_stack = false;
  for (unsigned i = instruction->operand_count_visible; i < instruction->operand_count; i++) {
    if (operands[i].type == ZYDIS_OPERAND_TYPE_MEMORY)
      width += operands[i].size;
    if (operands[i].type == ZYDIS_OPERAND_TYPE_REGISTER &&
        (operands[i].reg.value == ZYDIS_REGISTER_RSP || operands[i].reg.value == ZYDIS_REGISTER_SP))
      moves_stack = true;
  }
  return moves_stack ? width : 0;
}

/* The signature. `operands` holds instruction->operand_count operands, hidden ones too. Different forms have
 * different signatures: make_forms checks that for all it finds. */
static inline uint64_t form_signature(const ZydisDecodedInstruction *instruction,
                                      const ZydisDecodedOperand *operands) {
  uint64_t signature = (uint64_t)instruction->mnemonic | (uint64_t)instruction->encoding << 16 |
                       form_decoration_signature(instruction) << 20 |
                       (form_stack_signature(instruction, operands) & 0xffff) << 40;
  signature = form_mix(signature + 1);
  for (unsigned i = 0; i < instruction->operand_count_visible; i++)
    signature = form_mix(signature * 3 + form_operand_signature(&operands[i]));
  return signature;
}

#endif

#include "generate/traits.h"
#include "forms/policy.h"

static form_role branch_role(const ZydisDecodedInstruction *in) {
  bool relative = (in->attributes & ZYDIS_ATTRIB_IS_RELATIVE) != 0;
  unsigned field = in->raw.imm[0].size / 8;
  if (in->meta.branch_type == ZYDIS_BRANCH_TYPE_FAR || (relative && field != 1 && field != 4))
    return ROLE_FAULT;
  if (in->meta.category == ZYDIS_CATEGORY_CALL)
    return relative ? ROLE_CALL : ROLE_CALL_INDIRECT;
  return relative ? ROLE_BRANCH : ROLE_JUMP_INDIRECT;
}

/* Indirect branches and returns of 16 or 32 bits lose the upper part of the address: what they do with a
 * 64-bit one is a fault somewhere near address 0. */
static form_role return_role(const ZydisDecodedInstruction *in) {
  bool near = in->meta.branch_type == ZYDIS_BRANCH_TYPE_NEAR || in->mnemonic == ZYDIS_MNEMONIC_RET;
  return near && in->operand_width == 64 ? ROLE_RETURN : ROLE_FAULT;
}

static form_role role_of(const ZydisDecodedInstruction *in, policy_action action) {
  if (action == POLICY_SYSCALL)
    return ROLE_SYSCALL;
  if (action != POLICY_RUN)
    return ROLE_FAULT;
  form_role role = ROLE_PLAIN;
  switch (in->meta.category) {
  case ZYDIS_CATEGORY_CALL:
  case ZYDIS_CATEGORY_COND_BR:
  case ZYDIS_CATEGORY_UNCOND_BR:
    role = branch_role(in);
    break;
  case ZYDIS_CATEGORY_RET:
    role = return_role(in);
    break;
  case ZYDIS_CATEGORY_INTERRUPT:
    role = ROLE_FAULT;
    break;
  default:
    break;
  }
  if ((role == ROLE_JUMP_INDIRECT || role == ROLE_CALL_INDIRECT) && in->operand_width != 64)
    return ROLE_FAULT;
  return role;
}

static form_need need_of(const ZydisDecodedInstruction *in, const ZydisDecodedOperand *operands) {
  switch (in->mnemonic) {
  case ZYDIS_MNEMONIC_DIV:
  case ZYDIS_MNEMONIC_IDIV:
    return NEED_DIVIDEND;
  case ZYDIS_MNEMONIC_BT:
  case ZYDIS_MNEMONIC_BTC:
  case ZYDIS_MNEMONIC_BTR:
  case ZYDIS_MNEMONIC_BTS:
    return operands[0].type == ZYDIS_OPERAND_TYPE_MEMORY && operands[1].type == ZYDIS_OPERAND_TYPE_REGISTER
               ? NEED_BIT_OFFSET
               : NEED_NOTHING;
  case ZYDIS_MNEMONIC_ENTER:
    return NEED_ENTER;
  case ZYDIS_MNEMONIC_LEAVE:
    return NEED_LEAVE;
  case ZYDIS_MNEMONIC_POPF:
  case ZYDIS_MNEMONIC_POPFD:
  case ZYDIS_MNEMONIC_POPFQ:
    return NEED_FLAGS_IMAGE;
  case ZYDIS_MNEMONIC_LDMXCSR:
  case ZYDIS_MNEMONIC_VLDMXCSR:
    return NEED_MXCSR;
  case ZYDIS_MNEMONIC_FLDCW:
    return NEED_FCW;
  case ZYDIS_MNEMONIC_LSS:
    return NEED_FAR_POINTER;
  case ZYDIS_MNEMONIC_MOVDIR64B:
    return NEED_DIRECT_STORE;
  case ZYDIS_MNEMONIC_CLZERO:
    return NEED_CLZERO;
  case ZYDIS_MNEMONIC_MOV:
    return operands[0].type == ZYDIS_OPERAND_TYPE_REGISTER &&
                   ZydisRegisterGetClass(operands[0].reg.value) == ZYDIS_REGCLASS_SEGMENT
               ? NEED_SELECTOR
               : NEED_NOTHING;
  default:
    return NEED_NOTHING;
  }
}

/* Legacy SSE instructions whose 16-byte operand needs no alignment (SDM vol. 2, tables 2-17 to 2-21). */
static bool any_alignment(ZydisMnemonic mnemonic) {
  switch (mnemonic) {
  case ZYDIS_MNEMONIC_MOVUPS:
  case ZYDIS_MNEMONIC_MOVUPD:
  case ZYDIS_MNEMONIC_MOVDQU:
  case ZYDIS_MNEMONIC_LDDQU:
  case ZYDIS_MNEMONIC_PCMPESTRI:
  case ZYDIS_MNEMONIC_PCMPESTRM:
  case ZYDIS_MNEMONIC_PCMPISTRI:
  case ZYDIS_MNEMONIC_PCMPISTRM:
    return true;
  default:
    return false;
  }
}

static bool strictly_aligned(const ZydisDecodedInstruction *in, const ZydisDecodedOperand *memory) {
  switch (in->meta.exception_class) {
  case ZYDIS_EXCEPTION_CLASS_SSE1:
  case ZYDIS_EXCEPTION_CLASS_AVX1:
  case ZYDIS_EXCEPTION_CLASS_E1:
  case ZYDIS_EXCEPTION_CLASS_E1NF:
    return memory->size >= 128;
  default:
    break;
  }
  if (memory->size > 512 || in->mnemonic == ZYDIS_MNEMONIC_CMPXCHG16B ||
      in->meta.category == ZYDIS_CATEGORY_MOVDIR)
    return true;
  return in->encoding == ZYDIS_INSTRUCTION_ENCODING_LEGACY && memory->size == 128 &&
         !any_alignment(in->mnemonic);
}

static uint8_t memory_flags(const ZydisDecodedInstruction *in, const ZydisDecodedOperand *op) {
  uint8_t flags = 0;
  if (op->encoding == ZYDIS_OPERAND_ENCODING_NONE || op->mem.type == ZYDIS_MEMOP_TYPE_AGEN)
    return 0;
  flags |= TRAIT_MEMORY;
  if (op->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE)
    flags |= TRAIT_STORES;
  if (op->mem.type == ZYDIS_MEMOP_TYPE_VSIB)
    return flags | TRAIT_VSIB;
  bool locked = (in->attributes & ZYDIS_ATTRIB_HAS_LOCK) || in->mnemonic == ZYDIS_MNEMONIC_XCHG;
  if (strictly_aligned(in, op))
    flags |= TRAIT_ALIGNED | TRAIT_STRICT;
  else if (locked)
    flags |= TRAIT_ALIGNED;
  return flags;
}

form_traits traits_of(form_id form) {
  form_example example;
  form_decode(form, &example);
  const ZydisDecodedInstruction *in = &example.instruction;
  form_traits traits = {.ready = 1};
  traits.role = (uint8_t)role_of(in, policy_of_form(form)->action);
  traits.need = (uint8_t)need_of(in, example.operands);
  bool vector = false, real = false;
  for (unsigned i = 0; i < in->operand_count_visible; i++) {
    const ZydisDecodedOperand *op = &example.operands[i];
    if (op->type == ZYDIS_OPERAND_TYPE_MEMORY)
      traits.flags |= memory_flags(in, op);
    real |= op->element_type >= ZYDIS_ELEMENT_TYPE_FLOAT16 && op->element_type <= ZYDIS_ELEMENT_TYPE_FLOAT64;
    ZydisRegisterClass class = ZYDIS_REGCLASS_INVALID;
    if (op->type == ZYDIS_OPERAND_TYPE_REGISTER)
      class = ZydisRegisterGetClass(op->reg.value);
    vector |= class >= ZYDIS_REGCLASS_XMM && class <= ZYDIS_REGCLASS_ZMM;
  }
  bool moves = in->meta.category == ZYDIS_CATEGORY_DATAXFER || in->meta.category == ZYDIS_CATEGORY_LOGICAL_FP;
  if (vector && real && !moves)
    traits.flags |= TRAIT_FLOAT;
  if (policy_uses_x87(in, example.operands))
    traits.flags |= TRAIT_FPU;
  if (in->meta.category == ZYDIS_CATEGORY_X87_ALU)
    traits.flags |= TRAIT_X87;
  return traits;
}

/* Registers of decoded instructions as numbers and masks. */
#ifndef HARNESS_REGISTERS_H
#define HARNESS_REGISTERS_H

#include "forms/forms.h"

/* Number of a general register of any width, or LS_NONE. */
uint32_t gpr_number(ZydisRegister reg);

/* Masks of the GPRs and vector registers that an instruction writes; hidden operands too. */
uint16_t written_gprs(const ZydisDecodedInstruction *instruction, const ZydisDecodedOperand *operands);
uint32_t written_vectors(const ZydisDecodedInstruction *instruction, const ZydisDecodedOperand *operands);

/* Mask of the GPRs from which it makes addresses. */
uint16_t address_gprs(const ZydisDecodedInstruction *instruction, const ZydisDecodedOperand *operands);

#endif

/* The catalogue of instruction forms: one for each way in which an instruction can be encoded, that is for
 * each distinct (mnemonic, encoding, operand kinds and sizes, mask, zeroing, broadcast, rounding). The table
 * is made at build time by harness/forms/make_forms.c, which walks Zydis's decoder, so its numbering depends
 * on the version of Zydis and is never stored. */
#ifndef HARNESS_FORMS_H
#define HARNESS_FORMS_H

#include <stdbool.h>
#include <Zydis/Zydis.h>

#include "lockstep.h"

typedef uint32_t form_id; /* 0 … forms_count()-1 */
#define FORM_NONE UINT32_MAX

uint32_t forms_count(void);

/* An example of the form: its bytes (*length of them, 1 to 15), static storage. */
const uint8_t *form_bytes(form_id form, uint8_t *length);

/* The decoded example; `operands` holds the visible and hidden ones. It is decoded on every call: at 300 ns
 * that is cheaper than what 17 MB of them would throw out of the caches. Thread safe. */
typedef struct form_example {
  ZydisDecodedInstruction instruction;
  ZydisDecodedOperand operands[ZYDIS_MAX_OPERAND_COUNT];
} form_example;
void form_decode(form_id form, form_example *example);

/* What is asked for often. Thread safe. */
ZydisMnemonic form_mnemonic(form_id form);
ZydisInstructionCategory form_category(form_id form);
ZydisInstructionEncoding form_encoding(form_id form);

/* The form of a decoded instruction (a hash look-up), FORM_NONE if the catalogue has none like it. */
form_id form_of(const ZydisDecodedInstruction *instruction, const ZydisDecodedOperand *operands);

/* "VADDPS zmm{k}, zmm, m32{1to16}"-like text for people. Returns its length. */
size_t form_print(form_id form, char *text, size_t size);

/* Decodes in 64-bit mode. False if Zydis knows no instruction there. Shared decoder, thread safe. */
bool harness_decode(const uint8_t *bytes, size_t size, ZydisDecodedInstruction *instruction,
                    ZydisDecodedOperand operands[ZYDIS_MAX_OPERAND_COUNT]);

#endif

/* The catalogue of forms: look-ups in the table that make_forms wrote. */
#include "forms/forms.h"

#include <ctype.h>
#include <stdarg.h>
#include <stdio.h>

#include "forms/form_signature.h"
/* A row of form_kinds. */
typedef struct form_kind {
  uint16_t mnemonic;
  uint8_t category, encoding;
} form_kind;

#include "forms_table.inc"

uint32_t forms_count(void) {
  return FORMS_COUNT;
}

const uint8_t *form_bytes(form_id form, uint8_t *length) {
  *length = form_examples[form][15];
  return form_examples[form];
}

bool harness_decode(const uint8_t *bytes, size_t size, ZydisDecodedInstruction *instruction,
                    ZydisDecodedOperand operands[ZYDIS_MAX_OPERAND_COUNT]) {
  ZydisDecoder decoder; /* a few plain stores: nothing to be kept or locked */
  return ZYAN_SUCCESS(ZydisDecoderInit(&decoder, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64)) &&
         ZYAN_SUCCESS(ZydisDecoderDecodeFull(&decoder, bytes, size, instruction, operands));
}

void form_decode(form_id form, form_example *example) {
  const uint8_t *bytes = form_examples[form];
  if (!harness_decode(bytes, bytes[15], &example->instruction, example->operands))
    *example = (form_example){0}; /* a Zydis other than the one that made the table */
}

ZydisMnemonic form_mnemonic(form_id form) {
  return (ZydisMnemonic)form_kinds[form].mnemonic;
}

ZydisInstructionCategory form_category(form_id form) {
  return (ZydisInstructionCategory)form_kinds[form].category;
}

ZydisInstructionEncoding form_encoding(form_id form) {
  return (ZydisInstructionEncoding)form_kinds[form].encoding;
}

form_id form_of(const ZydisDecodedInstruction *instruction, const ZydisDecodedOperand *operands) {
  const uint64_t signature = form_signature(instruction, operands);
  for (uint32_t slot = signature % FORM_SLOTS; form_slots[slot] != 0; slot = (slot + 1) % FORM_SLOTS) {
    const form_id form = form_slots[slot] - 1u;
    if (form_signatures[form] == signature)
      return form;
  }
  return FORM_NONE;
}

/* ---- Text -------------------------------------------------------------------------------------------- */

typedef struct text_buffer {
  char *text;
  size_t size, length; /* length: of what was printed, whether it had room or not */
} text_buffer;

static void put(text_buffer *out, const char *format, ...) __attribute__((format(printf, 2, 3)));

static void put(text_buffer *out, const char *format, ...) {
  const size_t room = out->length < out->size ? out->size - out->length : 0;
  va_list arguments;
  va_start(arguments, format);
  const int length = vsnprintf(room > 0 ? out->text + out->length : NULL, room, format, arguments);
  va_end(arguments);
  if (length > 0)
    out->length += (size_t)length;
}

static const char *register_text(const ZydisDecodedOperand *operand) {
  static const char *const names[] = {
      [ZYDIS_REGCLASS_GPR8] = "r8",      [ZYDIS_REGCLASS_GPR16] = "r16",
      [ZYDIS_REGCLASS_GPR32] = "r32",    [ZYDIS_REGCLASS_GPR64] = "r64",
      [ZYDIS_REGCLASS_X87] = "st",       [ZYDIS_REGCLASS_MMX] = "mm",
      [ZYDIS_REGCLASS_XMM] = "xmm",      [ZYDIS_REGCLASS_YMM] = "ymm",
      [ZYDIS_REGCLASS_ZMM] = "zmm",      [ZYDIS_REGCLASS_TMM] = "tmm",
      [ZYDIS_REGCLASS_SEGMENT] = "sreg", [ZYDIS_REGCLASS_CONTROL] = "cr",
      [ZYDIS_REGCLASS_DEBUG] = "dr",     [ZYDIS_REGCLASS_MASK] = "k",
      [ZYDIS_REGCLASS_BOUND] = "bnd",    [ZYDIS_REGCLASS_MAX_VALUE + 1] = "fs/gs"};
  const unsigned class = form_register_class(operand->reg.value);
  if (operand->visibility != ZYDIS_OPERAND_VISIBILITY_EXPLICIT && class <= ZYDIS_REGCLASS_MAX_VALUE)
    return ZydisRegisterGetString(operand->reg.value);
  return class < sizeof names / sizeof names[0] && names[class] != NULL ? names[class] : "?";
}

static void put_memory(text_buffer *out, const ZydisDecodedInstruction *instruction,
                       const ZydisDecodedOperand *operand) {
  static const char *const broadcasts[ZYDIS_BROADCAST_MODE_MAX_VALUE + 1] = {
      "",       "{1to2}", "{1to4}",  "{1to8}", "{1to16}", "{1to32}", "{1to64}",
      "{2to4}", "{2to8}", "{2to16}", "{4to8}", "{4to16}", "{8to16}"};
  put(out, "m");
  if (operand->size != 0 && operand->mem.type != ZYDIS_MEMOP_TYPE_AGEN)
    put(out, "%u", (unsigned)operand->size);
  if (operand->mem.type == ZYDIS_MEMOP_TYPE_VSIB)
    put(out, "[%cmm]", "xyz"[(form_register_class(operand->mem.index) - ZYDIS_REGCLASS_XMM) % 3]);
  if (!instruction->avx.broadcast.is_static)
    put(out, "%s", broadcasts[instruction->avx.broadcast.mode]);
}

static void put_operand(text_buffer *out, const ZydisDecodedInstruction *instruction,
                        const ZydisDecodedOperand *operand) {
  switch (operand->type) {
  case ZYDIS_OPERAND_TYPE_REGISTER:
    put(out, "%s", register_text(operand));
    break;
  case ZYDIS_OPERAND_TYPE_MEMORY:
    put_memory(out, instruction, operand);
    break;
  case ZYDIS_OPERAND_TYPE_POINTER:
    put(out, "ptr");
    break;
  case ZYDIS_OPERAND_TYPE_IMMEDIATE:
    if (operand->visibility == ZYDIS_OPERAND_VISIBILITY_EXPLICIT)
      put(out, "%s%u", operand->imm.is_relative ? "rel" : "imm", (unsigned)operand->size);
    else
      put(out, "%llu", (unsigned long long)operand->imm.value.u);
    break;
  default:
    break;
  }
}

static bool is_decoration(const ZydisDecodedInstruction *instruction, const ZydisDecodedOperand *operand) {
  return instruction->encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX &&
         operand->encoding == ZYDIS_OPERAND_ENCODING_MASK;
}

/* "{k}{z}" behind the operand that is masked: the first. The bit tells about zeroing, since Zydis counts what
 * writes a mask register as zeroing. */
static void put_mask(text_buffer *out, const ZydisDecodedInstruction *instruction) {
  if (instruction->encoding != ZYDIS_INSTRUCTION_ENCODING_EVEX || instruction->raw.evex.aaa == 0)
    return;
  put(out, "{k}%s", instruction->raw.evex.z ? "{z}" : "");
}

static void put_operands(text_buffer *out, const form_example *example) {
  const ZydisDecodedInstruction *instruction = &example->instruction;
  const char *separator = " ";
  for (unsigned i = 0; i < instruction->operand_count_visible; i++) {
    if (is_decoration(instruction, &example->operands[i]))
      continue;
    put(out, "%s", separator);
    put_operand(out, instruction, &example->operands[i]);
    if (i == 0)
      put_mask(out, instruction);
    separator = ", ";
  }
}

static void put_mnemonic(text_buffer *out, const ZydisDecodedInstruction *instruction) {
  const ZydisInstructionAttributes attributes = instruction->attributes;
  if (instruction->encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX)
    put(out, "{evex} ");
  if (attributes & ZYDIS_ATTRIB_HAS_LOCK)
    put(out, "LOCK ");
  if (attributes & (ZYDIS_ATTRIB_HAS_REP | ZYDIS_ATTRIB_HAS_REPE))
    put(out, "REP ");
  if (attributes & ZYDIS_ATTRIB_HAS_REPNE)
    put(out, "REPNE ");
  for (const char *name = ZydisMnemonicGetString(instruction->mnemonic); *name != '\0'; name++)
    put(out, "%c", toupper((unsigned char)*name));
}

size_t form_print(form_id form, char *text, size_t size) {
  static const char *const roundings[] = {"", ", {rn-sae}", ", {rd-sae}", ", {ru-sae}", ", {rz-sae}"};
  form_example example;
  form_decode(form, &example);
  const ZydisDecodedInstructionAvx *avx = &example.instruction.avx;
  text_buffer out = {text, size, 0};
  if (size > 0)
    text[0] = '\0';
  put_mnemonic(&out, &example.instruction);
  put_operands(&out, &example);
  if (avx->rounding.mode != ZYDIS_ROUNDING_MODE_INVALID)
    put(&out, "%s", roundings[avx->rounding.mode]);
  else if (avx->has_sae)
    put(&out, ", {sae}");
  return out.length < size || size == 0 ? out.length : size - 1;
}

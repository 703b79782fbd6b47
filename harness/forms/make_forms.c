/* Build-time tool: walks the decoder of Zydis over all opcode maps, prefixes and ModRM bytes, keeps one
 * example of each form that the encoder can produce, and writes them as C (see forms.h; forms.c includes the
 * result). The output depends on the version of Zydis and on nothing else.
 *
 * The walk is made short by what encodings guarantee (SDM vol. 2, chapter 2): the form never depends on which
 * ordinary register a field names, so a memory operand is tried with one base, and a register only where an
 * opcode may be extended by the ModRM byte. A row of opcodes (one map, one set of prefixes) is entered only
 * as far as some ModRM byte decodes. */
#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "forms/form_signature.h"

enum {
  FORMS_MAX = 32768,
  SLOTS = 65536, /* of the hash tables, here and in the output; twice FORMS_MAX at least */
  EXAMPLE_MAX = 15
};

typedef struct found_form {
  uint64_t signature;
  uint16_t mnemonic;
  uint8_t category, encoding;
  uint8_t length;
  uint8_t bytes[EXAMPLE_MAX];
  uint32_t order; /* of discovery */
} found_form;

static found_form forms[FORMS_MAX];
static uint32_t form_count;
static uint32_t slots[SLOTS]; /* index into forms + 1, by signature */
static ZydisDecoder decoder;

/* What follows the opcode and the ModRM byte, whatever it is taken for. As an 8-bit immediate it is 2: valid
 * wherever immediates are restricted, and not the 1 for which shifts have a shorter form. Wider ones need
 * all of their bytes, so that the encoder does not choose a narrower form. */
static const uint8_t tail[] = {0x02, 0x13, 0x24, 0x35, 0x46, 0x57, 0x68, 0x79};

/* ---- The set of forms -------------------------------------------------------------------------------- */

static bool reencodes(const ZydisDecodedInstruction *instruction, const ZydisDecodedOperand *operands,
                      uint64_t signature) {
  ZydisEncoderRequest request;
  uint8_t bytes[ZYDIS_MAX_INSTRUCTION_LENGTH];
  ZyanUSize length = sizeof bytes;
  ZydisDecodedInstruction again;
  ZydisDecodedOperand again_operands[ZYDIS_MAX_OPERAND_COUNT];
  return ZYAN_SUCCESS(ZydisEncoderDecodedInstructionToEncoderRequest(
             instruction, operands, instruction->operand_count_visible, &request)) &&
         ZYAN_SUCCESS(ZydisEncoderEncodeInstruction(&request, bytes, &length)) &&
         ZYAN_SUCCESS(ZydisDecoderDecodeFull(&decoder, bytes, length, &again, again_operands)) &&
         form_signature(&again, again_operands) == signature;
}

static bool seen_before(uint64_t signature, uint32_t *free_slot) {
  for (uint32_t slot = signature % SLOTS;; slot = (slot + 1) % SLOTS) {
    if (slots[slot] != 0 && forms[slots[slot] - 1].signature == signature)
      return true;
    if (slots[slot] == 0) {
      *free_slot = slot;
      return false;
    }
  }
}

static void keep(const uint8_t *bytes, const ZydisDecodedInstruction *instruction, uint64_t signature,
                 uint32_t slot) {
  if (form_count == FORMS_MAX) {
    fprintf(stderr, "make_forms: more than %d forms: raise FORMS_MAX\n", FORMS_MAX);
    exit(1);
  }
  found_form *form = &forms[form_count];
  form->signature = signature;
  form->mnemonic = (uint16_t)instruction->mnemonic;
  form->category = (uint8_t)instruction->meta.category;
  form->encoding = (uint8_t)instruction->encoding;
  form->length = instruction->length;
  form->order = form_count;
  memcpy(form->bytes, bytes, instruction->length);
  slots[slot] = ++form_count;
}

typedef enum visit_result {
  VISIT_UNKNOWN, /* nothing decodes */
  VISIT_KNOWN,
  VISIT_NO_MODRM /* the opcode takes no ModRM byte; nothing was kept */
} visit_result;

/* Decodes and keeps what is new. `encoding` is what the bytes are meant to be: an opcode that is really a
 * prefix or an escape leads elsewhere, and there its instructions are met in a plainer shape. */
static visit_result visit(const uint8_t *bytes, ZydisInstructionEncoding encoding, bool modrm_expected) {
  ZydisDecodedInstruction instruction;
  ZydisDecodedOperand operands[ZYDIS_MAX_OPERAND_COUNT];
  ZydisDecoderContext context;
  if (!ZYAN_SUCCESS(ZydisDecoderDecodeInstruction(&decoder, &context, bytes, ZYDIS_MAX_INSTRUCTION_LENGTH,
                                                  &instruction)) ||
      instruction.encoding != encoding)
    return VISIT_UNKNOWN;
  if (modrm_expected && !(instruction.attributes & ZYDIS_ATTRIB_HAS_MODRM))
    return VISIT_NO_MODRM;
  if (!ZYAN_SUCCESS(
          ZydisDecoderDecodeOperands(&decoder, &context, &instruction, operands, instruction.operand_count)))
    return VISIT_UNKNOWN;
  const uint64_t signature = form_signature(&instruction, operands);
  uint32_t slot = 0;
  if (!seen_before(signature, &slot) && reencodes(&instruction, operands, signature))
    keep(bytes, &instruction, signature, slot);
  return VISIT_KNOWN;
}

/* ---- The walk ---------------------------------------------------------------------------------------- */

/* An instruction under construction: what stands before the ModRM byte. */
typedef struct opening {
  ZydisInstructionEncoding encoding;
  uint8_t bytes[8];
  uint8_t length;
} opening;

/* ModRM.reg and ModRM.rm in the order in which they are tried, since the first to decode becomes the example:
 * reg 1 and rm 2, with 0 left for VEX.vvvv, so that all registers of an instruction differ (gathers and tile
 * products fault otherwise); and DS before SS. */
static const uint8_t reg_order[] = {1, 3, 2, 0, 4, 5, 6, 7};
static const uint8_t rm_order[] = {2, 0, 1, 3, 4, 5, 6, 7};

enum {
  MODRM_MEMORY = 0x03, /* [rbx] */
  MODRM_SIB = 0x04,    /* the same with a SIB byte */
  SIB_INDEXED = 0x13,  /* [rbx+rdx], or VSIB [rbx+xmm2] */
  MODRM_REGISTER = 0xc0
};

static visit_result visit_plain(const opening *start) {
  uint8_t bytes[ZYDIS_MAX_INSTRUCTION_LENGTH + sizeof(tail)] = {0};
  memcpy(bytes, start->bytes, start->length);
  memcpy(bytes + start->length, tail, sizeof tail);
  return visit(bytes, start->encoding, false);
}

static visit_result visit_modrm(const opening *start, uint8_t modrm) {
  uint8_t bytes[ZYDIS_MAX_INSTRUCTION_LENGTH + sizeof(tail)] = {0};
  unsigned length = start->length;
  memcpy(bytes, start->bytes, length);
  bytes[length++] = modrm;
  if ((modrm & 0xc7) == MODRM_SIB)
    bytes[length++] = SIB_INDEXED;
  memcpy(bytes + length, tail, sizeof tail);
  return visit(bytes, start->encoding, true);
}

/* All ModRM bytes that may matter. `rm_count`: how many of rm_order are tried as registers. */
static void visit_opening(const opening *start, unsigned rm_count) {
  for (unsigned i = 0; i < sizeof reg_order; i++) {
    const uint8_t reg = (uint8_t)(reg_order[i] << 3);
    const visit_result result = visit_modrm(start, reg | MODRM_MEMORY);
    if (result == VISIT_NO_MODRM) {
      visit_plain(start);
      return;
    }
    if (result == VISIT_UNKNOWN)
      visit_modrm(start, reg | MODRM_SIB);
    for (unsigned rm = 0; rm < rm_count; rm++)
      visit_modrm(start, MODRM_REGISTER | reg | rm_order[rm]);
  }
}

static void add(opening *start, uint8_t byte) {
  start->bytes[start->length++] = byte;
}

/* Legacy prefixes and REX (SDM vol. 2, 2.1.1 and 2.2.1): taken for opcodes they would bring in instructions
 * under needless prefixes. */
static bool is_prefix(unsigned byte) {
  return (byte & 0xe7) == 0x26 || (byte >= 0x64 && byte <= 0x67) || byte == 0xf0 || byte == 0xf2 ||
         byte == 0xf3 || (byte & 0xf0) == 0x40;
}

/* Opcodes of the four legacy maps behind some prefixes. Here ModRM.rm may extend the opcode (x87, 0F 01). */
static void walk_legacy(const uint8_t *prefixes) {
  static const uint8_t maps[4][3] = {{0}, {0x0f}, {0x0f, 0x38}, {0x0f, 0x3a}};
  for (unsigned map = 0; map < 4; map++) {
    for (unsigned opcode = 0; opcode < 256; opcode++) {
      if (map == 0 && is_prefix(opcode))
        continue;
      opening start = {.encoding = ZYDIS_INSTRUCTION_ENCODING_LEGACY};
      for (const uint8_t *prefix = prefixes; *prefix != 0; prefix++)
        add(&start, *prefix);
      for (const uint8_t *escape = maps[map]; *escape != 0; escape++)
        add(&start, *escape);
      add(&start, (uint8_t)opcode);
      visit_opening(&start, sizeof rm_order);
    }
  }
}

/* 3DNow: the opcode stands where the immediate of others does (AMD APM vol. 3, 1.2.3). */
static void walk_3dnow(void) {
  for (unsigned opcode = 0; opcode < 256; opcode++) {
    for (unsigned i = 0; i < 2; i++) {
      uint8_t bytes[ZYDIS_MAX_INSTRUCTION_LENGTH] = {0x0f, 0x0f, i ? 0xca : 0x0b, (uint8_t)opcode};
      visit(bytes, ZYDIS_INSTRUCTION_ENCODING_3DNOW, true);
    }
  }
}

/* Three-byte VEX (0xc4) and XOP (0x8f), one map: R, X, B and vvvv inverted zeros (SDM vol. 2, 2.3.5). */
static void walk_vex(ZydisInstructionEncoding encoding, uint8_t first, uint8_t map) {
  for (unsigned fields = 0; fields < 16; fields++) { /* W, L, pp */
    const uint8_t third = (uint8_t)((fields & 8) << 4 | 0x78 | (fields & 7));
    for (unsigned opcode = 0; opcode < 256; opcode++) {
      const opening start = {encoding, {first, 0xe0 | map, third, (uint8_t)opcode}, 4};
      visit_opening(&start, 2);
    }
  }
}

/* Masking (z, aaa), length or rounding (L'L) and b of one EVEX opcode (SDM vol. 2, 2.7.1). */
static void walk_evex_opcode(uint8_t second, uint8_t third, uint8_t opcode) {
  static const uint8_t masks[] = {0x00, 0x01, 0x81};
  for (unsigned mask = 0; mask < sizeof masks; mask++) {
    for (unsigned length_and_b = 0; length_and_b < 8; length_and_b++) {
      const uint8_t fourth =
          (uint8_t)(masks[mask] | (length_and_b & 3) << 5 | (length_and_b & 4) << 2 | 0x08);
      const opening start = {ZYDIS_INSTRUCTION_ENCODING_EVEX, {0x62, second, third, fourth, opcode}, 5};
      visit_opening(&start, 1);
    }
  }
}

static void walk_evex(uint8_t map) {
  for (unsigned fields = 0; fields < 8; fields++) { /* W, pp */
    const uint8_t third = (uint8_t)((fields & 4) << 5 | 0x7c | (fields & 3));
    for (unsigned opcode = 0; opcode < 256; opcode++)
      walk_evex_opcode(0xf0 | map, third, (uint8_t)opcode);
  }
}

static void walk(void) {
  /* Plain ones first: they become the examples. 67 for JECXZ, which is not to be had otherwise. */
  static const uint8_t prefixes[][4] = {{0},
                                        {0x48},
                                        {0x66},
                                        {0x66, 0x48},
                                        {0xf3},
                                        {0xf3, 0x48},
                                        {0xf2},
                                        {0xf2, 0x48},
                                        {0x66, 0xf3},
                                        {0x66, 0xf2},
                                        {0x66, 0xf3, 0x48},
                                        {0x66, 0xf2, 0x48},
                                        {0xf0},
                                        {0xf0, 0x48},
                                        {0xf0, 0x66},
                                        {0x67}};
  for (unsigned i = 0; i < sizeof prefixes / sizeof prefixes[0]; i++)
    walk_legacy(prefixes[i]);
  walk_3dnow();
  for (uint8_t map = 1; map <= 3; map++)
    walk_vex(ZYDIS_INSTRUCTION_ENCODING_VEX, 0xc4, map);
  for (uint8_t map = 8; map <= 10; map++)
    walk_vex(ZYDIS_INSTRUCTION_ENCODING_XOP, 0x8f, map);
  for (uint8_t map = 1; map <= 7; map++)
    walk_evex(map);
}

/* ---- The output -------------------------------------------------------------------------------------- */

static int compare_forms(const void *left, const void *right) {
  const found_form *a = left, *b = right;
  if (a->mnemonic != b->mnemonic)
    return a->mnemonic < b->mnemonic ? -1 : 1;
  return a->order < b->order ? -1 : a->order > b->order;
}

static void write_examples(FILE *out) {
  fputs("/* The example's bytes, its length in the last. */\n"
        "static const uint8_t form_examples[FORMS_COUNT][16] = {\n",
        out);
  for (uint32_t i = 0; i < form_count; i++) {
    fputs("    {", out);
    for (unsigned k = 0; k < 15; k++)
      fprintf(out, "%u,", k < forms[i].length ? forms[i].bytes[k] : 0u);
    fprintf(out, "%u},\n", forms[i].length);
  }
  fputs("};\n", out);
}

static void write_signatures(FILE *out) {
  fputs("static const uint64_t form_signatures[FORMS_COUNT] = {\n", out);
  for (uint32_t i = 0; i < form_count; i++)
    fprintf(out, "    0x%016llxu,\n", (unsigned long long)forms[i].signature);
  fputs("};\n", out);
}

static void write_kinds(FILE *out) {
  fputs("/* Mnemonic, category, encoding. */\nstatic const form_kind form_kinds[FORMS_COUNT] = {\n", out);
  for (uint32_t i = 0; i < form_count; i++)
    fprintf(out, "    {%u,%u,%u},\n", forms[i].mnemonic, forms[i].category, forms[i].encoding);
  fputs("};\n", out);
}

/* Open addressing with linear probing: what form_of walks. */
static void write_slots(FILE *out) {
  memset(slots, 0, sizeof slots);
  for (uint32_t i = 0; i < form_count; i++) {
    uint32_t slot = forms[i].signature % SLOTS;
    while (slots[slot] != 0)
      slot = (slot + 1) % SLOTS;
    slots[slot] = i + 1;
  }
  fputs("/* Form + 1 by signature modulo FORM_SLOTS, or further on; 0 ends the search. */\n"
        "static const uint16_t form_slots[FORM_SLOTS] = {",
        out);
  for (uint32_t slot = 0; slot < SLOTS; slot++)
    fprintf(out, "%s%u,", slot % 16 == 0 ? "\n    " : "", slots[slot]);
  fputs("\n};\n", out);
}

static int write_all(FILE *out) {
  fprintf(out,
          "/* Made by make_forms from Zydis %u.%u.%u. Included by forms.c. */\n"
          "enum { FORMS_COUNT = %u, FORM_SLOTS = %u };\n",
          (unsigned)ZYDIS_VERSION_MAJOR(ZydisGetVersion()), (unsigned)ZYDIS_VERSION_MINOR(ZydisGetVersion()),
          (unsigned)ZYDIS_VERSION_PATCH(ZydisGetVersion()), form_count, (unsigned)SLOTS);
  write_examples(out);
  write_kinds(out);
  write_signatures(out);
  write_slots(out);
  return fflush(out) == 0 && ferror(out) == 0 ? 0 : 1;
}

/* usage: make_forms [-o FILE] */
int main(int argc, char **argv) {
  const bool to_file = argc == 3 && strcmp(argv[1], "-o") == 0;
  if (argc != 1 && !to_file) {
    fputs("usage: make_forms [-o FILE]\n", stderr);
    return 2;
  }
  ZydisDecoderInit(&decoder, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);
  walk();
  qsort(forms, form_count, sizeof forms[0], compare_forms);
  FILE *out = to_file ? fopen(argv[2], "we") : stdout;
  if (out == NULL) {
    fprintf(stderr, "make_forms: %s: %s\n", argv[2], strerror(errno));
    return 1;
  }
  int status = write_all(out);
  if (to_file && fclose(out) != 0)
    status = 1;
  if (status != 0)
    fprintf(stderr, "make_forms: cannot write %s\n", to_file ? argv[2] : "the output");
  return status;
}

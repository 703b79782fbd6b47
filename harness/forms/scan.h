/* What an instruction is, remembered: the oracle and the coverage features ask this for every instruction of
 * every program, and most instructions have been asked for before. */
#ifndef HARNESS_SCAN_H
#define HARNESS_SCAN_H

#include "forms/features.h"
#include "forms/policy.h"

typedef struct scan_info {
  const policy_row *row;    /* never NULL; the ordinary row where nothing decodes */
  feature_set needs;        /* of the processor */
  form_id form;             /* FORM_NONE if the catalogue has none, or nothing decodes */
  uint32_t written_vectors; /* masks, see registers.h */
  uint16_t written_gprs, address_gprs;
  uint16_t
      access; /* shape of its memory operand: base, index, scale, displacement, size, direction; 0: none */
  uint8_t length; /* of the instruction; 0: nothing decodes */
  bool uses_x87;
  bool branches;                    /* it has a relative immediate */
  uint8_t field_offset, field_size; /* of a relative immediate or RIP-relative displacement; 0 and 0: none */
} scan_info;

/* The first instruction in the `size` (1 to 15 are looked at) bytes. By value: the memory of it is small and
 * forgets. Not thread safe (the harness is one thread). */
scan_info scan(const uint8_t *bytes, size_t size);

/* The same for an instruction of a normalised program. */
static inline scan_info scan_instruction(const ls_instruction *in) {
  return scan(in->bytes, in->length);
}

/* The same for an instruction that has been decoded just now: it will not be decoded again when it is run.
 * Its field counts as zero, which is what testcase_normalise makes it. */
scan_info scan_decoded(const ls_instruction *in, const ZydisDecodedInstruction *decoded,
                       const ZydisDecodedOperand *operands);

/* Looks at every instruction of a program, whose infos[i] becomes what instruction i is, and where the bytes
 * of one are not what they seem (several instructions, half of one, a branch without a link, a field over an
 * opcode) follows the image from there, branches included. Returns the first row that excludes an instruction
 * (infos are then not complete), or NULL. *uses_x87 tells whether any of them does. What this cannot see is
 * code that an indirect branch or a return reaches in the middle of an instruction: that shows when the
 * program is stepped. */
const policy_row *scan_image(const ls_image *image, const ls_program *program, scan_info *infos,
                             bool *uses_x87);

#endif

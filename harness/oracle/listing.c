#include "oracle/listing.h"

#include <inttypes.h>
#include <string.h>

#include "forms/forms.h"

enum { TEXT = 160, TEXT_COLUMN = 44, BYTES_SHOWN = 11 };

static const ZydisFormatter *intel(void) {
  static ZydisFormatter formatter;
  static bool made;
  if (!made) {
    ZydisFormatterInit(&formatter, ZYDIS_FORMATTER_STYLE_INTEL);
    made = true;
  }
  return &formatter;
}

unsigned listing_instruction(const uint8_t *bytes, size_t size, uint64_t address, char *text,
                             size_t text_size) {
  ZydisDecodedInstruction instruction;
  ZydisDecodedOperand operands[ZYDIS_MAX_OPERAND_COUNT];
  if (!harness_decode(bytes, size, &instruction, operands) ||
      !ZYAN_SUCCESS(ZydisFormatterFormatInstruction(intel(), &instruction, operands,
                                                    instruction.operand_count_visible, text, text_size,
                                                    address, NULL))) {
    snprintf(text, text_size, "(bad)");
    return 1;
  }
  return instruction.length;
}

static void print_link(FILE *to, const char *name, uint32_t link) {
  if (link == LS_NONE)
    fprintf(to, " %s out", name);
  else
    fprintf(to, " %s #%" PRIu32, name, link);
}

static void print_links(FILE *to, const ls_program *program, uint32_t index) {
  const ls_instruction *in = &program->instructions[index];
  fprintf(to, "; #%" PRIu32, index);
  if (!(in->flags & LS_NEVER_FALLS_THROUGH) && in->next != index + 1)
    print_link(to, "next", in->next);
  if (in->field == LS_FIELD_BRANCH)
    print_link(to, "jump", in->jump);
}

/* Without a column for what may follow if nothing does. */
static void print_line(FILE *to, uint64_t address, const uint8_t *bytes, unsigned length, const char *text,
                       const char *lead, bool last) {
  char hex[3 * BYTES_SHOWN + 1];
  for (unsigned i = 0; i < BYTES_SHOWN; i++)
    snprintf(hex + 3 * i, 4, i < length ? "%02x " : "   ", i < length ? bytes[i] : 0);
  fprintf(to, "%s 0x%08" PRIx64 "  %s %-*s", lead, address, hex, last ? 0 : TEXT_COLUMN, text);
}

static void print_range(FILE *to, const uint8_t *code, uint64_t base, const ls_range *range,
                        const ls_program *program, uint64_t mark) {
  for (uint32_t done = 0; done < range->length;) {
    char text[TEXT];
    uint64_t address = base + range->offset + done;
    const uint8_t *bytes = code + range->offset + done;
    unsigned length = listing_instruction(bytes, range->length - done, address, text, sizeof text);
    const char *lead = address == mark ? "=>" : range->part == LS_PART_BODY ? "  " : " +";
    bool linked = range->part == LS_PART_BODY && done == 0;
    print_line(to, address, bytes, length, text, lead, !linked);
    if (linked)
      print_links(to, program, range->instruction);
    fputc('\n', to);
    done += length;
  }
}

void listing_print(FILE *to, const ls_image *image, const ls_program *program, uint64_t mark) {
  size_t size, count;
  const uint8_t *code = ls_image_bytes(image, &size);
  const ls_range *map = ls_image_map(image, &count);
  uint64_t base = ls_image_address(image, 0) - ls_image_find(image, ls_image_address(image, 0))->offset;
  for (size_t i = 0; i < count; i++)
    print_range(to, code, base, &map[i], program, mark);
}

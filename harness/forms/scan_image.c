/* The walk over a program and its image, for what the policy excludes. */
#include <string.h>

#include "forms/scan.h"

enum { PLACES_MAX = 128, IMAGE_MAX = 1 << 16 };

/* Places of an image still to be looked at, and which have been. */
typedef struct walk {
  const ls_image *image;
  const uint8_t *bytes;
  size_t size;
  uint64_t base;
  uint32_t places[PLACES_MAX];
  uint32_t count;
  uint8_t seen[IMAGE_MAX / 8];
  bool uses_x87;
} walk;

static void walk_to(walk *w, uint64_t address) {
  uint64_t offset = address - w->base;
  if (offset < w->size && offset < IMAGE_MAX && w->count < PLACES_MAX)
    w->places[w->count++] = (uint32_t)offset;
}

static bool mark_seen(walk *w, uint32_t offset) {
  bool before = w->seen[offset / 8] >> offset % 8 & 1;
  w->seen[offset / 8] |= (uint8_t)(1u << offset % 8);
  return before;
}

/* Where a branch in the image goes, as its bytes say. */
static void follow_branch(walk *w, uint32_t offset) {
  ZydisDecodedInstruction in;
  ZydisDecodedOperand operands[ZYDIS_MAX_OPERAND_COUNT];
  if (harness_decode(w->bytes + offset, w->size - offset, &in, operands))
    walk_to(w, w->base + offset + in.length + in.raw.imm[0].value.u);
}

/* On from a place until the stream is where it has been, or at what cannot be decoded. */
static const policy_row *walk_on(walk *w, uint32_t offset) {
  while (offset < w->size && offset < IMAGE_MAX && !mark_seen(w, offset)) {
    scan_info info = scan(w->bytes + offset, w->size - offset);
    if (info.row->action == POLICY_EXCLUDE)
      return info.row;
    w->uses_x87 |= info.uses_x87;
    if (info.branches)
      follow_branch(w, offset);
    if (!info.length)
      return NULL; /* #UD stops it here */
    offset += info.length;
  }
  return NULL;
}

static const policy_row *walk_from(const ls_image *image, uint64_t address, bool *uses_x87) {
  static walk w; /* the harness is one thread */
  memset(&w, 0, sizeof w);
  w.image = image;
  w.bytes = ls_image_bytes(image, &w.size);
  w.base = address - ls_image_find(image, address)->offset;
  walk_to(&w, address);
  const policy_row *row = NULL;
  while (!row && w.count)
    row = walk_on(&w, w.places[--w.count]);
  *uses_x87 |= w.uses_x87;
  return row;
}

/* Is it what it was decoded as, also once its field is filled in? */
static bool is_plain(const ls_instruction *in, const scan_info *info) {
  if (info->length != in->length)
    return false;
  if (in->field == LS_FIELD_NONE)
    return !info->branches;
  return info->field_offset == in->field_offset && info->field_size == in->field_size;
}

const policy_row *scan_image(const ls_image *image, const ls_program *program, scan_info *infos,
                             bool *uses_x87) {
  *uses_x87 = false;
  for (uint32_t i = 0; i < program->count; i++) {
    const ls_instruction *in = &program->instructions[i];
    scan_info info = infos[i] = scan_instruction(in);
    *uses_x87 |= info.uses_x87;
    const policy_row *row = info.row->action == POLICY_EXCLUDE ? info.row : NULL;
    if (!row && !is_plain(in, &info))
      row = walk_from(image, ls_image_address(image, i), uses_x87);
    if (row)
      return row;
  }
  return NULL;
}

/* A direct-mapped memory of decoded instructions. */
#include "forms/scan.h"

#include <string.h>
#include <xxhash.h>

#include "forms/registers.h"

enum { SLOTS = 1 << 15, KEY_SIZE = 16 };

typedef struct slot {
  uint8_t key[KEY_SIZE]; /* the bytes, zero-padded; the last is their number, so that an empty slot matches
                            none */
  scan_info info;
} slot;

static slot slots[SLOTS];

static unsigned base_kind(ZydisRegister base) {
  switch (base) {
  case ZYDIS_REGISTER_NONE:
    return 0;
  case ZYDIS_REGISTER_RIP:
    return 1;
  case ZYDIS_REGISTER_RSP:
    return 2;
  default:
    return 3;
  }
}

/* What kind of access the first memory operand is, in 14 bits and one that says that there is an operand. */
static uint16_t access_of(const ZydisDecodedInstruction *instruction, const ZydisDecodedOperand *operands) {
  for (unsigned i = 0; i < instruction->operand_count; i++) {
    const ZydisDecodedOperand *o = &operands[i];
    if (o->type != ZYDIS_OPERAND_TYPE_MEMORY)
      continue;
    unsigned size = o->size ? (unsigned)__builtin_ctz(o->size) : 0;
    unsigned index = o->mem.index == ZYDIS_REGISTER_NONE ? 0 : o->mem.type == ZYDIS_MEMOP_TYPE_VSIB ? 2 : 1;
    unsigned scale = o->mem.scale ? (unsigned)__builtin_ctz(o->mem.scale) : 0;
    unsigned written = (o->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE) != 0;
    unsigned read = (o->actions & ZYDIS_OPERAND_ACTION_MASK_READ) != 0;
    unsigned moved = instruction->raw.disp.size == 0 ? 0 : instruction->raw.disp.size == 8 ? 1 : 2;
    return (uint16_t)(1u << 15 | base_kind(o->mem.base) << 12 | index << 10 | scale << 8 | (size & 15) << 4 |
                      moved << 2 | written << 1 | read);
  }
  return 0;
}

static void find_field(const ZydisDecodedInstruction *instruction, const ZydisDecodedOperand *operands,
                       scan_info *info) {
  info->branches = instruction->raw.imm[0].is_relative;
  if (info->branches) {
    info->field_offset = instruction->raw.imm[0].offset;
    info->field_size = instruction->raw.imm[0].size / 8;
  }
  for (unsigned i = 0; i < instruction->operand_count_visible; i++)
    if (operands[i].type == ZYDIS_OPERAND_TYPE_MEMORY && operands[i].mem.base == ZYDIS_REGISTER_RIP) {
      info->field_offset = instruction->raw.disp.offset;
      info->field_size = instruction->raw.disp.size / 8;
    }
}

static scan_info info_of(const ZydisDecodedInstruction *instruction, const ZydisDecodedOperand *operands) {
  scan_info info = {.row = policy_of(instruction, operands),
                    .needs = features_needed(instruction),
                    .form = form_of(instruction, operands),
                    .written_vectors = written_vectors(instruction, operands),
                    .written_gprs = written_gprs(instruction, operands),
                    .address_gprs = address_gprs(instruction, operands),
                    .access = access_of(instruction, operands),
                    .length = instruction->length,
                    .uses_x87 = policy_uses_x87(instruction, operands)};
  find_field(instruction, operands, &info);
  return info;
}

static scan_info look(const uint8_t *bytes, size_t size) {
  ZydisDecodedInstruction instruction;
  ZydisDecodedOperand operands[ZYDIS_MAX_OPERAND_COUNT];
  size_t rows;
  if (!harness_decode(bytes, size, &instruction, operands))
    return (scan_info){.row = policy_rows(&rows), .form = FORM_NONE};
  return info_of(&instruction, operands);
}

typedef struct memory_key {
  uint8_t bytes[KEY_SIZE];
} memory_key;

static memory_key key_of(const uint8_t *bytes, size_t size) {
  memory_key key = {{0}};
  memcpy(key.bytes, bytes, size);
  key.bytes[KEY_SIZE - 1] = (uint8_t)size;
  return key;
}

static slot *slot_of(const memory_key *key) {
  return &slots[XXH3_64bits(key, sizeof *key) % SLOTS];
}

scan_info scan(const uint8_t *bytes, size_t size) {
  memory_key key = key_of(bytes, size < LS_INSTRUCTION_MAX ? size : LS_INSTRUCTION_MAX);
  slot *s = slot_of(&key);
  if (memcmp(s->key, &key, sizeof key) != 0) {
    s->info = look(bytes, size);
    memcpy(s->key, &key, sizeof key);
  }
  return s->info;
}

scan_info scan_decoded(const ls_instruction *in, const ZydisDecodedInstruction *decoded,
                       const ZydisDecodedOperand *operands) {
  memory_key key = key_of(in->bytes, in->length);
  memset(key.bytes + in->field_offset, 0, in->field_size);
  slot *s = slot_of(&key);
  s->info = info_of(decoded, operands);
  memcpy(s->key, &key, sizeof key);
  return s->info;
}

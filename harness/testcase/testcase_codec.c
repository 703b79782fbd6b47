/* The bytes of an entry: docs/FORMAT.md. */
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <xxhash.h>

#include "testcase/testcase.h"
#include "testcase/testcase_codec.h"

enum {
  FORMAT_VERSION = 1,
  HEADER_SIZE = 24,
  SECTION_HEADER_SIZE = 3,
  SECTION_CODE = 1,
  SECTION_REGISTERS = 2,
  SECTION_PATCHES = 3
};

static const uint8_t magic[3] = {'L', 'S', 'T'};

/* Where the parts of the header are. */
enum { AT_VERSION = 3, AT_SIZE = 4, AT_SUM = TESTCASE_AT_SUM, AT_FUEL = AT_SUM + TESTCASE_SUM_SIZE };

/* Head byte of an instruction: length in bits 0-3, an enum link in 4-5, an enum extra in 6-7. */
enum link { LINK_NEXT_IN_LIST, LINK_INDEX, LINK_LEAVES };
enum extra { EXTRA_NONE, EXTRA_BRANCH, EXTRA_DATA, EXTRA_FLAGS };

/* The second byte, which any extra but EXTRA_NONE has: field offset in bits 0-3, and these. */
enum { SECOND_WIDE = 0x10, SECOND_JUMP = 0x20, SECOND_NEVER_FALLS = 0x40 };

/* ---- Reading and writing ----------------------------------------------------------------------------- */

/* A reader that yields zeros behind the end, and remembers that it did. */
typedef struct reader {
  const uint8_t *at, *end;
  bool short_of; /* something was asked for that is not there */
} reader;

static void get_bytes(reader *in, void *bytes, size_t size) {
  size_t left = (size_t)(in->end - in->at), take = size < left ? size : left;
  if (take > 0)
    memcpy(bytes, in->at, take);
  if (take < size)
    memset((uint8_t *)bytes + take, 0, size - take);
  in->at += take;
  in->short_of |= take < size;
}

static void skip(reader *in, size_t size) {
  size_t left = (size_t)(in->end - in->at);
  in->at += size < left ? size : left;
  in->short_of |= left < size;
}

static uint64_t get(reader *in, size_t size) {
  uint64_t value = 0; /* x86-64 only, so memory is little endian */
  if (in->end - in->at < 8) {
    get_bytes(in, &value, size);
    return value;
  }
  memcpy(&value, in->at, 8); /* one load in place of a call */
  in->at += size;
  return size < 8 ? value & ((1ull << 8 * size) - 1) : value;
}

/* A writer that counts on behind the end of its buffer. */
typedef struct writer {
  uint8_t *start;
  size_t size, at;
} writer;

static void put_bytes(writer *out, const void *bytes, size_t size) {
  if (out->at <= out->size && size <= out->size - out->at)
    memcpy(out->start + out->at, bytes, size);
  out->at += size;
}

static void put(writer *out, uint64_t value, size_t size) {
  if (out->at <= out->size && out->size - out->at >= 8) {
    memcpy(out->start + out->at, &value, 8); /* one store; what is too much is written over next */
    out->at += size;
  } else
    put_bytes(out, &value, size);
}

/* Writes over what was written at `at`. */
static void put_at(writer *out, size_t at, uint64_t value, size_t size) {
  if (at + size <= out->size)
    memcpy(out->start + at, &value, size);
}

static size_t section_begin(writer *out, uint8_t tag) {
  put(out, tag, 1);
  put(out, 0, 2);
  return out->at;
}

static void section_end(writer *out, size_t begin) {
  if (out->at == begin)
    out->at -= SECTION_HEADER_SIZE;
  else
    put_at(out, begin - 2, out->at - begin, 2);
}

/* ---- Registers --------------------------------------------------------------------------------------- */

/* Numbers of the format, and where those registers are in an ls_state. */
typedef struct register_group {
  uint8_t first, count, size, stride;
  uint16_t offset;
} register_group;

static const register_group groups[] = {
    {0, 32, 64, 64, offsetof(ls_state, zmm)}, {32, 8, 8, 8, offsetof(ls_state, k)},
    {40, 16, 8, 8, offsetof(ls_state, gpr)},  {56, 1, 8, 0, offsetof(ls_state, rflags)},
    {57, 1, 2, 0, offsetof(ls_state, ds)},    {58, 1, 2, 0, offsetof(ls_state, es)},
    {59, 1, 2, 0, offsetof(ls_state, fcw)},   {60, 1, 2, 0, offsetof(ls_state, fsw)},
    {61, 1, 1, 0, offsetof(ls_state, ftw)},   {62, 1, 2, 0, offsetof(ls_state, fop)},
    {63, 1, 8, 0, offsetof(ls_state, fip)},   {64, 1, 8, 0, offsetof(ls_state, fdp)},
    {65, 1, 4, 0, offsetof(ls_state, mxcsr)}, {67, 8, 10, 16, offsetof(ls_state, st)},
};

enum { GROUPS = sizeof groups / sizeof groups[0] };

static void put_register(writer *out, unsigned id, const uint8_t *value, size_t size) {
  while (size > 0 && value[size - 1] == 0)
    size--;
  put(out, id, 1);
  put(out, size, 1);
  put_bytes(out, value, size);
}

static void put_registers(writer *out, const testcase *test) {
  const uint8_t *values = (const uint8_t *)&test->state;
  const uint8_t *initial = (const uint8_t *)testcase_base_state(test->vectors);
  size_t begin = section_begin(out, SECTION_REGISTERS);
  for (const register_group *g = groups; g < groups + GROUPS; g++)
    for (unsigned n = 0; n < g->count; n++) {
      size_t at = g->offset + n * g->stride;
      if (memcmp(values + at, initial + at, g->size) != 0)
        put_register(out, g->first + n, values + at, g->size);
    }
  section_end(out, begin);
}

static void get_register(reader *in, testcase *test, unsigned id, size_t stored) {
  for (const register_group *g = groups; g < groups + GROUPS; g++)
    if (id - g->first < g->count) {
      size_t taken = stored < g->size ? stored : g->size;
      uint8_t *place = (uint8_t *)&test->state + g->offset + (id - g->first) * g->stride;
      get_bytes(in, place, taken);
      memset(place + taken, 0, g->size - taken);
      stored -= taken;
      break;
    }
  skip(in, stored);
}

static void get_registers(reader in, testcase *test) {
  while (in.at < in.end) {
    unsigned id = (unsigned)get(&in, 1);
    get_register(&in, test, id, get(&in, 1) & 0x7f);
  }
}

/* ---- Instructions ------------------------------------------------------------------------------------ */

static enum link link_of(const ls_instruction *instruction, uint32_t index, uint32_t count) {
  uint32_t in_list = index + 1 < count ? index + 1 : LS_NONE;
  if (instruction->next == in_list)
    return LINK_NEXT_IN_LIST;
  return instruction->next == LS_NONE ? LINK_LEAVES : LINK_INDEX;
}

static enum extra extra_of(const ls_instruction *instruction) {
  if (instruction->field != LS_FIELD_NONE)
    return instruction->field == LS_FIELD_BRANCH ? EXTRA_BRANCH : EXTRA_DATA;
  return instruction->flags ? EXTRA_FLAGS : EXTRA_NONE;
}

static uint8_t second_of(const ls_instruction *instruction) {
  uint8_t second = instruction->field_offset & 15;
  if (instruction->field_size == 4)
    second |= SECOND_WIDE;
  if (instruction->jump != LS_NONE)
    second |= SECOND_JUMP;
  if (instruction->flags & LS_NEVER_FALLS_THROUGH)
    second |= SECOND_NEVER_FALLS;
  return second;
}

static void put_instruction(writer *out, const testcase *test, uint32_t index) {
  const ls_instruction *instruction = &test->instructions[index];
  enum link link = link_of(instruction, index, test->count);
  enum extra extra = extra_of(instruction);
  put(out, (unsigned)instruction->length | (unsigned)link << 4 | (unsigned)extra << 6, 1);
  if (extra != EXTRA_NONE)
    put(out, second_of(instruction), 1);
  put_bytes(out, instruction->bytes, instruction->length);
  if (link == LINK_INDEX)
    put(out, instruction->next, 1);
  if (instruction->jump != LS_NONE)
    put(out, instruction->jump, 1);
  if (extra == EXTRA_DATA)
    put(out, instruction->data - testcase_layout()->windows[TESTCASE_CODE].address, 4);
}

static void put_code(writer *out, const testcase *test) {
  size_t begin = section_begin(out, SECTION_CODE);
  for (uint32_t index = 0; index < test->count; index++)
    put_instruction(out, test, index);
  section_end(out, begin);
}

static void get_second(reader *in, enum extra extra, ls_instruction *instruction, bool *jump) {
  uint8_t second = (uint8_t)get(in, 1);
  if (extra != EXTRA_FLAGS) {
    instruction->field = extra == EXTRA_BRANCH ? LS_FIELD_BRANCH : LS_FIELD_DATA;
    instruction->field_offset = second & 15;
    instruction->field_size = second & SECOND_WIDE ? 4 : 1;
  }
  instruction->flags = second & SECOND_NEVER_FALLS ? LS_NEVER_FALLS_THROUGH : 0;
  *jump = extra == EXTRA_BRANCH && second & SECOND_JUMP;
}

static void get_instruction(reader *in, ls_instruction *instruction, uint32_t index) {
  uint8_t head = (uint8_t)get(in, 1);
  enum link link = head >> 4 & 3;
  enum extra extra = head >> 6;
  bool jump = false;
  *instruction = (ls_instruction){.length = head & 15, .next = index + 1, .jump = LS_NONE};
  if (extra != EXTRA_NONE)
    get_second(in, extra, instruction, &jump);
  get_bytes(in, instruction->bytes, instruction->length);
  if (link != LINK_NEXT_IN_LIST)
    instruction->next = link == LINK_INDEX ? (uint32_t)get(in, 1) : LS_NONE;
  if (jump)
    instruction->jump = (uint32_t)get(in, 1);
  if (extra == EXTRA_DATA)
    instruction->data =
        testcase_layout()->windows[TESTCASE_CODE].address + (uint64_t)(int64_t)(int32_t)get(in, 4);
}

/* An instruction cut short is dropped, and so is one of no bytes. */
static void get_code(reader in, testcase *test) {
  while (in.at < in.end && test->count < TESTCASE_INSTRUCTIONS_MAX) {
    ls_instruction *instruction = &test->instructions[test->count];
    get_instruction(&in, instruction, test->count);
    if (!in.short_of && instruction->length > 0)
      test->count++;
  }
}

/* ---- Patches ----------------------------------------------------------------------------------------- */

static void put_patches(writer *out, const testcase *test) {
  size_t begin = section_begin(out, SECTION_PATCHES);
  for (unsigned i = 0; i < test->patch_count; i++) {
    const testcase_patch *patch = &test->patches[i];
    put(out, patch->window, 1);
    put(out, patch->length, 1);
    put(out, patch->offset, 2);
    put_bytes(out, patch->bytes, patch->length);
  }
  section_end(out, begin);
}

static void get_patches(reader in, testcase *test) {
  while (in.at < in.end && test->patch_count < TESTCASE_PATCHES_MAX) {
    testcase_patch *patch = &test->patches[test->patch_count++];
    patch->window = (uint8_t)get(&in, 1);
    patch->length = (uint8_t)get(&in, 1);
    patch->offset = (uint16_t)get(&in, 2);
    if (patch->length > TESTCASE_PATCH_MAX)
      patch->length = TESTCASE_PATCH_MAX;
    get_bytes(&in, patch->bytes, patch->length);
  }
}

/* ---- Entries ----------------------------------------------------------------------------------------- */

static uint32_t checksum(const uint8_t *data, size_t size) {
  return (uint32_t)XXH3_64bits(data + AT_FUEL, size - AT_FUEL);
}

size_t testcase_encode(const testcase *test, uint8_t *data, size_t size) {
  writer out = {data, size, 0};
  put_bytes(&out, magic, sizeof magic);
  put(&out, FORMAT_VERSION, 1);
  put(&out, 0, 2);
  put(&out, 0, 4);
  put(&out, test->fuel, 2);
  put(&out, test->cpu, 8);
  put_bytes(&out, test->fill + TESTCASE_DATA, TESTCASE_WINDOWS - TESTCASE_DATA);
  put(&out, test->vectors, 1);
  put_code(&out, test);
  put_registers(&out, test);
  put_patches(&out, test);
  if (out.at > size)
    return 0;
  put_at(&out, AT_SIZE, out.at, 2);
  put_at(&out, AT_SUM, checksum(data, out.at), 4);
  return out.at;
}

static bool is_entry(const uint8_t *data, size_t size) {
  return size > AT_VERSION && memcmp(data, magic, sizeof magic) == 0 && data[AT_VERSION] == FORMAT_VERSION;
}

static void get_section(reader *in, testcase *test) {
  uint8_t tag = (uint8_t)get(in, 1);
  size_t size = get(in, 2), left = (size_t)(in->end - in->at);
  reader section = {in->at, in->at + (size < left ? size : left), false};
  if (tag == SECTION_CODE)
    get_code(section, test);
  else if (tag == SECTION_REGISTERS)
    get_registers(section, test);
  else if (tag == SECTION_PATCHES)
    get_patches(section, test);
  in->at = section.end;
}

static void decode_entry(testcase *test, const uint8_t *data, size_t size) {
  reader in = {data, data + size, false};
  uint8_t header[AT_FUEL];
  get_bytes(&in, header, AT_FUEL); /* size and checksum are only for testcase_check */
  test->fuel = (uint32_t)get(&in, 2);
  test->cpu = get(&in, 8);
  get_bytes(&in, test->fill + TESTCASE_DATA, TESTCASE_WINDOWS - TESTCASE_DATA);
  test->vectors = (uint8_t)get(&in, 1);
  if (test->vectors != 0)
    testcase_vectors(test->vectors, &test->state);
  while (in.at < in.end)
    get_section(&in, test);
}

/* Bytes that are no entry: laid out back to back, so that the code image holds the very same bytes. */
static void decode_raw(testcase *test, const uint8_t *data, size_t size) {
  reader in = {data, data + size, false};
  while (in.at < in.end && test->count < TESTCASE_INSTRUCTIONS_MAX) {
    ls_instruction *instruction = &test->instructions[test->count++];
    size_t left = (size_t)(in.end - in.at);
    *instruction = (ls_instruction){.next = test->count, .jump = LS_NONE};
    instruction->length = (uint8_t)(left < LS_INSTRUCTION_MAX ? left : LS_INSTRUCTION_MAX);
    get_bytes(&in, instruction->bytes, instruction->length);
  }
}

void testcase_decode(testcase *test, const uint8_t *data, size_t size) {
  testcase_clear(test);
  if (is_entry(data, size))
    decode_entry(test, data, size);
  else if (size > 0)
    decode_raw(test, data, size);
  testcase_normalise(test);
}

/* ---- Strict reading ---------------------------------------------------------------------------------- */

/* The header's share of testcase_check; NULL if it is fine. */
static const char *header_fault(const uint8_t *data, size_t size, size_t *at) {
  size_t same = size < sizeof magic ? size : sizeof magic;
  *at = 0;
  if (size == 0)
    return "the file is empty";
  if (memcmp(data, magic, same) != 0)
    return "not a Lockstep entry: it does not begin with LST";
  *at = AT_VERSION;
  if (size > AT_VERSION && data[AT_VERSION] > FORMAT_VERSION)
    return "the entry was written by a newer version of Lockstep: update to read it";
  if (size > AT_VERSION && data[AT_VERSION] != FORMAT_VERSION)
    return "the entry names a version of the format that never was: it is damaged";
  *at = size;
  if (size < HEADER_SIZE || size < (size_t)(data[AT_SIZE] | data[AT_SIZE + 1] << 8))
    return "the entry is cut short";
  *at = (size_t)(data[AT_SIZE] | data[AT_SIZE + 1] << 8);
  if (size > *at)
    return "the entry is damaged: bytes follow behind its end";
  return NULL;
}

/* Where the bytes first differ from what encoding their own decoding gives; `size` if nowhere. */
static size_t first_difference(const uint8_t *data, size_t size) {
  testcase test;
  uint8_t again[TESTCASE_SIZE_MAX];
  testcase_decode(&test, data, size);
  size_t again_size = testcase_encode(&test, again, sizeof again), at = 0;
  while (at < size && at < again_size && data[at] == again[at])
    at++;
  return at;
}

bool testcase_check(const uint8_t *data, size_t size, char *why, size_t why_size) {
  size_t at;
  const char *fault = header_fault(data, size, &at);
  if (fault == NULL) {
    reader in = {data + AT_SUM, data + size, false};
    at = AT_SUM;
    if (get(&in, 4) != checksum(data, size))
      fault = "the entry is damaged: its checksum does not fit its content";
    else if ((at = first_difference(data, size)) < size)
      fault = "the entry holds what Lockstep would not write";
  }
  if (why_size > 0)
    why[0] = 0;
  if (fault == NULL)
    return true;
  snprintf(why, why_size, "%s (at byte %zu)", fault, at);
  return false;
}

#include <stddef.h>
#include <string.h>

#include <xxhash.h>

#include "testcase/testcase.h"
#include "testcase/testcase_codec.h"

/* ---- Layout and features ----------------------------------------------------------------------------- */

const ls_layout *testcase_layout(void) {
  static ls_layout layout;
  if (layout.window_count == 0) {
    ls_layout_default(&layout, 0);
    layout.window_count = TESTCASE_WINDOWS;
    memset(&layout.windows[TESTCASE_WINDOWS], 0,
           (LS_WINDOWS_MAX - TESTCASE_WINDOWS) * sizeof layout.windows[0]);
    const ls_window *stack = &layout.windows[TESTCASE_STACK];
    layout.control = stack->address + stack->size - LS_CONTROL_SIZE;
  }
  return &layout;
}

uint64_t testcase_cpu(void) {
  static uint64_t features;
  if (features == 0) {
    __builtin_cpu_init();
    const bool has[] = {
        __builtin_cpu_supports("avx"),
        __builtin_cpu_supports("avx2"),
        __builtin_cpu_supports("avx512f"),
        __builtin_cpu_supports("avx512bw"),
        __builtin_cpu_supports("avx512vl"),
        __builtin_cpu_supports("avx512dq"),
        __builtin_cpu_supports("avx512vbmi"),
        __builtin_cpu_supports("bmi2"),
        __builtin_cpu_is("amd"),
        __builtin_cpu_is("intel"),
    };
    for (unsigned bit = 0; bit < sizeof has / sizeof has[0]; bit++)
      features |= (uint64_t)has[bit] << bit;
    features |= 1ull << 63;
  }
  return features;
}

/* ---- Making ------------------------------------------------------------------------------------------ */

void testcase_clear(testcase *test) {
  memset(test, 0, offsetof(testcase, patches)); /* the state, behind it, is set as a whole */
  test->fuel = TESTCASE_FUEL_MAX;
  test->state = *testcase_base_state(0);
}

void testcase_init(testcase *test) {
  memset(test, 0, sizeof *test);
  testcase_clear(test);
  test->count = 1;
  test->instructions[0] = (ls_instruction){.next = LS_NONE, .jump = LS_NONE, .length = 1, .bytes = {0x90}};
}

void testcase_copy(testcase *to, const testcase *from) {
  memcpy(to, from, offsetof(testcase, patches));
  memcpy(to->patches, from->patches, from->patch_count * sizeof from->patches[0]);
  to->state = from->state;
  memcpy(to->instructions, from->instructions, from->count * sizeof from->instructions[0]);
}

ls_program testcase_program(const testcase *test) {
  return (ls_program){.instructions = test->instructions, .count = test->count, .flags = LS_PROGRAM_FUEL};
}

/* ---- Initial memory ---------------------------------------------------------------------------------- */

static uint8_t *patched_window(testcase_contents *contents, unsigned window) {
  switch (window) {
  case TESTCASE_DATA:
    return contents->data;
  case TESTCASE_CONST:
    return contents->constants;
  default:
    return contents->stack;
  }
}

/* Most windows have no patch: those are the pattern itself. */
void testcase_contents_make(const testcase *test, testcase_contents *contents) {
  memset(contents->window, 0, sizeof contents->window);
  for (unsigned window = TESTCASE_DATA; window < TESTCASE_WINDOWS; window++)
    contents->window[window] = testcase_fill(window, test->fill[window]);
  for (unsigned i = 0; i < test->patch_count; i++) {
    const testcase_patch *patch = &test->patches[i];
    uint8_t *copy = patched_window(contents, patch->window);
    if (contents->window[patch->window] != copy)
      memcpy(copy, contents->window[patch->window], testcase_layout()->windows[patch->window].size);
    contents->window[patch->window] = copy;
    memcpy(copy + patch->offset, patch->bytes, patch->length);
  }
}

/* ---- Into range -------------------------------------------------------------------------------------- */

/* A RIP-relative displacement is counted from the end of its instruction, which can be anywhere in the code
 * window: what every place reaches is 2 GiB less the window. */
static uint64_t data_target(uint64_t target) {
  const ls_window *code = &testcase_layout()->windows[TESTCASE_CODE];
  const ls_window *data = &testcase_layout()->windows[TESTCASE_DATA];
  int64_t distance = (int64_t)(target - code->address);
  int64_t reach = INT32_MAX - (int64_t)code->size;
  if (distance >= -reach && distance <= reach)
    return target;
  return data->address + target % data->size / 8 * 8;
}

static void normalise_field(ls_instruction *instruction) {
  bool fits = instruction->field_offset + instruction->field_size <= instruction->length;
  bool branch =
      instruction->field == LS_FIELD_BRANCH && (instruction->field_size == 1 || instruction->field_size == 4);
  bool data = instruction->field == LS_FIELD_DATA && instruction->field_size == 4;
  if (!fits || (!branch && !data)) {
    instruction->field = LS_FIELD_NONE;
    instruction->field_offset = instruction->field_size = 0;
  }
  memset(instruction->bytes + instruction->field_offset, 0, instruction->field_size);
  if (instruction->field != LS_FIELD_BRANCH)
    instruction->jump = LS_NONE;
  instruction->data = instruction->field == LS_FIELD_DATA ? data_target(instruction->data) : 0;
}

static void normalise_instruction(const testcase *test, ls_instruction *instruction, uint32_t index) {
  instruction->id = index;
  if (instruction->length < 1)
    instruction->length = 1;
  if (instruction->length > LS_INSTRUCTION_MAX)
    instruction->length = LS_INSTRUCTION_MAX;
  instruction->flags &= LS_NEVER_FALLS_THROUGH;
  if (instruction->next >= test->count)
    instruction->next = LS_NONE;
  if (instruction->jump >= test->count)
    instruction->jump = LS_NONE;
  normalise_field(instruction);
  memset(instruction->bytes + instruction->length, 0, (size_t)(LS_INSTRUCTION_MAX - instruction->length));
}

static void normalise_patch(testcase_patch *patch) {
  if (patch->window < TESTCASE_DATA || patch->window >= TESTCASE_WINDOWS)
    patch->window = TESTCASE_DATA;
  if (patch->length < 1)
    patch->length = 1;
  if (patch->length > TESTCASE_PATCH_MAX)
    patch->length = TESTCASE_PATCH_MAX;
  uint64_t size = testcase_layout()->windows[patch->window].size;
  if (patch->offset > size - patch->length)
    patch->offset = (uint16_t)(patch->offset % (size - patch->length + 1));
  memset(patch->bytes + patch->length, 0, (size_t)(TESTCASE_PATCH_MAX - patch->length));
}

/* SDM vol. 1, 8.1.3 to 8.1.8: ES (bit 7) and B (bit 15) of the status word say whether an unmasked exception
 * is pending, so they follow from the flags and masks; bit 6 of the control word reads as 1. The last
 * instruction's pointers are loaded and stored by some CPUs only while ES is set. */
static void normalise_x87(ls_state *state) {
  state->fcw = (uint16_t)((state->fcw & 0x0f3f) | 0x40);
  state->fsw &= 0x7f7f;
  bool pending = (state->fsw & 0x3f & ~state->fcw) != 0;
  if (pending)
    state->fsw |= 0x8080;
  state->fop = pending ? state->fop & 0x7ff : 0;
  state->fip = pending ? state->fip & 0x7fffffffffff : 0;
  state->fdp = pending ? state->fdp & 0x7fffffffffff : 0;
  for (unsigned i = 0; i < 8; i++)
    memset(state->st[i] + 10, 0, 6);
}

static uint16_t data_selector(uint16_t selector) {
  return selector == 0x2b || selector == 0x33 ? selector : 0;
}

enum {
  /* CF PF AF ZF SF TF DF OF NT AC ID; bit 1 is always one and user code runs with IF set. IOPL is the
   * kernel's, RF and the VM bits cannot be loaded (SDM vol. 1, 3.4.3). */
  FLAGS_FREE =
      0x0001 | 0x0004 | 0x0010 | 0x0040 | 0x0080 | 0x0100 | 0x0400 | 0x0800 | 0x4000 | 0x40000 | 0x200000,
  FLAGS_SET = 0x0202,
  MXCSR_MASK = 0xffff /* what every x86-64 CPU implements; others fault on load (SDM vol. 1, 11.6.6) */
};

static void normalise_state(ls_state *state) {
  state->rip = 0;
  state->rflags = (state->rflags & FLAGS_FREE) | FLAGS_SET;
  state->cs = 0x33;
  state->ss = 0x2b;
  state->ds = data_selector(state->ds);
  state->es = data_selector(state->es);
  state->fs = state->gs = 0;
  state->reserved0 = state->reserved2 = 0;
  state->reserved1 = 0;
  state->mxcsr &= MXCSR_MASK;
  normalise_x87(state);
}

void testcase_normalise(testcase *test) {
  if (test->count == 0) {
    test->count = 1;
    test->instructions[0] = (ls_instruction){.next = LS_NONE, .jump = LS_NONE, .length = 1, .bytes = {0x90}};
  }
  if (test->count > TESTCASE_INSTRUCTIONS_MAX)
    test->count = TESTCASE_INSTRUCTIONS_MAX;
  if (test->fuel > TESTCASE_FUEL_MAX)
    test->fuel = TESTCASE_FUEL_MAX;
  if (test->patch_count > TESTCASE_PATCHES_MAX)
    test->patch_count = TESTCASE_PATCHES_MAX;
  test->fill[TESTCASE_CODE] = 0;
  for (uint32_t i = 0; i < test->count; i++)
    normalise_instruction(test, &test->instructions[i], i);
  for (unsigned i = 0; i < test->patch_count; i++)
    normalise_patch(&test->patches[i]);
  normalise_state(&test->state);
}

/* ---- Name -------------------------------------------------------------------------------------------- */

void testcase_name(const testcase *test, char name[33]) {
  uint8_t bytes[TESTCASE_SIZE_MAX];
  XXH128_canonical_t digest;
  size_t size = testcase_encode(test, bytes, sizeof bytes);
  memset(bytes + TESTCASE_AT_SUM, 0, TESTCASE_SUM_SIZE);
  memset(bytes + TESTCASE_AT_CPU, 0, TESTCASE_CPU_SIZE);
  XXH128_canonicalFromHash(&digest, XXH3_128bits(bytes, size));
  for (unsigned i = 0; i < 16; i++) {
    name[2 * i] = "0123456789abcdef"[digest.digest[i] >> 4];
    name[2 * i + 1] = "0123456789abcdef"[digest.digest[i] & 15];
  }
  name[32] = 0;
}

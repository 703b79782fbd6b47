/* The initial state and memory of a new program, and which of its registers addresses are made of. */
#include <string.h>

#include "generator.h"
#include "values.h"

void frame_warm(frame *f) {
  uint64_t random = rng_next(f->r);
  for (unsigned i = 0; i < 4; i++) {
    f->hot[i] = (uint8_t)(random >> 8 * i & 15);
    f->hot_vectors[i] = (uint8_t)(random >> (32 + 8 * i) & 15);
  }
}

/* Where a base points: into a window, mostly data and mostly aligned, at times at a window's or page's edge.
 */
static uint64_t pointer(rng *r) {
  uint32_t draw = rng_below(r, 10);
  unsigned window = draw < 7 ? TESTCASE_DATA : draw < 9 ? TESTCASE_CONST : TESTCASE_STACK;
  return address_in(r, window, 64, rng_percent(r, 70) ? 64 : 1u << rng_below(r, 4));
}

static void make_known(frame *f, ls_state *state) {
  rng *r = f->r;
  uint32_t bases = 2 + rng_below(r, 3), indices = 1 + rng_below(r, 2);
  for (uint32_t i = 0; i < bases + indices; i++) {
    uint32_t gpr = frame_scratch(f, 0);
    if (rng_one_in(r, 3)) /* legacy registers make shorter encodings, and go with AH to BH */
      gpr = LS_RBX + (gpr & 1) * (LS_RSI - LS_RBX);
    uint64_t value = i < bases ? pointer(r) : rng_next(r) & 1 ? rng_below(r, 256) : value_integer(r);
    f->known |= (uint16_t)(1 << gpr);
    f->value[gpr] = state->gpr[gpr] = value;
  }
}

static void vary_x87(rng *r, ls_state *state) {
  state->fcw = rng_next(r) & 1 ? 0x37f : value_fcw(r);
  state->fsw = (uint16_t)(rng_below(r, 8) << 11 | (rng_next(r) & 0x4700));
  state->ftw = (uint8_t)(rng_next(r) & rng_next(r));
  for (unsigned i = 0; i < 8; i++)
    value_extended(r, state->st[i]);
}

static void vary_system(rng *r, ls_state *state) {
  static const uint16_t selectors[] = {0x2b, 0x33, 0, 0x2b};
  state->rflags = value_rflags(r);
  if (rng_one_in(r, 50))
    state->rflags |= 0x200000; /* ID */
  if (rng_one_in(r, 200))
    state->rflags |= 0x4000; /* NT */
  if (rng_one_in(r, 4))
    state->mxcsr = value_mxcsr(r);
  if (rng_one_in(r, 10)) {
    state->ds = selectors[rng_below(r, 4)];
    state->es = selectors[rng_below(r, 4)];
  }
}

static void vary_memory(rng *r, testcase *test) {
  for (unsigned window = TESTCASE_DATA; window < TESTCASE_WINDOWS; window++)
    test->fill[window] = (uint8_t)rng_below(r, 64);
  uint32_t patches = rng_one_in(r, 3) ? 1 + rng_below(r, 2) : 0;
  for (uint32_t i = 0; i < patches; i++) {
    testcase_patch *patch = &test->patches[test->patch_count++];
    patch->window = TESTCASE_DATA;
    patch->length = (uint8_t)(8 << rng_below(r, 4));
    patch->offset = (uint16_t)(64 * rng_below(r, 8192 / 64));
    memset(patch->bytes, 0, sizeof patch->bytes);
    value_lanes(r, patch->bytes, patch->length);
  }
}

void frame_new(frame *f, rng *r, testcase *test) {
  ls_state *state = &test->state;
  memset(f, 0, sizeof *f);
  f->r = r;
  f->test = test;
  testcase_init(test);
  test->cpu = testcase_cpu();
  test->vectors = (uint8_t)rng_below(r, 64);
  testcase_vectors(test->vectors, state);
  for (unsigned i = 0; i < 16; i++)
    if (i != LS_RSP)
      state->gpr[i] = rng_one_in(r, 6) ? pointer(r) : value_integer(r);
  for (uint32_t i = rng_below(r, 4); i > 0; i--)
    value_lanes(r, state->zmm[rng_below(r, 16)], 64);
  vary_system(r, state);
  f->fpu = rng_one_in(r, 5);
  if (f->fpu && rng_next(r) & 1)
    vary_x87(r, state);
  vary_memory(r, test);
  frame_warm(f);
  make_known(f, state);
  f->index = (uint8_t)(1 + rng_below(r, 15)); /* not XMM0: some instructions write it unasked */
}

/* Where addresses can point; the initial state and memory of a new program, and which of its registers
 * addresses are made of. */
#include <string.h>

#include "generate/frame.h"
#include "generate/values.h"

uint64_t address_in(rng *r, unsigned window, uint32_t size, uint32_t align) {
  const ls_window *w = &testcase_layout()->windows[window];
  uint64_t end = w->size - (window == TESTCASE_STACK ? LS_CONTROL_SIZE : 0);
  uint64_t room = end > size ? end - size : 0;
  uint64_t offset;
  switch (rng_below(r, 8)) {
  case 0: /* at an end of the window */
    offset = rng_next(r) & 1 ? room : 0;
    break;
  case 1: /* across or at the edge between its two pages */
    offset = w->size > LS_PAGE ? LS_PAGE - rng_below(r, size + 1) : room / 2;
    break;
  default:
    offset = rng_below(r, (uint32_t)room + 1);
  }
  return w->address + (offset & ~(uint64_t)(align - 1));
}

uint64_t quiet_stack_address(rng *r, uint32_t size, uint32_t align) {
  const ls_window *w = &testcase_layout()->windows[TESTCASE_STACK];
  uint64_t offset = rng_below(r, 1024 - size % 1024);
  offset += rng_next(r) & 1 ? 0 : w->size - 1152;
  return w->address + (offset & ~(uint64_t)(align - 1));
}

uint64_t bad_address(rng *r) {
  const ls_layout *layout = testcase_layout();
  const ls_window *w = &layout->windows[TESTCASE_DATA + rng_below(r, TESTCASE_WINDOWS - TESTCASE_DATA)];
  switch (rng_below(r, 8)) {
  case 0:
    return rng_below(r, 4096);
  case 1:
    return w->address - 1 - rng_below(r, 64);
  case 2:
    return w->address + w->size + rng_below(r, 4000);
  case 3:
    return w->address + w->size - 1 + rng_below(r, 2); /* the access may straddle the edge */
  case 4:
    return 0x0000800000000000 + rng_below(r, 4096); /* not canonical */
  case 5:
    return rng_next(r) | 0x8000000000000000;
  case 6:
    return 0xffff800000000000 + rng_below(r, 4096);
  default:
    return 0x0000700000000000 ^ (rng_next(r) & 0xffff000);
  }
}

uint32_t pick_bit(rng *r, uint32_t mask) {
  uint32_t count = (uint32_t)__builtin_popcount(mask);
  if (count == 0)
    return LS_NONE;
  for (uint32_t skip = rng_below(r, count); skip > 0; skip--)
    mask &= mask - 1;
  return (uint32_t)__builtin_ctz(mask);
}

uint32_t frame_scratch(const frame *f, uint16_t dirty) {
  return pick_bit(f->r, 0xffffu & ~(uint32_t)(f->known | f->kept | dirty | RSP_BIT));
}

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
    if (gpr == LS_NONE)
      return;
    if (rng_one_in(r, 3)) /* legacy registers make shorter encodings, and go with AH to BH */
      gpr = LS_RBX + (gpr & 1) * (LS_RSI - LS_RBX);
    uint64_t value = i < bases ? pointer(r) : rng_next(r) & 1 ? rng_below(r, 256) : value_integer(r);
    f->known |= (uint16_t)(1 << gpr);
    f->value[gpr] = state->gpr[gpr] = value;
  }
}

static void vary_x87(rng *r, ls_state *state) {
  state->fcw = rng_next(r) & 1 ? 0x37f : value_fcw(r);
  uint64_t random = rng_next(r); /* TOP and the condition codes */
  state->fsw = (uint16_t)(random & 0x7f00);
  random = rng_next(r); /* one register in four in use, so that there is room to push */
  state->ftw = (uint8_t)(random & random >> 8);
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

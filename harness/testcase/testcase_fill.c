/* The patterns of memory and of vector registers. Part of the file format (docs/FORMAT.md, "Patterns"): what
 * a pattern number stands for never changes. */
#include <string.h>

#include "rng.h"
#include "testcase/testcase_codec.h"

typedef uint64_t (*cell_maker)(rng *r);

static const uint64_t special_integers[16] = {
    0,
    1,
    UINT64_MAX,
    0x8000000000000000,
    0x7fffffffffffffff,
    0x80000000,
    0x7fffffff,
    0xffffffff,
    0xffffffff80000000,
    0x8000,
    0x7fff,
    0x80,
    0x7f,
    0x8080808080808080,
    0x5555555555555555,
    0xaaaaaaaaaaaaaaaa,
};

static const uint64_t special_doubles[16] = {
    0,                  /* +0 */
    0x8000000000000000, /* -0 */
    0x3ff0000000000000, /* 1 */
    0xbff0000000000000, /* -1 */
    0x7ff0000000000000, /* +infinity */
    0xfff0000000000000, /* -infinity */
    0x7ff8000000000000, /* quiet NaN */
    0x7ff0000000000001, /* signalling NaN */
    0xfff8000000000000, /* the default NaN */
    1,                  /* smallest denormal */
    0x800fffffffffffff, /* largest negative denormal */
    0x0010000000000000, /* smallest normal */
    0x7fefffffffffffff, /* largest */
    0x3fe0000000000000, /* 0.5 */
    0x41dfffffffc00000, /* 2^31 - 1 */
    0x43e0000000000000, /* 2^63 */
};

static const uint32_t special_floats[16] = {
    0,          0x80000000, 0x3f800000, 0xbf800000, 0x7f800000, 0xff800000, 0x7fc00000, 0x7f800001,
    0xffc00000, 1,          0x807fffff, 0x00800000, 0x7f7fffff, 0x3f000000, 0x4f000000, 0x5f000000,
};

static uint64_t integer_cell(rng *r) {
  uint64_t draw = rng_next(r);
  unsigned bit = draw >> 8 & 63;
  switch (draw & 3) {
  case 0:
    return 1ull << bit;
  case 1:
    return (1ull << bit) - 1;
  default:
    return special_integers[draw >> 16 & 15];
  }
}

static uint64_t small_cell(rng *r) {
  uint64_t draw = rng_next(r);
  return (draw & 1) ? draw >> 1 & 0x7f : draw >> 1 & 0x0000007f0000007f;
}

/* A special one, or a multiple of 1/4 from -64 to 63.75. */
static uint64_t double_cell(rng *r) {
  uint64_t draw = rng_next(r), bits;
  if (draw & 1)
    return special_doubles[draw >> 8 & 15];
  double value = ((double)(draw >> 8 & 0x1ff) - 256) / 4;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

static uint32_t float_lane(uint32_t draw) {
  uint32_t bits;
  if (draw & 1)
    return special_floats[draw >> 8 & 15];
  float value = ((float)(draw >> 8 & 0x1ff) - 256) / 4;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

static uint64_t float_cell(rng *r) {
  uint64_t draw = rng_next(r);
  return (uint64_t)float_lane((uint32_t)(draw >> 32)) << 32 | float_lane((uint32_t)draw);
}

/* An 8-aligned address in the data window, 1 KiB or more away from its edges. */
static uint64_t pointer_cell(rng *r) {
  const ls_window *data = &testcase_layout()->windows[TESTCASE_DATA];
  return data->address + 1024 + rng_next(r) % 768 * 8;
}

static uint64_t mixed_cell(rng *r) {
  static const cell_maker makers[8] = {integer_cell, integer_cell, small_cell,   double_cell,
                                       float_cell,   pointer_cell, pointer_cell, rng_next};
  return makers[rng_next(r) & 7](r);
}

static void fill_make(unsigned window, uint8_t fill, uint8_t *bytes, size_t size) {
  static const cell_maker makers[7] = {mixed_cell, pointer_cell, small_cell,  double_cell,
                                       float_cell, rng_next,     integer_cell};
  uint64_t same = testcase_layout()->windows[TESTCASE_DATA].address + 1024 + fill / 8 * 192;
  rng r = {(uint64_t)window << 8 | fill};
  for (size_t at = 0; at < size; at += 8) {
    uint64_t cell = fill % 8 == 7 ? same : makers[fill % 8](&r);
    memcpy(bytes + at, &cell, 8);
  }
}

const uint8_t *testcase_fill(unsigned window, uint8_t fill) {
  /* Not touched, so not in memory, until a pattern is asked for. */
  static uint8_t data[256][8192], constants[256][4096], stack[256][4096];
  static bool made[TESTCASE_WINDOWS][256];
  uint8_t *bytes = window == TESTCASE_DATA    ? data[fill]
                   : window == TESTCASE_CONST ? constants[fill]
                                              : stack[fill];
  if (!made[window][fill] && fill != 0)
    fill_make(window, fill, bytes, testcase_layout()->windows[window].size);
  made[window][fill] = true;
  return bytes;
}

static uint64_t opmask_cell(rng *r) {
  uint64_t draw = rng_next(r);
  switch (draw & 3) {
  case 0:
    return UINT64_MAX;
  case 1:
    return (1ull << (draw >> 8 & 63)) - 1;
  default:
    return rng_next(r);
  }
}

static void vectors_make(uint8_t vectors, uint8_t zmm[32][64], uint64_t k[8]) {
  static const cell_maker makers[8] = {mixed_cell,  integer_cell, small_cell, small_cell,
                                       double_cell, float_cell,   rng_next,   integer_cell};
  rng r = {0x10000u | vectors};
  for (unsigned n = 0; n < 32; n++) {
    cell_maker maker = makers[rng_next(&r) & 7];
    for (unsigned lane = 0; lane < 8; lane++) {
      uint64_t cell = maker(&r);
      memcpy(zmm[n] + 8 * lane, &cell, 8);
    }
  }
  for (unsigned n = 0; n < 8; n++)
    k[n] = opmask_cell(&r);
}

const ls_state *testcase_base_state(uint8_t vectors) {
  static ls_state states[256];
  ls_state *state = &states[vectors];
  if (state->cs != 0)
    return state;
  const ls_window *stack = &testcase_layout()->windows[TESTCASE_STACK];
  ls_state_init(state);
  state->gpr[LS_RSP] = stack->address + stack->size / 2;
  if (vectors != 0)
    vectors_make(vectors, state->zmm, state->k);
  return state;
}

void testcase_vectors(uint8_t vectors, ls_state *state) {
  const ls_state *base = testcase_base_state(vectors);
  memcpy(state->zmm, base->zmm, sizeof state->zmm);
  memcpy(state->k, base->k, sizeof state->k);
}

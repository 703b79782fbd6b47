#include <string.h>

#include "generate/values.h"

static const uint64_t special_integers[] = {
    0,
    1,
    2,
    3,
    7,
    8,
    15,
    16,
    31,
    32,
    63,
    64,
    UINT64_MAX,
    0x7f,
    0x80,
    0xff,
    0x100,
    0x7fff,
    0x8000,
    0xffff,
    0x10000,
    0x7fffffff,
    0x80000000,
    0xffffffff,
    0x100000000,
    INT64_MAX,
    INT64_MIN,
    0x8080808080808080,
    0x7f7f7f7f7f7f7f7f,
    0x5555555555555555,
    0xaaaaaaaaaaaaaaaa,
    0xffffffff00000000,
    0xffffffff80000000,
    0xffffffffffff8000,
    0xffffffffffffff80,
    0xfffffffffffffffe,
};

uint64_t value_integer(rng *r) {
  uint64_t random = rng_next(r);
  unsigned bit = (unsigned)(random >> 8) & 63;
  switch (random & 7) {
  case 0:
  case 1:
  case 2:
    return special_integers[(random >> 16) % (sizeof special_integers / sizeof special_integers[0])];
  case 3:
    return 1ull << bit;
  case 4:
    return (1ull << bit) - 1 + (random >> 20 & 1);
  case 5:
    return random >> 56;
  default:
    return rng_next(r);
  }
}

static uint64_t extend(uint64_t value, unsigned bits, bool is_signed) {
  if (bits >= 64)
    return value;
  unsigned shift = 64 - bits;
  return is_signed ? (uint64_t)((int64_t)(value << shift) >> shift) : value << shift >> shift;
}

uint64_t value_immediate(rng *r, unsigned bits, bool is_signed) {
  uint64_t value = extend(value_integer(r), bits, is_signed);
  unsigned shorter = bits == 64 ? 32 : 8;
  if (bits == 8 || extend(value, bits, true) != extend(value, shorter, true))
    return value;
  return extend(value ^ 0x55ull << (bits - 8), bits, is_signed);
}

uint32_t value_float(rng *r) {
  static const uint32_t special[] = {0,          0x80000000, 0x3f800000, 0xbf800000, 0x7f800000, 0xff800000,
                                     0x7fc00000, 0x7fa00000, 0xffc00001, 1,          0x007fffff, 0x80000001,
                                     0x00800000, 0x7f7fffff, 0x3f000000, 0x4f000000, 0x4b000001, 0x5f000000};
  uint64_t random = rng_next(r);
  if (random & 1)
    return special[(random >> 8) % (sizeof special / sizeof special[0])];
  if (random & 2) /* exponents around one: results that neither overflow nor vanish */
    return (uint32_t)(random >> 32 & 0x81ffffff) + 0x3e000000;
  return (uint32_t)(random >> 32);
}

uint64_t value_double(rng *r) {
  static const uint64_t special[] = {
      0,
      0x8000000000000000,
      0x3ff0000000000000,
      0xbff0000000000000,
      0x7ff0000000000000,
      0xfff0000000000000,
      0x7ff8000000000000,
      0x7ff4000000000000,
      0xfff8000000000001,
      1,
      0x000fffffffffffff,
      0x8000000000000001,
      0x0010000000000000,
      0x7fefffffffffffff,
      0x3fe0000000000000,
      0x41dfffffffc00000,
      0x43e0000000000000,
      0x4330000000000001,
  };
  uint64_t random = rng_next(r);
  if (random & 1)
    return special[(random >> 8) % (sizeof special / sizeof special[0])];
  uint64_t bits = rng_next(r);
  return random & 2 ? (bits & 0x803fffffffffffff) + 0x3fe0000000000000 : bits;
}

void value_lanes(rng *r, uint8_t *bytes, unsigned size) {
  uint32_t kind = rng_below(r, 6);
  for (unsigned at = 0; at < size; at += 8) {
    uint64_t lane = 0;
    switch (kind) {
    case 0:
      lane = value_double(r);
      break;
    case 1:
      lane = value_float(r);
      lane = lane << 32 | value_float(r);
      break;
    case 2:
      lane = value_integer(r);
      lane = lane << 32 | (uint32_t)value_integer(r);
      break;
    case 3:
      for (unsigned i = 0; i < 4; i++)
        lane = lane << 16 | (uint16_t)value_integer(r);
      break;
    case 4:
      lane = value_integer(r);
      break;
    default:
      lane = rng_next(r);
    }
    memcpy(bytes + at, &lane, 8);
  }
}

void value_extended(rng *r, uint8_t bytes[16]) {
  static const struct {
    uint64_t fraction;
    uint16_t exponent;
  } special[] = {
      {0, 0},                       /* zero */
      {0x8000000000000000, 0x3fff}, /* one */
      {0x8000000000000000, 0x7fff}, /* infinity */
      {0xc000000000000000, 0x7fff}, /* quiet NaN */
      {0xa000000000000000, 0x7fff}, /* signalling NaN */
      {1, 0},                       /* denormal */
      {0x8000000000000000, 0},      /* pseudo-denormal */
      {0x4000000000000000, 0x3fff}, /* unnormal */
      {0, 0x7fff},                  /* pseudo-infinity */
      {UINT64_MAX, 0x7ffe},         /* largest */
      {0x8000000000000000, 1},      /* smallest normal */
      {0x8000000000000000, 0x403e}, /* 2^63 */
  };
  uint64_t random = rng_next(r);
  size_t row = (random >> 8) % (sizeof special / sizeof special[0]);
  uint64_t fraction = random & 1 ? special[row].fraction : rng_next(r) | 0x8000000000000000;
  uint16_t exponent = random & 1 ? special[row].exponent : (uint16_t)(0x3ff0 + (random >> 8 & 31));
  exponent |= (uint16_t)(random & 2 ? 0x8000 : 0);
  memset(bytes, 0, 16);
  memcpy(bytes, &fraction, 8);
  memcpy(bytes + 8, &exponent, 2);
}

uint32_t value_mxcsr(rng *r) {
  /* SDM vol. 1, 10.2.3: flags 0-5, DAZ 6, masks 7-12, rounding 13-14, FTZ 15. */
  uint32_t random = (uint32_t)rng_next(r);
  uint32_t value = 0x1f80 | (random & 0x6000);
  if (random & 0x10000)
    value |= random & 0x8040;
  if (random & 0x20000)
    value |= random & 0x3f;
  return value;
}

uint16_t value_fcw(rng *r) {
  /* SDM vol. 1, 8.1.5: masks 0-5, bit 6 reads as one, precision 8-9, rounding 10-11, infinity 12. */
  return (uint16_t)(0x7f | (rng_next(r) & 0x0f00));
}

uint64_t value_rflags(rng *r) {
  uint64_t random = rng_next(r);
  uint64_t flags = 0x202 | (random & 0x8d5);
  return (random >> 32 & 15) == 0 ? flags | 0x400 : flags;
}

void value_indices(rng *r, uint8_t zmm[64]) {
  for (unsigned lane = 0; lane < 8; lane++) {
    uint64_t random = rng_next(r);
    int64_t value = (int64_t)(random >> 8 & (VALUE_INDEX_LIMIT - 1));
    if (random & 1)
      value = -value;
    memcpy(zmm + 8 * lane, &value, 8);
  }
}

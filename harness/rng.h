/* A small fast generator of pseudo-random numbers (splitmix64, Steele, Lea & Flood 2014): the same seed gives
 * the same programs everywhere. */
#ifndef HARNESS_RNG_H
#define HARNESS_RNG_H

#include <stdbool.h>
#include <stdint.h>

typedef struct rng {
  uint64_t state;
} rng;

static inline uint64_t rng_next(rng *r) {
  uint64_t z = (r->state += 0x9e3779b97f4a7c15u);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

/* 0 … bound-1; bound > 0. */
static inline uint32_t rng_below(rng *r, uint32_t bound) {
  return (uint32_t)(((rng_next(r) >> 32) * bound) >> 32);
}

/* True once in `n` times. */
static inline bool rng_one_in(rng *r, uint32_t n) {
  return rng_below(r, n) == 0;
}

/* True in `percent` of 100 times. */
static inline bool rng_percent(rng *r, uint32_t percent) {
  return rng_below(r, 100) < percent;
}

#endif

/* More than a kilobyte is copied after every run, and stores are what that costs: so they are as wide as the
 * CPU allows, and all sizes are constants, for which the compiler makes moves and not calls. */
#include "vectors.h"

#include <immintrin.h>
#include <string.h>

#define AVX_CODE __attribute__((target("avx"), noinline))

_Static_assert(offsetof(ls_state, k) == sizeof((ls_state *)0)->zmm, "opmasks follow the vectors");

/* The high registers and the opmasks. */
enum { HIGH_AT = LOW_VECTORS * ZMM_SIZE, HIGH_END = sizeof((ls_state *)0)->zmm + sizeof((ls_state *)0)->k };

static inline __attribute__((always_inline, target("avx"))) void copy_32(const uint8_t *from, uint8_t *to) {
  _mm256_storeu_si256((__m256i *)to, _mm256_loadu_si256((const __m256i *)from));
}

AVX_CODE static void repeat_sse_by_avx(const ls_state *start, ls_state *state) {
  const uint8_t *from = (const uint8_t *)start;
  uint8_t *to = (uint8_t *)state;
  for (int i = 0; i < LOW_VECTORS; i++) {
    memcpy(state->zmm[i] + XMM_SIZE, start->zmm[i] + XMM_SIZE, YMM_SIZE - XMM_SIZE);
    copy_32(start->zmm[i] + YMM_SIZE, state->zmm[i] + YMM_SIZE);
  }
  for (int at = HIGH_AT; at < HIGH_END; at += YMM_SIZE)
    copy_32(from + at, to + at);
}

AVX_CODE static void repeat_avx(const ls_state *start, ls_state *state) {
  const uint8_t *from = (const uint8_t *)start;
  uint8_t *to = (uint8_t *)state;
  for (int i = 0; i < LOW_VECTORS; i++)
    copy_32(start->zmm[i] + YMM_SIZE, state->zmm[i] + YMM_SIZE);
  for (int at = HIGH_AT; at < HIGH_END; at += YMM_SIZE)
    copy_32(from + at, to + at);
}

static void repeat_sse(const ls_state *start, ls_state *state) {
  for (int i = 0; i < LOW_VECTORS; i++)
    memcpy(state->zmm[i] + XMM_SIZE, start->zmm[i] + XMM_SIZE, ZMM_SIZE - XMM_SIZE);
  for (int at = HIGH_AT; at < HIGH_END; at += XMM_SIZE)
    memcpy((uint8_t *)state + at, (const uint8_t *)start + at, XMM_SIZE);
}

void vectors_repeat_narrow(ls_vectors vectors, bool by_avx, const ls_state *start, ls_state *state) {
  if (vectors == LS_VECTORS_AVX)
    repeat_avx(start, state);
  else if (by_avx)
    repeat_sse_by_avx(start, state);
  else
    repeat_sse(start, state);
}

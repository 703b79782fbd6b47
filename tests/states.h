/* Whole register files: that two are the same, and one in which everything has a value of its own. */
#ifndef TESTS_STATES_H
#define TESTS_STATES_H

#include "check.h"
#include "flags.h"
#include "left_out.h"

/* ---- Patterns ---- */

static inline uint64_t mix(uint64_t x) {
  x *= UINT64_C(0x9e3779b97f4a7c15);
  return x ^ (x >> 29);
}

/* A value of its own in every register, lane, byte and bit field. */
static inline void fill_seeded(ls_state *s, uint64_t seed) {
  ls_state_init(s);
  for (unsigned i = 0; i < sizeof s->zmm; i += 8) {
    uint64_t lane = mix(mix(seed) + i);
    memcpy(&s->zmm[0][0] + i, &lane, sizeof lane);
  }
  for (unsigned i = 0; i < 8; i++)
    s->k[i] = mix(mix(seed) + 5000 + i);
  for (unsigned i = 0; i < 16; i++)
    s->gpr[i] = mix(mix(seed) + 6000 + i);
  s->gpr[LS_RSP] &= UINT64_C(0x7fffffffffff); /* canonical, so that the kernel can return to it at any time */
  for (unsigned i = 0; i < 8; i++)
    for (unsigned j = 0; j < 10; j++)
      s->st[i][j] = (uint8_t)(mix(mix(seed) + 7000 + 16 * i + j) >> 24);
  s->rflags = RFLAGS_CLEAN | (mix(seed + 8000) & RFLAGS_USER & ~(uint64_t)RFLAGS_TF);
  static const uint16_t selectors[] = {0x2b, 0x33, 0};
  s->ds = selectors[seed % 3];
  s->es = selectors[(seed + 1) % 3];
  s->mxcsr = 0x1f80 ^ (mix(seed + 9000) & 0xe07f); /* rounding, FTZ, DAZ, sticky flags; all masked */
  s->fcw = (uint16_t)(0x7f | (mix(seed + 9100) & 0xf00));
  s->fsw = (uint16_t)(mix(seed + 9200) & 0x7f7f & ~0x80u);
  s->ftw = (uint8_t)mix(seed + 9300);
  if (seed % 4 == 1) { /* an exception pending: FOP, FIP and FDP count */
    s->fcw = 0x27b;
    s->fsw = (uint16_t)(0x8084 | (seed & 7) << 11);
    s->fop = left_out("fop") ? 0 : 0x5b7;
    /* Below 4 GiB, where guests are: a context switch may keep no more (seen on Zen 5). */
    s->fip = left_out("fip") ? 0 : 0x56789abc;
    s->fdp = left_out("fdp") ? 0 : 0x6789abcd;
  }
}

/* ---- Comparing ---- */

/* Fails the running test, naming the first register that differs. Both are canonical; `name` says what was
 * done, or to whom. */
static inline void same_canonical(const char *name, const ls_state *expected, const ls_state *got) {
  size_t row = 0, count;
  if (memcmp(expected, got, sizeof *expected) == 0)
    return;
  if (!ls_state_difference(expected, got, &row))
    fail_msg("%s: states differ outside the register table", name);
  const ls_register *rows = ls_registers(&count), *r = &rows[row];
  while (left_out(r->name)) {
    row++;
    if (!ls_state_difference(expected, got, &row))
      return;
    r = &rows[row];
  }
  char x[256], y[256];
  ls_register_print(r, expected, x, sizeof x);
  ls_register_print(r, got, y, sizeof y);
  fail_msg("%s: %s: expected %s, got %s", name, r->name, x, y);
}

static inline void same_state(const char *name, const ls_state *expected, const ls_state *got) {
  static ls_state a, b; /* large */
  a = *expected, b = *got;
  ls_state_canonicalise(&a);
  ls_state_canonicalise(&b);
  same_canonical(name, &a, &b);
}

#endif

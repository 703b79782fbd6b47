/* The register file as data: table, start values, canonical form, text. */
#include <stdio.h>
#include <string.h>

#include "flags.h"
#include "lockstep.h"
#include "state_offsets.h"

_Static_assert(offsetof(ls_state, zmm) == STATE_ZMM, "assembly offset");
_Static_assert(offsetof(ls_state, k) == STATE_K, "assembly offset");
_Static_assert(offsetof(ls_state, gpr) == STATE_GPR, "assembly offset");
_Static_assert(offsetof(ls_state, rip) == STATE_RIP, "assembly offset");
_Static_assert(offsetof(ls_state, rflags) == STATE_RFLAGS, "assembly offset");
_Static_assert(offsetof(ls_state, cs) == STATE_CS, "assembly offset");
_Static_assert(offsetof(ls_state, ss) == STATE_SS, "assembly offset");
_Static_assert(offsetof(ls_state, ds) == STATE_DS, "assembly offset");
_Static_assert(offsetof(ls_state, es) == STATE_ES, "assembly offset");
_Static_assert(offsetof(ls_state, fs) == STATE_FS, "assembly offset");
_Static_assert(offsetof(ls_state, gs) == STATE_GS, "assembly offset");
_Static_assert(offsetof(ls_state, fcw) == STATE_FX, "assembly offset");
_Static_assert(offsetof(ls_state, mxcsr) == STATE_MXCSR, "assembly offset");
_Static_assert(offsetof(ls_state, mxcsr) - STATE_FX == 24, "FXSAVE layout");
_Static_assert(offsetof(ls_state, st) == STATE_ST, "assembly offset");
_Static_assert(offsetof(ls_state, st) - STATE_FX == 32, "FXSAVE layout");
_Static_assert(sizeof(ls_state) == STATE_SIZE, "no padding");

enum { FSW_ES = 0x80, ST_BYTES = 10, NULL_SELECTORS_END = 4 };

static const ls_register registers[] = {
#define REGISTER(name, field, bytes, group, rule, mask, reason)                                              \
  {#name, offsetof(ls_state, field), bytes, group, rule, 0, 0, mask, reason},
#include "regs.def"
#undef REGISTER
};

const ls_register *ls_registers(size_t *count) {
  *count = sizeof registers / sizeof *registers;
  return registers;
}

const ls_register *ls_register_find(const char *name) {
  for (size_t i = 0; i < sizeof registers / sizeof *registers; i++)
    if (!strcmp(registers[i].name, name))
      return &registers[i];
  return NULL;
}

void ls_state_init(ls_state *state) {
  memset(state, 0, sizeof *state);
  state->fcw = 0x37f;
  state->mxcsr = 0x1f80;
  state->rflags = RFLAGS_CLEAN;
  state->cs = 0x33;
  state->ss = 0x2b;
}

/* Applies one row of the table. Everything but the state is a constant, so that what is left of most rows is
 * nothing. */
static inline __attribute__((always_inline)) void
canonicalise_register(ls_state *state, size_t offset, size_t size, ls_rule rule, uint64_t mask) {
  uint8_t *at = (uint8_t *)state + offset;
  uint64_t value = 0;
  if (rule == LS_RULE_MASK && mask == UINT64_MAX)
    return;
  if (size > sizeof value) /* of no rule; said for compilers that do not see it */
    return;
  memcpy(&value, at, size);
  if (rule == LS_RULE_MASK)
    value &= mask;
  else if (rule == LS_RULE_SELECTOR)
    value = value < NULL_SELECTORS_END ? 0 : value;
  else
    value = state->fsw & FSW_ES ? value : 0;
  memcpy(at, &value, size);
}

/* Bytes 10 to 15 of an x87 slot are reserved (SDM vol. 1, 10.5.1) and hold whatever memory held before;
 * reserved2 is MXCSR_MASK in an FXSAVE image. */
static void clear_between_registers(ls_state *state) {
  for (int i = 0; i < 8; i++)
    memset(state->st[i] + ST_BYTES, 0, sizeof state->st[i] - ST_BYTES);
  state->reserved0 = 0;
  state->reserved1 = 0;
  state->reserved2 = 0;
}

void ls_state_canonicalise(ls_state *state) {
#define REGISTER(name, field, bytes, group, rule, mask, reason)                                              \
  canonicalise_register(state, offsetof(ls_state, field), bytes, rule, mask);
#include "regs.def"
#undef REGISTER
  clear_between_registers(state);
}

int ls_state_difference(const ls_state *a, const ls_state *b, size_t *row) {
  for (; *row < sizeof registers / sizeof *registers; ++*row) {
    const ls_register *r = &registers[*row];
    if (memcmp((const char *)a + r->offset, (const char *)b + r->offset, r->size) != 0)
      return 1;
  }
  return 0;
}

/* `size` bytes at `value`, little endian, as one number of 2 * size digits. */
static size_t print_number(const uint8_t *value, unsigned size, char *text) {
  static const char digits[] = "0123456789abcdef";
  for (unsigned i = 0; i < size; i++) {
    text[2 * i] = digits[value[size - 1 - i] >> 4];
    text[2 * i + 1] = digits[value[size - 1 - i] & 15];
  }
  return (size_t)2 * size;
}

size_t ls_register_print(const ls_register *reg, const ls_state *state, char *text, size_t size) {
  const uint8_t *value = (const uint8_t *)state + reg->offset;
  char whole[2 + 2 * 64 + 8] = "0x";
  size_t length = 2;
  unsigned rest = reg->size;
  for (unsigned lane = rest % 8 ? rest % 8 : 8; rest; lane = 8) {
    rest -= lane;
    length += print_number(value + rest, lane, whole + length);
    if (rest)
      whole[length++] = '_';
  }
  if (!size)
    return length;
  size_t kept = length < size ? length : size - 1;
  memcpy(text, whole, kept);
  text[kept] = '\0';
  return kept;
}

const char *ls_vectors_name(ls_vectors vectors) {
  static const char *const names[] = {"auto", "SSE", "AVX", "AVX-512"};
  unsigned i = (unsigned)vectors;
  return i < sizeof names / sizeof *names ? names[i] : "unknown";
}

/* A guest whose registers tell at every instruction boundary whether the state is whole: each instruction of
 * its loop counts in a register of another class, so with N rounds done and instruction I ahead, what stands
 * before I has counted N + 1 and the rest N. For programs that include controlled.h. */
#ifndef TESTS_RELATED_H
#define TESTS_RELATED_H

#include "controlled.h"

enum { RELATED_LAST = 8 }; /* ids 1 to this */

/* RAX, R15, XMM0, the widest last vector register, ST(0), memory at RBX, R8, and the jump back. */
static inline const char *related_code(void) {
  switch (ls_vectors_available()) {
  case LS_VECTORS_AVX512: /* zmm31 */
    return "1 48ffc0; 2 49ffc7; 3 660f58c1; 4 6201854058fe; 5 d8c1; 6 48ff03; 7 49ffc0; 8 eb00 >1!";
  case LS_VECTORS_AVX: /* ymm15 */
    return "1 48ffc0; 2 49ffc7; 3 660f58c1; 4 c50558f9; 5 d8c1; 6 48ff03; 7 49ffc0; 8 eb00 >1!";
  default:
    return "1 48ffc0; 2 49ffc7; 3 660f58c1; 4 66440f58f9; 5 d8c1; 6 48ff03; 7 49ffc0; 8 eb00 >1!";
  }
}

static inline unsigned related_vector(void) {
  return ls_vectors_available() == LS_VECTORS_AVX512 ? 31 : 15;
}

static inline unsigned related_lanes(void) {
  static const unsigned lanes[] = {[LS_VECTORS_SSE] = 2, [LS_VECTORS_AVX] = 4, [LS_VECTORS_AVX512] = 8};
  return lanes[ls_vectors_available()];
}

/* Loads the loop and the state to start it with at id 1; the counters begin with the rounds in *cells. */
static inline void related_load(guest *g) {
  static const double one = 1;
  ls_state state;
  load(g, related_code());
  ls_state_init(&state);
  state.gpr[LS_RBX] = g->layout.windows[DATA].address;
  state.gpr[LS_RSP] = 3; /* no stack at all */
  state.rflags |= RFLAGS_DF | RFLAGS_AC | RFLAGS_ID;
  for (unsigned lane = 0; lane < 8; lane++) {
    memcpy(&state.zmm[1][8 * lane], &one, sizeof one);
    memcpy(&state.zmm[30][8 * lane], &one, sizeof one);
  }
  const long double one_x87 = 1;
  memcpy(state.st[1], &one_x87, 10);
  state.ftw = 3; /* ST(0), ST(1) */
  g->cells[0] = 0;
  set_state(g, &state);
}

static inline bool lanes_are(const ls_state *state, unsigned reg, unsigned lanes, uint64_t value) {
  for (unsigned lane = 0; lane < lanes; lane++) {
    double got;
    memcpy(&got, &state->zmm[reg][8 * lane], sizeof got);
    if (got != (double)value)
      return false;
  }
  return true;
}

/* What is wrong with a state that was taken before instruction `id`, or NULL. `cell`: the count in memory, if
 * the guest is waiting. Any thread. */
static inline const char *unrelated(const ls_state *state, uint64_t id, const _Atomic uint64_t *cell) {
  if (id < 1 || id > RELATED_LAST)
    return "it is not in the loop";
  uint64_t rounds = state->gpr[LS_RAX] - (id > 1);
  long double x87 = 0;
  memcpy(&x87, state->st[0], 10);
  if (state->gpr[LS_R15] != rounds + (id > 2))
    return "R15 does not fit RAX";
  if (!lanes_are(state, 0, 2, rounds + (id > 3)))
    return "XMM0 does not fit RAX";
  if (!lanes_are(state, related_vector(), related_lanes(), rounds + (id > 4)))
    return "the last vector register does not fit RAX";
  if (x87 != (long double)(rounds + (id > 5)))
    return "ST(0) does not fit RAX";
  if (cell && *cell != rounds + (id > 6))
    return "memory does not fit RAX";
  if (state->gpr[LS_R8] != rounds + (id > 7))
    return "R8 does not fit RAX";
  if ((state->rflags & (RFLAGS_DF | RFLAGS_AC | RFLAGS_ID | RFLAGS_TF)) !=
      (RFLAGS_DF | RFLAGS_AC | RFLAGS_ID))
    return "RFLAGS has changed";
  if (state->gpr[LS_RSP] != 3)
    return "RSP has changed";
  return NULL;
}

static inline void is_related(guest *g, const char *when) {
  ls_state state;
  ls_position p = look(g, &state);
  const char *trouble = unrelated(&state, p.id, p.activity == LS_RUNNING ? NULL : g->cells);
  if (trouble)
    fail_msg("%s: before instruction %llu: %s", when, (unsigned long long)p.id, trouble);
}

#endif

/* A guest that any look at can be checked: an endless loop in which every instruction adds one to a counter
 * of its own, so that the position says what each counter must hold. For the one test program that includes
 * it. */
#ifndef TESTS_STRESS_GUEST_H
#define TESTS_STRESS_GUEST_H

#include <stdatomic.h>
#include <stdbool.h>

#include "check.h"
#include "flags.h"

typedef enum counter {
  NO_COUNTER,
  GENERAL,  /* a general register */
  QWORDS,   /* integers in a vector register */
  DOUBLES,  /* the same as binary64 */
  OPMASK,   /* an opmask register */
  X87,      /* ST0 */
  IN_MEMORY /* the first cell */
} counter;

typedef struct piece {
  uint8_t length, bytes[8];
  counter counter;
  unsigned number, lanes; /* of the register; how many of its lanes count */
  ls_vectors needs;
  bool pushed; /* there is something on the stack when it begins */
  bool carry;  /* CF is set when it begins */
} piece;

static const piece pieces[] = {
    {.length = 4,
     .bytes = {0x48, 0x8d, 0x40, 0x01},
     .counter = GENERAL,
     .number = LS_RAX},                                                         /* lea rax,[rax+1] */
    {4, {0x66, 0x0f, 0xd4, 0xc8}, QWORDS, 1, 2, 0, false, false},               /* paddq xmm1, xmm0 */
    {3, {0x49, 0xff, 0xc0}, GENERAL, LS_R8, 0, 0, false, false},                /* inc r8 */
    {4, {0xc5, 0xed, 0x58, 0xd3}, DOUBLES, 2, 4, LS_VECTORS_AVX, false, false}, /* vaddpd ymm2, ymm2, ymm3 */
    {1, {0x50}, NO_COUNTER, 0, 0, 0, false, false},                             /* push rax */
    {1, {0x5a}, GENERAL, LS_RDX, 0, 0, true, false},                            /* pop rdx */
    {6, {0x62, 0xa1, 0xed, 0x40, 0x58, 0xd3}, DOUBLES, 18, 8, LS_VECTORS_AVX512, false, false}, /* vaddpd
                                                                                                   zmm18 */
    {1, {0xf9}, NO_COUNTER, 0, 0, 0, false, false},                                             /* stc */
    {4, {0x49, 0x83, 0xd6, 0x00}, GENERAL, LS_R14, 0, 0, false, true},                  /* adc r14, 0 */
    {5, {0xc4, 0xe1, 0xf4, 0x4a, 0xca}, OPMASK, 1, 0, LS_VECTORS_AVX512, false, false}, /* kaddq k1, k1, k2 */
    {1, {0x9c}, NO_COUNTER, 0, 0, 0, false, false},                                     /* pushfq */
    {1, {0x9d}, NO_COUNTER, 0, 0, 0, true, false},                                      /* popfq */
    {3, {0x48, 0xff, 0x07}, IN_MEMORY, 0, 0, 0, false, false},                          /* inc qword [rdi] */
    {2, {0xd8, 0xc1}, X87, 0, 0, 0, false, false},                                      /* fadd st0, st1 */
    {5, {0xe9}, NO_COUNTER, 0, 0, 0, false, false},                                     /* jmp to the first */
};

enum {
  PIECES = sizeof pieces / sizeof *pieces,
  DATA_WINDOW = 1, /* of the default layout */
  DEAD_MAX = 8000, /* instructions never reached */
  FIRST_ID = 1000,
  ID_STRIDE = 7,
  FIRST_DEAD_ID = 100000,
  SAY = 256
};

/* In the guest's memory. What is not written by its code, visitors write. */
typedef struct cells {
  uint64_t counter, changes;
} cells;

typedef struct loop {
  const piece *sequence[PIECES];
  unsigned length;
  unsigned salt; /* makes registers that nobody touches different in every guest */
  bool avx512;
  uint64_t stack; /* RSP while nothing is pushed */
  uint64_t data;  /* RDI */
} loop;

static void loop_make(loop *l, unsigned salt, bool x87) {
  ls_vectors available = ls_vectors_available();
  memset(l, 0, sizeof *l);
  l->salt = salt;
  l->avx512 = available == LS_VECTORS_AVX512;
  for (unsigned i = 0; i < PIECES; i++)
    if (pieces[i].needs <= available && (x87 || pieces[i].counter != X87))
      l->sequence[l->length++] = &pieces[i];
}

static uint64_t loop_id(unsigned position) {
  return FIRST_ID + (uint64_t)ID_STRIDE * position;
}

/* Or a number not below the length. */
static unsigned loop_position(uint64_t id) {
  return id < FIRST_ID || (id - FIRST_ID) % ID_STRIDE ? PIECES : (unsigned)((id - FIRST_ID) / ID_STRIDE);
}

/* ---- Its code, in any shape ---- */

typedef struct shape {
  unsigned seed; /* of the order in memory */
  unsigned dead; /* how many instructions lie between that are never reached */
  bool fuel;
} shape;

static uint32_t stress_random(uint32_t *state) {
  *state ^= *state << 13;
  *state ^= *state >> 17;
  *state ^= *state << 5;
  return *state;
}

/* Where in memory each position comes: a permutation. */
static void shuffle(unsigned *order, unsigned count, uint32_t seed) {
  for (unsigned i = 0; i < count; i++)
    order[i] = i;
  for (unsigned i = count - 1; i > 0; i--) {
    unsigned j = stress_random(&seed) % (i + 1), kept = order[i];
    order[i] = order[j];
    order[j] = kept;
  }
}

static ls_instruction loop_instruction(const loop *l, unsigned position, const uint32_t *index) {
  const piece *p = l->sequence[position];
  bool last = position == l->length - 1;
  ls_instruction in = {.id = loop_id(position),
                       .next = last ? LS_NONE : index[position + 1],
                       .jump = last ? index[0] : LS_NONE,
                       .length = p->length};
  if (last) {
    in.flags = LS_NEVER_FALLS_THROUGH;
    in.field = LS_FIELD_BRANCH;
    in.field_offset = 1;
    in.field_size = 4;
  }
  memcpy(in.bytes, p->bytes, sizeof p->bytes);
  return in;
}

/* A program of that shape in `room`, PIECES + shape->dead instructions at most. */
static ls_program loop_program(const loop *l, const shape *s, ls_instruction *room) {
  unsigned order[PIECES];
  uint32_t index[PIECES];
  unsigned each = s->dead / l->length, at = 0;
  shuffle(order, l->length, s->seed | 1);
  for (unsigned i = 0; i < l->length; i++)
    index[order[i]] = i * (each + 1) + each;
  for (unsigned i = 0; i < l->length; i++) {
    for (unsigned j = 0; j < each; j++, at++)
      room[at] = (ls_instruction){.id = FIRST_DEAD_ID + at,
                                  .next = LS_NONE,
                                  .jump = LS_NONE,
                                  .length = 9,
                                  .flags = LS_NEVER_FALLS_THROUGH,
                                  .bytes = {0x67, 0x0f, 0xb9, 0x84, 0x24}}; /* ud1 */
    room[at++] = loop_instruction(l, order[i], index);
  }
  return (ls_program){room, at, s->fuel ? LS_PROGRAM_FUEL : 0};
}

/* ---- Its state ---- */

static const unsigned untouched[] = {LS_RBX, LS_RBP, LS_RSI, LS_R9, LS_R10, LS_R11, LS_R15};
enum { UNTOUCHED = sizeof untouched / sizeof *untouched, VECTORS_UNTOUCHED_FROM = 8, VECTORS_UNTOUCHED = 8 };

static uint64_t untouched_value(const loop *l, unsigned number) {
  return UINT64_C(0x9e3779b97f4a7c15) * (l->salt * 64 + number + 1);
}

static void put_lane(uint8_t *vector, unsigned lane, uint64_t value) {
  memcpy(vector + (size_t)lane * sizeof value, &value, sizeof value);
}

static uint64_t lane(const uint8_t *vector, unsigned number) {
  uint64_t value;
  memcpy(&value, vector + (size_t)number * sizeof value, sizeof value);
  return value;
}

static uint64_t of_double(double value) {
  uint64_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

/* An integer as an 80-bit floating-point value (SDM vol. 1, 4.2.2): its significand has the integer bit. */
static void put_x87(uint8_t *st, uint64_t value) {
  uint16_t exponent = 0;
  if (value) {
    int shift = __builtin_clzll(value);
    value <<= shift;
    exponent = (uint16_t)(16383 + 63 - shift);
  }
  memcpy(st, &value, sizeof value);
  memcpy(st + sizeof value, &exponent, sizeof exponent);
}

/* Sets the counter of `p`, unless that is in memory. */
static void put_counter(ls_state *s, const piece *p, uint64_t value) {
  switch (p->counter) {
  case GENERAL:
    s->gpr[p->number] = value;
    break;
  case QWORDS:
  case DOUBLES:
    for (unsigned i = 0; i < p->lanes; i++)
      put_lane(s->zmm[p->number], i, p->counter == QWORDS ? value : of_double((double)value));
    break;
  case OPMASK:
    s->k[p->number] = value;
    break;
  case X87:
    put_x87(s->st[0], value);
    break;
  default:
    break;
  }
}

/* Where visitors count the changes they make. */
static void put_changes(const loop *l, ls_state *s, uint64_t changes) {
  s->gpr[LS_R12] = s->gpr[LS_R13] = changes;
  put_lane(s->zmm[7], 1, changes);
  if (l->avx512)
    put_lane(s->zmm[31], 7, changes);
}

/* All counters 0, about to begin the loop. */
static void loop_start(const loop *l, ls_state *s) {
  for (unsigned i = 0; i < l->length; i++)
    put_counter(s, l->sequence[i], 0);
  put_changes(l, s, 0);
  for (unsigned i = 0; i < UNTOUCHED; i++)
    s->gpr[untouched[i]] = untouched_value(l, i);
  for (unsigned i = VECTORS_UNTOUCHED_FROM; i < VECTORS_UNTOUCHED_FROM + VECTORS_UNTOUCHED; i++)
    for (unsigned j = 0; j < 2; j++)
      put_lane(s->zmm[i], j, untouched_value(l, 2 * i + j));
  put_lane(s->zmm[0], 0, 1);
  put_lane(s->zmm[0], 1, 1);
  for (unsigned i = 0; i < 4; i++)
    put_lane(s->zmm[3], i, of_double(1));
  if (l->avx512) {
    for (unsigned i = 0; i < 8; i++)
      put_lane(s->zmm[19], i, of_double(1));
    s->k[2] = 1;
  }
  s->mxcsr = 0x1f80 | l->salt % 4 << 13; /* rounding */
  s->fsw = 0x3000;                       /* TOP 6: ST0 and ST1 in use */
  s->ftw = 0xc0;
  put_x87(s->st[1], 1);
  s->gpr[LS_RSP] = l->stack;
  s->gpr[LS_RDI] = l->data;
}

/* How many instructions it has executed since the start, from a state that loop_check has passed. */
static uint64_t loop_executed(const loop *l, const ls_state *s, unsigned position) {
  return (s->gpr[LS_RAX] - (position > 0)) * l->length + position;
}

static bool counter_is(const ls_state *s, const piece *p, const cells *memory, uint64_t value) {
  static _Thread_local ls_state expected;
  if (p->counter == IN_MEMORY)
    return !memory || memory->counter == value;
  put_counter(&expected, p, value);
  switch (p->counter) {
  case GENERAL:
    return s->gpr[p->number] == value;
  case QWORDS:
  case DOUBLES:
    return memcmp(s->zmm[p->number], expected.zmm[p->number], p->lanes * sizeof value) == 0;
  case OPMASK:
    return s->k[p->number] == value;
  case X87:
    return memcmp(s->st[0], expected.st[0], 10) == 0;
  default:
    return true;
  }
}

static bool changes_agree(const loop *l, const ls_state *s, const cells *memory) {
  uint64_t changes = s->gpr[LS_R12];
  return s->gpr[LS_R13] == changes && lane(s->zmm[7], 1) == changes &&
         (!l->avx512 || lane(s->zmm[31], 7) == changes) && (!memory || memory->changes == changes);
}

/* Is this a state that the guest has at that position? `memory` may be NULL: not looked at, since the guest
 * may be running. If not, says in `why` what is wrong. */
static bool loop_check(const loop *l, const ls_state *s, uint64_t id, const cells *memory, char why[SAY]) {
  unsigned position = loop_position(id);
  if (position >= l->length)
    return snprintf(why, SAY, "no instruction of the loop has id %llu", (unsigned long long)id), false;
  const piece *here = l->sequence[position];
  uint64_t rounds = s->gpr[LS_RAX] - (position > 0);
  for (unsigned i = 0; i < l->length; i++)
    if (!counter_is(s, l->sequence[i], memory, rounds + (i < position)))
      return snprintf(why, SAY, "in round %llu, before instruction %u, the counter of %u is wrong",
                      (unsigned long long)rounds, position, i),
             false;
  if (s->gpr[LS_RSP] != l->stack - (here->pushed ? 8 : 0))
    return snprintf(why, SAY, "before instruction %u RSP is %#llx", position,
                    (unsigned long long)s->gpr[LS_RSP]),
           false;
  if (s->rflags & RFLAGS_TF || (here->carry && !(s->rflags & RFLAGS_CF)))
    return snprintf(why, SAY, "before instruction %u RFLAGS is %#llx", position,
                    (unsigned long long)s->rflags),
           false;
  if (!changes_agree(l, s, memory))
    return snprintf(why, SAY, "what visitors changed is in some registers, but not in all"), false;
  for (unsigned i = 0; i < UNTOUCHED; i++)
    if (s->gpr[untouched[i]] != untouched_value(l, i))
      return snprintf(why, SAY, "general register %u was touched", untouched[i]), false;
  for (unsigned i = VECTORS_UNTOUCHED_FROM; i < VECTORS_UNTOUCHED_FROM + VECTORS_UNTOUCHED; i++)
    for (unsigned j = 0; j < 2; j++)
      if (lane(s->zmm[i], j) != untouched_value(l, 2 * i + j))
        return snprintf(why, SAY, "vector register %u was touched", i), false;
  if (s->mxcsr != (0x1f80 | l->salt % 4 << 13))
    return snprintf(why, SAY, "MXCSR is %#x", s->mxcsr), false;
  return true;
}

#endif

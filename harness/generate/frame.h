/* What is known where a group is to stand, and where its addresses can point. Internal to the generator. */
#ifndef HARNESS_FRAME_H
#define HARNESS_FRAME_H

#include "rng.h"
#include "testcase/testcase.h"

/* How the group is to go wrong, if it is. */
typedef enum intent {
  INTENT_RUN,
  INTENT_BAD_ADDRESS, /* of its memory operand: null, guard page, not canonical, the kernel's half */
  INTENT_CONST_WRITE, /* its memory operand lies in the read-only window */
  INTENT_MISALIGNED,  /* its memory operand is not aligned to its size */
  INTENT_DIVIDE       /* division by zero, or a quotient that does not fit */
} intent;

enum { NO_VECTOR = 255, RSP_BIT = 1 << LS_RSP };

/* What is known where a group is to stand. */
typedef struct frame {
  rng *r;
  testcase *test;     /* patches may be appended to it */
  uint64_t value[16]; /* of the known registers */
  uint16_t known;     /* GPRs that hold value[] between groups */
  uint16_t kept;      /* GPRs that must not be touched, not even for a while: counters of loops */
  uint8_t index;      /* vector register for small indices, which no group writes; or NO_VECTOR */
  bool index_filled;  /* whether the initial state holds the indices already */
  bool balanced;      /* RSP must be afterwards what it was before */
  bool fpu;           /* x87 and MMX may be used: they make a run slower, so not every program does */
  intent intent;
  uint64_t recent[4];             /* addresses used before */
  uint8_t hot[4], hot_vectors[4]; /* operands chosen more often, so that results are used */
} frame;

/* A random initial state, memory and frame for a new program. */
void frame_new(frame *f, rng *r, testcase *test);

/* Draws the registers that are chosen more often than others. */
void frame_warm(frame *f);

/* The number of a random one of the bits that are set in `mask`; LS_NONE, and nothing drawn, if none is. */
uint32_t pick_bit(rng *r, uint32_t mask);

/* A random register that is neither known, kept, dirty nor RSP; or LS_NONE. */
uint32_t frame_scratch(const frame *f, uint16_t dirty);

/* A random address in a window that is good for `size` bytes at alignment `align` (a power of two). */
uint64_t address_in(rng *r, unsigned window, uint32_t size, uint32_t align);

/* An address at which an access faults (or, at the edge of a window, may). */
uint64_t bad_address(rng *r);

/* In the parts of the stack that RSP does not reach, so that no return address lies there. */
uint64_t quiet_stack_address(rng *r, uint32_t size, uint32_t align);

#endif

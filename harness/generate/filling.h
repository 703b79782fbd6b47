/* One attempt at making a group: what operands.c (choosing operands, encoding) and groups.c (instructions
 * before and after) share. Internal to both. */
#ifndef HARNESS_FILLING_H
#define HARNESS_FILLING_H

#include "generate/operands.h"

enum { RSP_BIT = 1 << LS_RSP };

typedef struct filling {
  frame *f;
  group *g;
  form_id form;
  const form_traits *traits;
  const form_example *example;
  ZydisEncoderRequest request;
  uint64_t target;   /* address of a memory operand that a need has put in place; 0 = free choice */
  uint64_t relative; /* address of the operand that was made RIP-relative; 0 = none */
  uint32_t divisor;  /* GPR that must be the register operand of a division, or LS_NONE */
  uint32_t bits;     /* GPR that holds a bit offset, a selector or an address, or LS_NONE */
  uint32_t extent;   /* bytes behind the operand's address that may be accessed besides its own */
  bool example_only; /* keep the example's registers where possible: the last resort */
} filling;

/* Adds to the group what must run before main, and notes in the filling what main's operands have to be.
 * False if it cannot be done in this frame. */
bool meet_need(filling *x);

/* The same for addresses and counts that are registers by the instruction's nature. */
bool meet_implicit(filling *x);

/* An address at which an access faults (or, at the edge of a window, may). */
uint64_t bad_address(rng *r);

/* In the parts of the stack that RSP does not reach, so that no return address lies there. */
uint64_t quiet_stack_address(rng *r, uint32_t size, uint32_t align);

#endif

/* One attempt at making a group: what operands.c (choosing registers, encoding), addresses.c (memory
 * operands) and groups.c (instructions before and after) share. Internal to them. */
#ifndef HARNESS_FILLING_H
#define HARNESS_FILLING_H

#include "generate/groups.h"

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

/* Chooses an address for the memory operand `decoded` of the example and makes `op`, its place in the
 * request, come to it; may add to the group what loads a register for that. Leaves an operand alone that the
 * instruction implies. Where the address is in the instruction itself, in place of ModRM, the caller is to
 * put x->target there. False if it cannot be done in this frame. */
bool fill_memory(filling *x, const ZydisDecodedOperand *decoded, ZydisEncoderOperand *op);

#endif

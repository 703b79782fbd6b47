/* From a form to a group of instructions that runs: operands are filled in so that memory accesses stay
 * inside the guest's windows, and what the instruction needs (a count in RCX, a divisor that is not zero, a
 * valid control word in memory) is set up by instructions before it and put right by instructions after it.
 *
 * What makes this work across branches and loops is one rule: a program has registers that are known, which
 * hold one value at every boundary between groups. No group leaves them changed; they are what addresses are
 * made of. */
#ifndef HARNESS_OPERANDS_H
#define HARNESS_OPERANDS_H

#include "forms/forms.h"
#include "rng.h"
#include "testcase/testcase.h"

/* What a form does to control flow, and so where it can stand. */
typedef enum form_role {
  ROLE_PLAIN,         /* control goes on to the next instruction */
  ROLE_BRANCH,        /* relative branch: its target is left open */
  ROLE_CALL,          /* relative call */
  ROLE_RETURN,        /* near return */
  ROLE_JUMP_INDIRECT, /* near, through a register or memory */
  ROLE_CALL_INDIRECT,
  ROLE_FAULT, /* faults wherever it stands */
  ROLE_SYSCALL
} form_role;

/* What must be set up before it. */
typedef enum form_need {
  NEED_NOTHING,
  NEED_DIVIDEND,
  NEED_BIT_OFFSET,
  NEED_ENTER,
  NEED_LEAVE,
  NEED_FLAGS_IMAGE,
  NEED_MXCSR,
  NEED_FCW,
  NEED_SELECTOR,
  NEED_FAR_POINTER,
  NEED_DIRECT_STORE, /* MOVDIR64B: its register operand is an address */
  NEED_CLZERO
} form_need;

enum {                    /* form_traits.flags */
       TRAIT_MEMORY = 1,  /* has a memory operand whose address can be chosen */
       TRAIT_STORES = 2,  /* writes it */
       TRAIT_ALIGNED = 4, /* faults, or is not atomic, unless the operand is aligned to its size */
       TRAIT_FLOAT = 8,   /* SSE or AVX floating point */
       TRAIT_X87 = 16,    /* x87 arithmetic */
       TRAIT_VSIB = 32,
       TRAIT_STRICT = 64, /* of the aligned ones: faults if it is not */
       TRAIT_FPU = 128    /* x87 or MMX state is in play */
};

typedef struct form_traits {
  uint8_t role, need, flags;
  uint8_t ready;
} form_traits;

/* Computes them from the form's example and its policy. */
form_traits traits_of(form_id form);

/* How the group is to go wrong, if it is. */
typedef enum intent {
  INTENT_RUN,
  INTENT_BAD_ADDRESS, /* of its memory operand: null, guard page, not canonical, the kernel's half */
  INTENT_CONST_WRITE, /* its memory operand lies in the read-only window */
  INTENT_MISALIGNED,  /* its memory operand is not aligned to its size */
  INTENT_DIVIDE       /* division by zero, or a quotient that does not fit */
} intent;

enum { NO_VECTOR = 255 };

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

enum { GROUP_MAX = 16 };

/* Instructions to be placed one after another. next: index in the list, `count` = what follows the group,
 * LS_NONE after what never falls through. jump: LS_NONE; the branch or call that main may be is to be linked
 * by the caller. */
typedef struct group {
  ls_instruction list[GROUP_MAX];
  uint32_t count;
  uint32_t main;  /* the one of the form */
  int32_t drift;  /* RSP afterwards less RSP before */
  uint16_t dirty; /* GPRs changed before main */
} group;

/* Fills `g` for a form of role PLAIN, BRANCH, CALL, FAULT or SYSCALL. Tries a few choices of operands; false
 * if none works in this frame. frame->test then is as it was. */
bool group_make(frame *f, form_id form, const form_traits *traits, group *g);

/* The end of a subroutine that was entered by a call: goes back to behind the call over a form of role
 * RETURN, JUMP_INDIRECT or CALL_INDIRECT. g->drift: how RSP afterwards differs from before the call. */
bool group_ending(frame *f, form_id form, const form_traits *traits, group *g);

void group_clear(group *g);
ls_instruction *group_add(group *g, const uint8_t *bytes, unsigned length);
void group_load(group *g, unsigned gpr, uint64_t value); /* mov gpr, value */
void group_adjust_stack(group *g, int32_t by);           /* lea rsp, [rsp+by] */
void group_branch(group *g, const uint8_t *opcode, unsigned length, unsigned field_size);

/* Replaces the group by what counts `counter` down and, until it is 0, branches: the branch is last and its
 * link open. */
void group_loop_end(rng *r, unsigned counter, group *g);

/* A random register that is neither known, kept, dirty nor RSP; or LS_NONE. */
uint32_t frame_scratch(const frame *f, uint16_t dirty);

/* A random address in a window that is good for `size` bytes at alignment `align` (a power of two). */
uint64_t address_in(rng *r, unsigned window, uint32_t size, uint32_t align);

#endif

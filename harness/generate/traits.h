/* What kind of instruction a form is, as far as placing it in a program goes. Internal to the generator. */
#ifndef HARNESS_TRAITS_H
#define HARNESS_TRAITS_H

#include "forms/forms.h"

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

#endif

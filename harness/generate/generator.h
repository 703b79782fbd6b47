/* What drawing forms (pool.c), generating and mutating share. Internal to them. */
#ifndef HARNESS_GENERATOR_H
#define HARNESS_GENERATOR_H

#include "generate/frame.h"
#include "generate/generate.h"
#include "generate/groups.h"
#include "generate/traits.h"

enum { INSTRUCTIONS_MAX = 64 }; /* in a generated program */

/* Lists of forms that a generator draws from. */
typedef enum form_list {
  LIST_BODY,    /* allowed; role PLAIN, BRANCH or CALL */
  LIST_ENDING,  /* allowed; ends a subroutine */
  LIST_FAULT,   /* faults by its nature, or is a system call */
  LIST_ILLEGAL, /* this CPU does not have it */
  LIST_MEMORY,  /* of LIST_BODY: address can be chosen */
  LIST_STORE,   /* … and is written */
  LIST_STRICT,  /* … and must be aligned */
  LIST_DIVIDE,
  LIST_FLOAT,
  LIST_X87,
  LIST_FPU,
  LIST_BRANCH,
  LIST_CALL,
  LISTS
} form_list;

typedef struct form_array {
  form_id *forms;
  uint32_t count;
} form_array;

struct generator {
  generator_options options;
  uint8_t *support;
  form_traits *traits;
  form_array lists[LISTS];
  form_array unused[LIST_FAULT + 1]; /* of the first three lists: what no program has held yet */
  uint32_t *unused_at;               /* place in that array, or UINT32_MAX */
  uint8_t *failures;                 /* how often a form could not be placed */
  uint32_t *mnemonics;               /* where in LIST_BODY, which is sorted by mnemonic, a new one starts */
  uint32_t mnemonic_count;
  uint32_t allowed;
};

/* A form for the body of a program: often one not used yet, else of a random mnemonic or any. FORM_NONE if
 * the list is empty. */
form_id generator_pick(generator *gen, rng *r, form_list list);

/* Tells how it went. A form that was used is no longer preferred; nor is one that failed so often that
 * nothing seems to fit it. FORM_NONE may be told as used. */
void generator_used(generator *gen, form_id form);
void generator_failed(generator *gen, form_id form);

/* A group of role PLAIN or BRANCH (or CALL, if `calls`) from LIST_BODY; FORM_NONE if a number of picks could
 * not be placed. */
form_id generator_group(generator *gen, frame *f, bool branches, bool calls, group *g);

#endif

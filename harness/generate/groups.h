/* Groups of instructions, and instructions made by hand to be put into them. Internal to the generator. */
#ifndef HARNESS_GROUPS_H
#define HARNESS_GROUPS_H

#include "forms/forms.h"
#include "generate/frame.h"
#include "generate/traits.h"

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

#endif

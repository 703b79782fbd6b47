/* From a form to a group of instructions that runs: operands are filled in so that memory accesses stay
 * inside the guest's windows, and what the instruction needs (a count in RCX, a divisor that is not zero, a
 * valid control word in memory) is set up by instructions before it and put right by instructions after it.
 *
 * What makes this work across branches and loops is one rule: a program has registers that are known, which
 * hold one value at every boundary between groups. No group leaves them changed; they are what addresses are
 * made of. */
#ifndef HARNESS_OPERANDS_H
#define HARNESS_OPERANDS_H

#include "generate/groups.h"

/* Fills `g` for a form of role PLAIN, BRANCH, CALL, FAULT or SYSCALL. Tries a few choices of operands; false
 * if none works in this frame. frame->test then is as it was. */
bool group_make(frame *f, form_id form, const form_traits *traits, group *g);

#endif

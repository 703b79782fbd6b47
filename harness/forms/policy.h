/* What may be generated, and what may be run in the thread: one table of instruction classes (policy.c), each
 * row with its reason. */
#ifndef HARNESS_POLICY_H
#define HARNESS_POLICY_H

#include "forms/forms.h"

typedef enum policy_action {
  POLICY_RUN,     /* generate; expected to run */
  POLICY_FAULT,   /* generate as a program that faults on purpose */
  POLICY_SYSCALL, /* a stop, where both executors can trap it */
  POLICY_EXCLUDE  /* never generated; a program that contains it is refused */
} policy_action;

typedef struct policy_row {
  const char *name; /* of the class, one word or a few with dashes: "time", "fs-gs", "descriptor-tables" */
  policy_action action;
  const char *reason; /* a sentence */
} policy_row;

/* All rows, *count of them; row 0 is "ordinary", for what no other row claims. Static storage. */
const policy_row *policy_rows(size_t *count);

/* The row that claims a decoded instruction. Costs some tens of nanoseconds. */
const policy_row *policy_of(const ZydisDecodedInstruction *instruction, const ZydisDecodedOperand *operands);

/* The same for a form's example, from a table made at the first call. */
const policy_row *policy_of_form(form_id form);

/* Does it read or write x87 or MMX state? */
bool policy_uses_x87(const ZydisDecodedInstruction *instruction, const ZydisDecodedOperand *operands);

#endif

/* Random valid programs: from forms, through the Zydis encoder, to test cases. */
#ifndef HARNESS_GENERATE_H
#define HARNESS_GENERATE_H

#include "forms/forms.h"
#include "rng.h"
#include "testcase/testcase.h"

typedef struct generator generator;

typedef struct generator_options {
  uint32_t instructions_max; /* 1 to 64; 0 = 64. Lengths are drawn so that short programs are common */
  uint32_t fault_percent;    /* programs that fault on purpose; default 5 where this is UINT32_MAX */
  bool syscalls;             /* system calls may be among those */
} generator_options;

/* `support` as probe_forms filled it in (copied). NULL options: the defaults. NULL when there is no memory.
 */
generator *generator_create(const uint8_t *support, const generator_options *options);
void generator_destroy(generator *gen);

/* A fresh program, state and memory. Forms that this generator has not used yet are preferred, so that all
 * are soon covered. */
void generate_program(generator *gen, rng *r, testcase *test);

typedef enum mutation {
  MUTATE_INSERT,
  MUTATE_REPLACE,
  MUTATE_DELETE,
  MUTATE_DUPLICATE,
  MUTATE_SWAP,
  MUTATE_OPERAND, /* same form, other operands */
  MUTATE_VALUE,   /* a register, flag or memory value of the initial state */
  MUTATE_KINDS
} mutation;

/* "insert", "replace", … */
const char *mutation_name(mutation kind);

/* One to a few mutations; the result is a valid test case (testcase_normalise holds). */
void mutate_program(generator *gen, rng *r, testcase *test);

/* One mutation of the given kind; false if it does not apply (deleting from a single instruction). */
bool mutate_once(generator *gen, rng *r, testcase *test, mutation kind);

/* Part of `a`, then part of `b`, links kept inside; the state of either. `out` may be neither input. */
void splice_programs(rng *r, const testcase *a, const testcase *b, testcase *out);

/* Cuts whole instructions and patches from the end until the encoded form has at most `size` bytes. False if
 * even one instruction does not fit. */
bool shrink_program(testcase *test, size_t size);

/* Forms allowed for this generator: not excluded by policy, and run by this CPU or meant to fault. */
uint32_t generator_allowed(const generator *gen);

/* True if `form` is among them. */
bool generator_allows(const generator *gen, form_id form);

#endif

/* Generated programs, and what makes one valid: for the one test program that includes it. */
#ifndef TESTS_GENERATED_H
#define TESTS_GENERATED_H

#include <stdlib.h>

#include "../fuzz/environment.h"
#include "check.h"
#include "forms/forms.h"
#include "forms/policy.h"
#include "forms/probe.h"
#include "generate/generate.h"

enum { PROGRAMS = 3000 };

/* ---- Generators ---- */

static uint8_t *support;       /* by form_id */
static ls_executor *reference; /* or NULL */

static inline void *checked_calloc(size_t count, size_t size) {
  void *memory = calloc(count, size);
  assert_non_null(memory);
  return memory;
}

static inline generator *make_generator(uint32_t fault_percent) {
  generator_options options = {.fault_percent = fault_percent};
  generator *gen = generator_create(support, &options);
  assert_non_null(gen);
  return gen;
}

/* The vectors that a form takes. */
static inline ls_vectors form_vectors(form_id form) {
  form_example example;
  form_decode(form, &example);
  ZydisISAExt extension = example.instruction.meta.isa_ext;
  if (extension == ZYDIS_ISA_EXT_AVX512EVEX || extension == ZYDIS_ISA_EXT_AVX512VEX)
    return LS_VECTORS_AVX512;
  return form_encoding(form) == ZYDIS_INSTRUCTION_ENCODING_LEGACY ? LS_VECTORS_SSE : LS_VECTORS_AVX;
}

/* Registers that executors do not load hold what happens to be there: with vectors narrower than this CPU's
 * no program should use them. */
static inline void drop_wider_forms(ls_vectors vectors) {
  for (form_id form = 0; form < forms_count(); form++)
    if (support[form] == FORM_RUNS && form_vectors(form) > vectors)
      support[form] = FORM_ILLEGAL;
}

/* Sets `support` to all that a CPU with such vectors might have, and no reference. 0, or what main returns.
 */
static inline int assume_support(ls_vectors vectors) {
  support = calloc(forms_count(), 1);
  if (!support)
    return 1;
  for (form_id form = 0; form < forms_count(); form++)
    support[form] = policy_of_form(form)->action == POLICY_EXCLUDE ? FORM_NOT_PROBED : FORM_RUNS;
  drop_wider_forms(vectors);
  return 0;
}

/* Sets the two above to what this CPU has, as far as the vectors of this round go. 0, or what main returns.
 */
static inline int open_support(void) {
  ls_error error = {.text = "no memory"};
  support = calloc(forms_count(), 1);
  if (open_reference(testcase_layout(), &reference))
    return 1;
  if (!support || probe_forms(reference, support, &error) != LS_OK) {
    printf("no probe: %s\n", error.text);
    return 1;
  }
  drop_wider_forms(ls_vectors_available());
  support_without(support, features_without(features_hidden(1))); /* ci/machines: instructions that do harm */
  return 0;
}

/* For main: the forms that its argument says, "sse", "avx" or "avx512", or, if there is none, this CPU's. */
static inline int open_support_of(int argc, char **argv) {
  if (argc < 2)
    return open_support();
  return assume_support(strcmp(argv[1], "sse") == 0   ? LS_VECTORS_SSE
                        : strcmp(argv[1], "avx") == 0 ? LS_VECTORS_AVX
                                                      : LS_VECTORS_AVX512);
}

static inline void close_support(void) {
  ls_executor_destroy(reference);
  free(support);
}

/* ---- Validity ---- */

static inline void print_bytes(const ls_instruction *in, const char *why) {
  printf("%s:", why);
  for (unsigned i = 0; i < in->length; i++)
    printf(" %02x", in->bytes[i]);
  printf("\n");
}

static inline void check_field(const ls_instruction *in, const ZydisDecodedInstruction *decoded) {
  if (in->field == LS_FIELD_BRANCH) {
    assert_int_equal(in->field_offset, decoded->raw.imm[0].offset);
    assert_int_equal(in->field_size * 8, decoded->raw.imm[0].size);
  }
  if (in->field == LS_FIELD_DATA) {
    assert_int_equal(in->field_offset, decoded->raw.disp.offset);
    assert_int_equal(in->field_size * 8, decoded->raw.disp.size);
  }
  if (decoded->attributes & ZYDIS_ATTRIB_IS_RELATIVE)
    assert_int_not_equal(in->field, LS_FIELD_NONE);
}

static inline void check_instruction(const testcase *test, uint32_t index) {
  const ls_instruction *in = &test->instructions[index];
  ZydisDecodedInstruction decoded;
  ZydisDecodedOperand operands[ZYDIS_MAX_OPERAND_COUNT];
  assert_int_equal(in->id, index);
  assert_true(in->next == LS_NONE || in->next < test->count);
  assert_true(in->jump == LS_NONE || in->jump < test->count);
  if (!harness_decode(in->bytes, in->length, &decoded, operands) || decoded.length != in->length) {
    print_bytes(in, "does not decode");
    fail();
  }
  if (policy_of(&decoded, operands)->action == POLICY_EXCLUDE) {
    print_bytes(in, policy_of(&decoded, operands)->name);
    fail();
  }
  check_field(in, &decoded);
}

/* The encoded form of a test case, 0-terminated by its length. */
typedef struct entry {
  size_t size;
  uint8_t bytes[TESTCASE_SIZE_MAX];
} entry;

static inline void make_entry(const testcase *test, entry *e) {
  e->size = testcase_encode(test, e->bytes, sizeof e->bytes);
  assert_int_not_equal(e->size, 0);
}

/* Normalising changes nothing, and an entry holds all of it. */
static inline void check_testcase(const testcase *test) {
  static testcase copy;
  static entry before, after;
  assert_in_range(test->count, 1, TESTCASE_INSTRUCTIONS_MAX);
  for (uint32_t i = 0; i < test->count; i++)
    check_instruction(test, i);
  copy = *test;
  testcase_normalise(&copy);
  assert_memory_equal(&copy.state, &test->state, sizeof copy.state);
  assert_memory_equal(copy.instructions, test->instructions, test->count * sizeof copy.instructions[0]);
  make_entry(test, &before);
  testcase_decode(&copy, before.bytes, before.size);
  make_entry(&copy, &after);
  assert_int_equal(before.size, after.size);
  assert_memory_equal(before.bytes, after.bytes, after.size);
  assert_int_equal(copy.count, test->count);
  assert_memory_equal(copy.instructions, test->instructions, test->count * sizeof copy.instructions[0]);
  assert_memory_equal(&copy.state, &test->state, sizeof copy.state);
}

#endif

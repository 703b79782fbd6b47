/* The generator: what it makes is valid, deterministic, of all kinds, and covers the forms. */
#include "generate/values.h"
#include "generated.h"

enum { COVERING_PROGRAMS = 50000 };

/* ---- Validity ---- */

static void programs_are_valid(void **unused) {
  (void)unused;
  static testcase test;
  generator *gen = make_generator(20);
  rng r = {1};
  for (int i = 0; i < PROGRAMS; i++) {
    generate_program(gen, &r, &test);
    assert_in_range(test.count, 1, 64);
    check_testcase(&test);
  }
  generator_destroy(gen);
}

static void lengths_keep_to_the_limit(void **unused) {
  (void)unused;
  static testcase test;
  for (uint32_t limit = 1; limit <= 64; limit += 9) {
    generator_options options = {.instructions_max = limit, .fault_percent = 20};
    generator *gen = generator_create(support, &options);
    rng r = {limit};
    for (int i = 0; i < 500; i++) {
      generate_program(gen, &r, &test);
      assert_in_range(test.count, 1, limit);
    }
    generator_destroy(gen);
  }
}

/* A CPU that runs no form at all still gets programs, of what is made by hand. */
static void programs_without_forms(void **unused) {
  (void)unused;
  static testcase test;
  uint8_t *none = checked_calloc(forms_count(), 1);
  generator *gen = generator_create(none, NULL);
  rng r = {31};
  assert_non_null(gen);
  assert_int_equal(generator_allowed(gen), 0);
  for (int i = 0; i < 100; i++) {
    generate_program(gen, &r, &test);
    mutate_program(gen, &r, &test);
    check_testcase(&test);
  }
  generator_destroy(gen);
  free(none);
}

static bool is_nop(const ls_instruction *in) {
  return in->bytes[0] == 0x90;
}

static void programs_are_not_all_alike(void **unused) {
  (void)unused;
  static testcase test;
  generator *gen = make_generator(0);
  rng r = {5};
  uint32_t backward = 0, forward = 0, calls = 0, relative = 0, nops = 0, total = 0, shorter = 0;
  for (int i = 0; i < PROGRAMS; i++) {
    generate_program(gen, &r, &test);
    for (uint32_t k = 0; k < test.count; k++) {
      const ls_instruction *in = &test.instructions[k];
      bool linked = in->field == LS_FIELD_BRANCH && in->jump != LS_NONE;
      backward += linked && in->jump <= k;
      forward += linked && in->jump > k;
      calls += linked && in->bytes[0] == 0xe8;
      relative += in->field == LS_FIELD_DATA;
      nops += is_nop(in);
    }
    total += test.count;
    shorter += test.count <= 8;
  }
  printf("%u instructions, %u back links, %u forward, %u calls, %u RIP-relative, %u nops\n", total, backward,
         forward, calls, relative, nops);
  assert_in_range(total / PROGRAMS, 6, 14);
  assert_true(shorter > PROGRAMS / 3);
  assert_true(backward > PROGRAMS / 20 && forward > PROGRAMS / 10 && calls > PROGRAMS / 100);
  assert_true(relative > PROGRAMS / 3 && nops < PROGRAMS / 50);
  generator_destroy(gen);
}

/* ---- Determinism ---- */

static void same_seed_same_programs(void **unused) {
  (void)unused;
  static testcase left, right;
  static entry a, b;
  generator *one = make_generator(5), *two = make_generator(5);
  rng r1 = {42}, r2 = {42};
  for (int i = 0; i < 500; i++) {
    generate_program(one, &r1, &left);
    generate_program(two, &r2, &right);
    if (i % 3 == 0) {
      mutate_program(one, &r1, &left);
      mutate_program(two, &r2, &right);
    }
    make_entry(&left, &a);
    make_entry(&right, &b);
    assert_int_equal(a.size, b.size);
    assert_memory_equal(a.bytes, b.bytes, a.size);
  }
  generator_destroy(one);
  generator_destroy(two);
}

/* Golden: whatever the compiler, the optimiser or the CPU. */
static void values_are_the_same_everywhere(void **unused) {
  (void)unused;
  uint8_t lanes[64] = {0};
  uint64_t digest = 0;
  rng r = {1};
  for (int i = 0; i < 10000; i++) {
    value_lanes(&r, lanes, sizeof lanes);
    for (unsigned k = 0; k < sizeof lanes; k++)
      digest = digest * 0x100000001b3u + lanes[k];
    value_extended(&r, lanes);
    value_indices(&r, lanes);
    digest += value_integer(&r);
    digest += value_immediate(&r, 32, true);
    digest += value_rflags(&r);
    digest += value_fcw(&r);
    digest += value_mxcsr(&r);
    digest += value_double(&r);
  }
  assert_true(digest == 0xda32080b1801dbc1u);
}

static void immediates_need_all_their_bits(void **unused) {
  (void)unused;
  rng r = {2};
  for (int i = 0; i < 100000; i++) {
    int64_t word = (int64_t)value_immediate(&r, 16, true), dword = (int64_t)value_immediate(&r, 32, true);
    assert_true(word == (int16_t)word && word != (int8_t)word);
    assert_true(dword == (int32_t)dword && dword != (int8_t)dword);
    assert_true(value_immediate(&r, 16, false) <= 0xffff && value_immediate(&r, 8, false) <= 0xff);
    int64_t whole = (int64_t)value_immediate(&r, 64, true);
    assert_true(whole != (int32_t)whole);
  }
}

static void control_words_mask_exceptions(void **unused) {
  (void)unused;
  rng r = {3};
  for (int i = 0; i < 10000; i++) {
    assert_int_equal(value_mxcsr(&r) & 0x1f80, 0x1f80);
    assert_int_equal(value_mxcsr(&r) & ~0xffffu, 0);
    assert_int_equal(value_fcw(&r) & 0x3f, 0x3f);
    assert_int_equal(value_rflags(&r) & 0x244300, 0x200); /* IF; not TF, NT, AC, ID */
  }
}

/* ---- Coverage of forms ---- */

static uint32_t mark_forms(const testcase *test, const generator *gen, uint8_t *seen) {
  uint32_t fresh = 0;
  for (uint32_t i = 0; i < test->count; i++) {
    ZydisDecodedInstruction in;
    ZydisDecodedOperand operands[ZYDIS_MAX_OPERAND_COUNT];
    if (!harness_decode(test->instructions[i].bytes, test->instructions[i].length, &in, operands))
      continue;
    form_id form = form_of(&in, operands);
    if (form != FORM_NONE && generator_allows(gen, form) && !seen[form])
      fresh += seen[form] = 1;
  }
  return fresh;
}

static void print_unseen(const generator *gen, const uint8_t *seen) {
  char text[160];
  uint32_t printed = 0;
  for (form_id form = 0; form < forms_count() && printed < 20; form++) {
    if (!generator_allows(gen, form) || seen[form])
      continue;
    form_print(form, text, sizeof text);
    printf("never placed: %s\n", text);
    printed++;
  }
}

/* The forms that run here and are there to run. */
static uint32_t count_wanted(void) {
  uint32_t count = 0;
  for (form_id form = 0; form < forms_count(); form++)
    count += support[form] == FORM_RUNS && policy_of_form(form)->action == POLICY_RUN;
  return count;
}

static void all_allowed_forms_are_placed(void **unused) {
  (void)unused;
  static testcase test;
  generator *gen = make_generator(5);
  uint8_t *seen = checked_calloc(forms_count(), 1);
  uint32_t count = 0, programs = 0, allowed = generator_allowed(gen);
  rng r = {9};
  assert_true(allowed >= count_wanted() && count_wanted() > 0);
  while (count < allowed && programs < COVERING_PROGRAMS) {
    generate_program(gen, &r, &test);
    count += mark_forms(&test, gen, seen);
    programs++;
  }
  printf("%u of %u allowed forms placed in %u programs\n", count, allowed, programs);
  print_unseen(gen, seen);
  assert_int_equal(count, allowed);
  free(seen);
  generator_destroy(gen);
}

int main(int argc, char **argv) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(programs_are_valid),
      cmocka_unit_test(lengths_keep_to_the_limit),
      cmocka_unit_test(programs_without_forms),
      cmocka_unit_test(programs_are_not_all_alike),
      cmocka_unit_test(same_seed_same_programs),
      cmocka_unit_test(values_are_the_same_everywhere),
      cmocka_unit_test(immediates_need_all_their_bits),
      cmocka_unit_test(control_words_mask_exceptions),
      cmocka_unit_test(all_allowed_forms_are_placed),
  };
  if (open_support_of(argc, argv))
    return 1;
  int failed = cmocka_run_group_tests(tests, NULL, NULL);
  close_support();
  return failed;
}

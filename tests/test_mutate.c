/* The mutator: what it makes of programs is valid too, and links lead where they should. */
#include "generated.h"

enum { MUTATIONS = 20000 };

/* ---- Mutations ---- */

static void mutations_keep_programs_valid(void **unused) {
  (void)unused;
  static testcase test;
  generator *gen = make_generator(5);
  rng r = {11};
  for (int kind = 0; kind < MUTATE_KINDS; kind++) {
    int applied = 0;
    for (int i = 0; i < MUTATIONS / MUTATE_KINDS; i++) {
      if (i % 10 == 0)
        generate_program(gen, &r, &test);
      applied += mutate_once(gen, &r, &test, (mutation)kind);
      check_testcase(&test);
    }
    printf("%s: %d of %d applied\n", mutation_name((mutation)kind), applied, MUTATIONS / MUTATE_KINDS);
    assert_true(applied > MUTATIONS / MUTATE_KINDS / 4);
  }
  for (int i = 0; i < MUTATIONS; i++) {
    if (i % 100 == 0)
      generate_program(gen, &r, &test);
    mutate_program(gen, &r, &test);
    check_testcase(&test);
  }
  generator_destroy(gen);
}

static void single_instructions_are_not_deleted(void **unused) {
  (void)unused;
  static testcase test;
  generator *gen = make_generator(5);
  rng r = {12};
  testcase_init(&test);
  for (int i = 0; i < 100; i++) {
    assert_false(mutate_once(gen, &r, &test, MUTATE_DELETE));
    assert_false(mutate_once(gen, &r, &test, MUTATE_SWAP));
    assert_int_equal(test.count, 1);
  }
  generator_destroy(gen);
}

/* Whatever the decoder yields can be mutated: the instructions need not decode. */
static void garbage_can_be_mutated(void **unused) {
  (void)unused;
  static testcase test;
  static entry e;
  uint8_t bytes[512];
  generator *gen = make_generator(5);
  rng r = {13};
  for (int i = 0; i < 3000; i++) {
    for (unsigned k = 0; k < sizeof bytes; k++)
      bytes[k] = (uint8_t)rng_next(&r);
    testcase_decode(&test, bytes, rng_below(&r, sizeof bytes));
    for (int m = 0; m < 5; m++)
      mutate_program(gen, &r, &test);
    assert_in_range(test.count, 1, TESTCASE_INSTRUCTIONS_MAX);
    make_entry(&test, &e);
  }
  generator_destroy(gen);
}

/* ---- Links ---- */

/* From a four-instruction chain, so that each kind of link is seen. */
static void make_chain(testcase *test) {
  testcase_init(test);
  for (uint32_t i = 0; i < 4; i++) {
    test->instructions[i] =
        (ls_instruction){.next = i + 1 < 4 ? i + 1 : LS_NONE, .jump = LS_NONE, .length = 1};
    test->instructions[i].bytes[0] = (uint8_t)(0xf8 + (i & 1)); /* clc, stc */
  }
  test->count = 4;
  test->instructions[3] = (ls_instruction){.next = LS_NONE,
                                           .jump = 1,
                                           .length = 2,
                                           .field = LS_FIELD_BRANCH,
                                           .field_offset = 1,
                                           .field_size = 1,
                                           .bytes = {0x72, 0}};
  testcase_normalise(test);
}

/* Every instruction still leads, over next links, from the first to the one that leaves. */
static uint32_t chain_length(const testcase *test) {
  uint32_t at = 0, length = 0;
  while (at != LS_NONE && length <= test->count) {
    at = test->instructions[at].next;
    length++;
  }
  return length;
}

static void deleting_and_duplicating_keep_the_chain(void **unused) {
  (void)unused;
  static testcase test;
  generator *gen = make_generator(5);
  for (uint64_t seed = 0; seed < 200; seed++) {
    rng r = {seed};
    make_chain(&test);
    assert_true(mutate_once(gen, &r, &test, MUTATE_DELETE));
    assert_int_equal(test.count, 3);
    assert_int_equal(chain_length(&test), 3);
    assert_true(mutate_once(gen, &r, &test, MUTATE_DUPLICATE));
    assert_int_equal(test.count, 4);
    assert_int_equal(chain_length(&test), 4);
  }
  generator_destroy(gen);
}

static void inserting_takes_over_links(void **unused) {
  (void)unused;
  static testcase test;
  generator *gen = make_generator(0);
  for (uint64_t seed = 0; seed < 200; seed++) {
    rng r = {seed};
    make_chain(&test);
    uint32_t before = test.count;
    if (!mutate_once(gen, &r, &test, MUTATE_INSERT) || chain_length(&test) != test.count)
      continue; /* an unconditional branch was inserted: the chain ends there */
    uint32_t added = test.count - before, branch = LS_NONE;
    for (uint32_t i = 0; i < test.count; i++)
      if (test.instructions[i].bytes[0] == 0x72 && test.instructions[i].jump <= 1 + added)
        branch = i;
    assert_int_not_equal(branch, LS_NONE);
    uint32_t target = test.instructions[branch].jump;
    /* In front of instruction 1: the jump to it now leads to what was inserted. */
    assert_true(target == 1 || test.instructions[target].bytes[0] == 0xf9);
  }
  generator_destroy(gen);
}

/* ---- Sizes ---- */

static void splices_are_valid(void **unused) {
  (void)unused;
  static testcase a, b, out;
  generator *gen = make_generator(5);
  rng r = {17};
  uint32_t longer = 0;
  for (int i = 0; i < PROGRAMS; i++) {
    generate_program(gen, &r, &a);
    generate_program(gen, &r, &b);
    splice_programs(&r, &a, &b, &out);
    check_testcase(&out);
    assert_in_range(out.count, 2, a.count + b.count);
    longer += out.count > a.count;
  }
  assert_true(longer > 0);
  generator_destroy(gen);
}

static void shrinking_reaches_the_size(void **unused) {
  (void)unused;
  static testcase test;
  static entry e;
  generator *gen = make_generator(5);
  rng r = {19};
  uint32_t shrunk = 0;
  for (int i = 0; i < 300; i++) {
    generate_program(gen, &r, &test);
    make_entry(&test, &e);
    size_t size = rng_below(&r, (uint32_t)e.size) + 1;
    uint32_t count = test.count;
    if (!shrink_program(&test, size)) {
      assert_int_equal(test.count, 1);
      assert_int_equal(test.patch_count, 0);
      continue;
    }
    make_entry(&test, &e);
    assert_true(e.size <= size && test.count <= count);
    check_testcase(&test);
    shrunk++;
  }
  assert_true(shrunk > 50);
  generator_destroy(gen);
}

int main(int argc, char **argv) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(mutations_keep_programs_valid),
      cmocka_unit_test(single_instructions_are_not_deleted),
      cmocka_unit_test(garbage_can_be_mutated),
      cmocka_unit_test(deleting_and_duplicating_keep_the_chain),
      cmocka_unit_test(inserting_takes_over_links),
      cmocka_unit_test(splices_are_valid),
      cmocka_unit_test(shrinking_reaches_the_size),
  };
  if (open_support_of(argc, argv))
    return 1;
  int failed = cmocka_run_group_tests(tests, NULL, NULL);
  close_support();
  return failed;
}

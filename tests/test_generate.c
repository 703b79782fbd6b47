/* Generator and mutator: what they make is valid, deterministic, covers the forms, and mostly runs. */
#include <signal.h>
#include <stdlib.h>

#include "check.h"
#include "forms/forms.h"
#include "forms/policy.h"
#include "forms/probe.h"
#include "generate/generate.h"
#include "generate/values.h"

enum { PROGRAMS = 3000, COVERING_PROGRAMS = 50000, MUTATIONS = 20000 };

static uint8_t *support; /* of this CPU; or, without a reference, all that the policy does not exclude */
static ls_executor *reference;

static void *checked_calloc(size_t count, size_t size) {
  void *memory = calloc(count, size);
  assert_non_null(memory);
  return memory;
}

static generator *make_generator(uint32_t fault_percent) {
  generator_options options = {.fault_percent = fault_percent};
  generator *gen = generator_create(support, &options);
  assert_non_null(gen);
  return gen;
}

/* ---- Validity ---------------------------------------------------------------------------------------- */

static void print_bytes(const ls_instruction *in, const char *why) {
  printf("%s:", why);
  for (unsigned i = 0; i < in->length; i++)
    printf(" %02x", in->bytes[i]);
  printf("\n");
}

static void check_field(const ls_instruction *in, const ZydisDecodedInstruction *decoded) {
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

static void check_instruction(const testcase *test, uint32_t index) {
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

static void make_entry(const testcase *test, entry *e) {
  e->size = testcase_encode(test, e->bytes, sizeof e->bytes);
  assert_int_not_equal(e->size, 0);
}

/* Normalising changes nothing, and an entry holds all of it. */
static void check_testcase(const testcase *test) {
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

/* ---- Determinism ------------------------------------------------------------------------------------- */

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

/* ---- Coverage of forms ------------------------------------------------------------------------------- */

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

static void all_allowed_forms_are_placed(void **unused) {
  (void)unused;
  static testcase test;
  generator *gen = make_generator(5);
  uint8_t *seen = checked_calloc(forms_count(), 1);
  uint32_t count = 0, programs = 0, allowed = generator_allowed(gen);
  rng r = {9};
  assert_true(allowed > forms_count() / 4);
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

/* ---- Mutations --------------------------------------------------------------------------------------- */

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

/* ---- In the reference -------------------------------------------------------------------------------- */

static ls_stop run_reference(const testcase *test, ls_image *image) {
  static testcase_contents contents;
  ls_error error = {0};
  ls_outcome outcome;
  ls_program program = testcase_program(test);
  ls_run run = {.state = &test->state, .uses = LS_USES_X87, .fuel = test->fuel, .limit_ms = 500};
  testcase_contents_make(test, &contents);
  ls_status status = ls_image_build(image, &program, testcase_layout(), &error);
  if (status == LS_OK)
    status = ls_executor_load(reference, image, &error);
  if (status == LS_OK)
    status = ls_executor_reset(reference, contents.window, &error);
  if (status == LS_OK)
    status = ls_executor_run(reference, &run, &outcome, &error);
  if (status != LS_OK)
    printf("%s: %s\n", ls_status_name(status), error.text);
  assert_int_equal(status, LS_OK);
  return outcome.stop;
}

static void count_stops(uint32_t fault_percent, uint32_t mutations, uint32_t stops[LS_STOP_KINDS]) {
  static testcase test;
  generator *gen = make_generator(fault_percent);
  ls_image *image = ls_image_create();
  rng r = {23};
  assert_non_null(image);
  memset(stops, 0, LS_STOP_KINDS * sizeof stops[0]);
  for (int i = 0; i < PROGRAMS; i++) {
    generate_program(gen, &r, &test);
    for (uint32_t m = 0; m < mutations; m++)
      mutate_program(gen, &r, &test);
    stops[run_reference(&test, image).kind]++;
  }
  printf("faults %u %%, %u mutations: of %d programs", fault_percent, mutations, PROGRAMS);
  for (unsigned kind = 0; kind < LS_STOP_KINDS; kind++)
    printf(", %s %u", ls_stop_kind_name((ls_stop_kind)kind), stops[kind]);
  printf("\n");
  ls_image_destroy(image);
  generator_destroy(gen);
}

static void most_programs_exit(void **unused) {
  (void)unused;
  uint32_t stops[LS_STOP_KINDS];
  count_stops(0, 0, stops);
  assert_true(stops[LS_STOP_EXIT] * 100 >= PROGRAMS * 98);
  assert_int_equal(stops[LS_STOP_TIMEOUT], 0);
}

static void some_programs_fault_on_purpose(void **unused) {
  (void)unused;
  uint32_t stops[LS_STOP_KINDS];
  count_stops(5, 0, stops);
  assert_in_range(stops[LS_STOP_FAULT] * 100, PROGRAMS * 3, PROGRAMS * 10);
  count_stops(100, 0, stops);
  assert_true(stops[LS_STOP_FAULT] * 100 >= PROGRAMS * 85);
}

/* Every signal a fault can raise, integer and floating-point exceptions, traps, and system calls. */
static void faults_are_of_all_kinds(void **unused) {
  (void)unused;
  static testcase test;
  static uint32_t seen[65][16];
  generator_options options = {.fault_percent = 100, .syscalls = true};
  generator *gen = generator_create(support, &options);
  ls_image *image = ls_image_create();
  uint32_t syscalls = 0;
  rng r = {29};
  for (int i = 0; i < PROGRAMS; i++) {
    generate_program(gen, &r, &test);
    ls_stop stop = run_reference(&test, image);
    syscalls += stop.kind == LS_STOP_SYSCALL;
    if (stop.kind == LS_STOP_FAULT)
      seen[stop.signal][stop.code & 15]++;
  }
  for (int signal = 1; signal < 65; signal++)
    for (int code = 0; code < 16; code++)
      if (seen[signal][code])
        printf("signal %d, code %d (mod 16): %u\n", signal, code, seen[signal][code]);
  assert_true(syscalls > 0);
  assert_true(seen[SIGILL][ILL_ILLOPN] > 0);
  assert_true(seen[SIGBUS][BUS_ADRALN] > 0);
  assert_true(seen[SIGFPE][FPE_INTDIV] > 0 && seen[SIGFPE][FPE_FLTINV] > 0 && seen[SIGFPE][FPE_FLTRES] > 0);
  assert_true(seen[SIGTRAP][TRAP_TRACE] > 0);
  assert_true(seen[SIGSEGV][0] > 0); /* SI_KERNEL, 128: not canonical, privileged, misaligned */
  assert_true(seen[SIGSEGV][SEGV_MAPERR] > 0 && seen[SIGSEGV][SEGV_ACCERR] > 0);
  ls_image_destroy(image);
  generator_destroy(gen);
}

static void most_mutants_exit(void **unused) {
  (void)unused;
  uint32_t stops[LS_STOP_KINDS];
  count_stops(0, 1, stops);
  assert_true(stops[LS_STOP_EXIT] * 100 >= PROGRAMS * 90);
  count_stops(0, 5, stops);
  assert_true(stops[LS_STOP_EXIT] * 100 >= PROGRAMS * 80);
}

/* ---- All --------------------------------------------------------------------------------------------- */

/* Without a reference, forms count as supported: what is generated cannot be run then anyway. */
static bool find_support(bool traced) {
  ls_error error = {.text = "no memory"};
  support = calloc(forms_count(), 1);
  if (support && traced &&
      ls_executor_create(LS_PTRACE, testcase_layout(), NULL, &reference, &error) == LS_OK &&
      probe_forms(reference, support, &error) == LS_OK)
    return true;
  if (!support || traced) {
    printf("no probe: %s\n", error.text);
    return false;
  }
  for (form_id form = 0; form < forms_count(); form++)
    support[form] = policy_of_form(form)->action == POLICY_EXCLUDE ? FORM_NOT_PROBED : FORM_RUNS;
  return true;
}

int main(void) {
  const struct CMUnitTest anywhere[] = {
      cmocka_unit_test(programs_are_valid),
      cmocka_unit_test(lengths_keep_to_the_limit),
      cmocka_unit_test(programs_without_forms),
      cmocka_unit_test(programs_are_not_all_alike),
      cmocka_unit_test(same_seed_same_programs),
      cmocka_unit_test(values_are_the_same_everywhere),
      cmocka_unit_test(immediates_need_all_their_bits),
      cmocka_unit_test(control_words_mask_exceptions),
      cmocka_unit_test(all_allowed_forms_are_placed),
      cmocka_unit_test(mutations_keep_programs_valid),
      cmocka_unit_test(single_instructions_are_not_deleted),
      cmocka_unit_test(garbage_can_be_mutated),
      cmocka_unit_test(deleting_and_duplicating_keep_the_chain),
      cmocka_unit_test(inserting_takes_over_links),
      cmocka_unit_test(splices_are_valid),
      cmocka_unit_test(shrinking_reaches_the_size),
  };
  const struct CMUnitTest in_reference[] = {
      cmocka_unit_test(most_programs_exit),
      cmocka_unit_test(some_programs_fault_on_purpose),
      cmocka_unit_test(faults_are_of_all_kinds),
      cmocka_unit_test(most_mutants_exit),
  };
  int missing = find_reference(testcase_layout());
  if (!find_support(!missing))
    return 1;
  int failed = cmocka_run_group_tests_name("generate", anywhere, NULL, NULL);
  if (!missing)
    failed += cmocka_run_group_tests_name("generate, in the reference", in_reference, NULL, NULL);
  ls_executor_destroy(reference);
  free(support);
  return failed ? failed : missing;
}

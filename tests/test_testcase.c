/* The test case format: round trips, totality of the decoder, what people are told about bad files. */
#include <stdlib.h>

#include "check.h"
#include "rng.h"
#include "testcase/testcase.h"

enum { CASES = 100000 };

/* Equality of what counts: unused instructions and patches do not. */
static bool same_test(const testcase *a, const testcase *b) {
  if (a->count != b->count || a->patch_count != b->patch_count || a->fuel != b->fuel || a->cpu != b->cpu ||
      a->vectors != b->vectors || memcmp(a->fill, b->fill, sizeof a->fill) != 0 ||
      memcmp(&a->state, &b->state, sizeof a->state) != 0 ||
      memcmp(a->patches, b->patches, a->patch_count * sizeof a->patches[0]) != 0)
    return false;
  for (uint32_t i = 0; i < a->count; i++) {
    const ls_instruction *x = &a->instructions[i], *y = &b->instructions[i];
    if (x->id != y->id || x->data != y->data || x->next != y->next || x->jump != y->jump ||
        x->length != y->length || x->flags != y->flags || x->field != y->field ||
        x->field_offset != y->field_offset || x->field_size != y->field_size ||
        memcmp(x->bytes, y->bytes, sizeof x->bytes) != 0)
      return false;
  }
  return true;
}

static void random_bytes(rng *r, void *data, size_t size) {
  for (size_t i = 0; i < size; i++)
    ((uint8_t *)data)[i] = (uint8_t)rng_next(r);
}

static void random_instruction(rng *r, uint32_t count, ls_instruction *instruction) {
  random_bytes(r, instruction, sizeof *instruction);
  instruction->length = (uint8_t)rng_below(r, 18);
  instruction->next = rng_below(r, count + 2);
  instruction->jump = rng_below(r, count + 2);
  instruction->field = (uint8_t)rng_below(r, 4);
  instruction->field_size = rng_one_in(r, 2) ? 4 : 1;
  instruction->field_offset = (uint8_t)rng_below(r, 12);
  if (rng_one_in(r, 2))
    instruction->data = testcase_layout()->windows[TESTCASE_DATA].address + rng_below(r, 9000);
}

/* Anything at all in every field, then brought into range. */
static void random_test(rng *r, testcase *test) {
  testcase_init(test);
  test->count = rng_below(r, rng_one_in(r, 20) ? 300 : 12);
  test->fuel = rng_below(r, 1 << 17);
  test->cpu = rng_next(r);
  random_bytes(r, test->fill, sizeof test->fill);
  test->vectors = (uint8_t)rng_next(r);
  if (rng_one_in(r, 2))
    random_bytes(r, &test->state, sizeof test->state);
  else
    testcase_vectors(test->vectors, &test->state);
  for (uint32_t i = 0; i < test->count && i < TESTCASE_INSTRUCTIONS_MAX; i++)
    random_instruction(r, test->count, &test->instructions[i]);
  test->patch_count = (uint8_t)rng_below(r, rng_one_in(r, 20) ? 80 : 6);
  for (unsigned i = 0; i < test->patch_count && i < TESTCASE_PATCHES_MAX; i++)
    random_bytes(r, &test->patches[i], sizeof test->patches[i]);
  testcase_normalise(test);
}

/* Decodes, and holds the decoder to all it promises about any bytes. */
static void decode_anything(const uint8_t *data, size_t size) {
  static testcase test, again;
  static uint8_t first[TESTCASE_SIZE_MAX], second[TESTCASE_SIZE_MAX];
  char why[200];
  testcase_decode(&test, data, size);
  again = test;
  testcase_normalise(&again);
  assert_true(same_test(&test, &again));
  size_t first_size = testcase_encode(&test, first, sizeof first);
  assert_true(first_size > 0);
  testcase_decode(&again, first, first_size);
  assert_true(same_test(&test, &again));
  assert_int_equal(testcase_encode(&again, second, sizeof second), first_size);
  assert_memory_equal(first, second, first_size);
  if (!testcase_check(first, first_size, why, sizeof why))
    fail_msg("encoder's own output refused: %s", why);
}

static void test_random_bytes(void **state) {
  (void)state;
  rng r = {1};
  uint8_t data[600];
  for (unsigned i = 0; i < CASES; i++) {
    size_t size = rng_below(&r, rng_one_in(&r, 10) ? sizeof data : 120);
    random_bytes(&r, data, size);
    if (rng_one_in(&r, 2) && size > 4)
      memcpy(data, "LST\1", 4);
    if (rng_one_in(&r, 2) && size > 27)
      data[24] = 1 + i % 4, data[25] = (uint8_t)size, data[26] = 0;
    uint8_t *exact = malloc(size ? size : 1); /* so that ASan sees a read behind the end */
    assert_non_null(exact);
    memcpy(exact, data, size);
    decode_anything(exact, size);
    free(exact);
  }
  decode_anything(NULL, 0);
}

static size_t mutate(rng *r, uint8_t *data, size_t size, const uint8_t *other, size_t other_size) {
  size_t at = rng_below(r, (uint32_t)size), from, length;
  switch (rng_below(r, 4)) {
  case 0: /* bit flips */
    for (unsigned n = 1 + rng_below(r, 8); n > 0; n--)
      data[rng_below(r, (uint32_t)size)] ^= (uint8_t)(1u << rng_below(r, 8));
    return size;
  case 1: /* cut short */
    return at;
  case 2: /* splice: our head, the other's tail */
    from = rng_below(r, (uint32_t)other_size);
    length = other_size - from;
    memcpy(data + at, other + from, length);
    return at + length;
  default: /* a piece of the other, in place */
    from = rng_below(r, (uint32_t)other_size);
    length = rng_below(r, (uint32_t)(other_size - from));
    memcpy(data + at, other + from, length);
    return at + length > size ? at + length : size;
  }
}

static void test_mutations(void **state) {
  (void)state;
  rng r = {2};
  static testcase test;
  static uint8_t a[2 * TESTCASE_SIZE_MAX], b[TESTCASE_SIZE_MAX];
  size_t b_size = 0;
  for (unsigned i = 0; i < CASES; i++) {
    if (i % 16 == 0) {
      random_test(&r, &test);
      b_size = testcase_encode(&test, b, sizeof b);
      random_test(&r, &test);
    }
    size_t size = testcase_encode(&test, a, sizeof a);
    assert_true(size > 0);
    size = mutate(&r, a, size, b, b_size);
    uint8_t *exact = malloc(size ? size : 1);
    assert_non_null(exact);
    memcpy(exact, a, size);
    decode_anything(exact, size);
    free(exact);
  }
}

static void test_round_trip(void **state) {
  (void)state;
  rng r = {3};
  static testcase test, again;
  static uint8_t data[TESTCASE_SIZE_MAX];
  for (unsigned i = 0; i < 2000; i++) {
    random_test(&r, &test);
    size_t size = testcase_encode(&test, data, sizeof data);
    assert_true(size > 0);
    testcase_decode(&again, data, size);
    assert_true(same_test(&test, &again));
    assert_int_equal(testcase_encode(&test, data, size - 1), 0);
    assert_int_equal(testcase_encode(&test, data, size), size);
  }
}

/* Every register, one at a time, survives; and so does the one whose value is zero where the base is not. */
static void test_registers(void **state) {
  (void)state;
  static testcase test, again;
  static uint8_t data[TESTCASE_SIZE_MAX];
  size_t rows, kept = 0;
  const ls_register *registers = ls_registers(&rows);
  for (size_t row = 0; row < rows; row++)
    for (unsigned byte = 0; byte < registers[row].size; byte++) {
      testcase_init(&test);
      test.vectors = 9;
      testcase_vectors(9, &test.state);
      ((uint8_t *)&test.state)[registers[row].offset + byte] ^= 0x55;
      testcase testing = test;
      testcase_normalise(&testing);
      kept += memcmp(&test.state, &testing.state, sizeof test.state) == 0;
      testcase_decode(&again, data, testcase_encode(&testing, data, sizeof data));
      assert_true(same_test(&testing, &again));
    }
  assert_true(kept >= 32 * 64 + 8 * 8 + 16 * 8 + 8 * 10);
  testcase_init(&test);
  test.state.gpr[LS_RSP] = 0;
  test.state.mxcsr = 0;
  testcase_decode(&again, data, testcase_encode(&test, data, sizeof data));
  assert_true(same_test(&test, &again));
}

static void test_normalised(void **state) {
  (void)state;
  static testcase test;
  testcase_init(&test);
  memset(&test.state, 0xff, sizeof test.state);
  test.instructions[0].field = LS_FIELD_DATA;
  test.instructions[0].length = 7;
  test.instructions[0].field_offset = 3;
  test.instructions[0].field_size = 4;
  test.instructions[0].data = 0x7fff00000000;
  testcase_normalise(&test);
  const ls_window *data = &testcase_layout()->windows[TESTCASE_DATA];
  assert_int_equal(test.state.rflags, 0x244fd7);
  assert_int_equal(test.state.cs, 0x33);
  assert_int_equal(test.state.ss, 0x2b);
  assert_int_equal(test.state.ds, 0);
  assert_int_equal(test.state.fs | test.state.gs, 0);
  assert_int_equal(test.state.mxcsr, 0xffff);
  assert_int_equal(test.state.rip, 0);
  assert_true(test.instructions[0].data - data->address < data->size);
  test.instructions[0].field_offset = 4;
  testcase_normalise(&test);
  assert_int_equal(test.instructions[0].field, LS_FIELD_NONE);
}

static void test_check(void **state) {
  (void)state;
  static testcase test;
  static uint8_t data[TESTCASE_SIZE_MAX], broken[TESTCASE_SIZE_MAX];
  char why[200];
  rng r = {4};
  random_test(&r, &test);
  size_t size = testcase_encode(&test, data, sizeof data);
  assert_true(testcase_check(data, size, why, sizeof why));
  assert_string_equal(why, "");
  assert_false(testcase_check(data, 0, why, sizeof why));
  assert_non_null(strstr(why, "empty"));
  for (size_t cut = 1; cut < size; cut++) {
    assert_false(testcase_check(data, cut, why, sizeof why));
    assert_non_null(strstr(why, "cut short"));
    decode_anything(data, cut);
  }
  for (size_t at = 0; at < size; at++) {
    memcpy(broken, data, size);
    broken[at] ^= 0x10;
    assert_false(testcase_check(broken, size, why, sizeof why));
    const char *word = at < 3 ? "not a Lockstep entry" : at == 3 ? "newer" : at >= 6 ? "checksum" : "";
    if (strstr(why, word) == NULL)
      fail_msg("byte %zu: %s", at, why);
  }
  memcpy(broken, data, size);
  broken[size] = 0;
  assert_false(testcase_check(broken, size + 1, why, sizeof why));
  assert_non_null(strstr(why, "behind its end"));
}

static void test_raw_bytes(void **state) {
  (void)state;
  static testcase test;
  uint8_t data[40], flat[40] = {0};
  for (unsigned i = 0; i < sizeof data; i++)
    data[i] = (uint8_t)(0x90 + i);
  testcase_decode(&test, data, sizeof data);
  size_t at = 0;
  for (uint32_t i = 0; i < test.count; at += test.instructions[i++].length) {
    memcpy(flat + at, test.instructions[i].bytes, test.instructions[i].length);
    assert_int_equal(test.instructions[i].next, i + 1 < test.count ? i + 1 : LS_NONE);
  }
  assert_int_equal(at, sizeof data);
  assert_memory_equal(flat, data, sizeof data);
}

static void test_contents(void **state) {
  (void)state;
  static testcase test;
  static testcase_contents contents;
  testcase_init(&test);
  test.fill[TESTCASE_DATA] = 1;
  test.patch_count = 2;
  test.patches[0] = (testcase_patch){.window = TESTCASE_CONST, .length = 2, .offset = 4094, .bytes = {1, 2}};
  test.patches[1] = (testcase_patch){.window = TESTCASE_CONST, .length = 1, .offset = 4095, .bytes = {3}};
  testcase_normalise(&test);
  testcase_contents_make(&test, &contents);
  assert_null(contents.window[TESTCASE_CODE]);
  assert_ptr_equal(contents.window[TESTCASE_DATA], testcase_fill(TESTCASE_DATA, 1));
  assert_ptr_equal(contents.window[TESTCASE_CONST], contents.constants);
  assert_ptr_equal(contents.window[TESTCASE_STACK], testcase_fill(TESTCASE_STACK, 0));
  assert_int_equal(contents.constants[4094], 1);
  assert_int_equal(contents.constants[4095], 3);
  assert_int_equal(contents.constants[4093], 0);
}

/* Patterns are part of the format: their digests may never change. */
static void test_patterns(void **state) {
  (void)state;
  static ls_state vectors;
  uint64_t digest = 0;
  for (unsigned window = TESTCASE_DATA; window < TESTCASE_WINDOWS; window++)
    for (unsigned fill = 0; fill < 256; fill++) {
      const uint64_t *cells = (const uint64_t *)(const void *)testcase_fill(window, (uint8_t)fill);
      for (uint64_t i = 0; i < testcase_layout()->windows[window].size / 8; i++)
        digest = digest * 0x9e3779b97f4a7c15u + cells[i];
    }
  assert_int_equal(digest, 0x31cc26833489f3ba);
  digest = 0;
  for (unsigned pattern = 0; pattern < 256; pattern++) {
    testcase_vectors((uint8_t)pattern, &vectors);
    for (unsigned i = 0; i < sizeof vectors.zmm; i++)
      digest = digest * 0x9e3779b97f4a7c15u + ((uint8_t *)vectors.zmm)[i];
    for (unsigned i = 0; i < 8; i++)
      digest = digest * 0x9e3779b97f4a7c15u + vectors.k[i];
  }
  assert_int_equal(digest, 0x0aece73bfda3925f);
}

static void test_name_and_size(void **state) {
  (void)state;
  static testcase test;
  static uint8_t data[TESTCASE_SIZE_MAX];
  char name[33], other[33];
  testcase_init(&test);
  test.count = 8;
  for (uint32_t i = 0; i < 8; i++)
    test.instructions[i] = (ls_instruction){.next = i + 1, .jump = LS_NONE, .length = 5};
  for (unsigned i = 0; i < 16; i++)
    test.state.gpr[i] = 0x10020008 + 8 * i;
  testcase_normalise(&test);
  testcase_name(&test, name);
  assert_int_equal(strlen(name), 32);
  assert_int_equal(strspn(name, "0123456789abcdef"), 32);
  test.fuel--;
  testcase_name(&test, other);
  assert_string_not_equal(name, other);
  test.fuel++;
  for (unsigned bit = 0; bit < 64; bit++) { /* the machine and the flag are not the test */
    test.cpu = 1ull << bit;
    testcase_name(&test, other);
    assert_string_equal(name, other);
  }
  size_t size = testcase_encode(&test, data, sizeof data);
  assert_true(size < 256);
  assert_true(testcase_cpu() >> 63);
}

/* ---- Every register ---- */

/* Each byte of each register that the format has is another one; selectors are those that a program may load.
 */
static void fill_each(ls_state *state) {
  size_t count;
  const ls_register *table = ls_registers(&count);
  for (size_t row = 0; row < count; row++) {
    static const char *const kept[] = {"rip", "cs", "ss", "fs", "gs"};
    bool left = false;
    for (size_t i = 0; i < sizeof kept / sizeof *kept; i++)
      left |= strcmp(table[row].name, kept[i]) == 0;
    for (unsigned i = 0; !left && i < table[row].size; i++)
      ((uint8_t *)state)[table[row].offset + i] = (uint8_t)(row * 37 + i * 11 + 5);
  }
  state->ds = 0x2b;
  state->es = 0x33;
}

/* An entry that was written once and for all: a codec that confuses two registers on its way in and out alike
 * is found by it. What `lockstep show` says of it stands beside it (golden.sh). */
static void golden_entry_holds(void **unused) {
  (void)unused;
  static testcase expected, got;
  static uint8_t bytes[TESTCASE_SIZE_MAX], again[TESTCASE_SIZE_MAX];
  FILE *file = fopen(GOLDEN, "rb");
  assert_non_null(file);
  size_t size = fread(bytes, 1, sizeof bytes, file);
  fclose(file);
  testcase_init(&expected);
  fill_each(&expected.state);
  expected.instructions[0] = (ls_instruction){.next = LS_NONE, .jump = LS_NONE, .length = 1, .bytes = {0x90}};
  testcase_normalise(&expected);
  testcase_decode(&got, bytes, size);
  assert_true(same_test(&expected, &got));
  assert_int_equal(testcase_encode(&got, again, sizeof again), size);
  assert_memory_equal(bytes, again, size);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_random_bytes),  cmocka_unit_test(test_mutations),
      cmocka_unit_test(test_round_trip),    cmocka_unit_test(test_registers),
      cmocka_unit_test(test_normalised),    cmocka_unit_test(test_check),
      cmocka_unit_test(test_raw_bytes),     cmocka_unit_test(test_contents),
      cmocka_unit_test(test_patterns),      cmocka_unit_test(test_name_and_size),
      cmocka_unit_test(golden_entry_holds),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}

/* The register table, start values, canonical form, text. */
#include "check.h"
#include "vectors.h"

#include "flags.h"

static void table_covers_the_state_once(void **unused) {
  (void)unused;
  static uint8_t covered[sizeof(ls_state)];
  size_t count;
  const ls_register *table = ls_registers(&count);
  for (size_t i = 0; i < count; i++)
    for (unsigned byte = 0; byte < table[i].size; byte++)
      assert_int_equal(covered[table[i].offset + byte]++, 0);
  size_t uncovered = 0;
  for (size_t i = 0; i < sizeof covered; i++)
    uncovered += !covered[i];
  assert_int_equal(uncovered, 4 + 1 + 4 + 8 * 6); /* the reserved fields, and six bytes of each st slot */
}

static void names_are_found(void **unused) {
  (void)unused;
  static const char *const names[] = {"rax",   "r15", "rip", "rflags", "gs",
                                      "mxcsr", "fdp", "st7", "zmm31",  "k7"};
  for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
    assert_non_null(ls_register_find(names[i]));
    assert_string_equal(ls_register_find(names[i])->name, names[i]);
  }
  assert_null(ls_register_find("zmm32"));
}

static void masks_have_reasons(void **unused) {
  (void)unused;
  size_t count;
  const ls_register *table = ls_registers(&count);
  for (size_t i = 0; i < count; i++) {
    assert_in_range(table[i].rule, LS_RULE_MASK, LS_RULE_X87_PENDING);
    assert_int_equal(!table[i].reason, table[i].rule == LS_RULE_MASK && table[i].mask == UINT64_MAX);
    assert_true(table[i].mask == UINT64_MAX || (table[i].rule == LS_RULE_MASK && table[i].size <= 8));
  }
}

static void every_difference_is_found(void **unused) {
  (void)unused;
  ls_state a, b;
  size_t count;
  const ls_register *table = ls_registers(&count);
  for (size_t i = 0; i < count; i++)
    for (unsigned bit = 0; bit < 8u * table[i].size; bit++) {
      size_t row = 0;
      ls_state_init(&a);
      ls_state_init(&b);
      ((uint8_t *)&b)[table[i].offset + bit / 8] ^= (uint8_t)(1u << bit % 8);
      assert_true(ls_state_difference(&a, &b, &row));
      assert_int_equal(row, i);
      row++;
      assert_false(ls_state_difference(&a, &b, &row));
    }
}

/* What the row says of a register of up to 8 bytes. */
static uint64_t by_rule(const ls_register *row, const ls_state *state, uint64_t value) {
  switch ((ls_rule)row->rule) {
  case LS_RULE_MASK:
    return value & row->mask;
  case LS_RULE_SELECTOR:
    return value & ~(uint64_t)3 ? value : 0;
  default:
    return state->fsw & 0x80 ? value : 0;
  }
}

/* The canonical form by the table alone: what is in no row is zero. */
static void canonicalise_by_table(const ls_state *state, ls_state *canonical) {
  size_t count;
  const ls_register *table = ls_registers(&count);
  memset(canonical, 0, sizeof *canonical);
  for (size_t i = 0; i < count; i++) {
    const uint8_t *from = (const uint8_t *)state + table[i].offset;
    uint64_t value = 0;
    memcpy((uint8_t *)canonical + table[i].offset, from, table[i].size);
    if (table[i].size > sizeof value)
      continue;
    memcpy(&value, from, table[i].size);
    value = by_rule(&table[i], state, value);
    memcpy((uint8_t *)canonical + table[i].offset, &value, table[i].size);
  }
}

static void fill_at_random(ls_state *state, uint64_t *seed) {
  for (size_t i = 0; i < sizeof *state; i++) {
    *seed = *seed * UINT64_C(6364136223846793005) + 1442695040888963407;
    ((uint8_t *)state)[i] = (uint8_t)(*seed >> 56);
  }
  state->ds &= 7; /* null ones among them */
  state->es &= 7;
  state->fs &= 7;
}

static void the_table_says_what_the_canonical_form_is(void **unused) {
  (void)unused;
  static ls_state state, expected;
  uint64_t seed = 1;
  for (int i = 0; i < 1000; i++) {
    fill_at_random(&state, &seed);
    canonicalise_by_table(&state, &expected);
    ls_state_canonicalise(&state);
    assert_memory_equal(&state, &expected, sizeof state);
  }
}

/* With vectors so wide, what is beyond comes from the start and all else is left as it is. */
static void check_repeated(ls_vectors vectors, bool by_avx, size_t width, uint64_t *seed) {
  static ls_state start, state, expected;
  fill_at_random(&start, seed);
  fill_at_random(&state, seed);
  expected = state;
  for (int i = 0; i < 32; i++)
    for (size_t at = i < 16 ? width : 0; at < sizeof expected.zmm[i]; at++)
      expected.zmm[i][at] = start.zmm[i][at];
  memcpy(expected.k, start.k, sizeof expected.k);
  vectors_repeat_narrow(vectors, by_avx, &start, &state);
  assert_memory_equal(&expected, &state, sizeof state);
}

static void what_vectors_leave_alone_is_repeated(void **unused) {
  (void)unused;
  uint64_t seed = 7;
  check_repeated(LS_VECTORS_SSE, false, 16, &seed);
  if (ls_vectors_available() == LS_VECTORS_SSE)
    return; /* there is no other way */
  check_repeated(LS_VECTORS_SSE, true, 16, &seed);
  check_repeated(LS_VECTORS_AVX, true, 32, &seed);
}

static void canonical_form_drops_what_it_says(void **unused) {
  (void)unused;
  ls_state a, b;
  ls_state_init(&a);
  ls_state_init(&b);
  b.rflags |= RFLAGS_RF | RFLAGS_NT;
  b.ds = 3;
  b.es = 1;
  b.fip = 1;
  b.fdp = 2;
  b.fop = 3;
  b.st[4][12] = 9;
  b.reserved2 = 0xffff;
  ls_state_canonicalise(&a);
  ls_state_canonicalise(&b);
  assert_memory_equal(&a, &b, sizeof a);
}

static void canonical_form_keeps_the_rest(void **unused) {
  (void)unused;
  ls_state a;
  ls_state_init(&a);
  a.rflags |= RFLAGS_AC | RFLAGS_ID | RFLAGS_DF | RFLAGS_OF;
  a.ds = 0x2b;
  a.fsw = 0x80;
  a.fip = 0x1234;
  ls_state b = a;
  ls_state_canonicalise(&b);
  assert_memory_equal(&a, &b, sizeof a);
}

static void check_print(const char *name, const ls_state *state, const char *expected) {
  char text[160];
  assert_int_equal(ls_register_print(ls_register_find(name), state, text, sizeof text), strlen(expected));
  assert_string_equal(text, expected);
}

static void registers_print(void **unused) {
  (void)unused;
  ls_state s;
  ls_state_init(&s);
  s.gpr[LS_R8] = 0x123456789abcdef0;
  s.zmm[3][0] = 0x11;
  s.zmm[3][63] = 0x22;
  s.st[1][9] = 0x3f;
  s.st[1][8] = 0xff;
  s.st[1][7] = 0x80;
  check_print("r8", &s, "0x123456789abcdef0");
  check_print("cs", &s, "0x0033");
  check_print("ftw", &s, "0x00");
  check_print("mxcsr", &s, "0x00001f80");
  check_print("st1", &s, "0x3fff_8000000000000000");
  check_print("zmm3", &s,
              "0x2200000000000000_0000000000000000_0000000000000000_0000000000000000_"
              "0000000000000000_0000000000000000_0000000000000000_0000000000000011");
  char narrow[5];
  assert_int_equal(ls_register_print(ls_register_find("r8"), &s, narrow, sizeof narrow), 4);
  assert_string_equal(narrow, "0x12");
}

static void statuses_have_names(void **unused) {
  (void)unused;
  for (int i = LS_OK; i <= LS_ERR_COPY; i++)
    assert_string_not_equal(ls_status_name((ls_status)i), "LS_UNKNOWN");
  assert_string_equal(ls_status_name((ls_status)99), "LS_UNKNOWN");
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(table_covers_the_state_once),
      cmocka_unit_test(names_are_found),
      cmocka_unit_test(masks_have_reasons),
      cmocka_unit_test(every_difference_is_found),
      cmocka_unit_test(the_table_says_what_the_canonical_form_is),
      cmocka_unit_test(what_vectors_leave_alone_is_repeated),
      cmocka_unit_test(canonical_form_drops_what_it_says),
      cmocka_unit_test(canonical_form_keeps_the_rest),
      cmocka_unit_test(registers_print),
      cmocka_unit_test(statuses_have_names),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}

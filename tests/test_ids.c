/* Ids to indices. */
#include "check.h"

#include <stdbool.h>
#include <stdlib.h>

#include "controller/ids.h"

static ls_instruction in[LS_PROGRAM_MAX];
static ls_error error;

static ls_program program_of(uint32_t count) {
  return (ls_program){in, count, 0};
}

static void must_build(ids *table, uint32_t count) {
  const ls_program program = program_of(count);
  if (ids_build(table, &program, &error) != LS_OK)
    fail_msg("%s", error.text);
}

/* ---- Patterns of ids ---- */

static uint64_t counted(uint64_t i) {
  return i;
}
static uint64_t downwards(uint64_t i) {
  return UINT64_MAX - i;
}
static uint64_t upper_halves(uint64_t i) {
  return i << 32;
}
static uint64_t top_bits(uint64_t i) {
  return i << 48;
}
static uint64_t both_halves(uint64_t i) {
  return i << 32 | i;
}
static uint64_t lines(uint64_t i) {
  return i * 10 + 1000;
}
static uint64_t pages(uint64_t i) {
  return UINT64_C(0x7fff00000000) + i * LS_PAGE;
}
static uint64_t bytes_apart(uint64_t i) { /* 16 bits spread over all bytes */
  uint64_t id = 0;
  for (unsigned bit = 0; bit < 16; bit++)
    id |= (i >> bit & 1) << (bit * 4);
  return id;
}
static uint64_t multiples(uint64_t i) { /* of what hashes multiply with, and of its inverse */
  return i * UINT64_C(0x9e3779b97f4a7c15);
}
static uint64_t inverse_multiples(uint64_t i) {
  return i * UINT64_C(0xf1de83e19937733d);
}
static uint64_t scattered(uint64_t i) {
  uint64_t x = i * UINT64_C(0x2545f4914f6cdd1d) + 1;
  return x ^ x >> 27;
}

static const struct {
  const char *name;
  uint64_t (*id)(uint64_t i);
} patterns[] = {
    {"counted", counted},
    {"downwards", downwards},
    {"upper halves", upper_halves},
    {"top bits", top_bits},
    {"both halves", both_halves},
    {"lines", lines},
    {"pages", pages},
    {"bytes apart", bytes_apart},
    {"multiples", multiples},
    {"inverse multiples", inverse_multiples},
    {"scattered", scattered},
};
enum { PATTERNS = sizeof patterns / sizeof *patterns };

static void set_pattern(size_t pattern, uint32_t count) {
  for (uint32_t i = 0; i < count; i++)
    in[i].id = patterns[pattern].id(i);
}

/* ---- Tests ---- */

static void nothing_is_in_an_empty_one(void **unused) {
  (void)unused;
  ids table = {0};
  assert_int_equal(ids_find(&table, 0), LS_NONE);
  ids_free(&table);
  assert_int_equal(ids_find(&table, 0), LS_NONE);
}

static void every_id_has_its_index(void **unused) {
  (void)unused;
  static const uint32_t counts[] = {1, 2, 3, 1000, 32768, LS_PROGRAM_MAX, 5}; /* room is used again */
  ids table = {0};
  for (size_t p = 0; p < PATTERNS; p++)
    for (size_t c = 0; c < sizeof counts / sizeof *counts; c++) {
      set_pattern(p, counts[c]);
      must_build(&table, counts[c]);
      for (uint32_t i = 0; i < counts[c]; i++)
        if (ids_find(&table, in[i].id) != i)
          fail_msg("%s: %u of %u is not found", patterns[p].name, i, counts[c]);
      assert_int_equal(ids_find(&table, UINT64_C(0x123456789abcdef1)), LS_NONE);
      assert_int_equal(ids_find(&table, patterns[p].id(LS_PROGRAM_MAX - 1)),
                       counts[c] == LS_PROGRAM_MAX ? LS_PROGRAM_MAX - 1 : LS_NONE);
    }
  ids_free(&table);
}

/* How many slots a search looks at depends on how long the runs of taken slots are. Summed over all taken
 * slots, how many of its run lie up to each comes to 3 a slot if half of all are taken at random. */
static void no_pattern_piles_up(void **unused) {
  (void)unused;
  ids table = {0};
  for (size_t p = 0; p < PATTERNS; p++) {
    set_pattern(p, LS_PROGRAM_MAX);
    must_build(&table, LS_PROGRAM_MAX);
    uint64_t in_run = 0, sum = 0;
    for (uint32_t slot = 0; slot <= table.mask; slot++) {
      in_run = table.slots[slot] == LS_NONE ? 0 : in_run + 1;
      sum += in_run;
    }
    if (sum > UINT64_C(4) * LS_PROGRAM_MAX)
      fail_msg("%s: %.1f", patterns[p].name, (double)sum / LS_PROGRAM_MAX);
  }
  ids_free(&table);
}

static void duplicates_are_refused(void **unused) {
  (void)unused;
  static const uint32_t places[][2] = {{0, 1}, {0, 999}, {998, 999}, {17, 500}};
  ids table = {0};
  for (size_t p = 0; p < PATTERNS; p++)
    for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
      const ls_program program = program_of(1000);
      char text[64];
      set_pattern(p, 1000);
      must_build(&table, 1000);
      in[places[i][1]].id = in[places[i][0]].id;
      assert_int_equal(ids_build(&table, &program, &error), LS_ERR_PROGRAM);
      assert_int_equal(error.index, places[i][1]);
      snprintf(text, sizeof text, "instructions %u and %u ", places[i][0], places[i][1]);
      assert_non_null(strstr(error.text, text));
      assert_int_equal(ids_find(&table, in[0].id), LS_NONE);
    }
  set_pattern(0, 10);
  must_build(&table, 10);
  assert_int_equal(ids_find(&table, 9), 9);
  ids_free(&table);
}

static void all_the_same(void **unused) {
  (void)unused;
  ids table = {0};
  const ls_program program = program_of(LS_PROGRAM_MAX);
  memset(in, 0, sizeof in);
  assert_int_equal(ids_build(&table, &program, &error), LS_ERR_PROGRAM);
  assert_int_equal(error.index, 1);
  ids_free(&table);
}

/* The program is not needed any more. */
static void ids_are_copied(void **unused) {
  (void)unused;
  ids table = {0};
  set_pattern(0, 100);
  must_build(&table, 100);
  memset(in, 0xff, sizeof in);
  for (uint32_t i = 0; i < 100; i++)
    assert_int_equal(ids_find(&table, i), i);
  ids_free(&table);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(nothing_is_in_an_empty_one),
      cmocka_unit_test(every_id_has_its_index),
      cmocka_unit_test(no_pattern_piles_up),
      cmocka_unit_test(duplicates_are_refused),
      cmocka_unit_test(all_the_same),
      cmocka_unit_test(ids_are_copied),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}

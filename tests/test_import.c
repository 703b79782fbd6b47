/* The importer: blocks that only run with the right initial values do, and what cannot be run is refused. */
#include "check.h"
#include "hex.h"
#include "import/import.h"
#include "import/import_record.h"
#include "rng.h"

static ls_executor *reference;

/* Normalising changes nothing that an entry holds. */
static bool is_valid(const testcase *test) {
  static testcase copy;
  static uint8_t bytes[TESTCASE_SIZE_MAX], normal[TESTCASE_SIZE_MAX];
  if (!test->count || test->count > TESTCASE_INSTRUCTIONS_MAX || test->patch_count > TESTCASE_PATCHES_MAX)
    return false;
  copy = *test;
  testcase_normalise(&copy);
  size_t size = testcase_encode(test, bytes, sizeof bytes);
  return size && testcase_encode(&copy, normal, sizeof normal) == size && memcmp(bytes, normal, size) == 0;
}

static unsigned block_failures(const char *name, const char *hex, unsigned replaced) {
  static testcase test, bare;
  uint8_t code[512];
  size_t size = parse_hex(hex, code, sizeof code);
  import_report report, bare_report;
  import_status status = import_block(&test, code, size, reference, &report);
  bool fine = status == IMPORT_OK && report.ran && report.stop.kind == LS_STOP_EXIT &&
              report.replaced == replaced && is_valid(&test);
  if (!fine)
    printf("%s: expected ok, exit, %u replaced; got %s, %s (signal %d at 0x%llx in %u), %u replaced\n", name,
           replaced, import_status_name(status), ls_stop_kind_name(report.stop.kind), report.stop.signal,
           (unsigned long long)report.stop.address, report.stop.instruction, report.replaced);
  for (unsigned attempt = 0; attempt < IMPORT_ATTEMPTS; attempt++)
    if (import_attempt(&bare, code, size, attempt, &bare_report) != IMPORT_OK || !is_valid(&bare)) {
      printf("%s: attempt %u gives no valid test case\n", name, attempt);
      fine = false;
    }
  return !fine;
}

static unsigned refusal_failures(const char *name, const char *hex, import_status expected, size_t offset) {
  static testcase test;
  uint8_t code[512];
  import_report report;
  import_status status = import_block(&test, code, parse_hex(hex, code, sizeof code), reference, &report);
  if (status == expected && report.status == expected && report.offset == offset && is_valid(&test))
    return 0;
  printf("%s: expected %s at %zu, got %s at %zu\n", name, import_status_name(expected), offset,
         import_status_name(status), report.offset);
  return 1;
}

static void test_blocks(void **state) {
  (void)state;
  unsigned failures = 0;
#define BLOCK(name, hex, replaced)         failures += block_failures(name, hex, replaced);
#define REFUSED(name, hex, status, offset) failures += refusal_failures(name, hex, status, offset);
#include "test_import.inc"
  assert_int_equal(failures, 0);
}

static void test_too_long(void **state) {
  (void)state;
  static testcase test;
  static uint8_t nops[5000];
  import_report report;
  memset(nops, 0x90, sizeof nops);
  assert_int_equal(import_attempt(&test, nops, TESTCASE_INSTRUCTIONS_MAX, 0, &report), IMPORT_OK);
  assert_int_equal(test.count, TESTCASE_INSTRUCTIONS_MAX);
  assert_int_equal(import_attempt(&test, nops, TESTCASE_INSTRUCTIONS_MAX + 1, 0, &report), IMPORT_TOO_LONG);
  assert_int_equal(import_attempt(&test, nops, sizeof nops, 0, &report), IMPORT_TOO_LONG);
}

/* jz over an instruction, back to it, and out: the links say so, and the displacements are no longer there.
 */
static void test_links(void **state) {
  (void)state;
  static testcase test;
  import_report report;
  static const uint8_t code[] = {0x74, 0x01, 0x90, 0x75, 0xfd, 0xe9, 0, 0, 0x10, 0};
  assert_int_equal(import_attempt(&test, code, sizeof code, 0, &report), IMPORT_OK);
  assert_int_equal(test.count, 4);
  assert_int_equal(test.instructions[0].jump, 2);
  assert_int_equal(test.instructions[0].next, 1);
  assert_int_equal(test.instructions[2].jump, 1);
  assert_int_equal(test.instructions[3].jump, LS_NONE);
  assert_int_equal(test.instructions[3].next, LS_NONE);
  assert_int_equal(test.instructions[3].flags, LS_NEVER_FALLS_THROUGH);
  assert_int_equal(test.instructions[3].field_size, 4);
  assert_int_equal(test.instructions[0].field_size, 1);
}

/* The same original address is the same place, another is another, whatever way it is formed. */
static void test_places(void **state) {
  (void)state;
  static testcase test;
  import_report report;
  static const uint8_t code[] = {0x48, 0x8b, 0x05, 0x27, 0, 0, 0,  /* mov rax, [rip + 0x27] -> 0x2e */
                                 0x48, 0x8b, 0x05, 0x20, 0, 0, 0,  /* mov rax, [rip + 0x20] -> 0x2e */
                                 0x48, 0x8b, 0x05, 0x20, 0, 0, 0}; /* mov rax, [rip + 0x20] -> 0x35 */
  assert_int_equal(import_attempt(&test, code, sizeof code, 0, &report), IMPORT_OK);
  const ls_window *data = &testcase_layout()->windows[TESTCASE_DATA];
  for (unsigned i = 0; i < 3; i++) {
    assert_int_equal(test.instructions[i].field, LS_FIELD_DATA);
    assert_true(test.instructions[i].data - data->address < data->size);
  }
  assert_int_equal(test.instructions[0].data, test.instructions[1].data);
  assert_int_not_equal(test.instructions[0].data, test.instructions[2].data);
}

/* Whatever the bytes, the result is a valid test case. */
static void test_random_bytes(void **state) {
  (void)state;
  static testcase test;
  import_report report;
  rng r = {5};
  unsigned imported = 0;
  for (unsigned i = 0; i < 20000; i++) {
    uint8_t code[24];
    size_t size = rng_below(&r, sizeof code);
    for (size_t at = 0; at < size; at++)
      code[at] = (uint8_t)rng_next(&r);
    import_status status = imported < 200 ? import_block(&test, code, size, reference, &report)
                                          : import_attempt(&test, code, size, i % IMPORT_ATTEMPTS, &report);
    imported += status == IMPORT_OK;
    assert_int_not_equal(status, IMPORT_SYSTEM);
    assert_true(is_valid(&test));
  }
  assert_true(imported >= 200);
}

/* ---- What runs record -------------------------------------------------------------------------------- */

typedef struct stepping {
  ls_image *image;
  trace path;
} stepping;

static int note_step(const ls_state *state, void *context) {
  stepping *s = context;
  const ls_range *range = ls_image_find(s->image, state->rip);
  trace_step *step = &s->path.steps[s->path.count++];
  step->instruction = range && range->part == LS_PART_BODY ? range->instruction : LS_NONE;
  memcpy(step->gpr, state->gpr, sizeof step->gpr);
  return s->path.count == TRACE_MAX;
}

static void load_and_run(const testcase *test, ls_image *image, ls_run run, ls_stop *stop) {
  static testcase_contents contents;
  ls_outcome outcome;
  run.state = &test->state;
  run.uses = LS_USES_X87;
  run.fuel = 256;
  testcase_contents_make(test, &contents);
  assert_int_equal(ls_executor_load(reference, image, NULL), LS_OK);
  assert_int_equal(ls_executor_reset(reference, contents.window, NULL), LS_OK);
  assert_int_equal(ls_executor_run(reference, &run, &outcome, NULL), LS_OK);
  *stop = outcome.stop;
}

/* The steps that both saw; inserted code, which is none of the program's, comes last. */
static bool same_path(const trace *a, const trace *b) {
  for (uint32_t i = 0; i < a->count; i++)
    if (i >= b->count || a->steps[i].instruction != b->steps[i].instruction ||
        memcmp(a->steps[i].gpr, b->steps[i].gpr, sizeof a->steps[i].gpr) != 0)
      return false;
  return a->count > 0;
}

static bool records_what_steps_see(const char *name, const char *hex, unsigned attempt, unsigned *recorded) {
  static testcase test;
  static stepping steps;
  static trace path;
  uint8_t code[512];
  import_report report;
  ls_stop stepped, stop;
  import_attempt(&test, code, parse_hex(hex, code, sizeof code), attempt, &report);
  if (!record_possible(&test))
    return true;
  ls_image *image = ls_image_create();
  ls_program program = testcase_program(&test);
  ls_state start = test.state;
  steps = (stepping){.image = image};
  assert_int_equal(ls_image_build(image, &program, testcase_layout(), NULL), LS_OK);
  start.rip = ls_image_address(image, 0);
  note_step(&start, &steps);
  load_and_run(&test, image, (ls_run){.steps = TRACE_MAX, .visitor = note_step, .context = &steps}, &stepped);
  assert_int_equal(record_build(&test, image, NULL), LS_OK);
  load_and_run(&test, image, (ls_run){0}, &stop);
  record_read(&test, reference, &stop, &path);
  ls_image_destroy(image);
  ++*recorded;
  if (same_path(&path, &steps.path) &&
      (stepped.kind != LS_STOP_FAULT ||
       (stop.kind == stepped.kind && stop.instruction == stepped.instruction)))
    return true;
  printf("%s, attempt %u: %u steps recorded, %u seen; %s in %u, stepped %s in %u\n", name, attempt,
         path.count, steps.path.count, ls_stop_kind_name(stop.kind), stop.instruction,
         ls_stop_kind_name(stepped.kind), stepped.instruction);
  return false;
}

static void test_records(void **state) {
  (void)state;
  unsigned failures = 0, recorded = 0;
  for (unsigned attempt = 0; attempt < 4; attempt++) {
#undef BLOCK
#undef REFUSED
#define BLOCK(name, hex, replaced) failures += !records_what_steps_see(name, hex, attempt, &recorded);
#define REFUSED(name, hex, status, offset)
#include "test_import.inc"
    failures +=
        !records_what_steps_see("all registers",
                                "4989c04d89c14d89ca4d89d34d89dc4d89e54d89ee4d89f7"
                                "4c89fb4889d94889ca4889d64889f74889fd5d504801c4",
                                attempt, &recorded); /* mov %rax,%r8 … pop %rbp; push %rax; add %rax,%rsp */
  }
  assert_int_equal(failures, 0);
  assert_true(recorded > 60);
}

/* Of a chain of pointers each faults; each is put right after one run. Then it runs to its end, with better
 * contents of memory or at least as it is. */
static void test_few_runs(void **state) {
  (void)state;
  static testcase test;
  uint8_t code[64];
  import_report report;
  for (size_t links = 1; links <= 8; links++) {
    for (size_t i = 0; i < links; i++)
      memcpy(code + 4 * i, (uint8_t[]){0x48, 0x8b, 0x40, (uint8_t)(8 * i + 8)}, 4); /* mov 8(%rax),%rax; … */
    assert_int_equal(import_block(&test, code, 4 * links, reference, &report), IMPORT_OK);
    assert_int_equal(report.stop.kind, LS_STOP_EXIT);
    if (report.runs > links + 2)
      fail_msg("%zu links took %u runs", links, report.runs);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_blocks),       cmocka_unit_test(test_too_long),
                                     cmocka_unit_test(test_links),        cmocka_unit_test(test_places),
                                     cmocka_unit_test(test_random_bytes), cmocka_unit_test(test_records),
                                     cmocka_unit_test(test_few_runs)};
  if (open_reference(import_layout(), &reference))
    return 1;
  int failed = cmocka_run_group_tests(tests, NULL, NULL);
  ls_executor_destroy(reference);
  return failed;
}

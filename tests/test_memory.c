/* Guest memory as the host sees it: views, pointers, contents, differences, and that windows of gigabytes
 * take what was touched of them. */
#include <stdbool.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "executor.h"
#include "must.h"

enum { SLOT = 11, DATA = 1, CONSTANTS, STACK, INT3 = 0xcc, NOP = 0x90, KINDS = 2 };

/* Where every sanitizer leaves room. */
#define LARGE      UINT64_C(0x7e8200000000)
#define LARGE_SIZE UINT64_C(0x100000000)

static ls_layout layout, large;
static bool has_reference;

static const char *const kind_names[KINDS] = {[LS_SIGNAL] = "in thread", [LS_PTRACE] = "reference"};

static ls_executor *open_executor(ls_kind kind, const ls_layout *where) {
  ls_executor *x;
  must(ls_executor_create(kind, where, NULL, &x, &error));
  return x;
}

/* An image of `count` NOPs. */
static ls_image *nops(uint32_t count, const ls_layout *where) {
  ls_image *image = ls_image_create();
  ls_instruction *in = calloc(count, sizeof *in);
  assert_non_null(image);
  assert_non_null(in);
  for (uint32_t i = 0; i < count; i++)
    in[i] = (ls_instruction){.id = i, .next = i + 1 < count ? i + 1 : LS_NONE, .length = 1, .bytes = {NOP}};
  const ls_program program = {in, count, 0};
  must(ls_image_build(image, &program, where, &error));
  free(in);
  return image;
}

/* ---- Code --------------------------------------------------------------------------------------------- */

static void check_code(const ls_image *image, const uint8_t *code) {
  size_t size;
  const uint8_t *bytes = ls_image_bytes(image, &size);
  assert_memory_equal(code, bytes, size);
  for (size_t i = size; i < layout.windows[LS_CODE_WINDOW].size; i++)
    if (code[i] != INT3)
      fail_msg("byte %zu of the code window is %#x", i, code[i]);
}

/* Loads; what is then written everywhere is gone after the next load. */
static void check_loads(ls_executor *x, uint8_t *(*view)(ls_executor *)) {
  ls_image *small = nops(3, &layout), *wide = nops(300, &layout);
  must(ls_executor_load(x, wide, &error));
  must(ls_executor_load(x, small, &error));
  check_code(small, view(x));
  memset(view(x), NOP, layout.windows[LS_CODE_WINDOW].size);
  must(ls_executor_load(x, small, &error));
  check_code(small, view(x));
  view(x)[layout.windows[LS_CODE_WINDOW].size - 1] = NOP;
  must(ls_executor_load(x, wide, &error));
  check_code(wide, view(x));
  ls_image_destroy(small);
  ls_image_destroy(wide);
}

static uint8_t *by_window(ls_executor *x) {
  return ls_executor_memory(x, LS_CODE_WINDOW);
}

static uint8_t *by_address(ls_executor *x) {
  return ls_executor_pointer(x, layout.windows[LS_CODE_WINDOW].address, 1);
}

static void the_rest_of_the_code_window_is_int3(void **unused) {
  (void)unused;
  uint8_t *(*const views[])(ls_executor *) = {by_window, by_address};
  for (int kind = 0; kind < (has_reference ? KINDS : 1); kind++)
    for (size_t i = 0; i < sizeof views / sizeof *views; i++) {
      ls_executor *x = open_executor((ls_kind)kind, &layout);
      check_loads(x, views[i]);
      ls_executor_destroy(x);
    }
}

static void so_it_is_in_controllers(void **unused) {
  (void)unused;
  for (int kind = 0; kind < (has_reference ? KINDS : 1); kind++) {
    ls_controller *c;
    const ls_controller_options options = {.layout = &layout};
    const ls_instruction in = {.id = 1, .next = LS_NONE, .length = 1, .bytes = {NOP}};
    const ls_program program = {&in, 1, 0};
    must(ls_controller_create((ls_kind)kind, &options, &c, &error));
    must(ls_update_code(c, &program, &error));
    uint8_t *code = ls_controller_pointer(c, layout.windows[LS_CODE_WINDOW].address, LS_PAGE);
    assert_ptr_equal(code, ls_controller_memory(c, LS_CODE_WINDOW));
    memset(code, NOP, layout.windows[LS_CODE_WINDOW].size);
    must(ls_update_code(c, &program, &error));
    ls_image *same = nops(1, &layout);
    check_code(same, code);
    ls_image_destroy(same);
    ls_controller_destroy(c);
  }
}

/* ---- Addresses ---------------------------------------------------------------------------------------- */

static void addresses_have_pointers(void **unused) {
  (void)unused;
  ls_executor *x = open_executor(LS_SIGNAL, &layout);
  for (uint32_t i = 0; i < layout.window_count; i++) {
    const ls_window *w = &layout.windows[i];
    uint8_t *memory = ls_executor_memory(x, i);
    assert_ptr_equal(ls_executor_pointer(x, w->address, 1), memory);
    assert_ptr_equal(ls_executor_pointer(x, w->address, w->size), memory);
    assert_ptr_equal(ls_executor_pointer(x, w->address + w->size - 8, 8), memory + w->size - 8);
    assert_null(ls_executor_pointer(x, w->address, w->size + 1));
    assert_null(ls_executor_pointer(x, w->address, 0));
    assert_null(ls_executor_pointer(x, w->address - 1, 2));
    assert_null(ls_executor_pointer(x, w->address + w->size - 1, 2));
    assert_null(ls_executor_pointer(x, w->address + 1, UINT64_MAX));
  }
  assert_null(ls_executor_pointer(x, 0, 1));
  assert_null(ls_executor_pointer(x, UINT64_MAX, 1));
  assert_null(ls_executor_memory(x, layout.window_count));
  ls_executor_destroy(x);
}

/* ---- Contents ----------------------------------------------------------------------------------------- */

static void windows_become_zero(void **unused) {
  (void)unused;
  ls_executor *x = open_executor(LS_SIGNAL, &layout);
  static uint8_t zeros[2 * LS_PAGE], ones[2 * LS_PAGE];
  memset(ones, 1, sizeof ones);
  const void *const all_ones[LS_WINDOWS_MAX] = {[DATA] = ones, [CONSTANTS] = ones, [STACK] = ones};
  const void *const zero[LS_WINDOWS_MAX] = {[DATA] = LS_ZERO, [STACK] = LS_ZERO};
  must(ls_executor_reset(x, all_ones, &error));
  must(ls_executor_reset(x, zero, &error));
  assert_memory_equal(ls_executor_memory(x, DATA), zeros, layout.windows[DATA].size);
  assert_memory_equal(ls_executor_memory(x, CONSTANTS), ones, layout.windows[CONSTANTS].size);
  assert_memory_equal(ls_executor_memory(x, STACK), zeros, layout.windows[STACK].size);
  ls_executor_destroy(x);
}

/* Bytes that the kernel holds for all windows of an executor. */
static uint64_t held(const ls_executor *x) {
  struct stat about;
  assert_int_equal(fstat(x->box.fd, &about), 0);
  return (uint64_t)about.st_blocks * 512;
}

/* Beside a few pages: code, data and the like. */
static void holds_little(const ls_executor *x, uint64_t pages) {
  const uint64_t others = UINT64_C(64) * LS_PAGE;
  if (held(x) > others + pages * LS_PAGE)
    fail_msg("%s: it holds %llu bytes", kind_names[x->kind], (unsigned long long)held(x));
}

/* Has a guest write RAX, 8 bytes, at the offset. */
static void write_in_guest(ls_executor *x, uint64_t offset, uint64_t value) {
  const ls_instruction in = {.next = LS_NONE, .length = 3, .bytes = {0x48, 0x89, 0x07}}; /* mov [rdi], rax */
  const ls_program program = {&in, 1, 0};
  ls_image *image = ls_image_create();
  ls_state state;
  ls_outcome outcome;
  ls_state_init(&state);
  state.gpr[LS_RDI] = LARGE + offset;
  state.gpr[LS_RAX] = value;
  must(ls_image_build(image, &program, &large, &error));
  must(ls_executor_load(x, image, &error));
  must(ls_executor_run(x, &(ls_run){.state = &state}, &outcome, &error));
  assert_int_equal(outcome.stop.kind, LS_STOP_EXIT);
  ls_image_destroy(image);
}

/* Two executors of the large layout: the in-thread one and, where there is one, a reference. */
static ls_executor *pair[KINDS];

static int close_pair(void **unused) {
  (void)unused;
  for (int i = 0; i < KINDS; i++) {
    ls_executor_destroy(pair[i]);
    pair[i] = NULL;
  }
  return 0;
}

static void open_pair(void) {
  pair[0] = open_executor(LS_SIGNAL, &large);
  if (has_reference)
    pair[1] = open_executor(LS_PTRACE, &large);
}

/* All differences of the pair, each from the byte after the one before. */
static void differ_at(const uint64_t *offsets, size_t count) {
  uint32_t window = 0;
  uint64_t offset = 0;
  for (size_t i = 0; i < count; i++, offset++) {
    assert_true(ls_memory_difference(pair[0], pair[1], &window, &offset));
    assert_int_equal(window, DATA);
    assert_int_equal(offset, offsets[i]);
  }
  assert_false(ls_memory_difference(pair[0], pair[1], &window, &offset));
}

static void large_windows_are_compared(void **unused) {
  (void)unused;
  static const uint64_t offsets[] = {0,          1,          LS_PAGE - 1, LS_PAGE,       0x80000123,
                                     0x80001fff, 0xc0000005, 0xc0000006,  LARGE_SIZE - 1};
  const size_t count = sizeof offsets / sizeof *offsets;
  if (!has_reference)
    return; /* main says so */
  open_pair();
  differ_at(NULL, 0);
  for (size_t i = 0; i < count; i++)
    *(uint8_t *)ls_executor_pointer(pair[i % 2], LARGE + offsets[i], 1) =
        7; /* now in one, now in the other */
  differ_at(offsets, count);
  for (size_t i = 0; i < count; i++)
    *(uint8_t *)ls_executor_pointer(pair[!(i % 2)], LARGE + offsets[i], 1) = 7;
  differ_at(NULL, 0);
  for (int i = 0; i < KINDS; i++)
    holds_little(pair[i], count);
}

static void touched_pages_become_zero(void **unused) {
  (void)unused;
  enum { PAGES = 600 };
  const void *const zero[LS_WINDOWS_MAX] = {[DATA] = LS_ZERO};
  open_pair();
  for (int i = 0; i < KINDS && pair[i]; i++) {
    const uint64_t *cell = ls_executor_pointer(pair[i], LARGE + 0xc0000000, 8);
    write_in_guest(pair[i], 0xc0000000, 0x1122334455667788);
    assert_int_equal(*cell, 0x1122334455667788);
    must(ls_executor_reset(pair[i], zero, &error));
    assert_int_equal(*cell, 0);
    for (uint64_t n = 0; n < PAGES; n++)
      *(uint8_t *)ls_executor_pointer(pair[i], LARGE + n * (LARGE_SIZE / PAGES), 1) = 9;
    assert_true(held(pair[i]) >= (uint64_t)PAGES * LS_PAGE);
    must(ls_executor_reset(pair[i], zero, &error));
    holds_little(pair[i], 32);
    for (uint64_t n = 0; n < PAGES; n++)
      assert_int_equal(*(uint8_t *)ls_executor_pointer(pair[i], LARGE + n * (LARGE_SIZE / PAGES), 1), 0);
    write_in_guest(pair[i], 0, 5); /* the guest's view is of the same pages still */
    assert_int_equal(*(uint64_t *)ls_executor_memory(pair[i], DATA), 5);
  }
}

static void zeros_take_no_memory(void **unused) {
  (void)unused;
  enum { SIZE = 8 << 20 };
  ls_layout some = large;
  some.windows[DATA].size = SIZE;
  ls_executor *x = open_executor(LS_SIGNAL, &some);
  uint8_t *bytes = calloc(1, SIZE);
  assert_non_null(bytes);
  const void *const contents[LS_WINDOWS_MAX] = {[DATA] = bytes};
  ((uint8_t *)ls_executor_memory(x, DATA))[3 * LS_PAGE] = 1; /* to be overwritten by zeros */
  ((uint8_t *)ls_executor_memory(x, DATA))[SIZE / 2 + 8] = 1;
  bytes[5] = bytes[SIZE / 2 + LS_PAGE] = bytes[SIZE - 1] = 2;
  must(ls_executor_reset(x, contents, &error));
  holds_little(x, 5);
  assert_memory_equal(ls_executor_memory(x, DATA), bytes, SIZE);
  free(bytes);
  ls_executor_destroy(x);
}

/* A forked process gets what was touched, and nothing else. */
static void a_fork_copies_what_was_touched(void **unused) {
  (void)unused;
  ls_executor *x = open_executor(LS_SIGNAL, &large);
  uint8_t *memory = ls_executor_memory(x, DATA);
  const void *const nothing[LS_WINDOWS_MAX] = {NULL};
  memory[0xa0000001] = 3;
  pid_t child = fork();
  if (child == 0) {
    struct stat about;
    bool good = ls_executor_reset(x, nothing, NULL) == LS_OK && memory[0xa0000001] == 3 &&
                fstat(x->box.fd, &about) == 0 && about.st_blocks * 512 < (1 << 20);
    memory[0xa0000001] = 4;
    _exit(good ? 0 : 1);
  }
  int status;
  assert_int_equal(waitpid(child, &status, 0), child);
  assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  assert_int_equal(memory[0xa0000001], 3);
  ls_executor_destroy(x);
}

/* ---- What no function takes --------------------------------------------------------------------------- */

static void refused(ls_status status) {
  assert_int_equal(status, LS_ERR_ARGUMENT);
  assert_int_equal(error.status, LS_ERR_ARGUMENT);
  assert_true(error.text[0]);
  error = (ls_error){0};
}

static void check_run_arguments(ls_executor *x, const ls_run *run, ls_outcome *outcome) {
  char *misaligned = (char *)outcome + 8;
  ls_run moved = *run;
  refused(ls_executor_run(NULL, run, outcome, &error));
  refused(ls_executor_run(x, NULL, outcome, &error));
  refused(ls_executor_run(x, run, NULL, &error));
  refused(ls_executor_run(x, run, (void *)misaligned, &error));
  moved.state = (void *)misaligned;
  refused(ls_executor_run(x, &moved, outcome, &error));
  moved.state = NULL;
  refused(ls_executor_run(x, &moved, outcome, &error));
  must(ls_executor_run(x, run, outcome, &error));
}

static void null_and_misaligned_pointers_are_refused(void **unused) {
  (void)unused;
  const void *const nothing[LS_WINDOWS_MAX] = {NULL};
  static ls_outcome outcomes[2];
  ls_state state;
  uint32_t window = 0;
  uint64_t offset = 0;
  ls_state_init(&state);
  for (int kind = 0; kind < (has_reference ? KINDS : 1); kind++) {
    ls_executor *x = open_executor((ls_kind)kind, &layout);
    ls_image *image = nops(1, &layout);
    refused(ls_executor_run(x, &(ls_run){.state = &state}, &outcomes[0], &error)); /* nothing is loaded */
    refused(ls_executor_load(NULL, image, &error));
    refused(ls_executor_load(x, NULL, &error));
    must(ls_executor_load(x, image, &error));
    refused(ls_executor_reset(NULL, nothing, &error));
    refused(ls_executor_reset(x, NULL, &error));
    check_run_arguments(x, &(ls_run){.state = &state}, &outcomes[0]);
    assert_false(ls_memory_difference(NULL, x, &window, &offset));
    assert_false(ls_memory_difference(x, NULL, &window, &offset));
    ls_image_destroy(image);
    ls_executor_destroy(x);
  }
  refused(ls_executor_create(LS_SIGNAL, NULL, NULL, &pair[0], &error));
  refused(ls_executor_create(LS_SIGNAL, &layout, NULL, NULL, &error));
  refused(ls_image_build(NULL, &(ls_program){0}, &layout, &error));
  assert_null(ls_executor_memory(NULL, 0));
  assert_null(ls_executor_pointer(NULL, LARGE, 1));
  assert_null(ls_executor_layout(NULL));
  assert_int_equal(ls_executor_stops_syscalls(NULL), 0);
  assert_int_equal(ls_address_faults(NULL, 0, 1), 0);
  assert_null(ls_controller_memory(NULL, 0));
  assert_null(ls_controller_pointer(NULL, LARGE, 1));
}

int main(void) {
  ls_layout_default(&layout, SLOT);
  large = layout;
  large.windows[DATA] = (ls_window){LARGE, LARGE_SIZE, LS_READ | LS_WRITE, 0};
  has_reference = is_wanted(LS_PTRACE);
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(the_rest_of_the_code_window_is_int3),
      cmocka_unit_test(so_it_is_in_controllers),
      cmocka_unit_test(addresses_have_pointers),
      cmocka_unit_test(windows_become_zero),
      cmocka_unit_test_teardown(large_windows_are_compared, close_pair),
      cmocka_unit_test_teardown(touched_pages_become_zero, close_pair),
      cmocka_unit_test(zeros_take_no_memory),
      cmocka_unit_test(a_fork_copies_what_was_touched),
      cmocka_unit_test(null_and_misaligned_pointers_are_refused),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}

/* Layouts, mappings, several sandboxes side by side, fork; where code that grows could go. */
#include "check.h"

#include <inttypes.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "sandbox.h"
#include "sanitizers.h"

static void own_layouts_are_valid_and_disjoint(void **unused) {
  (void)unused;
  for (unsigned slot = 0; slot < LS_LAYOUT_SLOTS; slot++) {
    ls_layout a, b;
    ls_layout_default(&a, slot);
    assert_int_equal(layout_check(&a, NULL), LS_OK);
    if (!slot)
      continue;
    ls_layout_default(&b, slot - 1);
    const ls_window *last = &b.windows[b.window_count - 1];
    assert_true(last->address + last->size + LS_PAGE <= a.windows[0].address - LS_PAGE);
    assert_true(b.gate + LS_GATE_SIZE <= a.gate);
  }
}

/* Each row breaks one thing in an otherwise good layout. */
static void break_none(ls_layout *l) {
  (void)l;
}
static void break_count(ls_layout *l) {
  l->window_count = 0;
}
static void break_many(ls_layout *l) {
  l->window_count = LS_WINDOWS_MAX + 1;
}
static void break_alignment(ls_layout *l) {
  l->windows[1].address += 8;
}
static void break_size(ls_layout *l) {
  l->windows[2].size = 0;
}
static void break_overlap(ls_layout *l) {
  l->windows[2].address = l->windows[1].address + LS_PAGE;
}
static void break_access(ls_layout *l) {
  l->windows[1].access = 8;
}
static void break_code(ls_layout *l) {
  l->windows[0].access = LS_READ;
}
static void break_control(ls_layout *l) {
  l->control = l->windows[2].address;
}
static void break_control_alignment(ls_layout *l) {
  l->control += 8;
}
static void break_gate(ls_layout *l) {
  l->gate = l->windows[1].address;
}
static void break_kernel(ls_layout *l) {
  l->windows[1].address = UINT64_C(0xffff800000000000);
}
static void break_far(ls_layout *l) {
  l->windows[4].address = UINT64_C(0x600000000000);
  l->control = l->windows[4].address;
}

static void break_inner_gate(ls_layout *l) {
  l->gate = UINT64_C(0x1000000000); /* the other half of it would be at 0 */
}
static void break_gate_alignment(ls_layout *l) {
  l->gate += LS_PAGE;
}
static void break_address_zero(ls_layout *l) {
  l->windows[1].address = 0;
}

/* Each is told apart, with the window's index where it is one's. */
static void bad_layouts_are_refused(void **unused) {
  (void)unused;
  static const struct {
    void (*change)(ls_layout *);
    const char *says; /* NULL: it is a good one */
    uint32_t index;
  } cases[] = {
      {break_none, NULL, LS_NONE},
      {break_count, "1 to 16 windows, not 0", LS_NONE},
      {break_many, "1 to 16 windows, not 17", LS_NONE},
      {break_alignment, "its address, 0x20100008, is no multiple of 4096", 1},
      {break_size, "its size, 0x0, is 0 or no multiple", 2},
      {break_overlap, "windows 1 and 2 overlap", 2},
      {break_access, "access must be", 1},
      {break_code, "LS_READ | LS_EXEC", LS_CODE_WINDOW},
      {break_control, "control (0x20180000) must lie in a window that has LS_WRITE", LS_NONE},
      {break_control_alignment, "aligned to 64", LS_NONE},
      {break_gate, "overlaps what the gate takes at 0x20100000", 1},
      {break_inner_gate, "XOR 0x1000000000 (0x0)", LS_NONE},
      {break_gate_alignment, "aligned to 0x10000", LS_NONE},
      {break_kernel, "user space", 1},
      {break_address_zero, "user space", 1},
      {break_far, "within 2 GiB", LS_NONE},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    ls_layout layout;
    ls_error error = {.index = 4711, .text = ""};
    ls_layout_default(&layout, 0);
    cases[i].change(&layout);
    assert_int_equal(layout_check(&layout, &error), cases[i].says ? LS_ERR_ARGUMENT : LS_OK);
    if (!cases[i].says)
      continue;
    if (!strstr(error.text, cases[i].says))
      fail_msg("\"%s\" does not say \"%s\"", error.text, cases[i].says);
    assert_int_equal(error.index, cases[i].index);
  }
}

static void guards_stand_on_either_side(void **unused) {
  (void)unused;
  ls_layout layout;
  sandbox box;
  sandbox_mapping m[SANDBOX_MAPPINGS_MAX];
  ls_layout_default(&layout, 3);
  layout.windows[2].address = layout.windows[1].address + layout.windows[1].size; /* no guard between */
  assert_int_equal(sandbox_create(&box, &layout, NULL), LS_OK);
  uint32_t count = sandbox_mappings(&box, m), guards = 0;
  for (uint32_t i = 0; i < count; i++) {
    guards += m[i].guard;
    assert_true(i == 0 || m[i - 1].address + m[i - 1].size <= m[i].address);
  }
  assert_int_equal(count - guards, layout.window_count);
  assert_int_equal(guards, 2 * layout.window_count - 2);
  sandbox_destroy(&box);
}

static void both_views_show_the_same_bytes(void **unused) {
  (void)unused;
  ls_layout layout;
  sandbox box;
  ls_layout_default(&layout, 4);
  assert_int_equal(sandbox_create(&box, &layout, NULL), LS_OK);
  assert_int_equal(sandbox_map(&box, NULL), LS_OK);
  for (uint32_t i = 0; i < layout.window_count; i++) {
    volatile uint8_t *guest = (volatile uint8_t *)layout.windows[i].address;
    box.alias[box.offset[i]] = (uint8_t)(i + 1);
    assert_int_equal(*guest, i + 1);
  }
  ls_error error;
  sandbox second;
  assert_int_equal(sandbox_create(&second, &layout, NULL), LS_OK);
  assert_int_equal(sandbox_map(&second, &error), LS_ERR_ADDRESS);
  assert_non_null(strstr(error.text, "another layout or slot"));
  sandbox_destroy(&second);
  *(volatile uint8_t *)layout.windows[1].address = 7; /* the refused one took nothing away */
  sandbox_destroy(&box);
  assert_int_equal(msync((void *)layout.windows[1].address, LS_PAGE, MS_ASYNC), -1);
}

/* Memory where an embedder's code expects it, with windows of its own making: code, four data windows of
 * different access side by side, one far away. */
static void embedders_layout(ls_layout *layout) {
  static const ls_window windows[] = {
      {UINT64_C(0xe0000000), 0x100000, LS_READ | LS_EXEC, 0},
      {UINT64_C(0xe0200000), 0x40000, LS_READ | LS_WRITE, 0},
      {UINT64_C(0xe0240000), 0x1000, LS_READ, 0},
      {UINT64_C(0xe0241000), 0x2000, LS_READ | LS_WRITE, 0},
      {UINT64_C(0x7e8123450000), 0x1000, LS_READ | LS_WRITE, 0},
  };
  memset(layout, 0, sizeof *layout);
  memcpy(layout->windows, windows, sizeof windows);
  layout->window_count = sizeof windows / sizeof *windows;
  layout->control = windows[3].address;
  ls_layout own;
  ls_layout_default(&own, 7);
  layout->gate = own.gate;
}

static void callers_choose_addresses(void **unused) {
  (void)unused;
  ls_layout layout;
  embedders_layout(&layout);
  /* mov [rbx+rdx], rax; mov [rcx], rax */
  const ls_instruction in[] = {
      {.next = 1, .jump = LS_NONE, .length = 4, .bytes = {0x48, 0x89, 0x04, 0x13}},
      {.next = LS_NONE, .jump = LS_NONE, .length = 3, .bytes = {0x48, 0x89, 0x01}},
  };
  const ls_program program = {in, 2, 0};
  ls_image *image = ls_image_create();
  assert_int_equal(ls_image_build(image, &program, &layout, NULL), LS_OK);
  for (int kind = LS_SIGNAL; kind <= LS_PTRACE; kind++) {
    ls_executor *x;
    ls_error error = {0};
    if (!is_wanted((ls_kind)kind))
      continue;
    ls_status status = ls_executor_create((ls_kind)kind, &layout, NULL, &x, &error);
    if (ASAN && kind == LS_SIGNAL) { /* it keeps this range to itself, and that is what is said */
      assert_int_equal(status, LS_ERR_ADDRESS);
      assert_non_null(strstr(error.text, "0xdffff000"));
      assert_non_null(strstr(error.text, "AddressSanitizer"));
      continue;
    }
    assert_int_equal(status, LS_OK);
    ls_state start;
    ls_outcome outcome;
    ls_state_init(&start);
    start.gpr[LS_RAX] = 0x1122334455667788;
    start.gpr[LS_RBX] = layout.windows[1].address;
    start.gpr[LS_RDX] = 0x3fff8;
    start.gpr[LS_RCX] = layout.windows[4].address;
    const ls_run run = {.state = &start};
    assert_int_equal(ls_executor_load(x, image, &error), LS_OK);
    assert_int_equal(ls_executor_run(x, &run, &outcome, &error), LS_OK);
    assert_int_equal(outcome.stop.kind, LS_STOP_EXIT);
    assert_memory_equal((uint8_t *)ls_executor_memory(x, 1) + 0x3fff8, &start.gpr[LS_RAX], 8);
    assert_memory_equal(ls_executor_memory(x, 4), &start.gpr[LS_RAX], 8);
    start.gpr[LS_RCX] = layout.windows[2].address; /* read only, between two that are not */
    assert_int_equal(ls_executor_run(x, &run, &outcome, &error), LS_OK);
    assert_int_equal(outcome.stop.kind, LS_STOP_FAULT);
    assert_int_equal(outcome.stop.address, layout.windows[2].address);
    ls_executor_destroy(x);
  }
  ls_image_destroy(image);
}

static void a_fork_gets_memory_of_its_own(void **unused) {
  (void)unused;
  ls_layout layout;
  sandbox box;
  ls_layout_default(&layout, 6);
  assert_int_equal(sandbox_create(&box, &layout, NULL), LS_OK);
  assert_int_equal(sandbox_map(&box, NULL), LS_OK);
  volatile uint8_t *guest = (volatile uint8_t *)layout.windows[1].address;
  *guest = 1;
  assert_false(sandbox_forked(&box));
  pid_t child = fork();
  if (child == 0) {
    int good =
        sandbox_forked(&box) && sandbox_renew(&box, NULL) == LS_OK && !sandbox_forked(&box) && *guest == 1;
    *guest = 2;
    _exit(good && box.alias[box.offset[1]] == 2 ? 0 : 1);
  }
  int status;
  assert_int_equal(waitpid(child, &status, 0), child);
  assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  assert_int_equal(*guest, 1);
  assert_false(sandbox_forked(&box));
  sandbox_destroy(&box);
}

/* ---- Places for code that grows ---- */

#define REACH UINT64_C(0x7fff0000)

static ls_error error;

static void must(ls_status status) {
  if (status)
    fail_msg("%s: %s", ls_status_name(status), error.text);
}

static uint64_t span(const ls_window *a, const ls_window *b) {
  uint64_t a_end = a->address + a->size, b_end = b->address + b->size;
  return (a_end > b_end ? a_end : b_end) - (a->address < b->address ? a->address : b->address);
}

static bool apart(const ls_window *a, const ls_window *b, uint64_t gap) {
  return a->address + a->size + gap <= b->address || b->address + b->size + gap <= a->address;
}

static void check_place(const ls_layout *layout, const ls_window *place) {
  const ls_window *code = &layout->windows[LS_CODE_WINDOW];
  ls_layout grown = *layout;
  grown.windows[LS_CODE_WINDOW] = *place;
  must(layout_check(&grown, &error));
  for (uint32_t i = 0; i < layout->window_count; i++) {
    assert_true(apart(place, &layout->windows[i], (uint64_t)2 * LS_PAGE));
    if (i != LS_CODE_WINDOW && span(code, &layout->windows[i]) <= REACH)
      assert_true(span(place, &layout->windows[i]) <= REACH);
  }
  for (unsigned bits = 31; bits <= 32; bits++)
    if ((code->address + code->size) >> bits == 0)
      assert_true(place->address + place->size <= UINT64_C(1) << bits);
}

/* All there are; none overlaps a window of a slot other than `own`. */
static uint32_t check_places(const ls_layout *layout, unsigned own, uint64_t size) {
  code_places places;
  ls_window place;
  uint32_t count = 0;
  for (layout_places(&places, layout, size); layout_next_place(&places, &place); count++) {
    assert_int_equal(place.size, size);
    check_place(layout, &place);
    for (unsigned slot = 0; slot < LS_LAYOUT_SLOTS; slot++) {
      ls_layout other;
      ls_layout_default(&other, slot);
      for (uint32_t w = 0; slot != own && w < other.window_count; w++)
        assert_true(apart(&place, &other.windows[w], (uint64_t)2 * LS_PAGE));
    }
  }
  assert_false(layout_next_place(&places, &place));
  return count;
}

static void own_layouts_keep_out_of_other_slots(void **unused) {
  (void)unused;
  for (unsigned slot = 0; slot < LS_LAYOUT_SLOTS; slot += 51)
    for (uint64_t size = 1 << 17; size <= SANDBOX_CODE_MAX; size *= 128) {
      ls_layout layout;
      ls_layout_default(&layout, slot);
      assert_in_range(check_places(&layout, slot, size), 32, UINT32_MAX);
    }
}

/* Layouts of an embedder: code and control at `code`, a data window `far` bytes from there. */
static ls_layout layout_at(uint64_t code, uint64_t far) {
  ls_layout layout;
  ls_layout_default(&layout, 0);
  layout.windows[0].address = code;
  layout.windows[1] = (ls_window){code + 0x20000, LS_PAGE, LS_READ | LS_WRITE, 0};
  layout.windows[2] = (ls_window){code + far, LS_PAGE, LS_READ, 0};
  layout.window_count = 3;
  layout.control = layout.windows[1].address;
  layout.gate = (code + 0x200000) & -(uint64_t)LS_GATE_SIZE;
  return layout;
}

static void other_layouts_stay_in_reach(void **unused) {
  (void)unused;
  static const uint64_t codes[] = {0x10000,    0x1f000000,  0x7ff00000,     0x80000000,    0xe0000000,
                                   0xffe00000, 0x100000000, 0x7e8123450000, 0x7fffff000000};
  static const uint64_t fars[] = {0x40000, 0x600000, 0x70000000, -UINT64_C(0x7f000000), 0x100000000};
  for (size_t i = 0; i < sizeof codes / sizeof *codes; i++)
    for (size_t j = 0; j < sizeof fars / sizeof *fars; j++)
      for (uint64_t size = 1 << 20; size <= SANDBOX_CODE_MAX; size *= 16) {
        ls_layout layout = layout_at(codes[i], fars[j]);
        if (layout_check(&layout, NULL) == LS_OK && check_places(&layout, LS_LAYOUT_SLOTS, size) == 0)
          fail_msg("no place at %#" PRIx64 ", %#" PRIx64, codes[i], fars[j]);
      }
}

/* Two windows as far apart as the code between them allows: it can be nowhere else. */
static void no_place_is_an_error(void **unused) {
  (void)unused;
  const uint64_t code = UINT64_C(0x300000000), size = 0x10000;
  ls_layout layout = layout_at(code, size - REACH);
  layout.windows[3] = (ls_window){code + REACH - LS_PAGE, LS_PAGE, LS_READ, 0};
  layout.window_count = 4;
  sandbox box;
  ls_window window;
  must(sandbox_create(&box, &layout, &error));
  const sandbox before = box;
  assert_int_equal(sandbox_code_reserve(&box, 1, &window, &error), LS_ERR_ADDRESS);
  assert_non_null(strstr(error.text, "131072"));
  assert_memory_equal(&box, &before, sizeof box);
  sandbox_destroy(&box);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(own_layouts_are_valid_and_disjoint),
      cmocka_unit_test(bad_layouts_are_refused),
      cmocka_unit_test(guards_stand_on_either_side),
      cmocka_unit_test(both_views_show_the_same_bytes),
      cmocka_unit_test(callers_choose_addresses),
      cmocka_unit_test(a_fork_gets_memory_of_its_own),
      cmocka_unit_test(own_layouts_keep_out_of_other_slots),
      cmocka_unit_test(other_layouts_stay_in_reach),
      cmocka_unit_test(no_place_is_an_error),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}

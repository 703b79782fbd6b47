/* From graphs to code images: what is refused, what is laid out, and that it runs as the graph says. */
#include "check.h"

#include <stdlib.h>

#include "image.h"

static ls_layout layout;

/* Instructions by hand. The comment of each use says what it is. */
static ls_instruction code(uint32_t next, uint8_t length, const char *bytes) {
  ls_instruction in = {.next = next, .jump = LS_NONE, .length = length};
  memcpy(in.bytes, bytes, length);
  return in;
}

static ls_instruction branch(uint32_t next, uint32_t jump, uint8_t length, const char *bytes,
                             uint8_t field_size) {
  ls_instruction in = code(next, length, bytes);
  in.jump = jump;
  in.field = LS_FIELD_BRANCH;
  in.field_size = field_size;
  in.field_offset = (uint8_t)(length - field_size);
  return in;
}

static ls_instruction nop(uint32_t next) {
  return code(next, 1, "\x90");
}
static ls_instruction inc_rax(uint32_t next) {
  return code(next, 3, "\x48\xff\xc0");
}
static ls_instruction dec_rbx(uint32_t next) {
  return code(next, 3, "\x48\xff\xcb");
}
static ls_instruction jnz(uint32_t next, uint32_t jump) {
  return branch(next, jump, 2, "\x75\x00", 1);
}
static ls_instruction loop(uint32_t next, uint32_t jump) {
  return branch(next, jump, 2, "\xe2\x00", 1);
}
static ls_instruction jrcxz(uint32_t next, uint32_t jump) {
  return branch(next, jump, 2, "\xe3\x00", 1);
}
static ls_instruction call(uint32_t next, uint32_t jump) {
  return branch(next, jump, 5, "\xe8\0\0\0", 4);
}
static ls_instruction jmp(uint32_t jump) {
  ls_instruction in = branch(LS_NONE, jump, 5, "\xe9\0\0\0", 4);
  in.flags = LS_NEVER_FALLS_THROUGH;
  return in;
}
static ls_instruction ret(void) {
  ls_instruction in = code(LS_NONE, 1, "\xc3");
  in.flags = LS_NEVER_FALLS_THROUGH;
  return in;
}

static ls_image *build(const ls_instruction *in, uint32_t count, uint32_t flags) {
  const ls_program program = {in, count, flags};
  ls_error error = {0};
  ls_image *image = ls_image_create();
  assert_non_null(image);
  if (ls_image_build(image, &program, &layout, &error) != LS_OK)
    fail_msg("%s", error.text);
  return image;
}

/* ---- Refusals ---- */

static ls_instruction changed(ls_instruction in, int what) {
  switch (what) {
  case 0:
    in.length = 0;
    break;
  case 1:
    in.length = 16;
    break;
  case 2:
    in.next = 7;
    break;
  case 3:
    in.jump = 1;
    break; /* a link without a branch */
  case 4:
    in = jnz(LS_NONE, 9);
    break;
  case 5:
    in = jnz(LS_NONE, 0);
    in.field_size = 2;
    break;
  case 6:
    in = jnz(LS_NONE, 0);
    in.field_offset = 2;
    break;
  case 7:
    in.field = 9;
    break;
  case 8:
    in = code(LS_NONE, 7, "\x48\x8b\x05\0\0\0");
    in.field = LS_FIELD_DATA;
    in.field_offset = 3;
    in.field_size = 4;
    in.data = UINT64_C(0x700000000000);
    break;
  case 9:
    in = code(LS_NONE, 7, "\x48\x8b\x05\0\0\0");
    in.field = LS_FIELD_DATA;
    in.field_offset = 3;
    in.field_size = 1;
    break;
  case 10:
    in.flags = 2;
    break;
  default:
    break;
  }
  return in;
}

/* What nobody has set is 0: no link of an instruction that does not branch. */
static void a_jump_of_zero_is_none(void **unused) {
  (void)unused;
  const ls_instruction zeroed = {.next = LS_NONE, .length = 1, .bytes = {0x90}};
  ls_instruction in[] = {nop(1), zeroed}, with_data = code(LS_NONE, 7, "\x48\x8b\x05\0\0\0");
  ls_image *image = build(in, 2, 0);
  size_t size, other_size;
  const uint8_t *bytes = ls_image_bytes(image, &size);
  in[1].jump = LS_NONE;
  ls_image *other = build(in, 2, 0);
  const uint8_t *other_bytes = ls_image_bytes(other, &other_size);
  assert_int_equal(size, other_size);
  assert_memory_equal(bytes, other_bytes, size);
  ls_image_destroy(other);
  ls_image_destroy(image);
  with_data.jump = 0;
  with_data.field = LS_FIELD_DATA;
  with_data.field_offset = 3;
  with_data.field_size = 4;
  with_data.data = layout.windows[1].address;
  ls_image_destroy(build(&with_data, 1, 0));
}

static void impossible_programs_are_refused(void **unused) {
  (void)unused;
  for (int what = 0; what < 11; what++) {
    const ls_instruction good[] = {nop(1), nop(LS_NONE)};
    ls_image *image = build(good, 2, 0);
    size_t size_before, size_after;
    ls_image_bytes(image, &size_before);
    const ls_instruction in[] = {nop(1), changed(nop(LS_NONE), what)};
    const ls_program program = {in, 2, 0};
    ls_error error = {0};
    assert_int_equal(ls_image_build(image, &program, &layout, &error), LS_ERR_PROGRAM);
    assert_int_equal(error.index, 1);
    assert_true(error.text[0]);
    ls_image_bytes(image, &size_after);
    assert_int_equal(size_before, size_after); /* the old code stays in force */
    assert_int_equal(ls_image_address(image, 1), ls_image_address(image, 0) + 1);
    ls_image_destroy(image);
  }
}

static void too_large_a_program_is_refused(void **unused) {
  (void)unused;
  ls_instruction *in = malloc(LS_PROGRAM_MAX * sizeof *in);
  assert_non_null(in);
  for (uint32_t i = 0; i < LS_PROGRAM_MAX; i++)
    in[i] = nop(i + 1 < LS_PROGRAM_MAX ? i + 1 : LS_NONE);
  const ls_program program = {in, LS_PROGRAM_MAX, 0};
  ls_error error = {0};
  ls_image *image = ls_image_create();
  assert_int_equal(ls_image_build(image, &program, &layout, &error), LS_ERR_PROGRAM);
  assert_non_null(strstr(error.text, "code window"));
  size_t size;
  ls_image_bytes(image, &size);
  assert_int_equal(size, 0);
  ls_layout large = layout;
  large.windows[LS_CODE_WINDOW].size = 0x80000;
  assert_int_equal(ls_image_build(image, &program, &large, &error), LS_OK);
  ls_image_destroy(image);
  free(in);
}

/* ---- In two halves ---- */

static ls_instruction lea_rax(uint64_t data) {
  ls_instruction in = code(LS_NONE, 7, "\x48\x8d\x05\0\0\0");
  in.field = LS_FIELD_DATA;
  in.field_offset = 3;
  in.field_size = 4;
  in.data = data;
  return in;
}

/* What `build` made of nop(1), nop(LS_NONE). */
static void check_two_nops(const ls_image *image) {
  size_t size;
  const uint8_t *bytes = ls_image_bytes(image, &size);
  assert_int_equal(size, 32); /* two bytes, an exit point of 17, padding, the slot */
  assert_memory_equal(bytes, "\x90\x90\x48\xc7\x05", 5);
  assert_int_equal(ls_image_address(image, 1), layout.windows[0].address + 1);
  assert_int_equal(ls_image_address(image, 2), 0);
}

static void the_size_is_known_before_the_window(void **unused) {
  (void)unused;
  const ls_instruction nops[] = {nop(1), nop(LS_NONE)};
  ls_instruction in[3000];
  enum { COUNT = sizeof in / sizeof *in };
  for (uint32_t i = 0; i < COUNT; i++)
    in[i] = i % 7 ? inc_rax(i + 1) : jnz(i + 1, (i * 31) % COUNT);
  in[COUNT - 1] = lea_rax(layout.windows[1].address);
  const ls_program program = {in, COUNT, LS_PROGRAM_FUEL};
  ls_error error = {0};
  ls_layout other = layout;
  ls_image *image = build(nops, 2, 0);
  assert_int_equal(image_lay_out(image, &program, &error), LS_OK);
  size_t size = image_size(image), emitted;
  check_two_nops(image);
  other.windows[LS_CODE_WINDOW].size = size - 1;
  assert_int_equal(image_emit(image, &program, &other, &error), LS_ERR_PROGRAM);
  check_two_nops(image);
  other.windows[LS_CODE_WINDOW].address += UINT64_C(1) << 32; /* the data is out of reach */
  other.windows[LS_CODE_WINDOW].size = size;
  assert_int_equal(image_emit(image, &program, &other, &error), LS_ERR_PROGRAM);
  assert_int_equal(error.index, COUNT - 1);
  check_two_nops(image);
  other.windows[LS_CODE_WINDOW].address = layout.windows[LS_CODE_WINDOW].address;
  assert_int_equal(image_emit(image, &program, &other, &error), LS_OK);
  const uint8_t *bytes = ls_image_bytes(image, &emitted);
  assert_int_equal(emitted, size);
  ls_image *at_once = build(in, COUNT, LS_PROGRAM_FUEL);
  assert_memory_equal(bytes, ls_image_bytes(at_once, &emitted), size);
  assert_int_equal(emitted, size);
  ls_image_destroy(at_once);
  ls_image_destroy(image);
}

static void a_program_refused_leaves_the_image(void **unused) {
  (void)unused;
  const ls_instruction nops[] = {nop(1), nop(LS_NONE)}, in[] = {nop(3)};
  const ls_program program = {in, 1, 0};
  ls_image *image = build(nops, 2, 0);
  assert_int_equal(image_lay_out(image, &program, NULL), LS_ERR_PROGRAM);
  check_two_nops(image);
  ls_image_destroy(image);
}

/* All of them as long as can be: prefixes, an island, and fuel for both links. */
static void the_largest_program(void **unused) {
  (void)unused;
  enum { COUNT = LS_PROGRAM_MAX };
  ls_instruction *in = malloc(COUNT * sizeof *in);
  assert_non_null(in);
  for (uint32_t i = 0; i < COUNT; i++) /* jnz behind segment prefixes */
    in[i] = branch(0, 0, 15, "\x2e\x2e\x2e\x2e\x2e\x2e\x2e\x2e\x2e\x2e\x2e\x2e\x2e\x75\x00", 1);
  const ls_program program = {in, COUNT, LS_PROGRAM_FUEL};
  ls_error error = {0};
  ls_layout large;
  ls_image *image = ls_image_create();
  ls_executor *executor;
  assert_int_equal(image_lay_out(image, &program, &error), LS_OK);
  assert_in_range(image_size(image), IMAGE_SIZE_MAX - 2 * SLOT_SIZE, IMAGE_SIZE_MAX);
  ls_layout_default(&large, 1);
  large.windows[LS_CODE_WINDOW].address = 0x60010000;
  large.windows[LS_CODE_WINDOW].size = SANDBOX_CODE_MAX;
  assert_int_equal(image_emit(image, &program, &large, &error), LS_OK);
  assert_int_equal(ls_executor_create(LS_SIGNAL, &large, NULL, &executor, &error), LS_OK);
  assert_int_equal(ls_executor_load(executor, image, &error), LS_OK);
  for (int zero = 0; zero < 2; zero++) { /* from the last one to the first, over either link */
    ls_state start;
    ls_outcome outcome;
    ls_state_init(&start);
    start.rflags |= zero ? 0x40 : 0;
    const ls_run run = {.state = &start, .entry = COUNT - 1, .fuel = 1};
    assert_int_equal(ls_executor_run(executor, &run, &outcome, &error), LS_OK);
    assert_int_equal(outcome.stop.kind, LS_STOP_FUEL);
    assert_int_equal(outcome.stop.instruction, 0);
    assert_int_equal(outcome.stop.part, zero ? LS_PART_NEXT : LS_PART_JUMP);
  }
  ls_executor_destroy(executor);
  ls_image_destroy(image);
  free(in);
}

/* ---- The code map ---- */

static void check_map(const ls_image *image) {
  size_t size, count;
  ls_image_bytes(image, &size);
  const ls_range *map = ls_image_map(image, &count);
  uint32_t at = 0;
  for (size_t i = 0; i < count; i++) {
    assert_int_equal(map[i].offset, at);
    assert_ptr_equal(ls_image_find(image, layout.windows[0].address + at), &map[i]);
    at += map[i].length;
    assert_ptr_equal(ls_image_find(image, layout.windows[0].address + at - 1), &map[i]);
  }
  assert_true(size - at >= 8 && size - at < 16); /* padding and the slot */
  assert_null(ls_image_find(image, layout.windows[0].address + size));
  assert_null(ls_image_find(image, layout.windows[0].address - 1));
}

static void maps_cover_every_byte_once(void **unused) {
  (void)unused;
  const ls_instruction in[] = {inc_rax(1),   jnz(2, 0),  call(3, 5), jmp(4),
                               nop(LS_NONE), inc_rax(6), ret(),      jrcxz(LS_NONE, LS_NONE),
                               nop(8)};
  for (uint32_t flags = 0; flags <= LS_PROGRAM_FUEL; flags++) {
    ls_image *image = build(in, sizeof in / sizeof *in, flags);
    check_map(image);
    for (uint32_t i = 0; i < sizeof in / sizeof *in; i++)
      assert_int_equal(ls_image_find(image, ls_image_address(image, i))->instruction, i);
    assert_int_equal(ls_image_address(image, sizeof in / sizeof *in), 0);
    ls_image_destroy(image);
  }
}

/* ---- Running ---- */

typedef struct expected {
  ls_stop_kind kind;
  uint32_t instruction;
  ls_part part;
  uint64_t rax;
} expected;

static ls_kind kinds[] = {LS_SIGNAL, LS_PTRACE};
enum { KINDS = 2 };
static ls_executor *executors[KINDS]; /* the second only where there is a reference */

/* Runs in every executor there is, from instruction 0 with RAX 0, RBX and RCX as given. */
static void check_run(const ls_instruction *in, uint32_t count, uint64_t rbx, uint64_t rcx, uint64_t fuel,
                      expected want) {
  ls_image *image = build(in, count, LS_PROGRAM_FUEL);
  for (size_t i = 0; i < KINDS; i++) {
    ls_state start;
    ls_outcome outcome;
    ls_error error = {0};
    if (!executors[i])
      continue;
    ls_state_init(&start);
    start.gpr[LS_RBX] = rbx;
    start.gpr[LS_RCX] = rcx;
    start.gpr[LS_RSP] = layout.windows[3].address + 0x800;
    start.rflags |= 0x8d5;
    const ls_run run = {.state = &start, .fuel = fuel};
    assert_int_equal(ls_executor_load(executors[i], image, &error), LS_OK);
    if (ls_executor_run(executors[i], &run, &outcome, &error) != LS_OK)
      fail_msg("%s", error.text);
    assert_int_equal(outcome.stop.kind, want.kind);
    assert_int_equal(outcome.stop.instruction, want.instruction);
    assert_int_equal(outcome.stop.part, want.part);
    assert_int_equal(outcome.state.gpr[LS_RAX], want.rax);
    const ls_range *at = ls_image_find(image, outcome.state.rip);
    assert_non_null(at);
    assert_int_equal(at->instruction, want.instruction);
  }
  ls_image_destroy(image);
}

static void straight_line(void **unused) {
  (void)unused;
  const ls_instruction in[] = {inc_rax(1), inc_rax(2), inc_rax(LS_NONE)};
  check_run(in, 3, 0, 0, 0, (expected){LS_STOP_EXIT, 2, LS_PART_NEXT, 3});
}

static void order_of_the_list_does_not_matter(void **unused) {
  (void)unused;
  const ls_instruction in[] = {inc_rax(2), inc_rax(LS_NONE), inc_rax(1)};
  check_run(in, 3, 0, 0, 0, (expected){LS_STOP_EXIT, 1, LS_PART_NEXT, 3});
}

static void loops_take_fuel(void **unused) {
  (void)unused;
  const ls_instruction in[] = {inc_rax(1), dec_rbx(2), jnz(LS_NONE, 0)};
  check_run(in, 3, 10, 0, 9, (expected){LS_STOP_EXIT, 2, LS_PART_NEXT, 10});
  check_run(in, 3, 10, 0, 8, (expected){LS_STOP_FUEL, 2, LS_PART_JUMP, 9});
  check_run(in, 3, 10, 0, 0, (expected){LS_STOP_FUEL, 2, LS_PART_JUMP, 1});
}

static void a_next_link_backwards_takes_fuel(void **unused) {
  (void)unused;
  const ls_instruction in[] = {inc_rax(0)};
  check_run(in, 1, 0, 0, 41, (expected){LS_STOP_FUEL, 0, LS_PART_NEXT, 42});
}

static void a_jump_to_itself_takes_fuel(void **unused) {
  (void)unused;
  const ls_instruction in[] = {inc_rax(1), jmp(1)};
  check_run(in, 2, 0, 0, 5, (expected){LS_STOP_FUEL, 1, LS_PART_JUMP, 1});
}

static void branches_leave_over_their_jump(void **unused) {
  (void)unused;
  const ls_instruction in[] = {inc_rax(1), jnz(2, LS_NONE), inc_rax(LS_NONE)};
  check_run(in, 3, 0, 0, 0, (expected){LS_STOP_EXIT, 1, LS_PART_JUMP, 1});
}

static void calls_return(void **unused) {
  (void)unused;
  const ls_instruction in[] = {call(1, 2), inc_rax(LS_NONE), inc_rax(3), inc_rax(4), ret()};
  check_run(in, 5, 0, 0, 1, (expected){LS_STOP_EXIT, 1, LS_PART_NEXT, 3});
  check_run(in, 5, 0, 0, 0, (expected){LS_STOP_FUEL, 4, LS_PART_BEFORE, 2});
}

static ls_instruction endless(uint32_t length, const char *bytes) {
  ls_instruction in = code(LS_NONE, length, bytes);
  in.flags = LS_NEVER_FALLS_THROUGH;
  return in;
}

/* Without a link that goes back, but for the one from the pop. */
static void indirect_branches_take_fuel(void **unused) {
  (void)unused;
  const ls_instruction jumps[] = {call(1, 1), inc_rax(2), endless(3, "\xff\x24\x24")};
  check_run(jumps, 3, 0, 0, 41, (expected){LS_STOP_FUEL, 2, LS_PART_BEFORE, 42});
  const ls_instruction calls[] = {call(2, 1), code(2, 1, "\x59"), inc_rax(3), code(LS_NONE, 2, "\xff\xd1")};
  check_run(calls, 4, 0, 0, 42, (expected){LS_STOP_FUEL, 3, LS_PART_BEFORE, 42});
  const ls_instruction returns[] = {call(1, 1), code(2, 5, "\x48\x83\x04\x24\0"), inc_rax(3),
                                    code(4, 3, "\xff\x34\x24"), ret()};
  check_run(returns, 5, 0, 0, 41, (expected){LS_STOP_FUEL, 4, LS_PART_BEFORE, 42});
}

/* What follows a call, and what a short branch goes to, is the counter. */
static void counters_stand_in_the_way(void **unused) {
  (void)unused;
  const ls_instruction in[] = {inc_rax(1), call(2, 3), ret(), inc_rax(4), jnz(5, 2), inc_rax(2)};
  check_run(in, 6, 0, 0, 0, (expected){LS_STOP_FUEL, 4, LS_PART_JUMP, 2});
  check_run(in, 6, 0, 0, 1, (expected){LS_STOP_FUEL, 2, LS_PART_BEFORE, 2});
}

/* `loop` and jrcxz have 8-bit fields only, and here 600 bytes to cross, both ways. */
static void short_branches_get_islands(void **unused) {
  (void)unused;
  enum { GAP = 200, COUNT = GAP + 4 };
  ls_instruction in[COUNT];
  in[0] = jrcxz(1, COUNT - 1);
  for (uint32_t i = 1; i <= GAP; i++)
    in[i] = inc_rax(i + 1);
  in[GAP + 1] = loop(COUNT - 2, 0);
  in[COUNT - 2] = inc_rax(LS_NONE);
  in[COUNT - 1] = nop(LS_NONE);
  check_run(in, COUNT, 0, 0, 0, (expected){LS_STOP_EXIT, COUNT - 1, LS_PART_NEXT, 0});
  check_run(in, COUNT, 0, 3, 2, (expected){LS_STOP_EXIT, COUNT - 2, LS_PART_NEXT, 3 * GAP + 1});
  check_run(in, COUNT, 0, 3, 1, (expected){LS_STOP_FUEL, GAP + 1, LS_PART_JUMP, 2 * GAP});
}

/* What is inserted must not show: flags and registers before and after a hundred counted turns. */
static void fuel_disturbs_nothing(void **unused) {
  (void)unused;
  /* stc; (inc rax; lea rbx,[rbx-1]; xchg rbx,rcx; jrcxz out; xchg rbx,rcx; jmp back): CF must survive */
  const ls_instruction in[] = {code(1, 1, "\xf9"),
                               code(2, 4, "\x48\x8d\x40\x01"),
                               code(3, 4, "\x48\x8d\x5b\xff"),
                               code(4, 3, "\x48\x87\xcb"),
                               jrcxz(5, 7),
                               code(6, 3, "\x48\x87\xcb"),
                               jmp(1),
                               code(LS_NONE, 4, "\x48\x83\xd0\x00")}; /* adc rax, 0 */
  check_run(in, sizeof in / sizeof *in, 100, 0x5555, 1000, (expected){LS_STOP_EXIT, 7, LS_PART_NEXT, 101});
}

static int make_executors(void **unused) {
  (void)unused;
  ls_error error = {0};
  for (size_t i = 0; i < (is_wanted(LS_PTRACE) ? KINDS : 1); i++)
    if (ls_executor_create(kinds[i], &layout, NULL, &executors[i], &error) != LS_OK) {
      printf("no executor: %s\n", error.text);
      return -1;
    }
  return 0;
}

static int end_executors(void **unused) {
  (void)unused;
  for (size_t i = 0; i < KINDS; i++)
    ls_executor_destroy(executors[i]);
  return 0;
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(a_jump_of_zero_is_none),
      cmocka_unit_test(impossible_programs_are_refused),
      cmocka_unit_test(too_large_a_program_is_refused),
      cmocka_unit_test(the_size_is_known_before_the_window),
      cmocka_unit_test(a_program_refused_leaves_the_image),
      cmocka_unit_test(the_largest_program),
      cmocka_unit_test(maps_cover_every_byte_once),
      cmocka_unit_test(straight_line),
      cmocka_unit_test(order_of_the_list_does_not_matter),
      cmocka_unit_test(loops_take_fuel),
      cmocka_unit_test(a_next_link_backwards_takes_fuel),
      cmocka_unit_test(a_jump_to_itself_takes_fuel),
      cmocka_unit_test(branches_leave_over_their_jump),
      cmocka_unit_test(calls_return),
      cmocka_unit_test(indirect_branches_take_fuel),
      cmocka_unit_test(counters_stand_in_the_way),
      cmocka_unit_test(short_branches_get_islands),
      cmocka_unit_test(fuel_disturbs_nothing),
  };
  ls_layout_default(&layout, 0);
  return cmocka_run_group_tests(tests, make_executors, end_executors);
}

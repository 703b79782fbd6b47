/* Inserted code carried out on a state in memory ends as it does on the CPU: from every instruction of it, in
 * images of random graphs, the in-thread executor steps through the same bytes. */
#include "guest.h"

#include "controller/inserted.h"
#include "image.h"

enum { SEEDS = 80, COUNT_MAX = 150, CONTROL_WINDOW = 4, WAY_MAX = 15 };

/* ---- Random numbers ---- */

static uint64_t drawn;

static uint64_t draw(void) { /* xorshift64 (Marsaglia 2003) */
  drawn ^= drawn << 13;
  drawn ^= drawn >> 7;
  return drawn ^= drawn << 17;
}

static uint32_t below(uint32_t bound) {
  return (uint32_t)((draw() >> 32) % bound);
}

/* Often zero, and as often zero in the lower half only. */
static uint64_t draw_number(void) {
  static const uint8_t shifts[] = {0, 32, 63};
  uint32_t kind = below(4);
  return kind ? draw() << shifts[kind - 1] : 0;
}

/* ---- Random graphs ---- */

typedef struct sort {
  uint8_t length;
  char bytes[7];
  uint8_t field_size; /* of a branch; 0: none */
  uint8_t flags;
} sort;

static const sort sorts[] = {
    {1, "\x90", 0, 0},
    {3, "\x0f\x1f\x00", 0, 0},
    {3, "\x48\xff\xc0", 0, 0},     /* inc rax */
    {2, "\x75\0", 1, 0},           /* jnz */
    {6, "\x0f\x84\0\0\0\0", 4, 0}, /* jz */
    {2, "\xe3\0", 1, 0},           /* jrcxz */
    {2, "\xe2\0", 1, 0},           /* loop */
    {2, "\xeb\0", 1, 0},           /* jmp, of which this is not known */
    {2, "\xeb\0", 1, LS_NEVER_FALLS_THROUGH},
    {5, "\xe9\0\0\0\0", 4, LS_NEVER_FALLS_THROUGH},
    {1, "\xc3", 0, LS_NEVER_FALLS_THROUGH},     /* ret, */
    {3, "\xff\x24\x24", 0, 0},                  /* and jmp [rsp], of which this is not known */
    {2, "\x0f\x0b", 0, LS_NEVER_FALLS_THROUGH}, /* ud2 */
};

static uint32_t draw_link(uint32_t from, uint32_t count, uint32_t percent_following) {
  if (below(8) == 0)
    return LS_NONE;
  return from + 1 < count && below(100) < percent_following ? from + 1 : below(count);
}

static ls_instruction draw_instruction(uint32_t index, uint32_t count) {
  const sort *s = &sorts[below(sizeof sorts / sizeof *sorts)];
  ls_instruction in = {.id = index, .jump = LS_NONE, .length = s->length, .flags = s->flags};
  memcpy(in.bytes, s->bytes, s->length);
  in.next = draw_link(index, count, 60);
  if (s->field_size) {
    in.jump = draw_link(index, count, 10);
    in.field = LS_FIELD_BRANCH;
    in.field_size = s->field_size;
    in.field_offset = (uint8_t)(s->length - s->field_size);
  }
  return in;
}

/* A graph that follows from the seed; every other one with fuel. */
static void load_graph(guest *g, uint64_t seed) {
  static ls_instruction in[COUNT_MAX];
  drawn = seed * UINT64_C(0x9e3779b97f4a7c15) + 1;
  uint32_t count = 1 + below(seed % 4 ? COUNT_MAX : 8);
  for (uint32_t i = 0; i < count; i++)
    in[i] = draw_instruction(i, count);
  const ls_program program = {in, count, seed & 1 ? LS_PROGRAM_FUEL : 0};
  must(ls_image_build(g->image, &program, &g->layout, &error));
  must(ls_executor_load(g->executor, g->image, &error));
}

/* ---- Where inserted instructions begin ---- */

/* By the length of their range: what the emitter inserts is of four kinds. */
static bool begins(const ls_range *range, uint32_t offset) {
  static const struct {
    uint32_t length;
    uint8_t at[10], count;
  } kinds[] = {
      {JUMP_SIZE, {0}, 1},
      {ISLAND_SIZE, {0, 2}, 2},
      {EXIT_SIZE, {0, 11}, 2},
      {FUEL_SIZE, {0, 7, 14, 16, 20, 27, 34, 39, 46, 57}, 10},
  };
  size_t i = 0;
  while (i < sizeof kinds / sizeof *kinds && kinds[i].length != range->length)
    i++;
  assert_true(i < sizeof kinds / sizeof *kinds);
  return memchr(kinds[i].at, (int)offset, kinds[i].count) != NULL;
}

/* ---- A guest, in memory and on the CPU ---- */

typedef struct situation {
  ls_state state;
  control_cells cells;
} situation;

static situation draw_situation(uint64_t rip) {
  situation s;
  fill(&s.state);
  for (int i = 0; i < 16; i++)
    if (i != LS_RSP)
      s.state.gpr[i] = draw();
  s.state.gpr[LS_RCX] = draw_number();
  s.state.rflags = RFLAGS_CLEAN | (draw() & RFLAGS_USER & ~(uint64_t)RFLAGS_TF);
  s.state.rip = rip;
  s.cells = (control_cells){draw_number(), draw_number(), draw(), {1, 2, 3, 4, 5}};
  return s;
}

static bool same(const situation *a, const situation *b) {
  return memcmp(a, b, sizeof *a) == 0;
}

/* One instruction of the executor's. */
static void step(guest *g, situation *s) {
  ls_outcome outcome;
  const ls_run one = {.state = &s->state, .steps = 1, .limit_ms = 60000};
  control_cells *control = (control_cells *)ls_executor_memory(g->executor, CONTROL_WINDOW);
  *control = s->cells;
  g->executor->time_left = TIME_ENDLESS;
  must(g->executor->ops->run(g->executor, &one, s->state.rip, &outcome, &error));
  if (outcome.stop.kind != LS_STOP_STEPS && outcome.stop.kind != LS_STOP_EXIT)
    fail_msg("0x%lx: a step ends with %s", (unsigned long)s->state.rip, ls_stop_kind_name(outcome.stop.kind));
  s->state = outcome.state;
  s->cells = *control;
}

static bool in_inserted(const guest *g, uint64_t rip) {
  const ls_range *range = ls_image_find(g->image, rip);
  return range && range->part != LS_PART_BODY;
}

/* Steps until the guest is through. Returns how many instructions that took. */
static int step_through(guest *g, situation *s) {
  int steps = 0;
  for (; in_inserted(g, s->state.rip); steps++) {
    assert_true(steps < 100);
    step(g, s);
  }
  return steps;
}

static inserted_end carry_out(const guest *g, situation *s) {
  return inserted_carry_out(g->image, &s->cells, &s->state);
}

static void same_situation(uint64_t from, const situation *expected, const situation *got) {
  char name[64];
  snprintf(name, sizeof name, "from 0x%lx", (unsigned long)from);
  same_state(name, &expected->state, &got->state);
  if (memcmp(&expected->cells, &got->cells, sizeof got->cells) != 0)
    fail_msg("%s: control cells differ", name);
  assert_int_equal(expected->state.rip, got->state.rip);
}

/* ---- What was met ---- */

typedef struct tally {
  unsigned bodies, left, changed_midway, longest;
  unsigned lengths[FUEL_SIZE + 1][LS_PART_BEFORE + 1]; /* by range */
} tally;

static void saw_all(const tally *s) {
  static const uint32_t both[] = {EXIT_SIZE, FUEL_SIZE};
  for (size_t i = 0; i < sizeof both / sizeof *both; i++)
    for (int part = LS_PART_NEXT; part <= LS_PART_JUMP; part++)
      assert_true(s->lengths[both[i]][part] > 20);
  assert_true(s->lengths[FUEL_SIZE][LS_PART_BEFORE] > 20);
  assert_true(s->lengths[JUMP_SIZE][LS_PART_NEXT] > 20 && s->lengths[ISLAND_SIZE][LS_PART_JUMP] > 20);
  assert_true(s->bodies > 100 && s->left > 100 && s->changed_midway > 0);
  assert_int_equal(s->longest, WAY_MAX);
}

/* ---- Tests ---- */

static void check_start(guest *g, uint64_t from, tally *seen) {
  situation carried = draw_situation(from), stepped = carried;
  inserted_end end = carry_out(g, &carried);
  unsigned steps = (unsigned)step_through(g, &stepped);
  same_situation(from, &stepped, &carried);
  const ls_range *at = ls_image_find(g->image, carried.state.rip);
  if (end == INSERTED_LEFT) {
    assert_int_equal(carried.state.rip, g->layout.gate);
  } else {
    assert_non_null(at);
    assert_int_equal(at->part, LS_PART_BODY);
    assert_int_equal(carried.state.rip, ls_image_address(g->image, at->instruction));
  }
  seen->bodies += end == INSERTED_BODY;
  seen->left += end == INSERTED_LEFT;
  seen->longest = steps > seen->longest ? steps : seen->longest;
}

/* It has done something or nothing. What it has done, the CPU does too. */
static bool check_anywhere(guest *g, uint64_t from) {
  situation carried = draw_situation(from), stepped = carried;
  carry_out(g, &carried);
  bool changed = !same(&carried, &stepped);
  for (int steps = 0; steps < WAY_MAX && !same(&carried, &stepped); steps++) {
    step(g, &stepped);
    ls_state_canonicalise(&carried.state);
    ls_state_canonicalise(&stepped.state);
  }
  same_situation(from, &stepped, &carried);
  return changed;
}

static void check_range(guest *g, const ls_range *range, tally *seen) {
  uint64_t address = g->layout.windows[LS_CODE_WINDOW].address + range->offset;
  seen->lengths[range->length][range->part]++;
  for (uint32_t i = 0; i < range->length; i++) {
    if (begins(range, i))
      check_start(g, address + i, seen);
    else
      seen->changed_midway += check_anywhere(g, address + i);
  }
}

static void it_ends_as_on_the_cpu(void **unused) {
  (void)unused;
  guest g = guest_open(0, NULL);
  tally seen = {0};
  for (uint64_t seed = 0; seed < SEEDS; seed++) {
    load_graph(&g, seed);
    size_t count;
    const ls_range *map = ls_image_map(g.image, &count);
    for (size_t i = 0; i < count; i++)
      if (map[i].part != LS_PART_BODY)
        check_range(&g, &map[i], &seen);
  }
  saw_all(&seen);
  guest_close(&g);
}

/* The situation stays as it is from `rip`. */
static void check_left_alone(const guest *g, situation before) {
  situation after = before;
  assert_int_equal(carry_out(g, &after), INSERTED_BODY);
  assert_true(same(&before, &after));
}

static void bodies_and_what_is_not_the_image_are_left_alone(void **unused) {
  (void)unused;
  guest g = guest_open(0, NULL);
  for (uint64_t seed = 0; seed < 8; seed++) {
    load_graph(&g, seed);
    size_t size;
    ls_image_bytes(g.image, &size);
    for (uint64_t i = 0; i < size + 16; i++)
      if (!in_inserted(&g, CODE + i))
        check_left_alone(&g, draw_situation(CODE + i));
    const uint64_t outside[] = {0, CODE - 1, DATA, UINT64_MAX, g.layout.gate, gate_inner(g.layout.gate)};
    for (size_t i = 0; i < sizeof outside / sizeof *outside; i++)
      check_left_alone(&g, draw_situation(outside[i]));
  }
  guest_close(&g);
}

static void a_guest_that_steps_itself_is_left_alone(void **unused) {
  (void)unused;
  guest g = guest_open(0, NULL);
  load_graph(&g, 1);
  size_t size;
  ls_image_bytes(g.image, &size);
  for (uint64_t i = 0; i < size; i++) {
    situation s = draw_situation(CODE + i);
    s.state.rflags |= RFLAGS_TF;
    check_left_alone(&g, s);
  }
  guest_close(&g);
}

/* Bytes of inserted code, in the image and where the guest runs. */
static void overwrite(guest *g, uint32_t offset, const void *bytes, size_t size) {
  memcpy(g->image->now.bytes + offset, bytes, size);
  memcpy((uint8_t *)ls_executor_memory(g->executor, LS_CODE_WINDOW) + offset, bytes, size);
}

/* One byte is another: from each byte of the range. Returns how often something was carried out. */
static unsigned check_spoilt(guest *g, const ls_range *range, uint32_t at, uint8_t byte) {
  unsigned changed = 0;
  uint8_t before = g->image->now.bytes[range->offset + at];
  overwrite(g, range->offset + at, &byte, 1);
  for (uint32_t i = 0; i < range->length; i++)
    changed += check_anywhere(g, CODE + range->offset + i);
  overwrite(g, range->offset + at, &before, 1);
  return changed;
}

static uint8_t draw_byte(uint8_t before) {
  return below(2) ? (uint8_t)draw() : (uint8_t)(before ^ 1u << below(8));
}

static void spoilt_bytes_are_left_alone_or_do_as_on_the_cpu(void **unused) {
  (void)unused;
  guest g = guest_open(0, NULL);
  unsigned changed = 0;
  for (uint64_t seed = 0; seed < 4; seed++) {
    load_graph(&g, seed);
    size_t count;
    const ls_range *map = ls_image_map(g.image, &count);
    for (size_t i = 0; i < count; i++)
      for (uint32_t at = 0; map[i].part != LS_PART_BODY && at < map[i].length; at++)
        changed += check_spoilt(&g, &map[i], at, draw_byte(g.image->now.bytes[map[i].offset + at]));
  }
  assert_true(changed > 300);
  guest_close(&g);
}

/* nop, and the counter of a jump back to it. */
static void load_counter(guest *g) {
  const ls_instruction in = {.length = 1, .bytes = "\x90", .next = 0, .jump = LS_NONE};
  const ls_program program = {&in, 1, LS_PROGRAM_FUEL};
  must(ls_image_build(g->image, &program, &g->layout, &error));
  must(ls_executor_load(g->executor, g->image, &error));
}

static void circles_end(void **unused) {
  (void)unused;
  guest g = guest_open(0, NULL);
  load_counter(&g);
  overwrite(&g, 1, "\xe9\xfb\xff\xff\xff", 5); /* jmp to itself */
  check_left_alone(&g, draw_situation(CODE + 1));
  overwrite(&g, 1, "\x48\x8d\x49\xff\xe9\xf7\xff\xff\xff", 9); /* lea rcx, [rcx-1]; jmp to that */
  assert_true(check_anywhere(&g, CODE + 1));
  guest_close(&g);
}

static void what_crosses_the_end_of_its_range_is_left_alone(void **unused) {
  (void)unused;
  guest g = guest_open(0, NULL);
  load_counter(&g);
  for (uint32_t kept = 1; kept <= JUMP_SIZE; kept++) {
    uint32_t at = 1 + FUEL_SIZE - kept;
    overwrite(&g, at, "\xe9\0\0\0\0", kept);
    if (kept < JUMP_SIZE)
      check_left_alone(&g, draw_situation(CODE + at));
    else
      assert_true(check_anywhere(&g, CODE + at));
  }
  guest_close(&g);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_teardown(it_ends_as_on_the_cpu, close_all),
      cmocka_unit_test_teardown(bodies_and_what_is_not_the_image_are_left_alone, close_all),
      cmocka_unit_test_teardown(a_guest_that_steps_itself_is_left_alone, close_all),
      cmocka_unit_test_teardown(spoilt_bytes_are_left_alone_or_do_as_on_the_cpu, close_all),
      cmocka_unit_test_teardown(circles_end, close_all),
      cmocka_unit_test_teardown(what_crosses_the_end_of_its_range_is_left_alone, close_all),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}

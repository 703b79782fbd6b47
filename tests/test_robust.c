/* What breaks those who run foreign code in their own process: each test here is one way in which that goes
 * wrong. Every test in both kinds. */
#include "related.h"
#include "sanitizers.h"

#define CELL "1 48ff03; 2 eb00 >1!" /* counts the first cell */

/* ---- Links -------------------------------------------------------------------------------------------- */

static const struct branch {
  const char *name, *bytes, *rcx; /* what sets RCX so that the branch is taken; ZF is set */
} branches[] = {
    {"JMP", "eb00", "31c9"},    {"JZ", "7400", "31c9"},      {"JRCXZ", "e300", "31c9"},
    {"LOOP", "e200", "6a0259"}, {"LOOPE", "e100", "6a0259"}, {"JECXZ", "67e300", "31c9"},
};

static void branch_over(guest *g, const struct branch *b, int distance, bool backward) {
  char text[256];
  if (backward)
    snprintf(text, sizeof text, "40 eb00 >1!; 50 48ff03 =-; 100 90 *%d =9; 1 %s; 2 31c0; 3 %s >50 =9; 9 0f0b",
             distance, b->rcx, b->bytes);
  else
    snprintf(text, sizeof text, "1 %s; 2 31c0; 3 %s >50 =9; 100 90 *%d =9; 50 48ff03 =-; 9 0f0b", b->rcx,
             b->bytes, distance);
  load(g, text);
  const ls_stop *stop = run(g, backward ? 40 : 1);
  if (stop->kind != LS_STOP_EXIT || stop->id != 50)
    fail_msg("%s over %d bytes: %s at %llu", b->name, distance, ls_stop_kind_name(stop->kind),
             (unsigned long long)stop->id);
}

/* An 8-bit field holds -128 to 127. Cut off, the branch would land elsewhere, in NOPs that lead to UD2. */
static void an_8_bit_displacement_is_not_cut_off(void **unused) {
  (void)unused;
  guest *g = guest_open(NULL);
  uint64_t count = 0;
  for (size_t i = 0; i < sizeof branches / sizeof *branches; i++)
    for (int distance = 70; distance < 400; distance += distance < 140 ? 1 : 60)
      for (int backward = 0; backward < 2; backward++) {
        branch_over(g, &branches[i], distance, backward);
        assert_int_equal(g->cells[0], ++count);
      }
}

/* More than a page of code. */
static void code_goes_on_behind_its_first_page(void **unused) {
  (void)unused;
  guest *g = guest_open(NULL);
  load(g, "1 48ff03; 100 660f1f840000000000 *500; 2 48ff03; 3 48ffc9; 4 7500 >1");
  set_gpr(g, LS_RCX, 3);
  stopped(run(g, 1), LS_STOP_EXIT, 4, LS_PART_NEXT);
  assert_int_equal(g->cells[0], 6);
}

/* The code map is sorted, so that a look-up need not go through all of it, and nothing is inserted where
 * control never arrives. */
static void exit_points_stand_where_control_arrives(void **unused) {
  (void)unused;
  code c;
  ls_layout layout;
  ls_layout_default(&layout, 0);
  ls_image *image = ls_image_create();
  must(ls_image_build(image, assemble(&c, "1 7500 >-; 2 eb00 >4!; 3 c3 !; 4 ffe0 !; 5 0f0b !", 0), &layout,
                      &error));
  size_t count;
  const ls_range *map = ls_image_map(image, &count);
  unsigned inserted = 0;
  uint64_t end = 0;
  for (size_t i = 0; i < count; i++) {
    assert_int_equal(map[i].offset, end);
    end += map[i].length;
    inserted += map[i].part != LS_PART_BODY;
  }
  ls_image_destroy(image);
  assert_int_equal(inserted, 1); /* the way out of 1 over its jump */
}

/* ---- Registers ---------------------------------------------------------------------------------------- */

/* The guest itself says what it got, and changes all of it. */
static void flags_and_vectors_are_loaded_and_stored(void **unused) {
  (void)unused;
  guest *g = guest_open(NULL);
  ls_state state;
  fill_state(&state);
  state.gpr[LS_RBX] = g->layout.windows[DATA].address;
  state.gpr[LS_RSP] = g->layout.windows[STACK].address + 256;
  set_state(g, &state);
  load(g, "1 9c; 2 8f03; 3 f3440f7f6b10; 4 f30f7f4320; 5 f5; 6 fd; 7 66450f76ed; 8 660fefc0; 9 0f0b");
  stopped(run(g, 1), LS_STOP_FAULT, 9, LS_PART_BODY);
  assert_int_equal(g->cells[0], state.rflags);
  assert_memory_equal((const void *)&g->cells[2], state.zmm[13], 16);
  assert_memory_equal((const void *)&g->cells[4], state.zmm[0], 16);
  ls_state after;
  look(g, &after);
  state.rflags = (state.rflags ^ RFLAGS_CF) | RFLAGS_DF;
  memset(state.zmm[13], 0xff, 16);
  memset(state.zmm[0], 0, 16);
  after.rflags &= ~(uint64_t)RFLAGS_RF;
  same_registers("stored", &state, &after);
}

/* ---- The stack pointer is the guest's ----------------------------------------------------------------- */

static const uint64_t stack_pointers[] = {0, 3, 8, 0x1000, UINT64_C(1) << 62, UINT64_MAX, 0x7fffffffffff};
enum { STACK_POINTERS = sizeof stack_pointers / sizeof *stack_pointers };

static void a_fault_needs_no_stack(void **unused) {
  (void)unused;
  static const char *const faults[] = {"1 0f0b", "1 f4", "1 f7f1", "1 488b08", "1 cc"};
  guest *g = guest_open(NULL);
  for (int f = 0; f < 5; f++)
    for (int i = 0; i < STACK_POINTERS; i++) {
      load(g, faults[f]);
      set_gpr(g, LS_RSP, stack_pointers[i]);
      for (int times = 0; times < 5; times++)
        stopped(run(g, 1), LS_STOP_FAULT, 1, LS_PART_BODY);
      assert_int_equal(get_gpr(g, LS_RSP), stack_pointers[i]);
    }
}

static void the_way_out_needs_no_stack(void **unused) {
  (void)unused;
  guest *g = guest_open(NULL);
  for (int i = 0; i < STACK_POINTERS; i++) {
    set_gpr(g, LS_RSP, stack_pointers[i]);
    load(g, "1 90");
    stopped(run(g, 1), LS_STOP_EXIT, 1, LS_PART_NEXT);
    load(g, "1 eb00 >-!");
    stopped(run(g, 1), LS_STOP_EXIT, 1, LS_PART_JUMP);
    must(load_flagged(g, CELL, LS_PROGRAM_FUEL));
    stopped(run_limited(g, 1, (ls_limits){.fuel = 3}), LS_STOP_FUEL, 2, LS_PART_JUMP);
    assert_int_equal(get_gpr(g, LS_RSP), stack_pointers[i]);
  }
}

/* Above, at and below RSP, the red zone and beyond: nobody writes there but the guest. */
static void the_stack_keeps_its_content(void **unused) {
  (void)unused;
  static uint8_t pattern[LS_PAGE];
  guest *g = guest_open(NULL);
  const ls_window *stack = &g->layout.windows[STACK];
  uint8_t *memory = ls_controller_memory(g->controller, STACK);
  for (int i = 0; i < LS_PAGE; i++)
    memory[i] = pattern[i] = (uint8_t)(i * 7 + i / 256);
  static const int at[] = {0, 8, 128, 2048, 2049, LS_PAGE};
  for (size_t i = 0; i < sizeof at / sizeof *at; i++) {
    load(g, CELL);
    set_gpr(g, LS_RSP, stack->address + (uint64_t)at[i]);
    start(g, 1);
    for (int n = 0; n < 20; n++)
      look(g, NULL);
    must(ls_pause(g->controller, &error));
    must(ls_step(g->controller, 5, &error));
    must(ls_run_until(g->controller, 1, &error));
    load(g, "2 eb00 >1!; 1 48ff03 =2");
    must(ls_resume(g->controller, &error));
    cancel(g);
    load(g, "1 0f0b");
    stopped(run(g, 1), LS_STOP_FAULT, 1, LS_PART_BODY);
    load(g, "1 90");
    stopped(run(g, 1), LS_STOP_EXIT, 1, LS_PART_NEXT);
    assert_memory_equal(memory, pattern, LS_PAGE);
  }
}

static void the_stack_may_be_read_only(void **unused) {
  (void)unused;
  guest *g = guest_open(NULL);
  uint64_t rsp = g->layout.windows[CONSTANTS].address + 1024;
  load(g, CELL);
  set_gpr(g, LS_RSP, rsp);
  start(g, 1);
  for (int i = 0; i < 200; i++)
    look(g, NULL);
  cancel(g);
  load(g, "1 50"); /* push */
  const ls_stop *stop = run(g, 1);
  stopped(stop, LS_STOP_FAULT, 1, LS_PART_BODY);
  assert_int_equal(stop->address, rsp - 8);
  assert_int_equal(get_gpr(g, LS_RSP), rsp);
}

/* ---- Faults ------------------------------------------------------------------------------------------- */

/* One after the other, in a thread that others look at all the time. */
static void a_fault_of_the_guest_is_not_the_hosts(void **unused) {
  (void)unused;
  static const char *const faults[] = {"1 48ff03; 2 0f0b", "1 48ff03; 2 f4", "1 48ff03; 2 488b08",
                                       "1 48ff03; 2 cc", "1 48ff03; 2 ffe0 !"};
  guest *g = guest_open(NULL);
  for (uint64_t i = 1; i <= 150; i++) {
    load(g, faults[i % 5]);
    start(g, 1);
    look(g, NULL);
    ls_pause(g->controller, NULL);
    ls_resume(g->controller, NULL);
    assert_int_equal(finish(g)->kind, LS_STOP_FAULT);
    assert_int_equal(g->cells[0], i);
  }
}

/* ---- On the way in and out ---------------------------------------------------------------------------- */

typedef struct storm {
  guest *g;
  pthread_t thread, target;
  atomic_bool over;
  uint64_t changed, cancelled;
  const char *trouble;
  bool signals;
} storm;

static int count_change(ls_state *state, ls_position *position, void *context) {
  storm *s = context;
  const char *trouble = unrelated(state, position->id, s->g->cells);
  s->trouble = s->trouble ? s->trouble : trouble;
  state->gpr[LS_R9]++;
  return 0;
}

static void *make_storm(void *context) {
  storm *s = context;
  ls_state state;
  for (unsigned i = 0; !atomic_load(&s->over); i++) {
    if (s->signals)
      pthread_kill(s->target, SIGURG);
    if (i % 2)
      s->changed += ls_change_state(s->g->controller, count_change, s, NULL) == LS_OK;
    ls_get_state(s->g->controller, &state, NULL, NULL);
    if (i % 5 == 0)
      s->cancelled += ls_cancel(s->g->controller, NULL) == LS_OK;
  }
  return NULL;
}

static void ignore(int sig) {
  (void)sig;
}

/* Short runs, each going on where the last one stopped: signals come at every place between host and guest.
 */
static void a_signal_on_the_way_mixes_nothing(void **unused) {
  (void)unused;
  guest *g = guest_open(NULL);
  struct sigaction before, action = {.sa_handler = ignore, .sa_flags = SA_ONSTACK | SA_RESTART};
  related_load(g);
  must(load_flagged(g, related_code(), LS_PROGRAM_FUEL));
  storm s = {.g = g, .target = pthread_self(), .signals = !TSAN};
  uint64_t cancelled = 0, at = 1;
  stopped(run_limited(g, at, (ls_limits){.fuel = 1}), LS_STOP_FUEL, RELATED_LAST, LS_PART_JUMP);
  at = RELATED_LAST;
  sigaction(SIGURG, &action, &before);
  assert_int_equal(pthread_create(&s.thread, NULL, make_storm, &s), 0);
  const char *trouble = NULL;
  for (unsigned i = 0; i < 20000 && !trouble; i++) {
    ls_state state;
    if (ls_execute(g->controller, at, &(ls_limits){.fuel = 1 + i % 5}, &g->stop, &error))
      trouble = error.text;
    cancelled += g->stop.kind == LS_STOP_CANCELLED;
    if (g->stop.kind != LS_STOP_CANCELLED && g->stop.kind != LS_STOP_FUEL)
      trouble = "it stopped in another way";
    at = g->stop.id;
    if (!trouble && !ls_get_state(g->controller, &state, NULL, NULL))
      trouble = unrelated(&state, at, g->cells);
  }
  atomic_store(&s.over, true);
  pthread_join(s.thread, NULL);
  sigaction(SIGURG, &before, NULL);
  if (trouble || s.trouble)
    fail_msg("%s", trouble ? trouble : s.trouble);
  assert_int_equal(get_gpr(g, LS_R9), s.changed);
  assert_true(s.cancelled >= cancelled);
  print_message("  %llu changes, %llu cancelled\n", (unsigned long long)s.changed,
                (unsigned long long)cancelled);
}

/* ---- Reloading ---------------------------------------------------------------------------------------- */

/* In the first of these a jump follows every instruction, in the second none does: a guest that is at an
 * inserted jump has done the instruction before it, which must not be done again. */
static void reload_at_an_inserted_jump_repeats_nothing(void **unused) {
  (void)unused;
  static const char *const codes[] = {
      "5 eb00 >1!; 4 49ffc7 =5; 3 48ff03 =4; 2 49ffc0 =3; 1 48ffc0 =2",
      "1 48ffc0; 2 49ffc0; 3 48ff03; 4 49ffc7; 5 eb00 >1!",
  };
  guest *g = guest_open(NULL);
  load(g, codes[0]);
  start(g, 1);
  for (int i = 0; i < 1000; i++) {
    ls_state s;
    load(g, codes[i % 2]);
    ls_position p = look(g, &s);
    uint64_t rounds = s.gpr[LS_RAX] - (p.id > 1);
    if (s.gpr[LS_R8] != rounds + (p.id > 2) || s.gpr[LS_R15] != rounds + (p.id > 4))
      fail_msg("after %d reloads, before %llu: RAX %llu, R8 %llu, R15 %llu", i, (unsigned long long)p.id,
               (unsigned long long)s.gpr[LS_RAX], (unsigned long long)s.gpr[LS_R8],
               (unsigned long long)s.gpr[LS_R15]);
  }
  cancel(g);
  assert_int_equal(g->cells[0], get_gpr(g, LS_RAX) - (g->stop.id == 2 || g->stop.id == 3));
}

/* A page that is touched for the first time is an interrupt too, and one instruction can touch two. Windows
 * as large as this one are not touched before. */
static void garbage_in_rsp_and_pages_that_are_not_there(void **unused) {
  (void)unused;
  enum { BIG = 8 << 20, APART = 0x20000 };
  ls_layout layout;
  ls_layout_default(&layout, 77);
  const uint64_t big = 0x70000000; /* behind all slots, and nothing of a sanitizer's */
  layout.windows[layout.window_count++] =
      (ls_window){.address = big, .size = BIG, .access = LS_READ | LS_WRITE};
  guest *g = guest_open(&(ls_controller_options){.layout = &layout});
  load(g, "1 488903; 2 48ffc0");
  set_gpr(g, LS_RSP, UINT64_C(1) << 62);
  set_gpr(g, LS_RAX, 5);
  for (uint64_t i = 1; i <= 20; i++) {
    set_gpr(g, LS_RBX, big + i * APART - (i % 2 ? 4 : 8));
    if (i > 10)
      must(ls_pause(g->controller, &error));
    start(g, 1);
    if (i > 10)
      must(ls_step(g->controller, 1, &error));
    ls_resume(g->controller, NULL);
    stopped(finish(g), LS_STOP_EXIT, 2, LS_PART_NEXT);
    assert_int_equal(get_gpr(g, LS_RAX), 5 + i);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      TEST(an_8_bit_displacement_is_not_cut_off),
      TEST(code_goes_on_behind_its_first_page),
      TEST(exit_points_stand_where_control_arrives),
      TEST(flags_and_vectors_are_loaded_and_stored),
      TEST(a_fault_needs_no_stack),
      TEST(the_way_out_needs_no_stack),
      TEST(the_stack_keeps_its_content),
      TEST(the_stack_may_be_read_only),
      TEST(a_fault_of_the_guest_is_not_the_hosts),
      TEST(a_signal_on_the_way_mixes_nothing),
      TEST(reload_at_an_inserted_jump_repeats_nothing),
      TEST(garbage_in_rsp_and_pages_that_are_not_there),
  };
  return RUN_BOTH(tests);
}

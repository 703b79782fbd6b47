/* Controllers: looking at a guest from other threads, changing it, and pausing it. Every test in both kinds.
 */
#include "related.h"

enum { LOOKS = 400 };

#define LOOP "1 48ffc0; 2 eb00 >1!" /* counts RAX */
#define CELL "1 48ff03; 2 eb00 >1!" /* counts the first cell */

static uint64_t address_of(const guest *g, uint64_t offset) {
  return g->layout.windows[CODE].address + offset;
}

/* ---- Looking ------------------------------------------------------------------------------------------ */

static void a_counter_grows(void **unused) {
  (void)unused;
  guest *g = guest_open(NULL);
  load(g, LOOP);
  start(g, 1);
  uint64_t last = get_gpr(g, LS_RAX), grew = 0;
  double until = now() + 60;
  for (int i = 0; i < LOOKS || grew < LOOKS / 20; i++) {
    if (now() > until)
      fail_msg("it grew %llu times in %d looks", (unsigned long long)grew, i);
    ls_state state;
    ls_position p = look(g, &state);
    assert_int_equal(p.activity, LS_RUNNING);
    assert_int_equal(p.part, LS_PART_BODY);
    assert_true(p.id == 1 || p.id == 2);
    assert_int_equal(p.instruction, p.id - 1);
    assert_int_equal(state.rip, address_of(g, p.id == 1 ? 0 : 3));
    assert_true(state.gpr[LS_RAX] >= last);
    grew += state.gpr[LS_RAX] > last;
    last = state.gpr[LS_RAX];
  }
  must(ls_get_state(g->controller, NULL, NULL, &error));
  cancel(g);
}

static void the_state_is_whole(void **unused) {
  (void)unused;
  guest *g = guest_open(NULL);
  related_load(g);
  start(g, 1);
  unsigned seen = 0;
  double until = now() + 3; /* where a machine with one CPU interrupts is its own affair */
  for (int i = 0; i < LOOKS || (__builtin_popcount(seen) < 3 && now() < until); i++) {
    is_related(g, "running");
    seen |= 1u << look(g, NULL).id;
    if (i >= LOOKS)
      doze();
  }
  print_message("  seen at instructions %#x\n", seen);
  cancel(g);
  is_related(g, "cancelled");
}

typedef struct wait_check {
  guest *g;
  const char *trouble;
} wait_check;

static int check_related(ls_state *state, ls_position *position, void *context) {
  wait_check *check = context;
  check->trouble = unrelated(state, position->id, check->g->cells);
  doze();
  if (!check->trouble)
    check->trouble = unrelated(state, position->id, check->g->cells);
  return 0;
}

/* Memory is whole too, for as long as the guest waits. */
static void the_guest_waits_for_the_visitor(void **unused) {
  (void)unused;
  guest *g = guest_open(NULL);
  wait_check check = {.g = g};
  related_load(g);
  start(g, 1);
  for (int i = 0; i < LOOKS / 10; i++) {
    must(ls_change_state(g->controller, check_related, &check, &error));
    if (check.trouble)
      fail_msg("%s", check.trouble);
    is_related(g, "after");
  }
  cancel(g);
}

/* ---- Changing ----------------------------------------------------------------------------------------- */

typedef struct visit {
  void (*change)(ls_state *state, ls_position *position);
  int answer;
  pthread_t thread;
  ls_state seen;
  ls_position position;
} visit;

static int visitor(ls_state *state, ls_position *position, void *context) {
  visit *v = context;
  v->thread = pthread_self();
  v->seen = *state;
  v->position = *position;
  v->change(state, position);
  return v->answer;
}

static ls_status change(guest *g, void (*how)(ls_state *, ls_position *), visit *v) {
  v->change = how;
  return ls_change_state(g->controller, visitor, v, &error);
}

static void halve_rax(ls_state *state, ls_position *position) {
  (void)position;
  state->gpr[LS_RAX] /= 2;
}

static void make_rax_huge(ls_state *state, ls_position *position) {
  (void)position;
  state->gpr[LS_RAX] |= UINT64_C(1) << 62;
}

static void a_register_is_halved(void **unused) {
  (void)unused;
  visit v = {0};
  guest *g = guest_open(NULL);
  load(g, LOOP);
  start(g, 1);
  must(change(g, make_rax_huge, &v));
  assert_true(pthread_equal(v.thread, pthread_self()));
  assert_int_equal(v.position.activity, LS_RUNNING);
  must(change(g, halve_rax, &v));
  assert_int_equal(v.seen.gpr[LS_RAX] >> 61, 2);
  assert_int_equal(get_gpr(g, LS_RAX) >> 61, 1);
  must(ls_pause(g->controller, &error));
  must(change(g, halve_rax, &v));
  assert_int_equal(v.position.activity, LS_PAUSED);
  assert_int_equal(get_gpr(g, LS_RAX), v.seen.gpr[LS_RAX] / 2);
  must(ls_resume(g->controller, &error));
  cancel(g);
  must(change(g, halve_rax, &v));
  assert_int_equal(v.position.activity, LS_IDLE);
  assert_int_equal(get_gpr(g, LS_RAX), v.seen.gpr[LS_RAX] / 2);
}

static void set_all_classes(ls_state *state, ls_position *position) {
  (void)position;
  for (int i = 0; i < 16; i++)
    state->zmm[3][i] = (uint8_t)(0x50 + i);
  state->mxcsr = 0x3f80;
  state->fcw = 0x77f;
  state->rflags |= RFLAGS_CF;
}

/* Stores without an end vector, MXCSR, control word and CF. */
static void every_class_is_changed(void **unused) {
  (void)unused;
  visit v = {0};
  guest *g = guest_open(NULL);
  load(g, "1 f30f7f1b; 2 0fae5b10; 3 d97b14; 4 0f924318; 5 48ff4320; 6 eb00 >1!");
  start(g, 1);
  must(change(g, set_all_classes, &v));
  counts_on(g, 4);
  counts_on(g, 4);
  assert_int_equal(g->cells[0], UINT64_C(0x5756555453525150));
  assert_int_equal(g->cells[1], UINT64_C(0x5f5e5d5c5b5a5958));
  assert_int_equal(g->cells[2], UINT64_C(0x077f00003f80));
  assert_int_equal(g->cells[3], 1);
  cancel(g);
}

static void go_to_3(ls_state *state, ls_position *position) {
  (void)state;
  position->id = 3;
}

static void go_to_1(ls_state *state, ls_position *position) {
  (void)state;
  position->id = 1;
}

static void go_to_99(ls_state *state, ls_position *position) {
  state->gpr[LS_R9] = 99;
  position->id = 99;
}

#define TWO_LOOPS "1 48ff03; 2 eb00 >1!; 3 48ff4308; 4 eb00 >3!"

static void the_guest_is_moved(void **unused) {
  (void)unused;
  visit v = {0};
  guest *g = guest_open(NULL);
  load(g, TWO_LOOPS);
  start(g, 1);
  counts_on(g, 0);
  must(change(g, go_to_3, &v));
  uint64_t cell = g->cells[0];
  counts_on(g, 1);
  assert_int_equal(g->cells[0], cell);
  must(ls_pause(g->controller, &error));
  cell = g->cells[1];
  must(change(g, go_to_1, &v));
  is_at(g, 1, LS_PAUSED);
  must(ls_step(g->controller, 1, &error));
  is_at(g, 2, LS_PAUSED);
  must(change(g, go_to_3, &v));
  must(ls_step(g->controller, 1, &error));
  is_at(g, 4, LS_PAUSED);
  assert_int_equal(g->cells[1], cell + 1);
  cancel(g);
}

static void an_idle_guest_is_not_moved(void **unused) {
  (void)unused;
  visit v = {0};
  guest *g = guest_open(NULL);
  load(g, TWO_LOOPS);
  expect(LS_ERR_IDLE, change(g, go_to_3, &v));
  start(g, 1);
  cancel(g);
  expect(LS_ERR_IDLE, change(g, go_to_99, &v));
  assert_int_equal(get_gpr(g, LS_R9), 0);
}

static void set_registers(ls_state *state, ls_position *position) {
  (void)position;
  fill_state(state);
}

static void set_iopl(ls_state *state, ls_position *position) {
  set_registers(state, position);
  state->rflags |= RFLAGS_IOPL;
}

static void set_vm(ls_state *state, ls_position *position) {
  set_registers(state, position);
  state->rflags |= 1 << 17;
}

static void set_reserved_flag(ls_state *state, ls_position *position) {
  set_registers(state, position);
  state->rflags |= UINT64_C(1) << 40;
}

static void set_reserved_mxcsr(ls_state *state, ls_position *position) {
  set_registers(state, position);
  state->mxcsr |= 0x80000000;
}

static void move_nowhere(ls_state *state, ls_position *position) {
  set_registers(state, position);
  position->id = 99;
}

static const struct refusal {
  const char *name;
  void (*change)(ls_state *, ls_position *);
  int answer;
  ls_status status;
} refusals[] = {
    {"the visitor says so", set_registers, 1, LS_OK},
    {"the visitor says so, of a move", go_to_3, -1, LS_OK},
    {"unknown id", move_nowhere, 0, LS_ERR_ARGUMENT},
    {"IOPL", set_iopl, 0, LS_ERR_STATE},
    {"VM", set_vm, 0, LS_ERR_STATE},
    {"reserved flag", set_reserved_flag, 0, LS_ERR_STATE},
    {"reserved MXCSR", set_reserved_mxcsr, 0, LS_ERR_STATE},
};

static void check_refusal(guest *g, const struct refusal *r, ls_status status) {
  visit v = {.answer = r->answer};
  ls_state before, after;
  ls_position at = look(g, &before);
  ls_status got = change(g, r->change, &v);
  if (got != status)
    fail_msg("%s: expected %s, got %s", r->name, ls_status_name(status), ls_status_name(got));
  ls_position then = look(g, &after);
  same_registers(r->name, &before, &after);
  assert_int_equal(before.rip, after.rip);
  assert_int_equal(at.id, then.id);
}

static void what_is_refused_changes_nothing(void **unused) {
  (void)unused;
  guest *g = guest_open(NULL);
  load(g, "1 eb00 >1!; 3 eb00 >3!");
  start_paused(g, 1);
  for (size_t i = 0; i < sizeof refusals / sizeof *refusals; i++)
    check_refusal(g, &refusals[i], refusals[i].status);
  must(ls_resume(g->controller, &error));
  for (size_t i = 0; i < sizeof refusals / sizeof *refusals; i++)
    check_refusal(g, &refusals[i], refusals[i].status);
  cancel(g);
  for (size_t i = 0; i < sizeof refusals / sizeof *refusals; i++) {
    bool moves = refusals[i].change == move_nowhere;
    check_refusal(g, &refusals[i], moves ? LS_ERR_IDLE : refusals[i].status);
  }
}

static void set_what_stays(ls_state *state, ls_position *position) {
  (void)position;
  state->rip = 0x123456;
  state->cs = state->ss = state->ds = state->es = state->fs = state->gs = 0x1234;
  state->gpr[LS_R9]++;
}

static void what_is_not_taken_over(void **unused) {
  (void)unused;
  visit v = {0};
  guest *g = guest_open(NULL);
  load(g, "1 eb00 >1!");
  for (int round = 0; round < 3; round++) {
    ls_state before, after;
    if (round == 1)
      start_paused(g, 1);
    if (round == 2)
      must(ls_resume(g->controller, &error));
    look(g, &before);
    must(change(g, set_what_stays, &v));
    look(g, &after);
    before.gpr[LS_R9]++;
    same_registers("what stays", &before, &after);
    assert_int_equal(before.rip, after.rip);
  }
  cancel(g);
}

/* ---- Pausing ------------------------------------------------------------------------------------------ */

static void stands_still(guest *g, unsigned cell) {
  uint64_t before = g->cells[cell];
  ls_state a, b;
  ls_position p = look(g, &a);
  for (int i = 0; i < 20; i++)
    doze();
  assert_int_equal(g->cells[cell], before);
  assert_int_equal(look(g, &b).id, p.id);
  same_registers("paused", &a, &b);
}

static void a_paused_guest_stands_still(void **unused) {
  (void)unused;
  guest *g = guest_open(NULL);
  load(g, CELL);
  start(g, 1);
  for (int i = 0; i < 50; i++) {
    must(ls_pause(g->controller, &error));
    assert_int_equal(look(g, NULL).activity, LS_PAUSED);
    stands_still(g, 0);
    if (i % 2)
      must(ls_pause(g->controller, &error)); /* one resume ends both */
    must(ls_resume(g->controller, &error));
    assert_int_equal(look(g, NULL).activity, LS_RUNNING);
    counts_on(g, 0);
  }
  must(ls_resume(g->controller, &error));
  cancel(g);
}

static void a_run_begins_paused(void **unused) {
  (void)unused;
  guest *g = guest_open(NULL);
  load(g, CELL);
  must(ls_pause(g->controller, &error));
  assert_int_equal(look(g, NULL).activity, LS_IDLE);
  start(g, 1);
  is_at(g, 1, LS_PAUSED);
  stands_still(g, 0);
  assert_int_equal(g->cells[0], 0);
  must(ls_resume(g->controller, &error));
  counts_on(g, 0);
  cancel(g);
  start_paused(g, 1);
  cancel(g);
  start(g, 1); /* the pause was for one run */
  counts_on(g, 0);
  cancel(g);
  must(ls_pause(g->controller, &error));
  must(ls_resume(g->controller, &error));
  start(g, 1);
  counts_on(g, 0);
  cancel(g);
}

static void what_is_no_run_ends_no_pause(void **unused) {
  (void)unused;
  guest *g = guest_open(NULL);
  ls_stop stop;
  load(g, CELL);
  must(ls_pause(g->controller, &error));
  expect(LS_ERR_ARGUMENT, ls_execute(g->controller, 99, NULL, &stop, &error));
  start(g, 1);
  is_at(g, 1, LS_PAUSED);
}

static void pauses_take_no_time(void **unused) {
  (void)unused;
  guest *g = guest_open(NULL);
  load(g, CELL);
  must(ls_pause(g->controller, &error));
  start_limited(g, 1, (ls_limits){.limit_ms = 50});
  double until = now() + 0.3;
  WAIT_UNTIL(now() > until);
  is_at(g, 1, LS_PAUSED);
  must(ls_resume(g->controller, &error));
  assert_int_equal(finish(g)->kind, LS_STOP_TIMEOUT);
  assert_true(g->cells[0] > 0);
}

/* Interruptions do not add to what time a guest has, nor does it get any for free. */
static void time_is_counted_through_interruptions(void **unused) {
  (void)unused;
  guest *g = guest_open(NULL);
  load(g, CELL);
  start_limited(g, 1, (ls_limits){.limit_ms = 60});
  for (double begin = now(); !atomic_load(&g->over);) {
    ls_get_state(g->controller, NULL, NULL, NULL);
    if (now() - begin > 100)
      fail_msg("it has run for 100 s");
  }
  assert_int_equal(finish(g)->kind, LS_STOP_TIMEOUT);
}

/* ---- From inside a visitor ---------------------------------------------------------------------------- */

static int call_all(ls_state *state, ls_position *position, void *context) {
  (void)position;
  guest *g = context;
  ls_controller *c = g->controller;
  ls_stop stop;
  uint32_t count;
  code text;
  const ls_status got[] = {
      ls_get_state(c, state, NULL, &error),
      ls_change_state(c, put_state, state, &error),
      ls_pause(c, &error),
      ls_resume(c, &error),
      ls_step(c, 1, &error),
      ls_run_until(c, 2, &error),
      ls_cancel(c, &error),
      ls_update_code(c, assemble(&text, CELL, 0), &error),
      ls_execute(c, 1, NULL, &stop, &error),
      ls_sample_start(c, 100, NULL, NULL, 0, &error),
      ls_sample_stop(c, &error),
      ls_sample_read(c, NULL, 0, &count, NULL, &error),
  };
  for (size_t i = 0; i < sizeof got / sizeof *got; i++)
    if (got[i] != LS_ERR_BUSY)
      return 100 + (int)i;
  g->cells[9]++;
  return 0;
}

static void calls_from_inside_a_visitor(void **unused) {
  (void)unused;
  guest *g = guest_open(NULL);
  load(g, CELL);
  must(ls_change_state(g->controller, call_all, g, &error));
  start_paused(g, 1);
  must(ls_change_state(g->controller, call_all, g, &error));
  must(ls_resume(g->controller, &error));
  must(ls_change_state(g->controller, call_all, g, &error));
  assert_int_equal(g->cells[9], 3);
  counts_on(g, 0);
  cancel(g);
}

/* Of another controller they are fine. */
static int look_at_other(ls_state *state, ls_position *position, void *context) {
  (void)position;
  guest *other = context;
  ls_state others;
  ls_status status = ls_get_state(other->controller, &others, NULL, &error);
  state->gpr[LS_R9] = others.gpr[LS_R9];
  return status != LS_OK;
}

static void calls_for_another_controller(void **unused) {
  (void)unused;
  guest *g = guest_open(NULL), *other = guest_open(NULL);
  load(g, CELL);
  load(other, CELL);
  set_gpr(other, LS_R9, 4711);
  start(g, 1);
  must(ls_change_state(g->controller, look_at_other, other, &error));
  assert_int_equal(get_gpr(g, LS_R9), 4711);
  cancel(g);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      TEST(a_counter_grows),
      TEST(the_state_is_whole),
      TEST(the_guest_waits_for_the_visitor),
      TEST(a_register_is_halved),
      TEST(every_class_is_changed),
      TEST(the_guest_is_moved),
      TEST(an_idle_guest_is_not_moved),
      TEST(what_is_refused_changes_nothing),
      TEST(what_is_not_taken_over),
      TEST(a_paused_guest_stands_still),
      TEST(a_run_begins_paused),
      TEST(what_is_no_run_ends_no_pause),
      TEST(pauses_take_no_time),
      TEST(time_is_counted_through_interruptions),
      TEST(calls_from_inside_a_visitor),
      TEST(calls_for_another_controller),
  };
  return RUN_BOTH(tests);
}

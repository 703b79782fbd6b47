/* Controllers: stepping, running to an instruction, cancelling. Every test in both kinds. */
#include "related.h"

#define LOOP "1 48ffc0; 2 eb00 >1!" /* counts RAX */
#define CELL "1 48ff03; 2 eb00 >1!" /* counts the first cell */

/* ---- Stepping along known paths ----------------------------------------------------------------------- */

enum { PATH_MAX_IDS = 16 };

static const struct path {
  const char *name, *code;
  uint32_t flags;
  uint64_t rcx;
  uint8_t ids[PATH_MAX_IDS]; /* where it is at first and after each step; the next step ends the run */
  ls_stop_kind kind;
  uint8_t last; /* where it ends */
  ls_part part;
} paths[] = {
    {"straight", "1 90; 2 90; 3 90", .ids = {1, 2, 3}, .last = 3, .part = LS_PART_NEXT},
    {"a loop", "1 48ffc0; 2 48ffc9; 3 7500 >1", .rcx = 2, .ids = {1, 2, 3, 1, 2, 3}, .last = 3,
     .part = LS_PART_NEXT},
    {"inserted jumps", "4 0f0b =-; 3 90 =4; 2 90 =3; 1 90 =2", .ids = {1, 2, 3, 4}, .kind = LS_STOP_FAULT,
     .last = 4},
    {"islands", "1 eb00 >50!; 300 90 *200; 50 48ffc9; 51 eb00 >60!; 500 90 *200; 60 7500 >1; 61 0f0b",
     .rcx = 2, .ids = {1, 50, 51, 60, 1, 50, 51, 60, 61}, .kind = LS_STOP_FAULT, .last = 61},
    {"fuel", "1 90; 2 eb00 >1!", .flags = LS_PROGRAM_FUEL, .ids = {1, 2, 1, 2, 1, 2, 1, 2},
     .kind = LS_STOP_FUEL, .last = 2, .part = LS_PART_JUMP},
    {"fuel on next", "2 90 =1; 1 90 =2", .flags = LS_PROGRAM_FUEL, .ids = {1, 2, 1, 2, 1, 2, 1},
     .kind = LS_STOP_FUEL, .last = 1, .part = LS_PART_NEXT},
    {"fuel of an indirect branch", "1 e800000000 >>2; 2 90; 3 ff2424 !", .flags = LS_PROGRAM_FUEL,
     .ids = {1, 2, 3, 2, 3, 2, 3, 2}, .kind = LS_STOP_FUEL, .last = 3, .part = LS_PART_BEFORE},
    {"out by a jump", "1 90; 2 eb00 >-!", .ids = {1, 2}, .last = 2, .part = LS_PART_JUMP},
    {"a string instruction is one", "1 b964000000; 2 f3aa; 3 b900000000; 4 f3aa; 5 0f0b",
     .ids = {1, 2, 3, 4, 5}, .kind = LS_STOP_FAULT, .last = 5},
    {"JRCXZ and LOOP", "1 e300 >4; 2 e200 >1; 3 e300 >1; 4 0f0b", .rcx = 3,
     .ids = {1, 2, 1, 2, 1, 2, 3, 1, 4}, .kind = LS_STOP_FAULT, .last = 4},
    {"call and return", "1 e800000000 >>3; 2 0f0b; 3 90; 4 c3 !", .ids = {1, 3, 4, 2}, .kind = LS_STOP_FAULT,
     .last = 2},
    {"flags pushed and popped", "1 9c; 2 9c; 3 9d; 4 9d; 5 f4", .ids = {1, 2, 3, 4, 5}, .kind = LS_STOP_FAULT,
     .last = 5},
    {"a breakpoint", "1 90; 2 cc", .ids = {1, 2}, .kind = LS_STOP_FAULT, .last = 2},
};

static unsigned path_length(const struct path *p) {
  unsigned length = 0;
  while (length < PATH_MAX_IDS && p->ids[length])
    length++;
  return length;
}

static guest *at_start_of(const struct path *p) {
  guest *g = guest_open(NULL);
  must(load_flagged(g, p->code, p->flags));
  ls_state state;
  look(g, &state);
  state.gpr[LS_RCX] = p->rcx;
  state.gpr[LS_RDI] = g->layout.windows[DATA].address;
  set_state(g, &state);
  must(ls_pause(g->controller, &error));
  start_limited(g, p->ids[0], (ls_limits){.fuel = p->flags ? 3 : 0});
  return g;
}

static void ends_as(guest *g, const struct path *p) {
  stopped(finish(g), p->kind, p->last, p->part);
  expect(LS_ERR_IDLE, ls_step(g->controller, 1, &error));
}

static void step_by_step(const struct path *p) {
  guest *g = at_start_of(p);
  for (unsigned i = 0; i < path_length(p); i++) {
    is_at(g, p->ids[i], LS_PAUSED);
    expect(i + 1 < path_length(p) ? LS_OK : LS_ERR_IDLE, ls_step(g->controller, 1, &error));
  }
  ends_as(g, p);
  guest_close(g);
}

static void steps_at_once(const struct path *p) {
  for (unsigned n = 1; n < path_length(p); n++) {
    guest *g = at_start_of(p);
    must(ls_step(g->controller, n, &error));
    is_at(g, p->ids[n], LS_PAUSED);
    expect(LS_ERR_IDLE, ls_step(g->controller, 1000, &error));
    ends_as(g, p);
    guest_close(g);
  }
}

static void paths_are_followed(void **unused) {
  (void)unused;
  for (size_t i = 0; i < sizeof paths / sizeof *paths; i++) {
    print_message("  %s\n", paths[i].name);
    step_by_step(&paths[i]);
    steps_at_once(&paths[i]);
  }
}

static void many_steps_are_exact(void **unused) {
  (void)unused;
  guest *g = guest_open(NULL);
  load(g, LOOP);
  start_paused(g, 1);
  must(ls_step(g->controller, 2001, &error));
  is_at(g, 2, LS_PAUSED);
  assert_int_equal(get_gpr(g, LS_RAX), 1001);
  must(ls_resume(g->controller, &error));
  must(ls_pause(g->controller, &error));
  uint64_t rax = get_gpr(g, LS_RAX);
  bool at_2 = look(g, NULL).id == 2;
  must(ls_step(g->controller, 100, &error));
  assert_int_equal(get_gpr(g, LS_RAX), rax + 50);
  assert_int_equal(look(g, NULL).id == 2, at_2);
  cancel(g);
}

static void a_running_guest_is_stepped(void **unused) {
  (void)unused;
  guest *g = guest_open(NULL);
  related_load(g);
  start(g, 1);
  for (int i = 0; i < 200; i++) {
    must(ls_step(g->controller, 1 + i % 3, &error));
    assert_int_equal(look(g, NULL).activity, LS_PAUSED);
    is_related(g, "stepped");
    if (i % 5)
      must(ls_resume(g->controller, &error));
  }
  cancel(g);
}

static void steps_show_no_trap_flag(void **unused) {
  (void)unused;
  guest *g = guest_open(NULL);
  load(g, "1 9c; 2 58; 3 488903; 4 9c; 5 9d; 6 9c; 7 58; 8 48894308; 9 0f0b");
  start_paused(g, 1);
  for (int i = 0; i < 8; i++) {
    ls_state state;
    must(ls_step(g->controller, 1, &error));
    look(g, &state);
    assert_int_equal(state.rflags & RFLAGS_TF, 0);
  }
  assert_int_equal(g->cells[0], RFLAGS_CLEAN);
  assert_int_equal(g->cells[1], RFLAGS_CLEAN);
  cancel(g);
}

/* A trap flag of the guest's own is the guest's: it stops where it would have without being stepped. */
static void a_guest_that_sets_its_trap_flag(void **unused) {
  (void)unused;
  ls_stop free_running;
  for (int stepped = 0; stepped < 2; stepped++) {
    guest *g = guest_open(NULL);
    load(g, "1 9c; 2 480fba2c2408; 3 9d; 4 90; 5 90; 6 90");
    if (stepped) {
      start_paused(g, 1);
      for (int i = 0; i < 6 && ls_step(g->controller, 1, &error) == LS_OK; i++)
        ;
      must(ls_resume(g->controller, &error));
      const ls_stop *stop = finish(g);
      stopped(stop, free_running.kind, free_running.id, free_running.part);
      assert_int_equal(stop->code, TRAP_TRACE);
    } else {
      free_running = *run(g, 1);
      assert_int_equal(free_running.kind, LS_STOP_FAULT);
      assert_int_equal(free_running.signal, SIGTRAP);
      assert_int_equal(free_running.code, TRAP_TRACE);
    }
    guest_close(g);
  }
}

/* A guest paused in the middle of a string instruction: one step finishes it. */
static void a_repeated_string_instruction_is_one_step(void **unused) {
  (void)unused;
  guest *g = guest_open(NULL);
  ls_state state;
  load(g, "1 b900200000; 2 488d3b; 3 f3aa; 4 48ff4508; 5 eb00 >1!"); /* clears both data pages */
  set_gpr(g, LS_RBP, g->layout.windows[STACK].address);
  start(g, 1);
  for (int i = 0, inside = 0; i < 20000 && inside < 3; i++) {
    must(ls_pause(g->controller, &error));
    if (look(g, &state).id == 3) {
      inside += state.gpr[LS_RCX] > 0 && state.gpr[LS_RCX] < 0x2000;
      assert_false(state.rflags &
                   RFLAGS_RF); /* set where a repetition is interrupted (SDM vol. 3, 18.3.1.1) */
      must(ls_step(g->controller, 1, &error));
      is_at(g, 4, LS_PAUSED);
      look(g, &state);
      assert_int_equal(state.gpr[LS_RCX], 0);
      assert_int_equal(state.gpr[LS_RDI], g->layout.windows[DATA].address + 0x2000);
    }
    must(ls_resume(g->controller, &error));
  }
  cancel(g);
}

static void what_ends_a_step(void **unused) {
  (void)unused;
  guest *g = guest_open(NULL);
  load(g, "1 90; 2 f7f1; 3 eb00 >3!");
  expect(LS_ERR_IDLE, ls_step(g->controller, 1, &error));
  expect(LS_ERR_IDLE, ls_run_until(g->controller, 1, &error));
  must(ls_pause(g->controller, &error));
  expect(LS_ERR_IDLE, ls_step(g->controller, 1, &error));
  start(g, 1);
  expect(LS_ERR_ARGUMENT, ls_step(g->controller, 0, &error));
  is_at(g, 1, LS_PAUSED);
  expect(LS_ERR_IDLE, ls_step(g->controller, 10, &error));
  const ls_stop *stop = finish(g);
  stopped(stop, LS_STOP_FAULT, 2, LS_PART_BODY);
  assert_int_equal(stop->signal, SIGFPE);
  expect(LS_ERR_IDLE, ls_run_until(g->controller, 1, &error));
}

/* ---- Running to an instruction ------------------------------------------------------------------------ */

static void it_runs_to_an_instruction(void **unused) {
  (void)unused;
  guest *g = guest_open(NULL);
  uint8_t before[64];
  related_load(g);
  const void *bytes = ls_controller_memory(g->controller, CODE);
  memcpy(before, bytes, sizeof before);
  start_paused(g, 1);
  static const uint8_t targets[] = {5, 5, 2, 8, 8, 1, 1, 6, 7};
  uint64_t rounds = 0, at = 1;
  for (size_t i = 0; i < sizeof targets; i++) {
    must(ls_run_until(g->controller, targets[i], &error));
    rounds += targets[i] <= at;
    at = targets[i];
    is_at(g, at, LS_PAUSED);
    is_related(g, "run to");
    assert_int_equal(get_gpr(g, LS_RAX), rounds + (at > 1));
    assert_memory_equal(before, bytes, sizeof before);
  }
  must(ls_resume(g->controller, &error));
  for (int i = 0; i < 100; i++) {
    must(ls_run_until(g->controller, targets[i % 9], &error));
    is_at(g, targets[i % 9], LS_PAUSED);
    is_related(g, "run to");
    if (i % 3)
      must(ls_resume(g->controller, &error));
  }
  cancel(g);
  assert_memory_equal(before, bytes, sizeof before);
}

static void again_at_a_jump_to_itself(void **unused) {
  (void)unused;
  guest *g = guest_open(NULL);
  load(g, "1 eb00 >1!; 2 90");
  start_paused(g, 1);
  for (int i = 0; i < 10; i++) {
    must(ls_run_until(g->controller, 1, &error));
    is_at(g, 1, LS_PAUSED);
  }
  expect(LS_ERR_ARGUMENT, ls_run_until(g->controller, 3, &error));
  is_at(g, 1, LS_PAUSED);
  cancel(g);
}

static void runs_that_end_first(void **unused) {
  (void)unused;
  guest *g = guest_open(NULL);
  load(g, "1 90; 2 cc; 3 90");
  start_paused(g, 1);
  expect(LS_ERR_IDLE, ls_run_until(g->controller, 3, &error));
  const ls_stop *stop = finish(g);
  stopped(stop, LS_STOP_FAULT, 2, LS_PART_BODY);
  assert_int_equal(stop->signal, SIGTRAP);
  start_paused(g, 1);
  must(ls_run_until(g->controller, 2, &error)); /* int3 under int3 */
  is_at(g, 2, LS_PAUSED);
  must(ls_resume(g->controller, &error));
  stopped(finish(g), LS_STOP_FAULT, 2, LS_PART_BODY);
  assert_int_equal(g->stop.signal, SIGTRAP);
  stopped(run(g, 3), LS_STOP_EXIT, 3, LS_PART_NEXT); /* what was never reached is as it was */
}

/* ---- Calls that wait ---------------------------------------------------------------------------------- */

typedef struct waiting {
  guest *g;
  uint64_t steps, until; /* steps 0: run to `until` */
  pthread_t thread;
  ls_status status;
} waiting;

static void *wait_in_call(void *context) {
  waiting *w = context;
  w->status =
      w->steps ? ls_step(w->g->controller, w->steps, NULL) : ls_run_until(w->g->controller, w->until, NULL);
  return NULL;
}

/* Of a paused guest, which runs when the call has begun. */
static void begin_waiting(waiting *w) {
  assert_int_equal(look(w->g, NULL).activity, LS_PAUSED);
  assert_int_equal(pthread_create(&w->thread, NULL, wait_in_call, w), 0);
  WAIT_UNTIL(look(w->g, NULL).activity == LS_RUNNING);
}

static void waited(waiting *w, ls_status status) {
  pthread_join(w->thread, NULL);
  if (w->status != status)
    fail_msg("expected %s, got %s", ls_status_name(status), ls_status_name(w->status));
}

#define NEVER_9 "1 48ff03; 2 eb00 >1!; 9 0f0b"
#define ENDLESS UINT64_C(1000000000000)

static void a_wait_is_cancelled(void **unused) {
  (void)unused;
  for (int steps = 0; steps < 2; steps++) {
    guest *g = guest_open(NULL);
    load(g, NEVER_9);
    start_paused(g, 1);
    waiting w = {.g = g, .until = 9, .steps = steps ? ENDLESS : 0};
    begin_waiting(&w);
    cancel(g);
    waited(&w, LS_ERR_IDLE);
    guest_close(g);
  }
}

static void a_wait_is_superseded(void **unused) {
  (void)unused;
  for (int steps = 0; steps < 2; steps++) {
    guest *g = guest_open(NULL);
    load(g, NEVER_9);
    start_paused(g, 1);
    waiting w = {.g = g, .until = 9, .steps = steps ? ENDLESS : 0};
    begin_waiting(&w);
    must(ls_resume(g->controller, &error));
    waited(&w, LS_ERR_SUPERSEDED);
    assert_int_equal(look(g, NULL).activity, LS_RUNNING);
    must(ls_pause(g->controller, &error));
    begin_waiting(&w);
    must(ls_step(g->controller, 1, &error));
    waited(&w, LS_ERR_SUPERSEDED);
    assert_int_equal(look(g, NULL).activity, LS_PAUSED);
    begin_waiting(&w);
    must(ls_run_until(g->controller, 2, &error));
    waited(&w, LS_ERR_SUPERSEDED);
    is_at(g, 2, LS_PAUSED);
    guest_close(g);
  }
}

/* An interruption is no step. */
static void steps_are_counted_among_requests(void **unused) {
  (void)unused;
  guest *g = guest_open(NULL);
  load(g, LOOP);
  start_paused(g, 1);
  waiting w = {.g = g, .steps = 6001};
  assert_int_equal(pthread_create(&w.thread, NULL, wait_in_call, &w), 0);
  double until = now() + 60;
  do
    load(g, "2 eb00 >1!; 1 48ffc0 =2");
  while (get_gpr(g, LS_RAX) < 3001 && now() < until);
  waited(&w, LS_OK);
  is_at(g, 2, LS_PAUSED);
  assert_int_equal(get_gpr(g, LS_RAX), 3001);
  cancel(g);
}

/* The instruction waited for moves, is reached only in new code, or goes. */
static void code_is_replaced_during_a_wait(void **unused) {
  (void)unused;
  guest *g = guest_open(NULL);
  load(g, NEVER_9);
  start_paused(g, 1);
  waiting w = {.g = g, .until = 9};
  begin_waiting(&w);
  load(g, "9 0f0b; 2 eb00 >1!; 1 48ff03 =2");
  counts_on(g, 0);
  load(g, "20 90 *40; 1 48ff03; 2 eb00 >9!; 9 48ff4308; 10 eb00 >1!");
  waited(&w, LS_OK);
  is_at(g, 9, LS_PAUSED);
  assert_int_equal(g->cells[1], 0);
  load(g, NEVER_9 "; 10 eb00 >1!");
  must(ls_resume(g->controller, &error));
  stopped(finish(g), LS_STOP_FAULT, 9, LS_PART_BODY);
  start_paused(g, 1);
  begin_waiting(&w);
  load(g, CELL);
  waited(&w, LS_ERR_ARGUMENT);
  cancel(g);
}

/* ---- Cancelling --------------------------------------------------------------------------------------- */

static int host_memory[1024];

static const struct victim {
  const char *name, *code;
  uint64_t rsp, rflags;
  uint32_t mxcsr;
  uint16_t fcw, fsw;
} victims[] = {
    {"a jump to itself", "1 eb00 >1!", .rsp = 0},
    {"RSP 3", "1 eb00 >1!", .rsp = 3},
    {"RSP not canonical", "1 eb00 >1!", .rsp = UINT64_C(1) << 62},
    {"RSP at nothing", "1 eb00 >1!", .rsp = 0x100000},
    {"RSP in the host's memory", "1 eb00 >1!", .rsp = 1},
    {"RSP changes", "1 48ffc4; 2 eb00 >1!", .rsp = 3},
    {"strings downwards, AC", "1 b900100000; 2 488dbbff0f0000; 3 f3aa; 4 eb00 >1!",
     .rflags = RFLAGS_DF | RFLAGS_AC},
    {"flags popped", "1 9c; 2 9d; 3 eb00 >1!", .rsp = 0},
    {"a pending x87 exception", "1 eb00 >1!", .fcw = 0x37e, .fsw = 0x8081},
    {"SSE exceptions unmasked, FTZ, DAZ", "1 eb00 >1!", .mxcsr = 0x807f},
    {"FS and GS null", "1 31c0; 2 8ee0; 3 8ee8; 4 eb00 >4!", .rsp = 0},
};

static guest *start_victim(const struct victim *v) {
  guest *g = guest_open(NULL);
  ls_state state;
  load(g, v->code);
  look(g, &state);
  if (v->rsp)
    state.gpr[LS_RSP] = v->rsp == 1 ? (uintptr_t)&host_memory[512] : v->rsp;
  state.rflags |= v->rflags;
  state.mxcsr = v->mxcsr ? v->mxcsr : state.mxcsr;
  state.fcw = v->fcw ? v->fcw : state.fcw;
  state.fsw = v->fsw;
  set_state(g, &state);
  start(g, 1);
  return g;
}

static void anything_is_cancelled(void **unused) {
  (void)unused;
  for (size_t i = 0; i < sizeof victims / sizeof *victims; i++) {
    print_message("  %s\n", victims[i].name);
    memset(host_memory, 0x5a, sizeof host_memory);
    guest *g = start_victim(&victims[i]);
    ls_state state;
    for (int n = 0; n < 20; n++)
      look(g, &state);
    must(ls_pause(g->controller, &error));
    must(ls_step(g->controller, 5, &error));
    must(ls_resume(g->controller, &error));
    cancel(g);
    for (size_t n = 0; n < sizeof host_memory / sizeof *host_memory; n++)
      assert_int_equal(host_memory[n], 0x5a5a5a5a);
    expect(LS_ERR_IDLE, ls_cancel(g->controller, &error));
    start(g, 1); /* the request is spent */
    assert_int_equal(look(g, NULL).activity, LS_RUNNING);
    must(ls_pause(g->controller, &error));
    cancel(g);
    guest_close(g);
  }
}

static void too_late(void **unused) {
  (void)unused;
  guest *g = guest_open(NULL);
  load(g, "1 48ff03");
  expect(LS_ERR_IDLE, ls_cancel(g->controller, &error));
  for (uint64_t i = 1; i < 20; i++) {
    stopped(run(g, 1), LS_STOP_EXIT, 1, LS_PART_NEXT);
    expect(LS_ERR_IDLE, ls_cancel(g->controller, &error));
    assert_int_equal(g->cells[0], i);
  }
}

/* Cancelling at any moment of short runs: it either ended the run or was too late, and both sides say so. */
static void just_in_time_or_not(void **unused) {
  (void)unused;
  guest *g = guest_open(NULL);
  enum { TRIES = 280 }; /* each pause with each count, twice */
  unsigned ended = 0, late = 0, cancelled = 0;
  load(g, "1 48ffc9; 2 7500 >1; 3 48ff03");
  for (int i = 0; i < TRIES; i++) {
    set_gpr(g, LS_RCX, (uint64_t)1 << i % 20);
    start(g, 1);
    for (int pause = i % 7; pause; pause--)
      sched_yield();
    ls_status status = ls_cancel(g->controller, &error);
    const ls_stop *stop = finish(g);
    cancelled += status == LS_OK;
    late += status == LS_ERR_IDLE;
    ended += stop->kind == LS_STOP_EXIT;
    assert_int_equal(status == LS_OK, stop->kind == LS_STOP_CANCELLED);
  }
  assert_int_equal(cancelled + late, TRIES);
  assert_int_equal(g->cells[0], ended);
  print_message("  %u cancelled, %u ended before\n", cancelled, ended);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      TEST(paths_are_followed),
      TEST(many_steps_are_exact),
      TEST(a_running_guest_is_stepped),
      TEST(steps_show_no_trap_flag),
      TEST(a_guest_that_sets_its_trap_flag),
      TEST(a_repeated_string_instruction_is_one_step),
      TEST(what_ends_a_step),
      TEST(it_runs_to_an_instruction),
      TEST(again_at_a_jump_to_itself),
      TEST(runs_that_end_first),
      TEST(a_wait_is_cancelled),
      TEST(a_wait_is_superseded),
      TEST(steps_are_counted_among_requests),
      TEST(code_is_replaced_during_a_wait),
      TEST(anything_is_cancelled),
      TEST(too_late),
      TEST(just_in_time_or_not),
  };
  return RUN_BOTH(tests);
}

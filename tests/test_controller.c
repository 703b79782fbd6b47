/* Controllers: making them, executing, and how runs end. Every test in both kinds. */
#include "controlled.h"

/* ---- Stops -------------------------------------------------------------------------------------------- */

#define NOWHERE 0x10 /* an address that nothing is mapped at */

typedef enum place { AT_NONE, AT_NOWHERE, AT_RIP, AT_CONSTANTS, AT_GUARD } place;

static const struct stop_case {
  const char *name, *code;
  uint64_t rax, rcx, entry, id;
  ls_stop_kind kind;
  ls_part part;
  int signal, signal_code;
  place address; /* expected; and of AT_CONSTANTS, AT_GUARD: what RAX is */
} stop_cases[] = {
    {"exit by next", "5 90", .entry = 5, .id = 5, .kind = LS_STOP_EXIT, .part = LS_PART_NEXT},
    {"exit by a short jump", "5 90; 6 eb00 >-!", .entry = 5, .id = 6, .part = LS_PART_JUMP},
    {"exit by a long branch", "5 48ffc8; 6 0f8400000000 >>-; 7 0f0b", .rax = 1, .entry = 5, .id = 6,
     .part = LS_PART_JUMP},
    {"exit by next of a branch", "5 48ffc8; 6 7400 >8 =-; 8 0f0b", .rax = 2, .entry = 5, .id = 6,
     .part = LS_PART_NEXT},
    {"an id in the middle", "5 0f0b; 6 0f0b; 7 90; 8 90", .entry = 7, .id = 8, .part = LS_PART_NEXT},
    {"#UD", "5 90; 6 0f0b", .entry = 5, .id = 6, .kind = LS_STOP_FAULT, .signal = SIGILL,
     .signal_code = ILL_ILLOPN, .address = AT_RIP},
    {"#DE", "5 90; 6 f7f1", .entry = 5, .id = 6, .kind = LS_STOP_FAULT, .signal = SIGFPE,
     .signal_code = FPE_INTDIV, .address = AT_RIP},
    {"#GP", "5 90; 6 f4", .entry = 5, .id = 6, .kind = LS_STOP_FAULT, .signal = SIGSEGV,
     .signal_code = SI_KERNEL},
    {"#PF, nothing there", "5 90; 6 488b08", .rax = NOWHERE, .entry = 5, .id = 6, .kind = LS_STOP_FAULT,
     .signal = SIGSEGV, .signal_code = SEGV_MAPERR, .address = AT_NOWHERE},
    {"#PF, write to constants", "5 90; 6 488908", .entry = 5, .id = 6, .kind = LS_STOP_FAULT,
     .signal = SIGSEGV, .signal_code = SEGV_ACCERR, .address = AT_CONSTANTS},
    {"#PF, guard page", "5 90; 6 488b08", .entry = 5, .id = 6, .kind = LS_STOP_FAULT, .signal = SIGSEGV,
     .signal_code = SEGV_ACCERR, .address = AT_GUARD},
    {"#BP", "5 90; 6 cc; 7 0f0b", .entry = 5, .id = 6, .kind = LS_STOP_FAULT, .signal = SIGTRAP,
     .signal_code = SI_KERNEL},
};

static uint64_t place_of(const guest *g, place where, uint64_t rip) {
  const ls_window *w = g->layout.windows;
  switch (where) {
  case AT_NOWHERE:
    return NOWHERE;
  case AT_RIP:
    return rip;
  case AT_CONSTANTS:
    return w[CONSTANTS].address;
  case AT_GUARD:
    return w[DATA].address + w[DATA].size;
  case AT_NONE:
    break;
  }
  return 0;
}

static void check_stop(const struct stop_case *c) {
  guest *g = guest_open(NULL);
  load(g, c->code);
  bool points = c->address == AT_CONSTANTS || c->address == AT_GUARD;
  set_gpr(g, LS_RAX, points ? place_of(g, c->address, 0) : c->rax);
  const ls_stop *stop = run(g, c->entry);
  print_message("  %s\n", c->name);
  stopped(stop, c->kind, c->id, c->part);
  ls_state state;
  ls_position p = look(g, &state);
  assert_int_equal(stop->signal, c->signal);
  assert_int_equal(stop->code, c->signal_code);
  assert_int_equal(stop->address, place_of(g, c->address, state.rip));
  assert_int_equal(stop->number, 0);
  assert_int_equal(p.activity, LS_IDLE);
  assert_int_equal(p.id, stop->id);
  assert_int_equal(p.part, stop->part);
  assert_int_equal(p.instruction, stop->instruction);
  set_state(g, &state); /* what can be read can be written */
  guest_close(g);
}

static void each_way_to_stop(void **unused) {
  (void)unused;
  for (size_t i = 0; i < sizeof stop_cases / sizeof *stop_cases; i++)
    check_stop(&stop_cases[i]);
}

static void a_system_call_is_not_made(void **unused) {
  (void)unused;
  guest *g = guest_open(NULL);
  load(g, "5 90; 6 0f05; 7 0f0b");
  set_gpr(g, LS_RAX, 39);
  set_gpr(g, LS_RCX, 0x1234);
  const ls_stop *stop = run(g, 5);
  stopped(stop, LS_STOP_SYSCALL, 6, LS_PART_BODY);
  assert_int_equal(stop->number, 39);
  assert_int_equal(stop->signal, 0);
  assert_int_equal(get_gpr(g, LS_RAX), 39);
}

/* A jump out of the code stops outside of it. */
static void a_stop_outside_the_code(void **unused) {
  (void)unused;
  guest *g = guest_open(NULL);
  load(g, "5 ffe0 !");
  set_gpr(g, LS_RAX, NOWHERE);
  const ls_stop *stop = run(g, 5);
  stopped(stop, LS_STOP_FAULT, 0, LS_PART_BODY);
  assert_int_equal(stop->instruction, LS_NONE);
  assert_int_equal(stop->signal, SIGSEGV);
  assert_int_equal(look(g, NULL).instruction, LS_NONE);
}

#define LOOP "1 48ffc0; 2 eb00 >1!" /* counts RAX */

static void fuel_ends_a_run(void **unused) {
  (void)unused;
  guest *g = guest_open(NULL);
  must(load_flagged(g, LOOP, LS_PROGRAM_FUEL));
  stopped(run_limited(g, 1, (ls_limits){.fuel = 10}), LS_STOP_FUEL, 2, LS_PART_JUMP);
  assert_int_equal(get_gpr(g, LS_RAX), 11);
  stopped(run_limited(g, 1, (ls_limits){.fuel = 1}), LS_STOP_FUEL, 2, LS_PART_JUMP);
  assert_int_equal(get_gpr(g, LS_RAX), 13);
}

static void without_limits_there_is_no_end(void **unused) {
  (void)unused;
  guest *g = guest_open(NULL);
  must(load_flagged(g, "1 48ff03; 2 eb00 >1!", LS_PROGRAM_FUEL));
  start(g, 1);
  double until = now() + 1.5; /* an executor's own limit is 1 s */
  WAIT_UNTIL(now() > until && g->cells[0] > 100000);
  assert_false(atomic_load(&g->over));
  cancel(g);
}

static void time_ends_a_run(void **unused) {
  (void)unused;
  guest *g = guest_open(NULL);
  load(g, LOOP);
  const ls_stop *stop = run_limited(g, 1, (ls_limits){.limit_ms = 30});
  assert_int_equal(stop->kind, LS_STOP_TIMEOUT);
  assert_true(stop->id == 1 || stop->id == 2);
  assert_true(get_gpr(g, LS_RAX) > 1000);
  assert_int_equal(run_limited(g, 1, (ls_limits){.limit_ms = 30})->kind, LS_STOP_TIMEOUT);
}

/* Wherever it comes, in a counter of fuel too. */
static void a_timeout_keeps_the_registers(void **unused) {
  (void)unused;
  guest *g = guest_open(NULL);
  must(load_flagged(g, "1 eb00 >1!", LS_PROGRAM_FUEL));
  set_gpr(g, LS_RCX, 0x1234);
  for (uint32_t i = 0; i < 20; i++) {
    stopped(run_limited(g, 1, (ls_limits){.limit_ms = 5}), LS_STOP_TIMEOUT, 1, LS_PART_BODY);
    assert_int_equal(get_gpr(g, LS_RCX), 0x1234);
  }
}

/* A guest that is stepped is in the CPU for so short a time that hardly a tick finds it there. */
static void time_passes_in_steps(void **unused) {
  (void)unused;
  guest *g = guest_open(NULL);
  load(g, LOOP);
  must(ls_pause(g->controller, &error));
  start_limited(g, 1, (ls_limits){.limit_ms = 20});
  expect(LS_ERR_IDLE, ls_step(g->controller, UINT64_MAX, &error));
  assert_int_equal(finish(g)->kind, LS_STOP_TIMEOUT);
}

/* ---- What lasts --------------------------------------------------------------------------------------- */

static void all_registers_go_in_and_out(void **unused) {
  (void)unused;
  guest *g = guest_open(NULL);
  ls_state before, after;
  load(g, "5 90; 6 90");
  fill_state(&before);
  set_state(g, &before);
  look(g, &after);
  same_registers("set", &before, &after);
  for (int i = 0; i < 3; i++) {
    stopped(run(g, 5), LS_STOP_EXIT, 6, LS_PART_NEXT);
    look(g, &after);
    same_registers("after a run", &before, &after);
  }
}

/* One run changes a register of each class, the next stores them. */
static void registers_last_from_run_to_run(void **unused) {
  (void)unused;
  guest *g = guest_open(NULL);
  load(g, "1 48ffc0; 2 660f76db; 3 d9eb; 4 f9 =-;"
          "11 f30f7f1b; 12 0f924330; 13 db7b10; 14 48894320");
  set_gpr(g, LS_RAX, 41);
  stopped(run(g, 1), LS_STOP_EXIT, 4, LS_PART_NEXT);
  stopped(run(g, 11), LS_STOP_EXIT, 14, LS_PART_NEXT);
  assert_int_equal(g->cells[0], UINT64_MAX);
  assert_int_equal(g->cells[1], UINT64_MAX);
  assert_int_equal(g->cells[2], UINT64_C(0xc90fdaa22168c235)); /* pi */
  assert_int_equal(g->cells[3], 0x4000);
  assert_int_equal(g->cells[4], 42);
  assert_int_equal(g->cells[6], 1);
}

static void state_is_set_between_runs(void **unused) {
  (void)unused;
  guest *g = guest_open(NULL);
  load(g, "1 480fc8"); /* bswap rax */
  for (uint64_t i = 1; i < 50; i++) {
    set_gpr(g, LS_RAX, i);
    run(g, 1);
    assert_int_equal(get_gpr(g, LS_RAX), __builtin_bswap64(i));
  }
}

static void without_x87_its_registers_stay(void **unused) {
  (void)unused;
  guest *g = guest_open(&(ls_controller_options){.flags = LS_WITHOUT_X87});
  ls_state before, after;
  fill_state(&before);
  set_state(g, &before);
  load(g, "5 90");
  run(g, 5);
  look(g, &after);
  same_registers("without x87", &before, &after);
}

static void narrow_vectors_keep_the_rest(void **unused) {
  (void)unused;
  for (ls_vectors v = LS_VECTORS_SSE; v <= ls_vectors_available(); v++) {
    guest *g = guest_open(&(ls_controller_options){.executor.vectors = v});
    ls_state before, after;
    fill_state(&before);
    set_state(g, &before);
    load(g, "5 660f76db");
    run(g, 5);
    look(g, &after);
    memset(before.zmm[3], 0xff, 16);
    same_registers(ls_vectors_name(v), &before, &after);
    guest_close(g);
  }
}

/* ---- The exit callback -------------------------------------------------------------------------------- */

typedef struct calls {
  pthread_t thread;
  unsigned count, depth, deepest;
  uint64_t next; /* to execute from inside the callback; 0: nothing */
  ls_stop last;
  ls_activity activity;
  ls_status status;
} calls;

static void count_exit(ls_controller *controller, const ls_stop *stop, void *context) {
  calls *c = context;
  c->thread = pthread_self();
  c->count++;
  c->last = *stop;
  ls_position p = {.activity = LS_RUNNING};
  ls_get_state(controller, NULL, &p, NULL);
  c->activity = p.activity;
  if (!c->next)
    return;
  uint64_t entry = c->next--;
  c->deepest = ++c->depth > c->deepest ? c->depth : c->deepest;
  ls_stop inner;
  c->status = ls_execute(controller, entry, NULL, &inner, &error);
  c->depth--;
}

static void the_callback_comes_once_per_run(void **unused) {
  (void)unused;
  calls c = {.activity = LS_RUNNING};
  guest *g = guest_open(&(ls_controller_options){.on_exit = count_exit, .context = &c});
  load(g, "1 90; 2 0f0b");
  run(g, 1);
  assert_int_equal(c.count, 1);
  assert_true(pthread_equal(c.thread, pthread_self()));
  stopped(&c.last, LS_STOP_FAULT, 2, LS_PART_BODY);
  assert_memory_equal(&c.last, &g->stop, sizeof c.last);
  assert_int_equal(c.activity, LS_IDLE);
  start(g, 1);
  pthread_t thread = g->thread;
  finish(g);
  assert_int_equal(c.count, 2);
  assert_true(pthread_equal(c.thread, thread));
}

static void the_callback_may_execute(void **unused) {
  (void)unused;
  calls c = {.next = 3};
  guest *g = guest_open(&(ls_controller_options){.on_exit = count_exit, .context = &c});
  load(g, "1 48ffc0 =-; 2 48ffc0 =-; 3 48ffc0 =-; 4 48ffc0");
  stopped(run(g, 4), LS_STOP_EXIT, 4, LS_PART_NEXT);
  must(c.status);
  assert_int_equal(c.count, 4);
  assert_int_equal(c.deepest, 3);
  assert_int_equal(get_gpr(g, LS_RAX), 4);
  stopped(&c.last, LS_STOP_EXIT, 1, LS_PART_NEXT);
}

static int add_to_rax(ls_state *state, ls_position *position, void *context) {
  (void)position;
  state->gpr[LS_RAX] += *(const uint64_t *)context;
  return 0;
}

static void change_everything(ls_controller *controller, const ls_stop *stop, void *context) {
  (void)stop;
  code c;
  uint64_t hundred = 100;
  ls_status *status = context;
  *status = ls_update_code(controller, assemble(&c, "7 48ffc1", 0), &error);
  if (!*status)
    *status = ls_change_state(controller, add_to_rax, &hundred, &error);
  if (!*status)
    *status = ls_sample_start(controller, 100, NULL, NULL, 0, &error);
  if (!*status)
    *status = ls_sample_stop(controller, &error);
  if (!*status && ls_cancel(controller, NULL) != LS_ERR_IDLE)
    *status = LS_ERR_BUSY;
}

static void the_callback_may_change_everything(void **unused) {
  (void)unused;
  ls_status status = LS_ERR_IDLE;
  guest *g = guest_open(&(ls_controller_options){.on_exit = change_everything, .context = &status});
  load(g, "1 48ffc0");
  stopped(run(g, 1), LS_STOP_EXIT, 1, LS_PART_NEXT);
  must(status);
  assert_int_equal(get_gpr(g, LS_RAX), 101);
  stopped(run(g, 7), LS_STOP_EXIT, 7, LS_PART_NEXT);
}

static void destroy(ls_controller *controller, const ls_stop *stop, void *context) {
  (void)stop;
  ls_controller_destroy(controller);
  *(bool *)context = true;
}

static void the_callback_may_destroy(void **unused) {
  (void)unused;
  for (int i = 0; i < 20; i++) {
    bool destroyed = false;
    guest *g = guest_open(&(ls_controller_options){.on_exit = destroy, .context = &destroyed});
    load(g, "1 48ffc0");
    stopped(run(g, 1), LS_STOP_EXIT, 1, LS_PART_NEXT);
    assert_true(destroyed);
    g->controller = NULL;
  }
}

static void take_long(ls_controller *controller, const ls_stop *stop, void *context) {
  (void)controller;
  (void)stop;
  for (int i = 0; i < 100; i++)
    doze();
  atomic_store((atomic_bool *)context, true);
}

/* ls_execute needs the controller until the callback has returned. */
static void destroy_waits_for_the_callback(void **unused) {
  (void)unused;
  for (int i = 0; i < 10; i++) {
    static atomic_bool returned;
    atomic_store(&returned, false);
    guest *g = guest_open(&(ls_controller_options){.on_exit = take_long, .context = &returned});
    load(g, LOOP);
    start(g, 1);
    ls_controller_destroy(g->controller);
    bool waited = atomic_load(&returned);
    pthread_join(g->thread, NULL);
    memset(g, 0, sizeof *g);
    assert_true(waited);
  }
}

/* ---- What is refused, and what there is at first ------------------------------------------------------ */

static void execute_is_refused(void **unused) {
  (void)unused;
  guest *g = guest_open(NULL);
  ls_stop stop;
  expect(LS_ERR_ARGUMENT, ls_execute(g->controller, 1, NULL, &stop, &error));
  load(g, LOOP);
  expect(LS_ERR_ARGUMENT, ls_execute(g->controller, 3, NULL, &stop, &error));
  expect(LS_ERR_ARGUMENT, ls_execute(g->controller, 0, NULL, &stop, &error));
  start(g, 1);
  expect(LS_ERR_BUSY, ls_execute(g->controller, 1, NULL, &stop, &error));
  must(ls_pause(g->controller, &error));
  expect(LS_ERR_BUSY, ls_execute(g->controller, 1, NULL, &stop, &error));
  must(ls_resume(g->controller, &error));
  cancel(g);
}

static void any_number_is_an_id(void **unused) {
  (void)unused;
  static const uint64_t ids[] = {UINT64_MAX, 0, UINT64_C(1) << 63, UINT32_MAX};
  ls_instruction in[4];
  guest *g = guest_open(NULL);
  for (uint32_t i = 0; i < 4; i++)
    in[i] = (ls_instruction){.id = ids[i], .next = LS_NONE, .jump = LS_NONE, .length = 1, .bytes = {0x90}};
  must(ls_update_code(g->controller, &(ls_program){in, 4, 0}, &error));
  for (uint32_t i = 0; i < 4; i++) {
    const ls_stop *stop = run(g, ids[i]);
    stopped(stop, LS_STOP_EXIT, ids[i], LS_PART_NEXT);
    assert_int_equal(stop->instruction, i);
  }
}

static void at_first(void **unused) {
  (void)unused;
  ls_controller *c = NULL, *other = NULL;
  must(ls_controller_create(kind, NULL, &c, &error));
  must(ls_controller_create(kind, NULL, &other, &error));
  guests[0].controller = c;
  guests[1].controller = other;
  ls_state state, expected;
  ls_layout layout;
  ls_position p;
  must(ls_get_state(c, &state, &p, &error));
  ls_controller_layout(c, &layout);
  ls_state_init(&expected);
  expected.gpr[LS_RSP] = layout.windows[STACK].address + layout.windows[STACK].size;
  same_registers("at first", &expected, &state);
  assert_int_equal(p.activity, LS_IDLE);
  assert_int_equal(p.instruction, LS_NONE);
  for (uint32_t w = DATA; w < layout.window_count; w++) {
    const uint8_t *memory = ls_controller_memory(c, w);
    assert_non_null(memory);
    for (uint64_t i = 0; i < layout.windows[w].size; i++)
      assert_int_equal(memory[i], 0);
  }
  assert_null(ls_controller_memory(c, layout.window_count));
  assert_null(ls_controller_memory(c, UINT32_MAX));
  expect(LS_ERR_IDLE, ls_cancel(c, &error));
  expect(LS_ERR_IDLE, ls_step(c, 1, &error));
}

static void a_layout_of_ones_own(void **unused) {
  (void)unused;
  ls_layout mine, got;
  ls_layout_default(&mine, 77);
  guest *g = guest_open(&(ls_controller_options){.layout = &mine});
  ls_controller_layout(g->controller, &got);
  assert_memory_equal(&mine, &got, sizeof mine);
  assert_int_equal(get_gpr(g, LS_RSP), 0);
  load(g, "1 48ff03");
  run(g, 1);
  assert_int_equal(g->cells[0], 1);
  ls_controller *none = NULL;
  mine.window_count = 0;
  expect(LS_ERR_ARGUMENT,
         ls_controller_create(kind, &(ls_controller_options){.layout = &mine}, &none, &error));
  expect(LS_ERR_ARGUMENT, ls_controller_create((ls_kind)2, NULL, &none, &error));
  ls_controller_destroy(NULL);
}

static void a_layout_that_is_taken(void **unused) {
  (void)unused;
  ls_controller *none = NULL;
  ls_layout mine;
  ls_layout_default(&mine, 78);
  guest_open(&(ls_controller_options){.layout = &mine});
  ls_status status = ls_controller_create(kind, &(ls_controller_options){.layout = &mine}, &none, &error);
  expect(kind == LS_SIGNAL ? LS_ERR_ADDRESS : LS_OK, status);
  if (!status)
    ls_controller_destroy(none);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      TEST(each_way_to_stop),
      TEST_OF("calls", a_system_call_is_not_made),
      TEST(a_stop_outside_the_code),
      TEST(fuel_ends_a_run),
      TEST(without_limits_there_is_no_end),
      TEST(time_ends_a_run),
      TEST(a_timeout_keeps_the_registers),
      TEST(time_passes_in_steps),
      TEST(all_registers_go_in_and_out),
      TEST(registers_last_from_run_to_run),
      TEST(state_is_set_between_runs),
      TEST(without_x87_its_registers_stay),
      TEST(narrow_vectors_keep_the_rest),
      TEST(the_callback_comes_once_per_run),
      TEST(the_callback_may_execute),
      TEST(the_callback_may_change_everything),
      TEST(the_callback_may_destroy),
      TEST(destroy_waits_for_the_callback),
      TEST(execute_is_refused),
      TEST(any_number_is_an_id),
      TEST(at_first),
      TEST(a_layout_of_ones_own),
      TEST(a_layout_that_is_taken),
  };
  return RUN_BOTH(tests);
}

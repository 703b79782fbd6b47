/* Controllers: replacing the code under a guest. Every test in both kinds. */
#include "controlled.h"

/* ---- No instruction is lost or done twice ------------------------------------------------------------- */

enum { CELLS = 4, JUMP = CELLS + 1 };

/* One loop in many layouts: 1 to 4 count a cell each, 5 goes back. With N rounds done and instruction I
 * ahead, the cells of those before I hold N + 1, the rest N. */
static const struct layout_case {
  const char *code;
  uint32_t flags;
} layouts[] = {
    {"1 48ff03; 2 48ff4308; 3 48ff4310; 4 48ff4318; 5 eb00 >1!", 0},
    {"1 48ff03; 2 48ff4308; 3 48ff4310; 4 48ff4318; 5 eb00 >1!", LS_PROGRAM_FUEL},
    {"5 eb00 >1!; 4 48ff4318 =5; 3 48ff4310 =4; 2 48ff4308 =3; 1 48ff03 =2", 0},
    {"5 eb00 >1!; 4 48ff4318 =5; 3 48ff4310 =4; 2 48ff4308 =3; 1 48ff03 =2", LS_PROGRAM_FUEL},
    {"5 eb00 >1!; 100 90 *200 =-; 1 48ff03; 2 48ff4308; 3 48ff4310; 4 48ff4318 =5", 0},
    {"5 e900000000 >>1!; 4 48ff4318 =5; 2 48ff4308; 3 48ff4310 =4; 100 90 *100 =-; 1 48ff03 =2", 0},
    {"4 48ff4318; 5 eb00 >1; 1 48ff03; 2 48ff4308; 3 48ff4310 =4", LS_PROGRAM_FUEL},
    {"3 48ff4310 =4; 100 90 *250; 1 48ff03; 2 48ff4308 =3; 4 48ff4318; 5 eb00 >1!", 0},
};
enum { LAYOUTS = sizeof layouts / sizeof *layouts };

static void load_layout(guest *g, unsigned n) {
  must(load_flagged(g, layouts[n].code, layouts[n].flags));
}

typedef struct account {
  guest *g;
  uint64_t id, cells[CELLS];
} account;

/* As a visitor: the guest waits. Of a guest that runs on only what came before can be told. */
static int take_account(ls_state *state, ls_position *position, void *context) {
  (void)state;
  account *a = context;
  a->id = position->id;
  for (int i = 0; i < CELLS; i++)
    a->cells[i] = a->g->cells[i];
  return 0;
}

static void adds_up(guest *g, const char *when) {
  account a = {.g = g};
  must(ls_change_state(g->controller, take_account, &a, &error));
  uint64_t rounds = a.cells[CELLS - 1] - (a.id > CELLS);
  for (unsigned i = 0; i < CELLS; i++)
    if (a.cells[i] != rounds + (a.id > i + 1) || a.id < 1 || a.id > JUMP)
      fail_msg("%s: before instruction %llu, cell %u: expected %llu, got %llu", when,
               (unsigned long long)a.id, i, (unsigned long long)(rounds + (a.id > i + 1)),
               (unsigned long long)a.cells[i]);
}

static void at_each_instruction(void **unused) {
  (void)unused;
  guest *g = guest_open(NULL);
  load_layout(g, 0);
  start_paused(g, 1);
  uint64_t at = 1, rounds = 0;
  for (unsigned from = 0; from < LAYOUTS; from++)
    for (unsigned to = 0; to < LAYOUTS; to++)
      for (int step = 0; step < JUMP + 1; step++) {
        load_layout(g, from);
        is_at(g, at, LS_PAUSED);
        load_layout(g, to);
        is_at(g, at, LS_PAUSED);
        adds_up(g, "paused");
        must(ls_step(g->controller, 1, &error));
        rounds += at == JUMP;
        at = at % JUMP + 1;
        is_at(g, at, LS_PAUSED);
        adds_up(g, "stepped");
        assert_int_equal(g->cells[0], rounds + (at > 1));
      }
  cancel(g);
}

static void while_it_runs(void **unused) {
  (void)unused;
  guest *g = guest_open(NULL);
  load_layout(g, 0);
  start(g, 1);
  unsigned random = 1;
  for (int i = 0; i < 800; i++) {
    random = random * 1103515245 + 12345;
    load_layout(g, (random >> 16) % LAYOUTS);
    if (i % 4 == 0)
      adds_up(g, "running");
  }
  counts_on(g, CELLS - 1);
  cancel(g);
  adds_up(g, "cancelled");
}

typedef struct reloader {
  guest *g;
  pthread_t thread;
  unsigned first;
  ls_status status;
} reloader;

static void *reload_often(void *context) {
  reloader *r = context;
  code c;
  for (unsigned i = 0; i < 500 && !r->status; i++) {
    const struct layout_case *l = &layouts[(r->first + i * 5) % LAYOUTS];
    r->status = ls_update_code(r->g->controller, assemble(&c, l->code, l->flags), NULL);
  }
  return NULL;
}

static void by_several_threads_at_once(void **unused) {
  (void)unused;
  reloader reloaders[3];
  guest *g = guest_open(NULL);
  load_layout(g, 0);
  start(g, 1);
  for (unsigned i = 0; i < 3; i++) {
    reloaders[i] = (reloader){.g = g, .first = i};
    assert_int_equal(pthread_create(&reloaders[i].thread, NULL, reload_often, &reloaders[i]), 0);
  }
  for (unsigned i = 0; i < 3; i++)
    pthread_join(reloaders[i].thread, NULL);
  for (unsigned i = 0; i < 3; i++)
    expect(LS_OK, reloaders[i].status);
  counts_on(g, 0);
  cancel(g);
  adds_up(g, "cancelled");
}

/* ---- Fuel --------------------------------------------------------------------------------------------- */

/* In each exactly one link of a round goes back, on the jump. The last one has an instruction more: a guest
 * there would be gone. */
static const char *const fuelled[] = {
    "1 48ffc0; 2 eb00 >1!",
    "50 90 *60 =-; 1 48ffc0; 2 eb00 >1!",
    "70 90 *3 =-; 1 48ffc0; 2 7500 >1; 90 0f0b",
    "1 48ffc0; 3 660f1f440000; 2 e900000000 >>1!",
};
enum { FUELLED_LAST = 3 };

static void load_fuelled(guest *g, unsigned n) {
  must(load_flagged(g, fuelled[n], LS_PROGRAM_FUEL));
}

static void fuel_is_kept(void **unused) {
  (void)unused;
  enum { FUEL = 100 };
  guest *g = guest_open(NULL);
  load_fuelled(g, 0);
  must(ls_pause(g->controller, &error));
  start_limited(g, 1, (ls_limits){.fuel = FUEL});
  for (unsigned i = 0; i < 30; i++) {
    load_fuelled(g, i % FUELLED_LAST);
    must(ls_step(g->controller, 3, &error));
  }
  load_fuelled(g, FUELLED_LAST);
  must(ls_resume(g->controller, &error));
  stopped(finish(g), LS_STOP_FUEL, 2, LS_PART_JUMP);
  assert_int_equal(get_gpr(g, LS_RAX), FUEL + 1);
}

/* However often it is interrupted where fuel is counted. */
static void fuel_is_kept_while_it_runs(void **unused) {
  (void)unused;
  enum { FUEL = 50000000 };
  guest *g = guest_open(NULL);
  load_fuelled(g, 0);
  start_limited(g, 1, (ls_limits){.fuel = FUEL});
  for (unsigned i = 0; i < 100000 && !atomic_load(&g->over); i++) {
    load_fuelled(g, i % FUELLED_LAST);
    look(g, NULL);
  }
  stopped(finish(g), LS_STOP_FUEL, 2, LS_PART_JUMP);
  assert_int_equal(get_gpr(g, LS_RAX), FUEL + 1);
}

/* ---- Gone --------------------------------------------------------------------------------------------- */

#define CELL "1 48ff03; 2 eb00 >1!"

static void is_gone(guest *g, uint64_t id) {
  stopped(finish(g), LS_STOP_GONE, id, LS_PART_BODY);
  assert_int_equal(g->stop.instruction, LS_NONE);
  assert_int_equal(look(g, NULL).activity, LS_IDLE);
}

static void gone_while_it_runs(void **unused) {
  (void)unused;
  guest *g = guest_open(NULL);
  load(g, "2 eb00 >2!");
  start(g, 2);
  load(g, "1 48ff03");
  is_gone(g, 2);
  stopped(run(g, 1), LS_STOP_EXIT, 1, LS_PART_NEXT);
  assert_int_equal(g->cells[0], 1);
}

static void gone_while_paused(void **unused) {
  (void)unused;
  guest *g = guest_open(NULL);
  load(g, CELL);
  start_paused(g, 1);
  must(ls_step(g->controller, 5, &error));
  is_at(g, 2, LS_PAUSED);
  load(g, "1 48ff03; 3 eb00 >1!");
  is_gone(g, 2);
  assert_int_equal(g->cells[0], 3);
  assert_int_equal(look(g, NULL).id, 2);
}

static void gone_while_idle(void **unused) {
  (void)unused;
  ls_stop stop;
  guest *g = guest_open(NULL);
  load(g, "1 48ff03; 2 48ff03");
  run(g, 1);
  load(g, "1 48ff4308");
  expect(LS_ERR_ARGUMENT, ls_execute(g->controller, 2, NULL, &stop, &error));
  run(g, 1);
  assert_int_equal(g->cells[1], 1);
}

static void moved_away_in_time(void **unused) {
  (void)unused;
  guest *g = guest_open(NULL);
  load(g, CELL);
  start_paused(g, 1);
  must(ls_step(g->controller, 1, &error));
  load(g, "2 eb00 >2!; 7 48ff4308; 8 eb00 >7!");
  ls_state state;
  is_at(g, 2, LS_PAUSED);
  look(g, &state);
  assert_int_equal(state.rip, g->layout.windows[CODE].address);
  must(ls_step(g->controller, 7, &error));
  is_at(g, 2, LS_PAUSED);
  cancel(g);
}

/* ---- Refused ------------------------------------------------------------------------------------------ */

static const struct refused {
  const char *name;
  uint32_t index;
  ls_instruction in; /* takes the place of number 2 of 3 */
} refused[] = {
    {"a jump link without a branch", 2, {.id = 3, .next = LS_NONE, .jump = 1, .length = 1, .bytes = {0x90}}},
    {"a branch of unknown width",
     2,
     {.id = 3, .next = LS_NONE, .length = 4, .field = LS_FIELD_BRANCH, .field_offset = 1, .field_size = 2}},
    {"a field of unknown kind",
     2,
     {.id = 3,
      .next = LS_NONE,
      .jump = LS_NONE,
      .length = 5,
      .field = 3,
      .field_offset = 1,
      .field_size = 4}},
    {"a field outside its bytes",
     2,
     {.id = 3, .next = LS_NONE, .length = 4, .field = LS_FIELD_BRANCH, .field_offset = 1, .field_size = 4}},
    {"next out of range", 2, {.id = 3, .next = 3, .jump = LS_NONE, .length = 1, .bytes = {0x90}}},
    {"jump out of range",
     2,
     {.id = 3,
      .next = LS_NONE,
      .jump = 4711,
      .length = 2,
      .field = LS_FIELD_BRANCH,
      .field_offset = 1,
      .field_size = 1,
      .bytes = {0xeb}}},
    {"data out of reach",
     2,
     {.id = 3,
      .next = LS_NONE,
      .jump = LS_NONE,
      .length = 7,
      .field = LS_FIELD_DATA,
      .field_offset = 3,
      .field_size = 4,
      .data = UINT64_C(1) << 46,
      .bytes = {0x48, 0x8b, 0x05}}},
    {"no bytes", 2, {.id = 3, .next = LS_NONE, .jump = LS_NONE}},
    {"too many bytes", 2, {.id = 3, .next = LS_NONE, .jump = LS_NONE, .length = 16}},
    {"an id that is there", 2, {.id = 1, .next = LS_NONE, .jump = LS_NONE, .length = 1, .bytes = {0x90}}},
    {"the id before", 2, {.id = 2, .next = LS_NONE, .jump = LS_NONE, .length = 1, .bytes = {0x90}}},
};

static void is_refused(guest *g, const struct refused *r) {
  code c;
  assemble(&c, "1 48ff4308; 2 eb00 >1; 3 90", 0);
  c.in[2] = r->in;
  ls_status status = ls_update_code(g->controller, &c.program, &error);
  if (status != LS_ERR_PROGRAM || error.index != r->index)
    fail_msg("%s: got %s, index %u", r->name, ls_status_name(status), error.index);
}

static void are_refused(guest *g) {
  for (size_t i = 0; i < sizeof refused / sizeof *refused; i++)
    is_refused(g, &refused[i]);
  code c;
  assemble(&c, "1 90", 0);
  c.program.count = 0;
  expect(LS_ERR_PROGRAM, ls_update_code(g->controller, &c.program, &error));
  c.program.count = UINT32_MAX;
  expect(LS_ERR_PROGRAM, ls_update_code(g->controller, &c.program, &error));
  c.program.count = LS_PROGRAM_MAX + 1;
  expect(LS_ERR_PROGRAM, ls_update_code(g->controller, &c.program, &error));
  c.program = (ls_program){.count = 1};
  expect(LS_ERR_PROGRAM, ls_update_code(g->controller, &c.program, &error));
}

static void what_is_refused_leaves_the_old_code(void **unused) {
  (void)unused;
  guest *g = guest_open(NULL);
  ls_stop stop;
  are_refused(g);
  expect(LS_ERR_ARGUMENT, ls_execute(g->controller, 1, NULL, &stop, &error)); /* still none */
  load(g, CELL);
  are_refused(g);
  start_paused(g, 1);
  are_refused(g);
  is_at(g, 1, LS_PAUSED);
  must(ls_step(g->controller, 1, &error));
  is_at(g, 2, LS_PAUSED);
  must(ls_resume(g->controller, &error));
  are_refused(g);
  counts_on(g, 0);
  cancel(g);
  assert_int_equal(g->cells[1], 0);
}

/* ---- Growing ------------------------------------------------------------------------------------------ */

/* Ids 1 to `count`: 1 counts a cell, the last goes back; between them NOPs, and short branches to 1 that are
 * not taken, most too far for their field. */
static ls_status load_large(guest *g, uint32_t count) {
  ls_instruction *in = calloc(count, sizeof *in);
  assert_non_null(in);
  for (uint32_t i = 0; i < count; i++) {
    in[i] = (ls_instruction){.id = i + 1, .next = i + 1, .jump = LS_NONE, .length = 1, .bytes = {0x90}};
    if (i % 3 == 2) {
      in[i].jump = 0;
      in[i].length = 2;
      in[i].field = LS_FIELD_BRANCH;
      in[i].field_offset = in[i].field_size = 1;
      in[i].bytes[0] = 0x74;
    }
  }
  in[count - 1] = (ls_instruction){.id = count,
                                   .next = LS_NONE,
                                   .jump = 0,
                                   .length = 5,
                                   .flags = LS_NEVER_FALLS_THROUGH,
                                   .field = LS_FIELD_BRANCH,
                                   .field_offset = 1,
                                   .field_size = 4,
                                   .bytes = {0xe9}};
  if (count > 1) {
    in[0].length = 3;
    memcpy(in[0].bytes, "\x48\xff\x03", 3);
  }
  ls_status status = ls_update_code(g->controller, &(ls_program){in, count, 0}, &error);
  free(in); /* it was copied */
  return status;
}

static void grow(guest *g, uint32_t count) {
  must(load_large(g, count));
  ls_controller_layout(g->controller, &g->layout);
  assert_true(g->layout.windows[CODE].size >= count);
  assert_true(g->layout.windows[CODE].size % LS_PAGE == 0);
}

/* Paused at 1, at a guest whose code goes up to `count`. */
static void looks_around(guest *g, uint32_t count) {
  enum { ON_FOOT = 2000 };
  ls_state state;
  uint64_t cell = g->cells[0];
  static const uint32_t some[] = {2, 3, 4, 7, 100, 30000, LS_PROGRAM_MAX - 1, LS_PROGRAM_MAX};
  for (size_t i = 0; i < sizeof some / sizeof *some && some[i] < count; i++) {
    must(ls_run_until(g->controller, some[i], &error));
    is_at(g, some[i], LS_PAUSED);
    assert_int_equal(look(g, &state).instruction, some[i] - 1);
    assert_true(state.rip - g->layout.windows[CODE].address < g->layout.windows[CODE].size);
  }
  must(ls_run_until(g->controller, count, &error));
  must(ls_step(g->controller, 1, &error));
  is_at(g, 1, LS_PAUSED);
  assert_int_equal(g->cells[0], cell + 1);
  for (int lap = 0; lap < 2; lap++) {
    const bool on_foot = count <= ON_FOOT;
    must(ls_step(g->controller, on_foot ? count - 1 : ON_FOOT, &error));
    if (!on_foot)
      must(ls_run_until(g->controller, count, &error));
    is_at(g, count, LS_PAUSED);
    must(ls_step(g->controller, 1, &error));
  }
  is_at(g, 1, LS_PAUSED);
  assert_int_equal(g->cells[0], cell + 3);
}

static void code_grows_and_shrinks_under_a_guest(void **unused) {
  (void)unused;
  static const uint32_t counts[] = {2, 10, LS_PROGRAM_MAX, 10, 2000, 30000, 3, LS_PROGRAM_MAX};
  guest *g = guest_open(NULL);
  grow(g, counts[0]);
  const uint8_t *bytes = ls_controller_memory(g->controller, CODE);
  start(g, 1);
  for (size_t i = 1; i < sizeof counts / sizeof *counts; i++) {
    bool shrinks = counts[i] < counts[i - 1];
    if (shrinks) /* where it is may not be in the smaller one */
      must(ls_run_until(g->controller, 1, &error));
    grow(g, counts[i]);
    if (shrinks) {
      is_at(g, 1, LS_PAUSED);
      must(ls_resume(g->controller, &error));
    }
    counts_on(g, 0);
    counts_on(g, 0);
    assert_memory_equal(bytes, "\x48\xff\x03", 3); /* the old view too */
  }
  cancel(g);
}

static void every_position_in_large_code(void **unused) {
  (void)unused;
  guest *g = guest_open(NULL);
  grow(g, 2);
  start_paused(g, 1);
  grow(g, LS_PROGRAM_MAX);
  looks_around(g, LS_PROGRAM_MAX);
  cancel(g);
  for (uint64_t id = 2; id <= LS_PROGRAM_MAX; id += 9973) {
    start_paused(g, id);
    must(ls_step(g->controller, 1, &error));
    is_at(g, id + 1, LS_PAUSED);
    cancel(g);
  }
}

static void from_one_to_all_to_one(void **unused) {
  (void)unused;
  guest *g = guest_open(NULL);
  must(load_large(g, 1));
  start(g, 1);
  for (int i = 0; i < 3; i++) {
    must(load_large(g, LS_PROGRAM_MAX));
    counts_on(g, 0);
    must(ls_run_until(g->controller, 1, &error));
    must(load_large(g, 1));
    uint64_t cell = g->cells[0];
    must(ls_step(g->controller, 3, &error));
    is_at(g, 1, LS_PAUSED);
    assert_int_equal(g->cells[0], cell);
    must(ls_resume(g->controller, &error));
  }
  must(load_large(g, LS_PROGRAM_MAX));
  counts_on(g, 0);
  must(ls_run_until(g->controller, LS_PROGRAM_MAX, &error));
  must(load_large(g, 1));
  is_gone(g, LS_PROGRAM_MAX);
}

static void idle_code_grows(void **unused) {
  (void)unused;
  guest *g = guest_open(NULL);
  ls_layout before = g->layout;
  grow(g, LS_PROGRAM_MAX);
  assert_memory_equal(&before.windows[1], &g->layout.windows[1], 4 * sizeof *before.windows);
  for (int i = 0; i < 5; i++) {
    start(g, 1);
    counts_on(g, 0);
    cancel(g);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      TEST(at_each_instruction),
      TEST(while_it_runs),
      TEST(by_several_threads_at_once),
      TEST(fuel_is_kept),
      TEST(fuel_is_kept_while_it_runs),
      TEST(gone_while_it_runs),
      TEST(gone_while_paused),
      TEST(gone_while_idle),
      TEST(moved_away_in_time),
      TEST(what_is_refused_leaves_the_old_code),
      TEST(code_grows_and_shrinks_under_a_guest),
      TEST(every_position_in_large_code),
      TEST(from_one_to_all_to_one),
      TEST(idle_code_grows),
  };
  return RUN_BOTH(tests);
}

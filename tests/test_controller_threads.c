/* Controllers: many threads and one controller, many controllers and one thread, and all at once. Every test
 * in both kinds. */
#include "related.h"

#define CELL "1 48ff03; 2 eb00 >1!" /* counts the first cell */

/* ---- Many callers of one controller ------------------------------------------------------------------- */

enum { CALLERS = 6, CALLS = 400 };

typedef struct caller {
  guest *g;
  pthread_t thread;
  unsigned number;
  uint64_t added; /* to R9 */
  const char *trouble;
  ls_status status;
} caller;

static int add_one(ls_state *state, ls_position *position, void *context) {
  caller *c = context;
  c->trouble = unrelated(state, position->id, c->g->cells);
  state->gpr[LS_R9]++;
  return 0;
}

static ls_status look_once(caller *c) {
  ls_state state;
  ls_position p;
  ls_status status = ls_get_state(c->g->controller, &state, &p, NULL);
  if (!status)
    c->trouble = unrelated(&state, p.id, NULL);
  return status;
}

static ls_status call_once(caller *c, unsigned what) {
  ls_controller *g = c->g->controller;
  code text;
  switch (what) {
  case 0:
    c->added++;
    return ls_change_state(g, add_one, c, NULL);
  case 1:
    return ls_pause(g, NULL);
  case 2:
    return ls_resume(g, NULL);
  case 3:
    return ls_step(g, 1 + c->number, NULL);
  case 4:
    return ls_run_until(g, 1 + c->number, NULL);
  case 5:
    return ls_update_code(g, assemble(&text, related_code(), 0), NULL);
  default:
    return look_once(c);
  }
}

static void *call_often(void *context) {
  caller *c = context;
  unsigned random = c->number;
  for (int i = 0; i < CALLS && !c->status && !c->trouble; i++) {
    random = random * 1103515245 + 12345;
    ls_status status = call_once(c, (random >> 16) % 10);
    c->status = status == LS_ERR_SUPERSEDED ? LS_OK : status;
  }
  return NULL;
}

static void *resume_often(void *context) {
  guest *g = context;
  while (!atomic_load(&g->over)) {
    ls_resume(g->controller, NULL); /* or a step of somebody's would wait for ever */
    doze();
  }
  return NULL;
}

static void many_callers_at_once(void **unused) {
  (void)unused;
  guest *g = guest_open(NULL);
  related_load(g);
  start(g, 1);
  caller callers[CALLERS];
  pthread_t resumer;
  for (unsigned i = 0; i < CALLERS; i++) {
    callers[i] = (caller){.g = g, .number = i};
    assert_int_equal(pthread_create(&callers[i].thread, NULL, call_often, &callers[i]), 0);
  }
  assert_int_equal(pthread_create(&resumer, NULL, resume_often, g), 0);
  uint64_t added = 0;
  for (unsigned i = 0; i < CALLERS; i++) {
    pthread_join(callers[i].thread, NULL);
    added += callers[i].added;
  }
  ls_status cancelled = ls_cancel(g->controller, &error);
  pthread_join(resumer, NULL);
  must(cancelled);
  for (unsigned i = 0; i < CALLERS; i++) {
    if (callers[i].trouble)
      fail_msg("%s", callers[i].trouble);
    expect(LS_OK, callers[i].status);
  }
  assert_int_equal(finish(g)->kind, LS_STOP_CANCELLED);
  is_related(g, "at the end");
  assert_int_equal(get_gpr(g, LS_R9), added);
  assert_true(added > 0);
}

/* One of many cancels ends a run; the others are told that they came too late. */
static void *cancel_once(void *context) {
  caller *c = context;
  c->status = ls_cancel(c->g->controller, NULL);
  return NULL;
}

static void many_cancel_at_once(void **unused) {
  (void)unused;
  guest *g = guest_open(NULL);
  load(g, CELL);
  for (int round = 0; round < 50; round++) {
    caller callers[CALLERS];
    unsigned succeeded = 0;
    start(g, 1);
    for (unsigned i = 0; i < CALLERS; i++) {
      callers[i] = (caller){.g = g};
      assert_int_equal(pthread_create(&callers[i].thread, NULL, cancel_once, &callers[i]), 0);
    }
    for (unsigned i = 0; i < CALLERS; i++) {
      pthread_join(callers[i].thread, NULL);
      succeeded += callers[i].status == LS_OK;
      assert_true(callers[i].status == LS_OK || callers[i].status == LS_ERR_IDLE);
    }
    assert_int_equal(finish(g)->kind, LS_STOP_CANCELLED);
    assert_true(succeeded >= 1);
  }
}

/* ---- Many executions ---------------------------------------------------------------------------------- */

static void executed_by_one_thread_after_another(void **unused) {
  (void)unused;
  guest *g = guest_open(NULL);
  load(g, "1 48ffc0; 2 d8c1; 3 660f58c1; 4 48ff03");
  ls_state state;
  fill_state(&state);
  state.gpr[LS_RAX] = 0;
  state.gpr[LS_RBX] = g->layout.windows[DATA].address;
  set_state(g, &state);
  for (uint64_t i = 1; i <= 30; i++) {
    if (i % 3) {
      start(g, 1);
      finish(g);
    } else
      run(g, 1);
    stopped(&g->stop, LS_STOP_EXIT, 4, LS_PART_NEXT);
    assert_int_equal(get_gpr(g, LS_RAX), i);
    assert_int_equal(g->cells[0], i);
  }
}

static void one_thread_and_two_controllers_in_turn(void **unused) {
  (void)unused;
  guest *a = guest_open(NULL), *b = guest_open(NULL);
  load(a, "1 48ff03; 2 48ffc0");
  load(b, "1 48ff03; 2 0f0b");
  for (uint64_t i = 1; i <= 200; i++) {
    stopped(run(a, 1), LS_STOP_EXIT, 2, LS_PART_NEXT);
    stopped(run(b, 1), LS_STOP_FAULT, 2, LS_PART_BODY);
    assert_int_equal(a->cells[0], i);
    assert_int_equal(b->cells[0], i);
    assert_int_equal(get_gpr(a, LS_RAX), i);
  }
}

/* While one runs in another thread, too. */
static void one_runs_while_another_comes_and_goes(void **unused) {
  (void)unused;
  guest *running = guest_open(NULL);
  related_load(running);
  start(running, 1);
  for (int i = 0; i < 50; i++) {
    guest *g = guest_open(NULL);
    related_load(g);
    if (i % 2)
      start(g, 1);
    is_related(running, "running");
    counts_on(running, 0);
    if (i % 4 == 1)
      cancel(g);
    guest_close(g); /* cancels it */
  }
  cancel(running);
  is_related(running, "at the end");
}

typedef struct worker {
  pthread_t thread;
  ls_kind kind;
  unsigned number;
  const char *trouble;
} worker;

/* No cmocka here: other threads must not fail a test. */
static const char *use_and_destroy(const worker *w, ls_controller *c) {
  code text;
  ls_layout layout;
  ls_stop stop;
  ls_state state;
  ls_controller_layout(c, &layout);
  CHECK(!ls_update_code(c, assemble(&text, "1 48ffc0; 2 48ffc9; 3 7500 >1", 0), NULL));
  for (uint64_t i = 1; i < 20; i++) {
    CHECK(!ls_get_state(c, &state, NULL, NULL));
    state.gpr[LS_RCX] = 100 * i + w->number;
    state.gpr[LS_RAX] = 0;
    CHECK(!ls_change_state(c, put_state, &state, NULL));
    CHECK(!ls_execute(c, 1, NULL, &stop, NULL));
    CHECK(stop.kind == LS_STOP_EXIT && stop.id == 3);
    CHECK(!ls_get_state(c, &state, NULL, NULL));
    CHECK(state.gpr[LS_RAX] == 100 * i + w->number);
  }
  return NULL;
}

static void *work(void *context) {
  worker *w = context;
  for (int i = 0; i < 10 && !w->trouble; i++) {
    ls_controller *mine[2] = {NULL, NULL};
    for (int n = 0; n < 2; n++)
      if (ls_controller_create(w->kind, NULL, &mine[n], NULL))
        w->trouble = "it cannot be created";
    for (int n = 0; n < 2 && !w->trouble; n++)
      w->trouble = use_and_destroy(w, mine[n]);
    bool first = (w->number + (unsigned)i) % 2;
    ls_controller_destroy(mine[first]);
    ls_controller_destroy(mine[!first]);
  }
  return NULL;
}

static void many_controllers_in_many_threads(void **unused) {
  (void)unused;
  worker workers[6];
  for (unsigned i = 0; i < 6; i++) {
    workers[i] = (worker){.kind = kind, .number = i};
    assert_int_equal(pthread_create(&workers[i].thread, NULL, work, &workers[i]), 0);
  }
  for (unsigned i = 0; i < 6; i++)
    pthread_join(workers[i].thread, NULL);
  for (unsigned i = 0; i < 6; i++)
    if (workers[i].trouble)
      fail_msg("thread %u: %s", i, workers[i].trouble);
}

/* Threads that end without giving anything back: more than an executor has room for at a time. */
static void threads_that_come_and_go(void **unused) {
  (void)unused;
  guest *g = guest_open(NULL);
  load(g, "1 48ff03; 2 0f0b");
  uint64_t threads = kind == LS_SIGNAL ? 1100 : 100;
  for (uint64_t i = 1; i <= threads; i++) {
    g->entry = 1;
    atomic_store(&g->over, false);
    assert_int_equal(pthread_create(&g->thread, NULL, execute, g), 0);
    pthread_join(g->thread, NULL);
    must(g->status);
    stopped(&g->stop, LS_STOP_FAULT, 2, LS_PART_BODY);
    assert_int_equal(g->cells[0], i);
  }
}

/* Destroying in any order, from a thread that did not create, with guests that run, are paused, or idle. */
static void *close_it(void *context) {
  guest *g = context;
  ls_controller_destroy(g->controller);
  return NULL;
}

static void destroyed_in_any_order(void **unused) {
  (void)unused;
  static const uint8_t orders[][3] = {{0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}};
  for (unsigned i = 0; i < 6; i++) {
    guest *gs[3];
    for (int n = 0; n < 3; n++) {
      gs[n] = guest_open(NULL);
      load(gs[n], CELL);
    }
    start(gs[0], 1);
    start_paused(gs[1], 1);
    for (int n = 0; n < 3; n++) {
      guest *g = gs[orders[i][n]];
      pthread_t closer;
      assert_int_equal(pthread_create(&closer, NULL, close_it, g), 0);
      pthread_join(closer, NULL);
      if (g->threaded) {
        pthread_join(g->thread, NULL);
        assert_int_equal(g->status, LS_OK);
        assert_int_equal(g->stop.kind, LS_STOP_CANCELLED);
      }
      memset(g, 0, sizeof *g);
    }
  }
}

static void *execute_announced(void *context) {
  guest *g = context;
  atomic_store(&g->over, true);
  g->status = ls_execute(g->controller, 1, NULL, &g->stop, &g->error);
  return NULL;
}

/* The visitor has the guest, so that the thread waits to begin. */
static int let_one_wait(ls_state *state, ls_position *position, void *context) {
  guest *g = context;
  (void)state;
  (void)position;
  g->threaded = pthread_create(&g->thread, NULL, execute_announced, g) == 0;
  while (g->threaded && !atomic_load(&g->over))
    doze();
  for (int i = 0; i < 100; i++)
    doze();
  return 0;
}

static void destroyed_beside_one_who_waits_to_begin(void **unused) {
  (void)unused;
  for (int i = 0; i < 10; i++) {
    guest *g = guest_open(NULL);
    load(g, CELL);
    must(ls_change_state(g->controller, let_one_wait, g, &error));
    assert_true(g->threaded);
    ls_controller_destroy(g->controller);
    pthread_join(g->thread, NULL);
    assert_int_equal(g->status, LS_OK);
    assert_int_equal(g->stop.kind, LS_STOP_CANCELLED);
    memset(g, 0, sizeof *g);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      TEST(many_callers_at_once),
      TEST(many_cancel_at_once),
      TEST(executed_by_one_thread_after_another),
      TEST(one_thread_and_two_controllers_in_turn),
      TEST(one_runs_while_another_comes_and_goes),
      TEST(many_controllers_in_many_threads),
      TEST(threads_that_come_and_go),
      TEST(destroyed_in_any_order),
      TEST(destroyed_beside_one_who_waits_to_begin),
  };
  return RUN_BOTH(tests);
}

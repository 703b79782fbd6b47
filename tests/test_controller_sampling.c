/* Controllers: sampling. A guest's CPU time is measured by its own limit, which counts that and nothing else;
 * how often samples come is compared generously. Every test in both kinds. */
#include "related.h"

#define CELL "1 48ff03; 2 eb00 >1!" /* counts the first cell */

static const ls_sample_callback to_ring = NULL;

/* ---- How many ----------------------------------------------------------------------------------------- */

typedef struct tally {
  guest *g;
  _Atomic uint64_t samples;
  uint64_t weight;
  uint64_t weights[16]; /* by id */
  pthread_t thread;
  bool strayed; /* a position that is not in the code, or a weight of none */
  const char *trouble;
  unsigned busy, busy_of;
} tally;

static void count_sample(const ls_sample *sample, void *context) {
  tally *t = context;
  t->samples++;
  t->weight += sample->weight;
  t->thread = pthread_self();
  t->strayed |= sample->id == 0 || sample->id > 15 || sample->instruction == LS_NONE || !sample->weight;
  t->weights[sample->id & 15] += sample->weight;
}

static void is_about(const char *what, double expected, double got) {
  print_message("  %s: %g expected, %g\n", what, expected, got);
  if (got < expected / 2 || got > expected * 2)
    fail_msg("%s: expected about %g, got %g", what, expected, got);
}

static const struct rate { uint32_t rate, time_ms; } rates[] = {{10, 300}, {100, 100}, {1000, 100}};

static void samples_come_at_their_rate(void **unused) {
  (void)unused;
  for (size_t i = 0; i < sizeof rates / sizeof *rates; i++) {
    const struct rate *r = &rates[i];
    tally t = {0};
    guest *g = guest_open(NULL);
    load(g, CELL);
    must(ls_sample_start(g->controller, r->rate, count_sample, &t, 0, &error));
    assert_int_equal(run_limited(g, 1, (ls_limits){.limit_ms = r->time_ms})->kind, LS_STOP_TIMEOUT);
    assert_false(t.strayed);
    assert_true(pthread_equal(t.thread, pthread_self()));
    is_about("weight", r->rate * r->time_ms / 1000.0, (double)t.weight);
    guest_close(g);
  }
}

static void the_ring_holds_samples(void **unused) {
  (void)unused;
  enum { ROOM = 100 };
  static ls_sample samples[ROOM];
  guest *g = guest_open(NULL);
  load(g, "1 48ffc0; 2 eb00 >1!");
  must(ls_sample_start(g->controller, 100, to_ring, NULL, 0, &error));
  run_limited(g, 1, (ls_limits){.limit_ms = 150});
  uint64_t dropped = 4711, weight = 0, last = 0;
  uint32_t count, total = 0;
  for (uint32_t room = 2;; room = ROOM) {
    must(ls_sample_read(g->controller, samples, room, &count, &dropped, &error));
    assert_int_equal(dropped, 0);
    assert_true(count <= room);
    if (!count)
      break;
    for (uint32_t i = 0; i < count; i++) {
      assert_true(samples[i].state.gpr[LS_RAX] >= last); /* oldest first */
      last = samples[i].state.gpr[LS_RAX];
      assert_true(samples[i].id == 1 || samples[i].id == 2);
      assert_int_equal(samples[i].instruction, samples[i].id - 1);
      weight += samples[i].weight;
    }
    total += count;
  }
  is_about("weight", 15, (double)weight);
  assert_true(total > 2);
}

static void a_full_ring_drops_new_ones(void **unused) {
  (void)unused;
  enum { ROOM = 3 };
  ls_sample samples[2 * ROOM];
  guest *g = guest_open(NULL);
  load(g, "1 48ffc0; 2 eb00 >1!");
  must(ls_sample_start(g->controller, 1000, to_ring, NULL, ROOM, &error));
  for (int round = 0; round < 2; round++) {
    uint64_t dropped = 0, before = get_gpr(g, LS_RAX);
    uint32_t count = 0;
    run_limited(g, 1, (ls_limits){.limit_ms = 200}); /* fills it */
    uint64_t full = get_gpr(g, LS_RAX);
    run_limited(g, 1, (ls_limits){.limit_ms = 50});
    must(ls_sample_read(g->controller, samples, 2 * ROOM, &count, &dropped, &error));
    assert_int_equal(count, ROOM);
    assert_true(dropped > 1);
    assert_true(samples[0].state.gpr[LS_RAX] >= before);
    assert_true(samples[ROOM - 1].state.gpr[LS_RAX] <= full);
    must(ls_sample_read(g->controller, samples, 2 * ROOM, &count, &dropped, &error));
    assert_int_equal(count, 0);
    assert_int_equal(dropped, 0);
  }
  uint32_t count;
  must(ls_sample_read(g->controller, samples, 1, &count, NULL, &error));
}

/* ---- Where -------------------------------------------------------------------------------------------- */

/* 1 and 2 go round once for every four times that 4 and 5 do. Of that many samples a fifth are 40, give or
 * take six (one standard deviation); a ratio of four thirds would be 86. */
static void samples_are_where_the_time_goes(void **unused) {
  (void)unused;
  enum { SAMPLES = 200 };
  tally t = {0};
  guest *g = guest_open(NULL);
  load(g, "6 b9204e0000; 1 ffc9; 2 7500 >1; 3 b980380100; 4 ffc9; 5 7500 >4; 7 eb00 >6!");
  must(ls_sample_start(g->controller, 1000, count_sample, &t, 0, &error));
  start(g, 6);
  WAIT_UNTIL(t.samples >= SAMPLES);
  cancel(g);
  uint64_t seldom = t.weights[1] + t.weights[2], often = t.weights[4] + t.weights[5];
  print_message("  %llu : %llu\n", (unsigned long long)seldom, (unsigned long long)often);
  assert_true(often * 3 > seldom * 4 && often < seldom * 12);
}

static void check_sample(const ls_sample *sample, void *context) {
  tally *t = context;
  count_sample(sample, t);
  const char *trouble = unrelated(&sample->state, sample->id, t->g->cells);
  t->trouble = t->trouble ? t->trouble : trouble;
}

static void samples_are_whole(void **unused) {
  (void)unused;
  guest *g = guest_open(NULL);
  tally t = {.g = g};
  related_load(g);
  must(ls_sample_start(g->controller, 1000, check_sample, &t, 0, &error));
  start(g, 1);
  WAIT_UNTIL(t.samples > 10);
  cancel(g);
  must(ls_sample_stop(g->controller, &error));
  if (t.trouble)
    fail_msg("%s", t.trouble);
  is_related(g, "sampled");
}

/* ---- Starting, stopping, refusing --------------------------------------------------------------------- */

static void sampling_goes_on_over_runs(void **unused) {
  (void)unused;
  tally t = {0};
  guest *g = guest_open(NULL);
  load(g, CELL);
  must(ls_sample_start(g->controller, 100, count_sample, &t, 0, &error));
  for (int i = 0; i < 3; i++) {
    uint64_t before = t.samples;
    run_limited(g, 1, (ls_limits){.limit_ms = 60});
    assert_true(t.samples > before);
  }
  is_about("weight", 18, (double)t.weight);
}

static void stop_stops(void **unused) {
  (void)unused;
  tally t = {0};
  guest *g = guest_open(NULL);
  load(g, CELL);
  start(g, 1);
  must(ls_sample_start(g->controller, 1000, count_sample, &t, 0, &error));
  WAIT_UNTIL(t.samples >= 5);
  must(ls_sample_stop(g->controller, &error));
  uint64_t samples = t.samples, cell = g->cells[0];
  WAIT_UNTIL(g->cells[0] > cell * 2); /* as much again as they took to come */
  assert_int_equal(t.samples, samples);
  must(ls_sample_stop(g->controller, &error));
  cancel(g);
  assert_int_equal(t.samples, samples);
}

static void a_stopped_ring_is_read(void **unused) {
  (void)unused;
  ls_sample samples[4];
  uint32_t count;
  guest *g = guest_open(NULL);
  load(g, CELL);
  start(g, 1);
  must(ls_sample_start(g->controller, 1000, to_ring, NULL, 4, &error));
  do
    must(ls_sample_read(g->controller, samples, 1, &count, NULL, &error));
  while (!count);
  uint64_t cell = g->cells[0];
  WAIT_UNTIL(g->cells[0] > cell * 9); /* one has come in a ninth of that */
  must(ls_sample_stop(g->controller, &error));
  must(ls_sample_read(g->controller, samples, 2, &count, NULL, &error));
  assert_int_equal(count, 2);
  must(ls_sample_start(g->controller, 10, to_ring, NULL, 4, &error)); /* what was not read is lost */
  cancel(g);
  must(ls_sample_stop(g->controller, &error));
  must(ls_sample_read(g->controller, samples, 4, &count, NULL, &error));
  assert_true(count < 2);
}

static void a_paused_guest_is_not_sampled(void **unused) {
  (void)unused;
  tally t = {0};
  guest *g = guest_open(NULL);
  load(g, CELL);
  must(ls_sample_start(g->controller, 1000, count_sample, &t, 0, &error));
  start_paused(g, 1);
  double until = now() + 0.1;
  WAIT_UNTIL(now() > until);
  must(ls_sample_stop(g->controller, &error));
  assert_int_equal(t.samples, 0);
  cancel(g);
}

static void what_is_refused(void **unused) {
  (void)unused;
  tally t = {0};
  guest *g = guest_open(NULL);
  load(g, CELL);
  static const uint32_t bad[] = {0, 1, LS_SAMPLE_RATE_MIN - 1, LS_SAMPLE_RATE_MAX + 1, UINT32_MAX};
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
    expect(LS_ERR_ARGUMENT, ls_sample_start(g->controller, bad[i], count_sample, &t, 0, &error));
  run_limited(g, 1, (ls_limits){.limit_ms = 60});
  assert_int_equal(t.samples, 0);
  must(ls_sample_stop(g->controller, &error)); /* there is nothing to stop */
  must(ls_sample_start(g->controller, LS_SAMPLE_RATE_MIN, count_sample, &t, 0, &error));
  must(ls_sample_start(g->controller, LS_SAMPLE_RATE_MAX, count_sample, &t, 0, &error));
}

/* ---- From inside -------------------------------------------------------------------------------------- */

static void call_all(const ls_sample *sample, void *context) {
  tally *t = context;
  ls_controller *c = t->g->controller;
  ls_state state = sample->state;
  ls_stop stop;
  uint32_t count;
  code text;
  const ls_status got[] = {
      ls_get_state(c, &state, NULL, NULL),
      ls_change_state(c, put_state, &state, NULL),
      ls_pause(c, NULL),
      ls_resume(c, NULL),
      ls_step(c, 1, NULL),
      ls_run_until(c, 2, NULL),
      ls_cancel(c, NULL),
      ls_update_code(c, assemble(&text, CELL, 0), NULL),
      ls_execute(c, 1, NULL, &stop, NULL),
      ls_sample_start(c, 100, to_ring, NULL, 0, NULL),
      ls_sample_stop(c, NULL),
      ls_sample_read(c, NULL, 0, &count, NULL, NULL),
  };
  for (size_t i = 0; i < sizeof got / sizeof *got; i++) {
    t->busy += got[i] == LS_ERR_BUSY;
    t->busy_of++;
  }
  t->samples++;
}

static void calls_from_inside_a_callback(void **unused) {
  (void)unused;
  guest *g = guest_open(NULL);
  tally t = {.g = g};
  load(g, CELL);
  must(ls_sample_start(g->controller, 100, call_all, &t, 0, &error));
  assert_int_equal(run_limited(g, 1, (ls_limits){.limit_ms = 60})->kind, LS_STOP_TIMEOUT);
  assert_true(t.samples > 0);
  assert_true(t.busy_of > 0);
  assert_int_equal(t.busy, t.busy_of);
}

/* Nothing that other threads do keeps samples from coming, nor do samples keep anything from being done. */
static void samples_among_requests(void **unused) {
  (void)unused;
  guest *g = guest_open(NULL);
  tally t = {.g = g};
  related_load(g);
  must(ls_sample_start(g->controller, 1000, check_sample, &t, 0, &error));
  start(g, 1);
  for (int i = 0; i < 600 || t.samples < 5; i++) {
    is_related(g, "among samples");
    if (i % 50 == 0)
      load(g, related_code());
    if (i % 100 == 0) {
      must(ls_pause(g->controller, &error));
      must(ls_step(g->controller, 10, &error));
      must(ls_run_until(g->controller, 3, &error));
      must(ls_resume(g->controller, &error));
    }
    if (i % 300 == 0)
      counts_on(g, 0);
  }
  cancel(g);
  if (t.trouble)
    fail_msg("%s", t.trouble);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      TEST(samples_come_at_their_rate),
      TEST(the_ring_holds_samples),
      TEST(a_full_ring_drops_new_ones),
      TEST(samples_are_where_the_time_goes),
      TEST_OF("whole", samples_are_whole),
      TEST(sampling_goes_on_over_runs),
      TEST(stop_stops),
      TEST(a_stopped_ring_is_read),
      TEST(a_paused_guest_is_not_sampled),
      TEST(what_is_refused),
      TEST(calls_from_inside_a_callback),
      TEST_OF("whole", samples_among_requests),
  };
  return RUN_BOTH(tests);
}

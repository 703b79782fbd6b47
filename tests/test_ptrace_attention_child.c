/* The child of a reference whose guest is run in pieces: how its time is counted, which thread it belongs to,
 * and what becomes of it when it is killed or what it was made with changes. */
#include "ptrace_attention.h"

/* ---- Time --------------------------------------------------------------------------------------------- */

static void test_sampling(void **unused) {
  (void)unused;
  ls_state_init(&outcome.state);
  outcome.state.rip = X;
  pid_t before = only_child();
  set_tick(40 * MS);
  assert_int_equal(process_children(getpid(), &before), 0);
  executor->sampling = true;
  LOAD(COUNTING);
  for (unsigned i = 0; i < 8; i++) {
    assert_int_equal(go_on(i % 4 ? 0 : UINT64_MAX), LS_STOP_INTERRUPTED);
    assert_true(executor->sample_ticks > 0); /* more where the machine is busy */
    executor->sample_ticks = 0;
  }
  assert_int_equal(executor->time_left, TIME_ENDLESS);
  assert_int_equal(outcome.state.gpr[LS_R14] / 3, outcome.state.gpr[LS_R15] - (outcome.state.rip == X + 4));
  assert_int_not_equal(only_child(), before);
  clockid_t clock;
  assert_int_equal(clock_getcpuclockid(only_child(), &clock), 0);
  /* ITIMER_PROF goes by whom the clock interrupt finds, samples by the clock. */
  assert_true(nanoseconds(clock) > 7 * 30 * MS);
  executor->time_left = 140 * MS; /* the fourth tick, or a later one: what counts is the clock */
  unsigned ticks = 1;
  while (go_on(0) == LS_STOP_INTERRUPTED)
    ticks++;
  assert_int_equal(outcome.stop.kind, LS_STOP_TIMEOUT);
  assert_in_range(ticks, 2, 20);
}

/* A limit holds over all segments, however short each is. */
static void check_limit(uint64_t steps, uint64_t tick, uint32_t longest, ls_stop_kind other) {
  clockid_t clock;
  set_tick(tick);
  ls_state_init(&outcome.state);
  outcome.state.rip = X;
  LOAD(COUNTING);
  executor->time_left = 1;
  go_on(1); /* makes the child */
  assert_int_equal(clock_getcpuclockid(only_child(), &clock), 0);
  uint64_t since = nanoseconds(CLOCK_MONOTONIC);
  unsigned parts = 0;
  while (parts <= 10) { /* who rings may get the CPU seldom */
    ls_stop_kind kind;
    uint64_t used = nanoseconds(clock);
    executor->time_left = 150 * MS;
    start_ringing(ring, longest);
    while ((kind = go_on(steps)) != LS_STOP_TIMEOUT) {
      assert_true(kind == LS_STOP_INTERRUPTED || kind == other);
      *executor->attention = 0;
      parts++;
      assert_false(too_late(since));
    }
    stop_ringing();
    assert_false(too_late(since));
    assert_in_range(nanoseconds(clock) - used, 100 * MS, 10000 * MS);
  }
}

static void test_limit_in_segments(void **unused) {
  (void)unused;
  check_limit(0, 10 * MS, 100000, LS_STOP_INTERRUPTED);
  check_limit(5, 20000 * MS, 1000000, LS_STOP_STEPS); /* stepped runs do not need ticks */
  check_limit(UINT64_MAX, 20000 * MS, 1000000, LS_STOP_INTERRUPTED);
}

/* ---- Threads and children ----------------------------------------------------------------------------- */

static void *run_once(void *context) {
  static ls_state s;
  fill_seeded(&s, 700);
  ls_run run = {.state = &s, .steps = *(uint64_t *)context};
  ls_error why;
  return ls_executor_run(executor, &run, &outcome, &why) == LS_OK && outcome.stop.kind == LS_STOP_EXIT &&
                 outcome.state.gpr[LS_RAX] == s.gpr[LS_RAX] + 1
             ? context
             : NULL;
}

static void run_elsewhere(uint64_t steps) {
  pthread_t thread;
  void *result;
  assert_int_equal(pthread_create(&thread, NULL, run_once, &steps), 0);
  pthread_join(thread, &result);
  assert_ptr_equal(result, &steps);
}

/* Each thread ends before the next one runs: its child has been killed, or is about to be. */
static void test_threads_in_turn(void **unused) {
  (void)unused;
  LOAD("\x48\xff\xc0");
  uint64_t none = 0;
  for (unsigned i = 0; i < 20; i++) {
    run_elsewhere(i % 2 * 10);
    only_child();
    if (i % 3 == 0) {
      assert_non_null(run_once(&none));
      pid_t mine = only_child();
      assert_non_null(run_once(&none));
      assert_int_equal(only_child(), mine);
    }
  }
}

typedef struct creator {
  pthread_barrier_t made, done;
} creator;

static void *create_and_wait(void *context) {
  creator *c = context;
  ls_status status = ls_executor_create(LS_PTRACE, &layout, NULL, &executor, &error);
  pthread_barrier_wait(&c->made);
  pthread_barrier_wait(&c->done);
  return status ? NULL : c;
}

/* The creating thread lives and has never run it; then it has ended. */
static void test_other_creator(void **unused) {
  (void)unused;
  creator c;
  pthread_t thread;
  void *result;
  uint64_t none = 0;
  ls_executor_destroy(executor);
  pthread_barrier_init(&c.made, NULL, 2);
  pthread_barrier_init(&c.done, NULL, 2);
  assert_int_equal(pthread_create(&thread, NULL, create_and_wait, &c), 0);
  pthread_barrier_wait(&c.made);
  LOAD("\x48\xff\xc0");
  assert_non_null(run_once(&none));
  pid_t pid = only_child();
  pthread_barrier_wait(&c.done);
  pthread_join(thread, &result);
  assert_ptr_equal(result, &c);
  assert_non_null(run_once(&none));
  assert_int_equal(only_child(), pid);
  pthread_barrier_destroy(&c.made);
  pthread_barrier_destroy(&c.done);
}

/* Errors leave a state that is in place as it was. */
static void check_killed(uint64_t steps) {
  static ls_state before;
  fill_seeded(&outcome.state, 800);
  outcome.state.rip = X;
  before = outcome.state;
  pid_t pid = only_child();
  pthread_t thread;
  pthread_create(&thread, NULL, kill_soon, &pid);
  const ls_run run = {.state = &outcome.state, .steps = steps};
  assert_int_equal(executor_go(executor, &run, X, &outcome, &error), LS_ERR_CHILD);
  pthread_join(thread, NULL);
  assert_memory_equal(&before, &outcome.state, sizeof before);
  executor->time_left = 20 * MS;
  assert_int_equal(go_on(steps), LS_STOP_TIMEOUT);
  assert_int_not_equal(only_child(), pid);
}

static void test_killed(void **unused) {
  (void)unused;
  LOAD(COUNTING);
  check_killed(0);
  executor->time_left = TIME_ENDLESS;
  check_killed(UINT64_MAX);
}

static void test_refused_state(void **unused) {
  (void)unused;
  static ls_state before;
  LOAD(COUNTING);
  executor->time_left = 200 * MS;
  for (uint64_t i = 0; i < 4; i++) {
    fill_seeded(&outcome.state, 900);
    if (i / 2)
      outcome.state.ds = 0xfff0;
    else if (left_out("reserved MXCSR bit 31"))
      continue;
    else
      outcome.state.mxcsr |= 1u << 31;
    before = outcome.state;
    const ls_run run = {.state = &outcome.state, .steps = i % 2 * 5};
    assert_int_equal(executor_go(executor, &run, X, &outcome, &error), LS_ERR_STATE);
    assert_memory_equal(&before, &outcome.state, sizeof before);
  }
}

/* Whether there is anything to ask for or not. */
static void *ring_all_the_time(void *unused) {
  (void)unused;
  for (uint64_t n = 1; !ringer.stop; n++) {
    *executor->attention = mix(n) >> 7 & 1;
    executor->ops->interrupt(executor, 0);
  }
  return NULL;
}

static void test_changed_under_rings(void **unused) {
  (void)unused;
  static ls_state s;
  fill_seeded(&s, 1000);
  LOAD("\x48\xff\xc0");
  start_ringing(ring_all_the_time, 0);
  for (unsigned i = 0; i < 100; i++) {
    ls_stop_kind kind = go(&(ls_run){.state = &s}, X);
    assert_true(kind == LS_STOP_EXIT || kind == LS_STOP_INTERRUPTED);
    uint64_t more = outcome.state.gpr[LS_RAX] - s.gpr[LS_RAX];
    assert_int_equal(more, kind == LS_STOP_EXIT || outcome.state.rip != X);
    executor->ops->changed(executor);
    pid_t pid;
    assert_int_equal(process_children(getpid(), &pid), 0);
  }
  stop_ringing();
}

static void *change(void *unused) {
  (void)unused;
  executor->ops->changed(executor);
  return NULL;
}

/* The code window moves; said by another thread. */
static void test_moved_code(void **unused) {
  (void)unused;
  static ls_state s;
  fill_seeded(&s, 1100);
  LOAD("\x48\xff\xc0");
  assert_int_equal(go(&(ls_run){.state = &s}, X), LS_STOP_EXIT);
  layout.windows[CODE].address += 0x20000;
  executor->box.layout = layout;
  pthread_t thread;
  pthread_create(&thread, NULL, change, NULL);
  pthread_join(thread, NULL);
  LOAD("\x48\xff\xc0");
  assert_int_equal(go(&(ls_run){.state = &s}, X), LS_STOP_EXIT);
  assert_int_equal(outcome.state.gpr[LS_RAX], s.gpr[LS_RAX] + 1);
  only_child();
}

int main(void) {
  const struct CMUnitTest tests[] = {
      WITH_EXECUTOR(test_sampling),
      WITH_EXECUTOR(test_limit_in_segments),
      WITH_EXECUTOR(test_threads_in_turn),
      WITH_EXECUTOR(test_other_creator),
      WITH_EXECUTOR(test_killed),
      WITH_EXECUTOR(test_refused_state),
      WITH_EXECUTOR(test_changed_under_rings),
      WITH_EXECUTOR(test_moved_code),
  };
  ls_layout_default(&layout, SLOT);
  return cmocka_run_group_tests(tests, NULL, NULL);
}

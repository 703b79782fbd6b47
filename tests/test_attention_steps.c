/* Steps, samples and time limits of an in-thread guest that is interrupted meanwhile: each step is done once,
 * and time is counted on. */
#include "attention.h"
#include "signal/timer.h"

/* ---- Steps ---- */

static uint64_t after(uint64_t rip) {
  return rip == CODE + JUMP ? CODE : rip + 4;
}

/* Each step is done and counted, or interrupted and not done. */
static void steps_and_rings(void **unused) {
  (void)unused;
  enum { STEPS = 20000, MANY = 100, ENOUGH = 100 };
  guest g = open_guest(&(ls_options){.tick_ms = NO_TICKS});
  ls_state state;
  load(&g, COUNTING);
  fill_counting(&state);
  ls_outcome out = outcome_of(&state, CODE);
  time_t since = time(NULL);
  unsigned interrupted = 0;
  start(0, &(ringer){.executor = g.executor, .spins = 500, .waits = true});
  for (unsigned i = 0; i < STEPS || (interrupted < ENOUGH && patient(since)); i++) {
    uint64_t rip = out.state.rip, count = out.state.gpr[LS_RCX];
    bool done = go_on(&g, 0, 1, &out) == LS_STOP_STEPS;
    interrupted += !done;
    if (!done)
      same_kind("step", &out, LS_STOP_INTERRUPTED);
    assert_int_equal(out.state.rip, done ? after(rip) : rip);
    assert_int_equal(out.state.gpr[LS_RCX], count + (done && rip == CODE));
    check_counting("step", &state, &out.state, count);
  }
  assert_true(interrupted > 0);
  for (unsigned i = 0; i < STEPS / MANY; i++) {
    uint64_t count = out.state.gpr[LS_RCX];
    out.state.rip = CODE;
    out.state.gpr[LS_RDX] = count;
    if (go_on(&g, 0, 3 * MANY, &out) == LS_STOP_STEPS)
      assert_int_equal(out.state.gpr[LS_RCX], count + MANY);
    else
      same_kind("steps", &out, LS_STOP_INTERRUPTED);
    check_counting("steps", &state, &out.state, count);
  }
  stop_ringers();
  guest_close(&g);
}

static void repeated_strings_are_one_step(void **unused) {
  (void)unused;
  static const struct {
    const char *code;
    uint64_t length, left;
  } strings[] = {
      {"f3 a4 / 90", 2, 0},                               /* rep movsb */
      {"f3 48 a5 / 90", 3, 0},                            /* rep movsq */
      {"f3 aa / 90", 2, 0},                               /* rep stosb */
      {"66 f3 ab / 90", 3, 0},                            /* rep stosw */
      {"f3 ac / 90", 2, 0},                               /* rep lodsb */
      {"f3 a6 / 90", 2, 0},                               /* repe cmpsb: all equal */
      {"f2 ae / 90", 2, 0},                               /* repne scasb: not found */
      {"f2 a6 / 90", 2, 99},                              /* repne cmpsb: found at once */
      {"f3 2e 67 a4 / 90", 4, 0},                         /* with other prefixes */
      {"a4 / 90", 1, 100},        {"f3 90 / 90", 2, 100}, /* pause */
  };
  guest g = open_guest(NULL);
  for (size_t i = 0; i < sizeof strings / sizeof *strings; i++)
    for (uint64_t rcx = 0; rcx <= 100 && !left_out(strings[i].code); rcx += 100) {
      ls_state state;
      ls_outcome out;
      load(&g, strings[i].code);
      memset(ls_executor_memory(g.executor, DATA_WINDOW), 0x55, LS_PAGE);
      fill(&state);
      state.gpr[LS_RAX] = 0x1111;
      state.gpr[LS_RCX] = rcx;
      state.gpr[LS_RSI] = DATA;
      state.gpr[LS_RDI] = DATA + 0x800;
      for (uint64_t steps = 1; steps <= 2; steps++) {
        must(go(&g, &state, CODE, 0, steps, &out));
        same_kind(strings[i].code, &out, LS_STOP_STEPS);
        if (out.state.rip != CODE + strings[i].length + steps - 1)
          fail_msg("%s: %llu steps with RCX %llu lead to %#llx", strings[i].code, (unsigned long long)steps,
                   (unsigned long long)rcx, (unsigned long long)out.state.rip);
        assert_int_equal(out.state.gpr[LS_RCX], rcx ? strings[i].left : 0);
      }
    }
  guest_close(&g);
}

/* Interrupted between repetitions, whole and stepped: each is done once. */
static void repetitions_and_rings(void **unused) {
  (void)unused;
  enum { ROUNDS = 60, LENGTH = 1000 };
  guest g = open_guest(NULL);
  uint8_t *data = ls_executor_memory(g.executor, DATA_WINDOW);
  ls_state state;
  load(&g, "f3 a4"); /* rep movsb, forwards by one: the first byte fills all */
  fill(&state);
  state.gpr[LS_RSI] = DATA;
  state.gpr[LS_RDI] = DATA + 1;
  state.gpr[LS_RCX] = LENGTH;
  time_t since = time(NULL);
  unsigned between = 0;
  start(0, &(ringer){.executor = g.executor, .spins = 1000, .waits = true});
  for (uint64_t i = 0; i < ROUNDS || (!between && patient(since)); i++) {
    ls_outcome out = outcome_of(&state, CODE);
    memset(data, 0, LENGTH + 2);
    data[0] = (uint8_t)(i | 1);
    while (go_on(&g, 0, i % 2, &out) == LS_STOP_INTERRUPTED) {
      assert_int_equal(out.state.gpr[LS_RDI] + out.state.gpr[LS_RCX], DATA + 1 + LENGTH);
      between += out.state.gpr[LS_RCX] % LENGTH != 0;
    }
    same_kind("repetitions", &out, i % 2 ? LS_STOP_STEPS : LS_STOP_EXIT);
    assert_int_equal(out.state.gpr[LS_RCX], 0);
    assert_int_equal(data[LENGTH], i | 1);
    assert_int_equal(data[LENGTH + 1], 0);
  }
  stop_ringers();
  assert_true(between > 0);
  guest_close(&g);
}

/* ---- Time ---- */

/* By the coarse timer, whose ticks are periods, or by the fine one, that goes by the clock. What is charged
 * to the run is in a sample, but for less than a period. */
static void sampled_by(uint64_t ring_ns) {
  enum { SAMPLES = 20, TICK_NS = 1000000 };
  timer_ring_ns = ring_ns;
  guest g = open_guest(&(ls_options){.tick_ms = 1});
  ls_state state;
  load(&g, COUNTING);
  fill_counting(&state);
  ls_outcome out = outcome_of(&state, CODE);
  g.executor->sampling = true;
  for (int i = 0; i < SAMPLES; i++) {
    uint64_t count = out.state.gpr[LS_RCX];
    state.gpr[LS_RSP] = i % 2 ? UINT64_C(1) << 62 : 3;
    out.state.gpr[LS_RSP] = state.gpr[LS_RSP];
    g.executor->sample_ticks = 0;
    g.executor->time_left = UINT64_MAX - 1;
    go_on(&g, 0, 0, &out);
    same_kind("sample", &out, LS_STOP_INTERRUPTED);
    check_counting("sample", &state, &out.state, count + 1);
    assert_true(g.executor->sample_ticks > 0);
    int64_t charged = (int64_t)(UINT64_MAX - 1 - g.executor->time_left);
    int64_t rest = charged - g.executor->sample_ticks * (int64_t)TICK_NS;
    assert_true(rest > -TICK_NS && rest < TICK_NS);
  }
  g.executor->time_left = 1;
  go_on(&g, 0, 0, &out);
  same_kind("sampled to the end", &out, LS_STOP_TIMEOUT);
  guest_close(&g);
}

static void samples(void **unused) {
  (void)unused;
  sampled_by(UINT64_MAX);
  sampled_by(1);
}

static void time_passes_between_rings(void **unused) {
  (void)unused;
  guest g = open_guest(&(ls_options){.tick_ms = 1});
  ls_state state;
  time_t since = time(NULL);
  load(&g, COUNTING);
  fill_counting(&state);
  ls_outcome out = outcome_of(&state, CODE);
  unsigned interrupted = 0;
  start(0, &(ringer){.executor = g.executor, .spins = 1000, .waits = true});
  do { /* who rings may not get a CPU before the time is over */
    g.executor->time_left = 20000000;
    while (go_on(&g, 0, 0, &out) == LS_STOP_INTERRUPTED && (++interrupted % 64 || patient(since))) {
    }
    same_kind("interrupted to the end", &out, LS_STOP_TIMEOUT);
    assert_int_equal(g.executor->time_left, 0);
  } while (!interrupted && patient(since));
  stop_ringers();
  assert_true(interrupted > 0);
  guest_close(&g);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      WITH_RINGERS(steps_and_rings),           WITH_RINGERS(repeated_strings_are_one_step),
      WITH_RINGERS(repetitions_and_rings),     WITH_RINGERS(samples),
      WITH_RINGERS(time_passes_between_rings),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}

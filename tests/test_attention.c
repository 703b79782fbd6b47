/* What interrupts an in-thread guest, at random moments: the guest's thread leaves, has the whole state, and
 * goes on as if nothing had been. */
#include "attention.h"
#include "signal/thread.h"

/* ---- Re-entering ---- */

static void left_and_entered_again(void **unused) {
  (void)unused;
  enum { ROUNDS = 1500 };
  for (unsigned ticks = 0; ticks < 2; ticks++) {
    guest g = open_guest(&(ls_options){.tick_ms = ticks ? 1 : NO_TICKS});
    ls_state state;
    load(&g, COUNTING);
    fill_counting(&state);
    start(0, &(ringer){.executor = g.executor, .spins = 1000, .waits = true});
    count_interrupted("without x87", &g, &state, 0, ROUNDS);
    count_interrupted("with x87", &g, &state, LS_USES_X87, ROUNDS);
    stop_ringers();
    guest_close(&g);
  }
}

static void any_stack_pointer(void **unused) {
  (void)unused;
  enum { ROUNDS = 400 };
  static uint64_t host_data[1024];
  const uint64_t rsp[] = {3, UINT64_C(1) << 62, (uintptr_t)&host_data[512], UINT64_MAX};
  guest g = open_guest(&(ls_options){.tick_ms = NO_TICKS});
  ls_state state;
  load(&g, COUNTING);
  fill_counting(&state);
  start(0, &(ringer){.executor = g.executor, .spins = 1000, .waits = true});
  for (size_t i = 0; i < sizeof rsp / sizeof *rsp; i++) {
    state.gpr[LS_RSP] = rsp[i];
    count_interrupted("any RSP", &g, &state, 0, ROUNDS);
  }
  stop_ringers();
  for (size_t i = 0; i < sizeof host_data / sizeof *host_data; i++)
    assert_int_equal(host_data[i], 0);
  guest_close(&g);
}

/* Ticks strike a guest to which the kernel cannot return, whole and stepped. */
static void not_returned_to(void **unused) {
  (void)unused;
  guest g = open_guest(&(ls_options){.tick_ms = 1});
  ls_state state;
  ls_outcome out;
  load(&g, "48 ff c9 75 fb"); /* dec rcx; jnz back */
  fill_x87(&state);
  state.gpr[LS_RSP] = UINT64_C(1) << 62;
  state.gpr[LS_RCX] = 100000000;
  must(go(&g, &state, CODE, LS_USES_X87, 0, &out));
  same_kind("whole", &out, LS_STOP_EXIT);
  ls_state expected = state;
  expected.gpr[LS_RCX] = 0;
  expected.rip = out.state.rip;
  expected.rflags = out.state.rflags;
  same_state("whole", &expected, &out.state);
  must(go(&g, &state, CODE, 0, 1001, &out));
  same_kind("stepped", &out, LS_STOP_STEPS);
  assert_int_equal(out.state.gpr[LS_RCX], state.gpr[LS_RCX] - 501);
  g.executor->time_left = 20000000;
  load(&g, "eb fe");
  must(go(&g, &state, CODE, 0, 0, &out));
  same_kind("endless", &out, LS_STOP_TIMEOUT);
  guest_close(&g);
}

static void another_mode(void **unused) {
  (void)unused;
  enum { ROUNDS = 500 };
  guest g = open_guest(NULL);
  ls_state state;
  fill(&state);
  state.gpr[LS_RCX] = 0;
  return_to_32_bit(&g, &state);
  load(&g, FAR_RETURN " / 8d 49 01 eb fb"); /* lea ecx, [ecx+1]; jmp back */
  ls_outcome out = outcome_of(&state, CODE);
  must(go(&g, &out.state, CODE, 0, 1, &out));
  assert_int_equal(out.state.cs, CS_32);
  unsigned moved = 0;
  start(0, &(ringer){.executor = g.executor, .spins = 1000, .waits = true});
  for (unsigned i = 0; i < ROUNDS; i++) {
    uint64_t count = out.state.gpr[LS_RCX];
    go_on(&g, 0, 0, &out);
    same_kind("32-bit", &out, LS_STOP_INTERRUPTED);
    assert_int_equal(out.state.cs, CS_32);
    moved += out.state.gpr[LS_RCX] != count;
    ls_state expected = state;
    expected.cs = CS_32;
    expected.rip = out.state.rip;
    expected.gpr[LS_RSP] += 16;
    expected.gpr[LS_RCX] = out.state.gpr[LS_RCX];
    same_state("32-bit", &expected, &out.state);
  }
  stop_ringers();
  assert_true(moved > 0);
  guest_close(&g);
}

/* ---- At the edges of a run ---- */

/* Everything of the host's that the way in touches before it looks, or might. */
static void check_host(void) {
  uint32_t mxcsr;
  uint16_t fcw, ds, fs;
  __asm__ volatile("stmxcsr %0; fnstcw %1; mov %%ds, %2; mov %%fs, %3"
                   : "=m"(mxcsr), "=m"(fcw), "=r"(ds), "=r"(fs));
  assert_int_equal(mxcsr & ~UINT32_C(0x3f), 0x1f80);
  assert_int_equal(fcw, 0x37f);
  assert_int_equal(ds | fs, 0);
}

static void asked_before(void **unused) {
  (void)unused;
  guest g = open_guest(NULL);
  ls_state start;
  ls_outcome out;
  load(&g, "0f 0b");
  fill_x87(&start);
  start.rip = CODE;
  atomic_store(g.executor->attention, 1);
  for (uint32_t uses = 0; uses <= LS_USES_X87; uses++)
    for (uint64_t steps = 0; steps < 2; steps++) {
      memset(&out, 0xa5, sizeof out);
      must(go(&g, &start, CODE, uses, steps, &out));
      same_kind("asked before", &out, LS_STOP_INTERRUPTED);
      assert_memory_equal(&out.state, &start, sizeof start);
      out.stop.kind = LS_STOP_EXIT;
      must(go(&g, &out.state, CODE, uses, steps, &out));
      same_kind("asked before, in place", &out, LS_STOP_INTERRUPTED);
      assert_memory_equal(&out.state, &start, sizeof start);
      assert_int_equal(out.touched, 0);
      check_host();
    }
  atomic_store(g.executor->attention, 0);
  must(go(&g, &start, CODE, 0, 0, &out));
  same_kind("not asked", &out, LS_STOP_FAULT);
  guest_close(&g);
}

static void refused_in_place(void **unused) {
  (void)unused;
  static const struct {
    const char *name;
    uint32_t mxcsr;
    uint16_t ds, ss;
  } bad[] = {
      {"reserved MXCSR bits", UINT32_MAX, 0, 0x2b}, {"DS", 0x1f80, 0xfff0, 0x2b}, {"SS", 0x1f80, 0, 0xfff0}};
  guest g = open_guest(NULL);
  load(&g, "90");
  for (size_t i = 0; i < 2 * sizeof bad / sizeof *bad; i++) {
    ls_state start;
    if (left_out(bad[i / 2].name))
      continue;
    fill_x87(&start);
    start.mxcsr = bad[i / 2].mxcsr;
    start.ds = bad[i / 2].ds;
    start.ss = bad[i / 2].ss;
    memset(start.st[0] + 10, 0x77, 6); /* what the CPU ignores is left alone too */
    ls_outcome out = outcome_of(&start, start.rip);
    assert_int_equal(go(&g, &out.state, CODE, i % 2, 0, &out), LS_ERR_STATE);
    assert_memory_equal(&out.state, &start, sizeof start);
    check_host();
  }
  guest_close(&g);
}

/* One run after the other, each as short as can be, so that most rings come on the way in or out: in the end
 * each is like one that nobody disturbed. */
static void hammer(const char *code, uint64_t rsp, uint32_t uses, uint64_t steps, bool waits) {
  enum { RUNS = 1500, ENOUGH = 30 };
  guest g = open_guest(&(ls_options){.tick_ms = NO_TICKS});
  ls_state state;
  ls_outcome quiet, out;
  load(&g, code);
  fill_counting(&state);
  state.gpr[LS_RSP] = rsp;
  must(go(&g, &state, CODE, uses, steps, &quiet));
  time_t since = time(NULL);
  unsigned interrupted = 0;
  start(0, &(ringer){.executor = g.executor, .spins = waits ? 300 : 2000, .waits = waits});
  for (unsigned i = 0; i < RUNS || (interrupted < ENOUGH && patient(since)); i++) {
    memset(&out, 0xa5, sizeof out);
    must(go(&g, &state, CODE, uses, steps, &out));
    if (out.stop.kind == LS_STOP_INTERRUPTED)
      atomic_store(g.executor->attention, 0);
    for (; out.stop.kind == LS_STOP_INTERRUPTED; interrupted++)
      go_on(&g, uses, steps, &out);
    same_kind(code, &out, quiet.stop.kind);
    same_state(code, &quiet.state, &out.state);
    assert_memory_equal(&out.stop, &quiet.stop, sizeof out.stop);
    check_host();
  }
  stop_ringers();
  atomic_store(g.executor->attention, 0);
  assert_true(interrupted > 0);
  guest_close(&g);
}

static void on_the_way_in_and_out(void **unused) {
  (void)unused;
  static const char *const codes[] = {"48 8d 49 01", "48 8d 49 01 / 0f 0b", "48 8d 49 01 / 0f 05"};
  const uint64_t rsp[] = {STACK + 0x800, UINT64_C(1) << 62};
  const size_t call = 2;
  for (size_t i = in_part("dispatch") ? call : 0; i < (in_part("dispatch") ? call + 1 : call); i++)
    for (size_t j = 0; j < 2; j++) {
      hammer(codes[i], rsp[j], 0, 0, true);
      hammer(codes[i], rsp[j], LS_USES_X87, 0, false);
      hammer(codes[i], rsp[j], 0, 1, true);
    }
}

/* ---- Changes ---- */

static uint64_t timer_period(void) {
  struct itimerspec now;
  assert_int_equal(syscall(SYS_timer_gettime, thread_current->timer.id, &now), 0);
  return (uint64_t)now.it_interval.tv_sec * 1000000000 + (uint64_t)now.it_interval.tv_nsec;
}

static void a_changed_executor(void **unused) {
  (void)unused;
  guest g = open_guest(NULL);
  ls_state state;
  ls_outcome out;
  load(&g, "90");
  fill(&state);
  must(go(&g, &state, CODE, 0, 0, &out));
  assert_int_equal(timer_period(), 10000000);
  g.executor->tick_ns = 1500000000;
  g.executor->ops->changed(g.executor);
  must(go(&g, &state, CODE, 0, 0, &out));
  same_kind("changed", &out, LS_STOP_EXIT);
  assert_int_equal(timer_period(), 1500000000);
  g.executor->ops->changed(g.executor);
  guest_close(&g);
  assert_null(thread_current);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      WITH_RINGERS(left_and_entered_again), WITH_RINGERS(any_stack_pointer),
      WITH_RINGERS(not_returned_to),        WITH_RINGERS_OF("code32", another_mode),
      WITH_RINGERS(asked_before),           WITH_RINGERS(refused_in_place),
      WITH_RINGERS(on_the_way_in_and_out),  WITH_RINGERS_OF("dispatch", on_the_way_in_and_out),
      WITH_RINGERS(a_changed_executor),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}

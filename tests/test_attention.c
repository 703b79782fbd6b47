/* What interrupts an in-thread guest, at random moments: the guest's thread leaves, has the whole state, and
 * goes on as if nothing had been. */
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "executor.h"
#include "guest.h"
#include "sanitizers.h"
#include "signal/thread.h"

/* Ticks so rare that none answers in place of a ring that was lost: then the test hangs. */
enum { STACK_WINDOW = 3, PATIENCE = 8 /* seconds */, NO_TICKS = 10000000 };

/* lea rcx, [rcx+1]; lea rdx, [rdx+1]; jmp back: no flag changes, and at no place is a count lost or repeated.
 */
#define COUNTING "48 8d 49 01 / 48 8d 52 01 / eb f6"
enum { SECOND = 4, JUMP = 8 };

/* ---- Threads that ring ---- */

typedef struct ringer {
  pthread_t thread;
  ls_executor *executor; /* NULL: sends the signal `sig` without attention, as the host does */
  int tid, sig;
  unsigned spins; /* at most, between two rings */
  bool waits;     /* until the last ring was answered */
  _Atomic bool stop;
  bool runs;
} ringer;

static ringer ringers[2];

static unsigned random_below(uint64_t *seed, unsigned bound) {
  *seed = *seed * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
  return (unsigned)(*seed >> 33) % bound;
}

/* Whoever sleeps is let in at once when it wakes, even if the guest has the only core. */
static void await_answer(ringer *r) {
  enum { SPINS = 1000 };
  for (unsigned i = 0; atomic_load(r->executor->attention) && !atomic_load(&r->stop); i++)
    if (i < SPINS)
      __builtin_ia32_pause();
    else
      usleep(1);
}

static void ring(ringer *r) {
  if (!r->executor) {
    syscall(SYS_tgkill, getpid(), r->tid, r->sig);
    return;
  }
  if (r->waits)
    await_answer(r);
  atomic_store(r->executor->attention, 1);
  r->executor->ops->interrupt(r->executor, r->tid);
}

static void *ring_on(void *context) {
  ringer *r = context;
  uint64_t seed = 1;
  while (!atomic_load(&r->stop)) {
    for (unsigned n = random_below(&seed, r->spins); n; n--)
      __builtin_ia32_pause();
    ring(r);
  }
  return NULL;
}

static void start(int which, const ringer *what) {
  ringer *r = &ringers[which];
  memset(r, 0, sizeof *r);
  r->executor = what->executor;
  r->tid = (int)syscall(SYS_gettid);
  r->sig = what->sig;
  r->spins = what->spins;
  r->waits = what->waits;
  r->runs = pthread_create(&r->thread, NULL, ring_on, r) == 0;
  assert_true(r->runs);
}

static void stop_ringers(void) {
  for (int i = 0; i < 2; i++) {
    atomic_store(&ringers[i].stop, true);
    if (ringers[i].runs)
      pthread_join(ringers[i].thread, NULL);
    ringers[i].runs = false;
  }
}

static int tear_down(void **unused) {
  stop_ringers();
  return close_all(unused);
}

/* ---- Guests ---- */

static guest open_guest(const ls_options *options) {
  guest g = guest_open(0, options);
  g.executor->time_left = TIME_ENDLESS;
  return g;
}

static ls_status go(guest *g, const ls_state *state, uint64_t rip, uint32_t uses, uint64_t steps,
                    ls_outcome *out) {
  ls_run r = {.state = state, .uses = uses, .steps = steps};
  return executor_go(g->executor, &r, rip, out, &error);
}

/* From out->state on; a request that was answered is taken back. */
static ls_stop_kind go_on(guest *g, uint32_t uses, uint64_t steps, ls_outcome *out) {
  must(go(g, &out->state, out->state.rip, uses, steps, out));
  if (out->stop.kind == LS_STOP_INTERRUPTED)
    atomic_store(g->executor->attention, 0);
  return out->stop.kind;
}

static void same_kind(const char *name, const ls_outcome *out, ls_stop_kind kind) {
  if (out->stop.kind != kind)
    fail_msg("%s: expected stop %d, got %d (signal %d, code %d) at 0x%lx", name, (int)kind,
             (int)out->stop.kind, out->stop.signal, out->stop.code, (unsigned long)out->state.rip);
}

static ls_outcome outcome_of(const ls_state *start, uint64_t rip) {
  ls_outcome out;
  memset(&out, 0xa5, sizeof out);
  out.state = *start;
  out.state.rip = rip;
  return out;
}

static void fill_counting(ls_state *state) {
  fill_x87(state);
  state->rflags |= RFLAGS_DF | RFLAGS_AC;
  state->gpr[LS_RCX] = 0;
  state->gpr[LS_RDX] = 0;
}

/* Is it the state of COUNTING, begun from `start`, and not before `count`? */
static void check_counting(const char *name, const ls_state *start, const ls_state *got, uint64_t count) {
  ls_state expected = *start;
  uint64_t rcx = got->gpr[LS_RCX];
  if (rcx < count)
    fail_msg("%s: back from %lu to %lu", name, (unsigned long)count, (unsigned long)rcx);
  expected.gpr[LS_RCX] = rcx;
  expected.gpr[LS_RDX] = rcx - (got->rip == CODE + SECOND);
  expected.rip = got->rip;
  if (got->rip != CODE && got->rip != CODE + SECOND && got->rip != CODE + JUMP)
    fail_msg("%s: at 0x%lx", name, (unsigned long)got->rip);
  same_state(name, &expected, got);
}

/* Where the threads share one core, a round takes a time slice: then fewer must do. */
static bool patient(time_t since) {
  return time(NULL) - since < PATIENCE;
}

/* Lets COUNTING be interrupted `rounds` times, or for as long as we are patient. */
static void count_interrupted(const char *name, guest *g, const ls_state *from, uint32_t uses,
                              unsigned rounds) {
  time_t since = time(NULL);
  ls_outcome out = outcome_of(from, CODE);
  unsigned done = 0, progress = 0;
  for (; done < rounds && (done % 64 || patient(since)); done++) {
    uint64_t count = out.state.gpr[LS_RCX];
    go_on(g, uses, 0, &out);
    same_kind(name, &out, LS_STOP_INTERRUPTED);
    check_counting(name, from, &out.state, count);
    progress += out.state.gpr[LS_RCX] > count;
  }
  if (!progress)
    fail_msg("%s: the guest never got anywhere", name);
  if (done < rounds)
    print_message("%s: only %u of %u rounds on this machine\n", name, done, rounds);
}

/* ---- Re-entering ---- */

static void left_and_entered_again(void **unused) {
  (void)unused;
  enum { ROUNDS = 20000 };
  for (int vectors = LS_VECTORS_SSE; vectors <= (int)ls_vectors_available(); vectors++) {
    guest g =
        open_guest(&(ls_options){.vectors = (ls_vectors)vectors, .tick_ms = vectors % 2 ? NO_TICKS : 1});
    ls_state state;
    load(&g, COUNTING);
    fill_counting(&state);
    start(0, &(ringer){.executor = g.executor, .spins = 1000, .waits = true});
    count_interrupted(ls_vectors_name((ls_vectors)vectors), &g, &state, 0, ROUNDS);
    count_interrupted("with x87", &g, &state, LS_USES_X87, ROUNDS);
    stop_ringers();
    guest_close(&g);
  }
}

static void any_stack_pointer(void **unused) {
  (void)unused;
  enum { ROUNDS = 2000 };
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
  enum { CS_32 = 0x23, RETF = 2, ROUNDS = 500 };
  guest g = open_guest(NULL);
  ls_state state;
  fill(&state);
  state.gpr[LS_RSP] = STACK + 0x800;
  state.gpr[LS_RCX] = 0;
  uint64_t *stack = (uint64_t *)((uint8_t *)ls_executor_memory(g.executor, STACK_WINDOW) + 0x800);
  stack[0] = CODE + RETF;
  stack[1] = CS_32;
  load(&g, "48 cb / 8d 49 01 eb fb"); /* far return; lea ecx, [ecx+1]; jmp back */
  ls_outcome out = outcome_of(&state, CODE);
  must(go(&g, &out.state, CODE, 0, 1, &out));
  if (out.state.cs != CS_32) {
    print_message("this system refuses 32-bit code: test_machine is shown as skipped for it\n");
    guest_close(&g);
    return;
  }
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
  for (int vectors = LS_VECTORS_SSE; vectors <= (int)ls_vectors_available(); vectors++) {
    guest g = open_guest(&(ls_options){.vectors = (ls_vectors)vectors});
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
}

static void refused_in_place(void **unused) {
  (void)unused;
  static const struct {
    uint32_t mxcsr;
    uint16_t ds, ss;
  } bad[] = {{UINT32_MAX, 0, 0x2b}, {0x1f80, 0xfff0, 0x2b}, {0x1f80, 0, 0xfff0}};
  for (int vectors = LS_VECTORS_SSE; vectors <= (int)ls_vectors_available(); vectors++) {
    guest g = open_guest(&(ls_options){.vectors = (ls_vectors)vectors});
    load(&g, "90");
    for (size_t i = 0; i < 2 * sizeof bad / sizeof *bad; i++) {
      ls_state start;
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
}

/* One run after the other, each as short as can be, so that most rings come on the way in or out: in the end
 * each is like one that nobody disturbed. */
static void hammer(const char *code, uint64_t rsp, uint32_t uses, uint64_t steps, bool waits) {
  enum { RUNS = 10000, ENOUGH = 100 };
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
  guest g = open_guest(NULL);
  size_t kinds = ls_executor_stops_syscalls(g.executor) ? 3 : 2;
  guest_close(&g);
  for (size_t i = 0; i < kinds; i++)
    for (size_t j = 0; j < 2; j++) {
      hammer(codes[i], rsp[j], 0, 0, true);
      hammer(codes[i], rsp[j], LS_USES_X87, 0, false);
      hammer(codes[i], rsp[j], 0, 1, true);
    }
}

/* ---- The host's signals ---- */

static volatile sig_atomic_t host_calls, foreign_calls;

/* As long as a ring needs to come, and with accesses that AC makes fault. */
static void host_handler(int sig, siginfo_t *info, void *context) {
  static char bytes[64];
  (void)sig;
  (void)context;
  if (info->si_code == SI_TKILL)
    host_calls = host_calls + 1;
  else
    foreign_calls = foreign_calls + 1;
  for (int i = 0; i < 300; i++) {
    __builtin_ia32_pause();
    *(volatile uint32_t *)(void *)&bytes[1 + i % 3 * 8] = (uint32_t)i; /* NOLINT */
  }
  syscall(SYS_getpid);
}

static struct sigaction handle(int sig) {
  struct sigaction action = {.sa_sigaction = host_handler, .sa_flags = SA_SIGINFO | SA_ONSTACK}, before;
  host_calls = 0;
  foreign_calls = 0;
  sigaction(sig, &action, &before);
  return before;
}

static void a_handler_on_top(void **unused) {
  (void)unused;
  enum { ROUNDS = 5000 };
  time_t since = time(NULL);
  struct sigaction before = handle(SIGUSR1);
  guest g = open_guest(&(ls_options){.tick_ms = NO_TICKS});
  ls_state state;
  load(&g, COUNTING);
  fill_counting(&state);
  if (TSAN) /* its handler blocks all signals, and so what AC makes of its own unaligned accesses kills */
    state.rflags &= ~(uint64_t)RFLAGS_AC;
  start(0, &(ringer){.executor = g.executor, .spins = 1000, .waits = true});
  start(1, &(ringer){.sig = SIGUSR1, .spins = 400});
  do
    count_interrupted("handler on top", &g, &state, 0, ROUNDS);
  while (!host_calls && patient(since));
  stop_ringers();
  guest_close(&g);
  sigaction(SIGUSR1, &before, NULL);
  assert_true(host_calls > 0);
}

/* The host has a handler of the very signal: it gets its own, and none of ours, during runs and after them.
 */
static void the_hosts_interrupt_signal(void **unused) {
  (void)unused;
  enum { ROUNDS = 5000 };
  time_t since = time(NULL);
  struct sigaction before = handle(SIGURG);
  guest g = open_guest(&(ls_options){.tick_ms = NO_TICKS});
  ls_state state;
  load(&g, COUNTING);
  fill_counting(&state);
  start(0, &(ringer){.executor = g.executor, .spins = 1000, .waits = true});
  start(1, &(ringer){.sig = SIGURG, .spins = 2000});
  do
    count_interrupted("the host's signal", &g, &state, 0, ROUNDS);
  while (!host_calls && patient(since));
  stop_ringers();
  for (int i = 0; i < 100; i++)
    g.executor->ops->interrupt(g.executor, (int)syscall(SYS_gettid));
  int calls = host_calls;
  raise(SIGURG);
  assert_int_equal(host_calls, calls + 1);
  guest_close(&g);
  raise(SIGURG);
  assert_int_equal(host_calls, calls + 2);
  sigaction(SIGURG, &before, NULL);
  assert_true(calls > 0);
  assert_int_equal(foreign_calls, 0);
}

static _Atomic int idle_tid;
static _Atomic bool idle_stop;

static void *idle(void *unused) {
  (void)unused;
  atomic_store(&idle_tid, (int)syscall(SYS_gettid));
  while (!atomic_load(&idle_stop))
    sched_yield();
  return NULL;
}

/* By default each of these signals ends the process. */
static void other_signals(void **unused) {
  (void)unused;
  enum { ROUNDS = 1000 };
  const int signals[] = {SIGUSR2, SIGRTMIN + 3};
  for (int i = 0; i < 2; i++) {
    guest g = open_guest(&(ls_options){.interrupt_signal = signals[i], .tick_ms = NO_TICKS});
    ls_state state;
    load(&g, COUNTING);
    fill_counting(&state);
    start(0, &(ringer){.executor = g.executor, .spins = 1000, .waits = true});
    count_interrupted("another signal", &g, &state, 0, ROUNDS);
    stop_ringers();
    atomic_store(&idle_tid, 0);
    atomic_store(&idle_stop, false);
    pthread_t thread; /* which never ran a guest */
    pthread_create(&thread, NULL, idle, NULL);
    while (!atomic_load(&idle_tid))
      sched_yield();
    for (int n = 0; n < 100; n++) {
      g.executor->ops->interrupt(g.executor, (int)syscall(SYS_gettid));
      g.executor->ops->interrupt(g.executor, atomic_load(&idle_tid));
    }
    atomic_store(&idle_stop, true);
    pthread_join(thread, NULL);
    g.executor->ops->interrupt(g.executor, atomic_load(&idle_tid)); /* it is gone */
    guest_close(&g);
  }
}

/* The kernel has no room for what is sent with a signal: it loses it, or the whole signal. */
static void no_room_for_signals(void **unused) {
  (void)unused;
  enum { ROUNDS = 20 };
  const int signals[] = {SIGUSR2, SIGRTMIN + 3};
  for (int i = 0; i < 2; i++) {
    struct rlimit limit, none;
    guest g = open_guest(&(ls_options){.interrupt_signal = signals[i]});
    ls_state state;
    ls_outcome out;
    fill_counting(&state);
    load(&g, "90");
    must(go(&g, &state, CODE, 0, 0, &out)); /* the timer is made before */
    load(&g, COUNTING);
    getrlimit(RLIMIT_SIGPENDING, &limit);
    none = (struct rlimit){.rlim_max = limit.rlim_max};
    setrlimit(RLIMIT_SIGPENDING, &none);
    start(0, &(ringer){.executor = g.executor, .spins = 1000, .waits = true});
    count_interrupted("no room", &g, &state, 0, ROUNDS);
    stop_ringers();
    g.executor->ops->interrupt(g.executor, (int)syscall(SYS_gettid));
    setrlimit(RLIMIT_SIGPENDING, &limit);
    guest_close(&g);
  }
}

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
    for (uint64_t rcx = 0; rcx <= 100; rcx += 100) {
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
        assert_int_equal(out.state.rip, CODE + strings[i].length + steps - 1);
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

static void samples(void **unused) {
  (void)unused;
  enum { SAMPLES = 20, TICK_NS = 1000000 };
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
    assert_int_equal(UINT64_MAX - 1 - g.executor->time_left, g.executor->sample_ticks * (uint64_t)TICK_NS);
  }
  g.executor->time_left = 1;
  go_on(&g, 0, 0, &out);
  same_kind("sampled to the end", &out, LS_STOP_TIMEOUT);
  guest_close(&g);
}

static void time_passes_between_rings(void **unused) {
  (void)unused;
  guest g = open_guest(&(ls_options){.tick_ms = 1});
  ls_state state;
  time_t since = time(NULL);
  load(&g, COUNTING);
  fill_counting(&state);
  ls_outcome out = outcome_of(&state, CODE);
  g.executor->time_left = 20000000;
  unsigned interrupted = 0;
  start(0, &(ringer){.executor = g.executor, .spins = 1000, .waits = true});
  while (go_on(&g, 0, 0, &out) == LS_STOP_INTERRUPTED && (++interrupted % 64 || patient(since))) {
  }
  stop_ringers();
  same_kind("interrupted to the end", &out, LS_STOP_TIMEOUT);
  assert_true(interrupted > 0);
  assert_int_equal(g.executor->time_left, 0);
  guest_close(&g);
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
      cmocka_unit_test_teardown(left_and_entered_again, tear_down),
      cmocka_unit_test_teardown(any_stack_pointer, tear_down),
      cmocka_unit_test_teardown(not_returned_to, tear_down),
      cmocka_unit_test_teardown(another_mode, tear_down),
      cmocka_unit_test_teardown(asked_before, tear_down),
      cmocka_unit_test_teardown(refused_in_place, tear_down),
      cmocka_unit_test_teardown(on_the_way_in_and_out, tear_down),
      cmocka_unit_test_teardown(a_handler_on_top, tear_down),
      cmocka_unit_test_teardown(the_hosts_interrupt_signal, tear_down),
      cmocka_unit_test_teardown(other_signals, tear_down),
      cmocka_unit_test_teardown(no_room_for_signals, tear_down),
      cmocka_unit_test_teardown(steps_and_rings, tear_down),
      cmocka_unit_test_teardown(repeated_strings_are_one_step, tear_down),
      cmocka_unit_test_teardown(repetitions_and_rings, tear_down),
      cmocka_unit_test_teardown(samples, tear_down),
      cmocka_unit_test_teardown(time_passes_between_rings, tear_down),
      cmocka_unit_test_teardown(a_changed_executor, tear_down),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}

/* The signals that interrupt an in-thread guest, and those of the host: its handlers get their own and
 * nothing of ours, and whatever the signal is or the kernel has room for, no ring is lost. */
#include <sched.h>
#include <sys/resource.h>

#include "attention.h"
#include "sanitizers.h"

/* ---- Handlers of the host's ---- */

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
  enum { ROUNDS = 1000 };
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
  enum { ROUNDS = 1000 };
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

/* ---- Other signals ---- */

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

int main(void) {
  const struct CMUnitTest tests[] = {
      WITH_RINGERS(a_handler_on_top),
      WITH_RINGERS(the_hosts_interrupt_signal),
      WITH_RINGERS(other_signals),
      WITH_RINGERS(no_room_for_signals),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}

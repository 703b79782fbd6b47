/* Controllers: what a host may have of its own, and what it finds unchanged. Every test in both kinds. */
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "processes.h"
#include "related.h"
#include "sanitizers.h"

#define CELL "1 48ff03; 2 eb00 >1!" /* counts the first cell */

/* ---- Signals of the host's own ------------------------------------------------------------------------ */

static const int own[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP, SIGSYS, SIGURG, SIGUSR1, SIGUSR2};
enum { OWN = sizeof own / sizeof *own, SIGNALS = 64 };
static atomic_uint calls[SIGNALS + 1];
static void *page;

/* As any handler may, it changes what registers it likes; a fault at `page` it repairs. */
static void handle(int sig, siginfo_t *info, void *context) {
  (void)context;
  static const double scribble[2] = {1e300, -1e-300};
  __asm__ volatile("movupd %0, %%xmm0\n movupd %0, %%xmm15\n fninit\n fldpi\n fstp %%st(0)"
                   :
                   : "m"(scribble)
                   : "xmm0", "xmm15");
  calls[sig]++;
  if (sig == SIGSEGV && info->si_addr == page)
    mprotect(page, LS_PAGE, PROT_READ | PROT_WRITE);
}

typedef struct host {
  struct sigaction actions[OWN];
  stack_t stack;
  sigset_t mask;
} host;

static void handlers_put(host *before) {
  for (int i = 0; i < OWN; i++) {
    struct sigaction action = {.sa_sigaction = handle, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    sigaddset(&action.sa_mask, SIGHUP);
    sigaction(own[i], &action, &before->actions[i]);
    calls[own[i]] = 0;
  }
}

static void handlers_back(const host *before) {
  for (int i = 0; i < OWN; i++)
    sigaction(own[i], &before->actions[i], NULL);
}

static void look_at_signals(host *h) {
  memset(h, 0, sizeof *h);
  for (int i = 0; i < OWN; i++)
    sigaction(own[i], NULL, &h->actions[i]);
  sigaltstack(NULL, &h->stack);
  pthread_sigmask(SIG_SETMASK, NULL, &h->mask);
}

static const char *changed(const host *a, const host *b) {
  for (int i = 0; i < OWN; i++) {
    CHECK(a->actions[i].sa_sigaction == b->actions[i].sa_sigaction);
    CHECK(a->actions[i].sa_flags == b->actions[i].sa_flags);
    CHECK(sigismember(&b->actions[i].sa_mask, SIGHUP) == sigismember(&a->actions[i].sa_mask, SIGHUP));
  }
  CHECK(a->stack.ss_sp == b->stack.ss_sp && a->stack.ss_size == b->stack.ss_size);
  CHECK(a->stack.ss_flags == b->stack.ss_flags);
  for (int sig = 1; sig <= SIGNALS; sig++)
    CHECK(sigismember(&a->mask, sig) == sigismember(&b->mask, sig));
  return NULL;
}

static void a_real_fault(void) {
  unsigned before = calls[SIGSEGV];
  mprotect(page, LS_PAGE, PROT_NONE);
  *(volatile int *)page = 1;
  if (calls[SIGSEGV] != before + 1)
    fail_msg("the host's own fault did not reach its handler");
}

static void raise_all(void) {
  for (int i = 0; i < OWN; i++) {
    unsigned before = calls[own[i]];
    raise(own[i]);
    if (calls[own[i]] != before + 1)
      fail_msg("signal %d of the host's own did not reach its handler", own[i]);
  }
}

static host outside; /* what the tests run in */

static int put_back(void **unused) {
  (void)unused;
  handlers_back(&outside);
  sigaltstack(&outside.stack, NULL);
  pthread_sigmask(SIG_SETMASK, &outside.mask, NULL);
  munmap(page, LS_PAGE);
  return close_all(NULL);
}

static void are_as_before(const host *before) {
  host after;
  look_at_signals(&after);
  const char *trouble = changed(before, &after);
  if (trouble)
    fail_msg("not as before: %s", trouble);
}

static void signals_beside_a_guest(void) {
  guest *g = guest_open(NULL), *other = guest_open(NULL);
  load(g, "1 48ff03; 2 f4");
  related_load(other);
  start(other, 1);
  for (int i = 0; i < 20; i++) {
    a_real_fault();
    raise_all();
    stopped(run(g, 1), LS_STOP_FAULT, 2, LS_PART_BODY);
    is_related(other, "beside the host's signals");
  }
  cancel(other);
  guest_close(g);
  guest_close(other);
}

static void the_hosts_signals_are_its_own(void **unused) {
  (void)unused;
  static uint8_t stack[1 << 16];
  host before;
  look_at_signals(&outside);
  page = mmap(NULL, LS_PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  handlers_put(&(host){0});
  sigaltstack(&(stack_t){.ss_sp = stack, .ss_size = sizeof stack}, NULL);
  look_at_signals(&before);
  signals_beside_a_guest();
  ls_thread_release();
  are_as_before(&before);
  sigset_t blocked; /* what a run needs it takes from the mask for as long as it borrows it */
  sigemptyset(&blocked);
  for (int i = 0; i < OWN; i++)
    sigaddset(&blocked, own[i]);
  pthread_sigmask(SIG_BLOCK, &blocked, NULL);
  look_at_signals(&before);
  guest *g = guest_open(NULL);
  load(g, "1 48ff03; 2 f4");
  stopped(run(g, 1), LS_STOP_FAULT, 2, LS_PART_BODY);
  ls_thread_release();
  guest_close(g);
  are_as_before(&before);
}

/* Signals that strike the thread in the guest: it goes on as if there had been none. */
static void the_hosts_signals_strike_the_guest(void **unused) {
  (void)unused;
  static const int others[] = {SIGUSR1, SIGURG, SIGUSR2};
  look_at_signals(&outside);
  page = NULL;
  handlers_put(&(host){0});
  guest *g = guest_open(NULL);
  related_load(g);
  start(g, 1);
  for (int i = 0; i < 600; i++) {
    int sig = others[i % 3];
    unsigned before = calls[sig];
    pthread_sigqueue(g->thread, sig, (union sigval){.sival_int = i});
    if (i % 3 == 0)
      is_related(g, "struck");
    if (i % 50 == 0) {
      WAIT_UNTIL(calls[sig] > before);
      counts_on(g, 0);
    }
  }
  for (int i = 0; i < 3; i++)
    WAIT_UNTIL(calls[others[i]] > 100);
  cancel(g);
  is_related(g, "struck");
}

static void any_signal_interrupts(void **unused) {
  (void)unused;
  const int signals[] = {SIGUSR2, SIGRTMIN + 3, SIGALRM};
  for (size_t i = 0; i < sizeof signals / sizeof *signals; i++) {
    guest *g = guest_open(&(ls_controller_options){.executor.interrupt_signal = signals[i]});
    related_load(g);
    start(g, 1);
    for (int n = 0; n < 200; n++)
      is_related(g, "interrupted");
    must(ls_pause(g->controller, &error));
    must(ls_step(g->controller, 4, &error));
    cancel(g);
    guest_close(g);
  }
}

/* A thread with an alternate stack of its own ends without giving anything back, and the stack goes. */
static void *run_on_own_stack(void *context) {
  enum { SIZE = 1 << 16 };
  void *stack = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  sigaltstack(&(stack_t){.ss_sp = stack, .ss_size = SIZE}, NULL);
  execute(context);
  sigaltstack(&(stack_t){.ss_flags = SS_DISABLE}, NULL);
  munmap(stack, SIZE);
  return NULL;
}

static void threads_with_stacks_of_their_own(void **unused) {
  (void)unused;
  guest *g = guest_open(NULL);
  load(g, "1 48ff03; 2 f4");
  for (uint64_t i = 1; i <= 50; i++) {
    g->entry = 1;
    assert_int_equal(pthread_create(&g->thread, NULL, run_on_own_stack, g), 0);
    pthread_join(g->thread, NULL);
    must(g->status);
    stopped(&g->stop, LS_STOP_FAULT, 2, LS_PART_BODY);
    assert_int_equal(g->cells[0], i);
  }
}

/* ---- What the host finds unchanged -------------------------------------------------------------------- */

typedef struct cpu_state {
  uint32_t mxcsr;
  uint16_t fcw, ds, es;
  uint64_t fs, df, mask;
} cpu_state;

static cpu_state cpu_now(void) {
  enum { GET_FS = 0x1003, ALL = 8 }; /* asm/prctl.h */
  cpu_state c = {0};
  uint64_t flags;
  __asm__ volatile("stmxcsr %0; fnstcw %1" : "=m"(c.mxcsr), "=m"(c.fcw));
  __asm__ volatile("mov %%ds, %0; mov %%es, %1; pushfq; pop %2" : "=r"(c.ds), "=r"(c.es), "=r"(flags));
  c.df = flags & (RFLAGS_DF | RFLAGS_AC | RFLAGS_ID | RFLAGS_NT);
  syscall(SYS_arch_prctl, GET_FS, &c.fs);
  syscall(SYS_rt_sigprocmask, SIG_BLOCK, NULL, &c.mask, ALL);
  return c;
}

static cpu_state expected;

static const char *cpu_changed(void) {
  cpu_state c = cpu_now();
  c.mxcsr &= ~0x3fu; /* sticky flags are set by anybody's arithmetic */
  CHECK(c.mxcsr == expected.mxcsr);
  CHECK(c.fcw == expected.fcw);
  CHECK(c.ds == expected.ds && c.es == expected.es);
  CHECK(c.fs == expected.fs);
  CHECK(c.df == expected.df);
  CHECK(c.mask == expected.mask);
  return NULL;
}

typedef struct inside {
  const char *trouble;
  unsigned calls;
} inside;

static void look_inside(inside *i) {
  const char *trouble = cpu_changed();
  i->trouble = trouble ? trouble : i->trouble;
  i->calls++;
}

static void in_sample(const ls_sample *sample, void *context) {
  (void)sample;
  look_inside(context);
}

static void at_exit(ls_controller *controller, const ls_stop *stop, void *context) {
  (void)controller;
  (void)stop;
  look_inside(context);
}

static int in_visitor(ls_state *state, ls_position *position, void *context) {
  (void)state;
  (void)position;
  look_inside(context);
  return 0;
}

static void check_cpu(const char *after, const inside *i) {
  const char *trouble = cpu_changed();
  if (trouble || i->trouble)
    fail_msg("after %s: not %s", after, trouble ? trouble : i->trouble);
}

static void run_and_check(guest *g, const char *text, const inside *i) {
  static const ls_limits limits = {.fuel = 1000, .limit_ms = 50};
  ls_state state;
  fill_state(&state); /* everything unlike the host's */
  state.rflags |= RFLAGS_DF | RFLAGS_AC | RFLAGS_NT;
  state.rflags &= ~(uint64_t)RFLAGS_ID;
  state.gpr[LS_RCX] = 0;
  set_state(g, &state);
  must(load_flagged(g, text, LS_PROGRAM_FUEL));
  check_cpu("loading", i);
  run_limited(g, 1, limits);
  check_cpu(text, i);
}

static void the_cpu_is_the_hosts(void **unused) {
  (void)unused;
  static const uint32_t mxcsr = 0xdf80; /* FTZ, round up, all masked */
  static const uint16_t fcw = 0xa7f;    /* round up, 53 bits */
  inside i = {0};
  const cpu_state before = cpu_now();
  sigset_t blocked;
  sigemptyset(&blocked);
  sigaddset(&blocked, SIGHUP);
  pthread_sigmask(SIG_BLOCK, &blocked, NULL);
  guest *g = guest_open(&(ls_controller_options){.on_exit = at_exit, .context = &i});
  __asm__ volatile("ldmxcsr %0; fldcw %1" : : "m"(mxcsr), "m"(fcw));
  expected = cpu_now();
  must(ls_sample_start(g->controller, 1000, in_sample, &i, 0, &error));
  for (int n = 0; n < 10; n++) {
    run_and_check(g, "1 90", &i);
    run_and_check(g, "1 90; 2 f4", &i);
    run_and_check(g, "1 eb00 >1!", &i); /* out of fuel */
    run_and_check(g, "1 e300 >3; 2 f4; 3 48ffc1; 4 48ffc9; 5 90 *5; 20 e900000000 >>3!", &i);
    must(ls_change_state(g->controller, in_visitor, &i, &error));
    check_cpu("change", &i);
  }
  must(load_flagged(g, "1 eb00 >1!", 0));
  run_limited(g, 1, (ls_limits){.limit_ms = 100});
  check_cpu("a time-out", &i);
  unsigned inside_calls = i.calls;
  guest_close(g);
  check_cpu("destroy", &i);
  __asm__ volatile("ldmxcsr %0; fldcw %1" : : "m"(before.mxcsr), "m"(before.fcw));
  pthread_sigmask(SIG_UNBLOCK, &blocked, NULL);
  assert_true(inside_calls > 50);
}

static void nothing_is_left_behind(void **unused) {
  (void)unused;
  pid_t pid;
  unsigned before = process_children(getpid(), &pid);
  for (int i = 0; i < 20; i++) {
    guest *g = guest_open(NULL);
    load(g, CELL);
    start(g, 1);
    counts_on(g, 0);
    if (i % 2)
      cancel(g);
    guest_close(g);
  }
  assert_int_equal(process_children(getpid(), &pid), before);
}

/* ---- Late rings ---------------------------------------------------------------------------------------- */

typedef struct brief {
  pthread_barrier_t turn;
  ls_controller *controller;
  _Atomic bool over;
} brief;

static void *run_briefly(void *context) {
  brief *b = context;
  ls_stop stop;
  pthread_barrier_wait(&b->turn);
  ls_execute(b->controller, 1, NULL, &stop, NULL);
  atomic_store(&b->over, true);
  pthread_barrier_wait(&b->turn);
  return NULL;
}

/* Asks a guest that is about to end, and destroys the last controller that has this interrupt signal. */
static const char *destroy_after_asking(const ls_controller_options *options, unsigned asks) {
  static brief b;
  code text;
  pthread_t thread;
  ls_position p = {0};
  b.over = false;
  pthread_barrier_init(&b.turn, NULL, 2);
  CHECK(ls_controller_create(kind, options, &b.controller, &error) == LS_OK);
  assemble(&text, "2 48c7c1f4010000; 1 48ffc9; 4 7500 >1", 0);
  CHECK(ls_update_code(b.controller, &text.program, &error) == LS_OK);
  CHECK(pthread_create(&thread, NULL, run_briefly, &b) == 0);
  pthread_barrier_wait(&b.turn);
  while (!b.over && p.activity != LS_RUNNING)
    ls_get_state(b.controller, NULL, &p, NULL);
  while (asks--)
    ls_get_state(b.controller, NULL, NULL, NULL);
  ls_controller_destroy(b.controller);
  pthread_barrier_wait(&b.turn);
  pthread_join(thread, NULL);
  return NULL;
}

/* A signal that the runner has not yet taken when the handler goes: its default action would kill. */
static void a_ring_that_comes_late(void **unused) {
  (void)unused;
  const ls_controller_options options = {.executor.interrupt_signal = SIGRTMIN + 4};
  fflush(NULL);
  pid_t child = fork();
  if (!child) {
    alarm(100);
    const char *trouble = NULL;
    for (unsigned i = 0; i < (kind == LS_SIGNAL ? 150 : 20) && !trouble; i++)
      trouble = destroy_after_asking(&options, i % 3);
    if (trouble)
      fprintf(stderr, "in the child: not %s: %s\n", trouble, error.text);
    _exit(trouble != NULL);
  }
  int status = -1;
  assert_int_equal(waitpid(child, &status, 0), child);
  if (!WIFEXITED(status) || WEXITSTATUS(status))
    fail_msg("the child ended with status %#x", status);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_teardown(the_hosts_signals_are_its_own, put_back),
      PART("no_tsan", the_hosts_signals_strike_the_guest, NULL, put_back),
      TEST(any_signal_interrupts),
      TEST(threads_with_stacks_of_their_own),
      TEST(the_cpu_is_the_hosts),
      TEST(nothing_is_left_behind),
      TEST(a_ring_that_comes_late),
  };
  return RUN_BOTH(tests);
}

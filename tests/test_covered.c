/* The host's handlers that strike guests: the library's is entered first, so that they find what they always
 * find, and the host notices nothing else of it. */
#include <setjmp.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#include <unwind.h>

#include "guest.h"

static volatile int calls, value;
static sigset_t mask_inside;
static volatile uint8_t *enough; /* the guest spins until it is not 0 */

static __thread volatile int own; /* a store to it faults where FS is not the host's */

/* ---- Guests that are struck ---- */

#define SPIN "80 3f 00 / 74 fb" /* cmp byte [rdi], 0; je back */

static timer_t strike_often(int sig) {
  struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = sig};
  struct itimerspec often = {{0, 5000000}, {0, 5000000}};
  timer_t timer;
  timer_create(CLOCK_PROCESS_CPUTIME_ID, &event, &timer);
  timer_settime(timer, 0, &often, NULL);
  return timer;
}

/* Until the handler has set *enough. */
static void run_struck(guest *g, int sig, uint64_t data, ls_outcome *out) {
  ls_state state;
  fill(&state);
  state.gpr[LS_RDI] = data;
  enough = ls_executor_memory(g->executor, DATA_WINDOW);
  calls = 0;
  timer_t timer = strike_often(sig);
  ls_run r = {.state = &state, .limit_ms = 10000};
  must(ls_executor_run(g->executor, &r, out, &error));
  timer_delete(timer);
  assert_true(calls > 2);
}

static void put(int sig, void (*handler)(int), int flags, bool blocks_all) {
  struct sigaction action = {.sa_handler = handler, .sa_flags = flags};
  if (blocks_all)
    sigfillset(&action.sa_mask);
  sigaction(sig, &action, NULL);
}

/* ---- FS ---- */

static void use_own(int sig) {
  (void)sig;
  own = own + 1;
  calls = calls + 1;
  *enough = own > 2;
}

/* Code that loads FS, is struck and ends in UD2, at which handle_signal sees the base whatever the CPU has.
 */
static uint64_t with_another_fs(const char *code) {
  put(SIGVTALRM, use_own, SA_ONSTACK, false);
  guest g = guest_open(0, NULL);
  ls_outcome out;
  load(&g, code);
  own = 0;
  run_struck(&g, SIGVTALRM, DATA, &out);
  assert_int_equal(out.stop.signal, SIGILL);
  guest_close(&g);
  own = own + 1;
  signal(SIGVTALRM, SIG_DFL);
  return out.state.gpr[LS_RAX];
}

/* xor eax, eax; mov fs, eax: also where there is no WRFSBASE. */
static void handlers_have_the_hosts_fs(void **unused) {
  (void)unused;
  with_another_fs("31 c0 / 8e e0 / " SPIN " / 0f 0b");
}

/* wrfsbase … rdfsbase */
static void the_guest_has_its_own_again(void **unused) {
  (void)unused;
  uint64_t base = with_another_fs("b8 00 10 00 00 / f3 48 0f ae d0 / " SPIN " / f3 48 0f ae c0 / 0f 0b");
  assert_int_equal(base, 0x1000);
}

/* ---- System calls ---- */

/* Between this program and libc, so that libc's system calls are outside of the range that is allowed. */
static guest open_between(void) {
  guest g = {.image = ls_image_create()};
  ls_layout_default(&g.layout, 0);
  uint64_t middle = ((uintptr_t)open_between / 2 + (uintptr_t)getppid / 2) & ~UINT64_C(0xffffffff);
  for (uint32_t i = 0; i < g.layout.window_count; i++)
    g.layout.windows[i].address += middle;
  g.layout.control += middle;
  must(ls_executor_create(LS_SIGNAL, &g.layout, NULL, &g.executor, &error));
  opened[0] = g;
  return g;
}

static void call_kernel(int sig) {
  (void)sig;
  calls = calls + (syscall(SYS_getppid) > 0);
  *enough = calls > 2;
}

/* Blocks SIGSYS too: a call that dispatch stops kills. */
static void a_full_mask_and_a_system_call(void **unused) {
  (void)unused;
  put(SIGVTALRM, call_kernel, SA_ONSTACK, true);
  guest g = open_between();
  ls_outcome out;
  load(&g, SPIN " / 0f 05");
  run_struck(&g, SIGVTALRM, g.layout.windows[DATA_WINDOW].address, &out);
  same_stop("still blocked", &out, LS_STOP_SYSCALL, 0, 0, 0);
  guest_close(&g);
  signal(SIGVTALRM, SIG_DFL);
}

/* ---- What the host asked for ---- */

static void look(int sig, siginfo_t *info, void *context) {
  (void)sig;
  (void)context;
  calls = calls + 1;
  value = info->si_value.sival_int;
  pthread_sigmask(SIG_SETMASK, NULL, &mask_inside);
}

static void look_simply(int sig) {
  (void)sig;
  calls = calls + 1;
  pthread_sigmask(SIG_SETMASK, NULL, &mask_inside);
}

static void send(int sig, int with) {
  sigemptyset(&mask_inside);
  sigqueue(getpid(), sig, (union sigval){.sival_int = with});
}

/* Of the mask the kernel has 8 bytes. */
static bool stands(int sig, const struct sigaction *wanted) {
  struct sigaction now;
  sigaction(sig, NULL, &now);
  return now.sa_sigaction == wanted->sa_sigaction && now.sa_flags == wanted->sa_flags &&
         memcmp(&now.sa_mask, &wanted->sa_mask, sizeof(uint64_t)) == 0;
}

static void masks_flags_and_values(void **unused) {
  (void)unused;
  static const struct {
    int flags;
    bool blocked, stays; /* itself, inside; afterwards */
  } rows[] = {
      {SA_ONSTACK, true, true},
      {SA_ONSTACK | SA_SIGINFO, true, true},
      {SA_ONSTACK | SA_SIGINFO | SA_NODEFER, false, true},
      {SA_ONSTACK | SA_SIGINFO | (int)SA_RESETHAND, true, false},
  };
  for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
    struct sigaction action = {.sa_flags = rows[i].flags}, before, now;
    sigaddset(&action.sa_mask, SIGHUP);
    if (rows[i].flags & SA_SIGINFO)
      action.sa_sigaction = look;
    else
      action.sa_handler = look_simply;
    sigaction(SIGUSR1, &action, NULL);
    sigaction(SIGUSR1, NULL, &before);
    guest g = guest_open(0, NULL);
    assert_false(stands(SIGUSR1, &before));
    calls = value = 0;
    send(SIGUSR1, 7);
    assert_int_equal(calls, 1);
    assert_int_equal(value, rows[i].flags & SA_SIGINFO ? 7 : 0);
    assert_int_equal(sigismember(&mask_inside, SIGUSR1), rows[i].blocked);
    assert_int_equal(sigismember(&mask_inside, SIGHUP), 1);
    assert_int_equal(sigismember(&mask_inside, SIGSYS), 0);
    sigaction(SIGUSR1, NULL, &now);
    assert_int_equal(now.sa_handler != SIG_DFL, rows[i].stays);
    guest_close(&g);
    assert_int_equal(stands(SIGUSR1, &before), rows[i].stays);
  }
  signal(SIGUSR1, SIG_DFL);
}

static void what_cannot_strike_stays(void **unused) {
  (void)unused;
  struct sigaction before[3];
  put(SIGUSR1, look_simply, SA_RESTART, false);
  signal(SIGUSR2, SIG_IGN);
  for (int i = 0; i < 3; i++)
    sigaction((int[]){SIGUSR1, SIGUSR2, SIGALRM}[i], NULL, &before[i]);
  guest g = guest_open(0, NULL);
  for (int i = 0; i < 3; i++)
    assert_true(stands((int[]){SIGUSR1, SIGUSR2, SIGALRM}[i], &before[i]));
  guest_close(&g);
  signal(SIGUSR1, SIG_DFL);
  signal(SIGUSR2, SIG_DFL);
}

/* A handler of the host's that became the interrupt signal's, and back. */
static void as_the_interrupt_signal(void **unused) {
  (void)unused;
  struct sigaction before;
  put(SIGVTALRM, look_simply, SA_ONSTACK, false);
  sigaction(SIGVTALRM, NULL, &before);
  guest g = guest_open(0, NULL), other = guest_open(1, &(ls_options){.interrupt_signal = SIGVTALRM});
  ls_state state;
  ls_outcome out;
  fill(&state);
  load(&other, "eb fe");
  must(run(&other, &state, 0, 0, &out));
  same_stop("interrupted", &out, LS_STOP_TIMEOUT, 0, 0, 0);
  calls = 0;
  send(SIGVTALRM, 0);
  assert_int_equal(calls, 1);
  guest_close(&other);
  assert_false(stands(SIGVTALRM, &before)); /* covered again */
  send(SIGVTALRM, 0);
  assert_int_equal(calls, 2);
  assert_int_equal(sigismember(&mask_inside, SIGSYS), 0);
  guest_close(&g);
  assert_true(stands(SIGVTALRM, &before));
  signal(SIGVTALRM, SIG_DFL);
}

/* ---- Handlers that come later ---- */

static struct sigaction under;

static void call_under(int sig, siginfo_t *info, void *context) {
  value = value + 1;
  under.sa_sigaction(sig, info, context);
}

static void another_handler_over_ours(void **unused) {
  (void)unused;
  struct sigaction over = {.sa_sigaction = call_under, .sa_flags = SA_ONSTACK | SA_SIGINFO}, before;
  put(SIGUSR1, look_simply, SA_ONSTACK, false);
  sigaction(SIGUSR1, NULL, &before);
  guest g = guest_open(0, NULL);
  sigaction(SIGUSR1, &over, &under);
  guest other = guest_open(1, NULL); /* would cover the handler that calls ours */
  calls = value = 0;
  send(SIGUSR1, 0);
  assert_int_equal(calls, 1);
  assert_int_equal(value, 1);
  sigaction(SIGUSR1, &under, NULL); /* the host puts back what it found */
  send(SIGUSR1, 0);
  assert_int_equal(calls, 2);
  assert_int_equal(value, 1);
  sigaction(SIGUSR1, &before, NULL); /* or what it had */
  guest_close(&other);
  other = guest_open(1, NULL);
  assert_false(stands(SIGUSR1, &before));
  guest_close(&other);
  guest_close(&g);
  assert_true(stands(SIGUSR1, &before));
  signal(SIGUSR1, SIG_DFL);
}

static void a_new_thread_covers(void **unused) {
  (void)unused;
  struct sigaction before;
  guest g = guest_open(0, NULL);
  ls_state state;
  fill(&state);
  load(&g, "0f 0b");
  put(SIGUSR1, look_simply, SA_ONSTACK, false);
  sigaction(SIGUSR1, NULL, &before);
  fault_in_guest(&g, &state);
  assert_false(stands(SIGUSR1, &before));
  guest_close(&g);
  assert_true(stands(SIGUSR1, &before));
  signal(SIGUSR1, SIG_DFL);
}

/* ---- Backtraces ---- */

static void *volatile caller; /* a return address in the function that was struck */
static volatile bool seen;

static _Unwind_Reason_Code see(struct _Unwind_Context *context, void *unused) {
  (void)unused;
  seen = seen || _Unwind_GetIP(context) == (uintptr_t)caller;
  return _URC_NO_REASON;
}

static void look_back(int sig) {
  (void)sig;
  _Unwind_Backtrace(see, NULL);
}

__attribute__((noinline)) static void is_struck(void) {
  caller = __builtin_return_address(0);
  raise(SIGUSR1);
  __asm__ volatile(""); /* no tail call */
}

static void backtraces_go_through(void **unused) {
  (void)unused;
  put(SIGUSR1, look_back, SA_ONSTACK, false);
  guest g = guest_open(0, NULL);
  seen = false;
  is_struck();
  assert_true(seen);
  guest_close(&g);
  signal(SIGUSR1, SIG_DFL);
}

static sigjmp_buf out_of_handler;

static void look_back_and_leave(int sig) {
  look_back(sig);
  siglongjmp(out_of_handler, 1);
}

static const volatile int *volatile nowhere = (const volatile int *)8;

__attribute__((noinline)) static int faults(void) {
  caller = __builtin_return_address(0);
  return *nowhere + 1;
}

/* A fault of the host's own, before and after it has run a guest: its handler sees who called what faulted.
 */
static void so_they_do_from_faults(void **unused) {
  (void)unused;
  struct sigaction before;
  sigaction(SIGSEGV, NULL, &before);
  put(SIGSEGV, look_back_and_leave, SA_ONSTACK, false);
  guest g = guest_open(0, NULL);
  ls_state state;
  ls_outcome out;
  for (int i = 0; i < 2; i++) {
    seen = false;
    if (!sigsetjmp(out_of_handler, 1)) {
      int found = faults();
      fail_msg("there was %d", found);
    }
    assert_true(seen);
    fill(&state);
    load(&g, "90");
    must(run(&g, &state, 0, 0, &out));
    assert_int_equal(out.stop.kind, LS_STOP_EXIT);
  }
  guest_close(&g);
  sigaction(SIGSEGV, &before, NULL);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_teardown(handlers_have_the_hosts_fs, close_all),
      PART("fsgsbase", the_guest_has_its_own_again, NULL, close_all),
      PART("dispatch", a_full_mask_and_a_system_call, NULL, close_all),
      cmocka_unit_test_teardown(masks_flags_and_values, close_all),
      cmocka_unit_test_teardown(what_cannot_strike_stays, close_all),
      cmocka_unit_test_teardown(as_the_interrupt_signal, close_all),
      cmocka_unit_test_teardown(another_handler_over_ours, close_all),
      cmocka_unit_test_teardown(a_new_thread_covers, close_all),
      cmocka_unit_test_teardown(backtraces_go_through, close_all),
      cmocka_unit_test_teardown(so_they_do_from_faults, close_all),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}

/* The host's own handlers, with guests in the same thread: its faults and signals reach them, and they may
 * jump away, call the kernel, or be put over the library's. */
#include <pthread.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "guest.h"
#include "left_out.h"
#include "sanitizers.h"

static sigjmp_buf back;
static volatile int host_calls;
static volatile uintptr_t host_address;

static void jump_back(int sig, siginfo_t *info, void *context) {
  (void)sig;
  (void)context;
  host_calls = host_calls + 1;
  host_address = (uintptr_t)info->si_addr;
  siglongjmp(back, 1);
}

static void count(int sig) {
  (void)sig;
  host_calls = host_calls + 1;
}

static void strike(uintptr_t address) {
  if (!sigsetjmp(back, 1)) {
    __asm__ volatile("movb $1, (%0)" : : "r"(address) : "memory");
    fail_msg("the host's fault went by");
  }
}

/* The host's own faults reach the host's handler, even one that jumps away, before, between and after runs.
 */
static void host_faults_reach_the_host(void **unused) {
  (void)unused;
  struct sigaction action = {.sa_sigaction = jump_back, .sa_flags = SA_SIGINFO | SA_ONSTACK}, old, now;
  sigaction(SIGSEGV, &action, &old);
  guest g = guest_open(0, NULL);
  load(&g, "0f 0b");
  ls_state state;
  fill(&state);
  host_calls = 0;
  strike(0x18);
  for (int i = 0; i < 5; i++) {
    fault_in_guest(&g, &state);
    strike(0x20);
    assert_int_equal(host_address, 0x20);
    strike(0x20);
  }
  assert_int_equal(host_calls, 11);
  guest_close(&g);
  strike(0x18);
  assert_int_equal(host_calls, 12);
  sigaction(SIGSEGV, &old, &now);
  assert_ptr_equal(now.sa_sigaction, jump_back);
}

static int die_of_a_host_fault(void) {
  pid_t child = fork();
  if (!child) {
    for (int sig = SIGSEGV, i = 0; i < 2; i++, sig = SIGTRAP)
      signal(sig, SIG_DFL);
    guest g = guest_open(0, NULL);
    load(&g, "90");
    ls_state state;
    ls_outcome out;
    fill(&state);
    if (run(&g, &state, 0, 0, &out) == LS_OK)
      __asm__ volatile("movb $1, 0x18");
    _exit(0);
  }
  int status = 0;
  waitpid(child, &status, 0);
  return status;
}

static void default_action_still_kills(void **unused) {
  (void)unused;
  int status = die_of_a_host_fault();
  assert_true(WIFSIGNALED(status));
  assert_int_equal(WTERMSIG(status), SIGSEGV);
}

/* A signal that the host sends to a thread in its guest reaches the host's handler; the guest goes on. */
typedef struct disturber {
  pthread_t thread;
  volatile uint8_t *enough;  /* the guest spins until it is not 0 */
  volatile uint8_t *running; /* for interrupt_once: the guest says so */
} disturber;

static void *disturb(void *context) {
  disturber *d = context;
  for (int i = 0; i < 20; i++) {
    usleep(2000);
    pthread_kill(d->thread, i & 1 ? SIGSEGV : SIGURG);
  }
  *d->enough = 1;
  return NULL;
}

static void *interrupt_once(void *context) {
  disturber *d = context;
  while (!*d->running)
    usleep(1000);
  pthread_kill(d->thread, SIGURG);
  return NULL;
}

static void signals_sent_by_the_host(void **unused) {
  (void)unused;
  struct sigaction action = {.sa_handler = count, .sa_flags = SA_ONSTACK}, old[2];
  sigaction(SIGSEGV, &action, &old[0]);
  sigaction(SIGURG, &action, &old[1]);
  guest g = guest_open(0, NULL);
  load(&g, "80 3f 00 / 74 fb"); /* cmp byte [rdi], 0; je back */
  ls_state state;
  ls_outcome out;
  fill(&state);
  state.gpr[LS_RDI] = DATA;
  host_calls = 0;
  disturber d = {.thread = pthread_self(), .enough = ls_executor_memory(g.executor, DATA_WINDOW)};
  pthread_t other;
  pthread_create(&other, NULL, disturb, &d);
  ls_run r = {.state = &state, .limit_ms = 10000};
  must(ls_executor_run(g.executor, &r, &out, &error));
  pthread_join(other, NULL);
  same_stop("disturbed", &out, LS_STOP_EXIT, 0, 0, 0);
  assert_memory_equal(out.state.gpr, state.gpr, sizeof state.gpr);
  assert_memory_equal(out.state.zmm, state.zmm, sizeof state.zmm);
  assert_true(host_calls > 1);
  guest_close(&g);
  sigaction(SIGSEGV, &old[0], NULL);
  sigaction(SIGURG, &old[1], NULL);
}

/* ---- Handlers that run while the guest is interrupted ---- */

/* The host's handler jumps out of the guest it struck: the run never returns, and the next one is a run as
 * any other. */
static void the_host_jumps_out_of_a_guest(void **unused) {
  (void)unused;
  struct sigaction action = {.sa_sigaction = jump_back, .sa_flags = SA_SIGINFO | SA_ONSTACK}, old;
  sigaction(SIGURG, &action, &old);
  guest g = guest_open(0, NULL);
  ls_state state;
  ls_outcome out;
  fill(&state);
  state.gpr[LS_RDI] = DATA;
  for (int i = 0; i < 3; i++) {
    static pthread_t other; /* static: set after sigsetjmp, read after the jump */
    uint8_t *memory = ls_executor_memory(g.executor, DATA_WINDOW);
    disturber d = {pthread_self(), memory, memory + 1};
    load(&g, "c6 47 01 01 / 80 3f 00 / 74 fb"); /* mov byte [rdi + 1], 1; cmp byte [rdi], 0; je back */
    memory[0] = memory[1] = 0;
    host_calls = 0;
    if (!sigsetjmp(back, 1)) {
      pthread_create(&other, NULL, interrupt_once, &d);
      ls_run r = {.state = &state, .limit_ms = 10000};
      must(ls_executor_run(g.executor, &r, &out, &error));
      fail_msg("the handler was not called");
    }
    pthread_join(other, NULL);
    assert_int_equal(host_calls, 1);
    load(&g, "0f 0b");
    fault_in_guest(&g, &state);
  }
  guest_close(&g);
  sigaction(SIGURG, &old, NULL);
}

/* A host that installs its handler over ours, calls ours from it, and keeps it when the executors are gone.
 */
static struct sigaction under;

static void call_under(int sig, siginfo_t *info, void *context) {
  host_calls = host_calls + 1;
  under.sa_sigaction(sig, info, context);
}

static void a_handler_over_ours(void **unused) {
  (void)unused;
  struct sigaction first = {.sa_sigaction = jump_back, .sa_flags = SA_SIGINFO | SA_ONSTACK}, old;
  struct sigaction over = {.sa_sigaction = call_under, .sa_flags = SA_SIGINFO | SA_ONSTACK};
  sigaction(SIGILL, &first, NULL);
  sigaction(SIGSEGV, &first, &old);
  guest g = guest_open(0, NULL);
  load(&g, "0f 0b");
  sigaction(SIGILL, &over, &under);
  sigaction(SIGSEGV, &over, NULL);
  ls_state state;
  fill(&state);
  for (int round = 0; round < 3; round++) {
    host_calls = 0;
    fault_in_guest(&g, &state);
    assert_int_equal(host_calls, round == 0); /* the second executor's handlers are on top */
    strike(0x28);
    assert_int_equal(host_calls, 2 + (round == 0));
    guest_close(&g);
    strike(0x28);
    g = guest_open(0, NULL);
    load(&g, "0f 0b");
  }
  guest_close(&g);
  sigaction(SIGSEGV, &old, NULL);
  signal(SIGILL, SIG_DFL);
}

/* A handler that is put in place from now on is not covered by the library's (test_covered.c). */
static guest open_used(void) {
  guest g = guest_open(0, NULL);
  ls_state state;
  fill(&state);
  load(&g, "0f 0b");
  fault_in_guest(&g, &state);
  return g;
}

static volatile uint8_t *enough_calls; /* the guest spins until it is not 0 */

/* A handler of the host's that makes system calls on top of a guest whose own are blocked. */
static void call_kernel(int sig) {
  (void)sig;
  host_calls = host_calls + (syscall(SYS_getppid) == getppid());
  *enough_calls = host_calls > 2;
}

static void host_handlers_may_call_the_kernel(void **unused) {
  (void)unused;
  struct sigaction action = {.sa_handler = call_kernel, .sa_flags = SA_ONSTACK}, old;
  guest g = open_used();
  enough_calls = ls_executor_memory(g.executor, DATA_WINDOW);
  sigaction(SIGVTALRM, &action, &old);
  load(&g, "80 3f 00 / 74 fb / 0f 05");
  ls_state state;
  ls_outcome out;
  fill(&state);
  state.gpr[LS_RDI] = DATA;
  struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGVTALRM};
  timer_t timer;
  timer_create(CLOCK_PROCESS_CPUTIME_ID, &event, &timer);
  struct itimerspec often = {{0, 5000000}, {0, 5000000}};
  host_calls = 0;
  timer_settime(timer, 0, &often, NULL);
  ls_run r = {.state = &state, .limit_ms = 10000};
  must(ls_executor_run(g.executor, &r, &out, &error));
  timer_delete(timer);
  assert_true(host_calls > 2);
  same_stop("still blocked", &out, LS_STOP_SYSCALL, 0, 0, 0);
  guest_close(&g);
  sigaction(SIGVTALRM, &old, NULL);
}

/* The guest's AC is set while the host's handler reads what is not aligned. */
static void read_unaligned(int sig) {
  (void)sig;
  static const uint64_t words[2] = {0x0102030405060708, 0x1112131415161718};
  uint64_t word;
  __asm__ volatile("movq 1(%1), %0" : "=r"(word) : "r"(words));
  host_calls = host_calls + (word == 0x1801020304050607);
}

static void alignment_checks_stay_with_the_guest(void **unused) {
  (void)unused;
  if (left_out("the guest's alignment checks"))
    return;
  struct sigaction action = {.sa_handler = read_unaligned, .sa_flags = SA_ONSTACK}, old;
  guest g = open_used();
  sigaction(SIGVTALRM, &action, &old);
  load(&g, "48 ff c9 / 75 fb / 48 8b 00"); /* … mov rax, [rax] */
  ls_state state;
  ls_outcome out;
  fill(&state);
  state.gpr[LS_RCX] = 100000000;
  state.gpr[LS_RAX] = DATA + 1;
  state.rflags |= RFLAGS_AC;
  struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGVTALRM};
  timer_t timer;
  timer_create(CLOCK_PROCESS_CPUTIME_ID, &event, &timer);
  struct itimerspec often = {{0, 5000000}, {0, 5000000}};
  timer_settime(timer, 0, &often, NULL);
  host_calls = 0;
  ls_run r = {.state = &state, .limit_ms = 10000};
  must(ls_executor_run(g.executor, &r, &out, &error));
  timer_delete(timer);
  assert_true(host_calls > 2);
  same_stop("the guest's own", &out, LS_STOP_FAULT, SIGBUS, BUS_ADRALN, 0);
  guest_close(&g);
  sigaction(SIGVTALRM, &old, NULL);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_teardown(host_faults_reach_the_host, close_all),
      cmocka_unit_test_teardown(default_action_still_kills, close_all),
      cmocka_unit_test_teardown(signals_sent_by_the_host, close_all),
      /* ThreadSanitizer calls the host's handlers itself, most when the guest is over. */
      PART("at_once", the_host_jumps_out_of_a_guest, NULL, close_all),
      PART("at_once", a_handler_over_ours, NULL, close_all),
      PART("dispatch", host_handlers_may_call_the_kernel, NULL, close_all),
      PART("at_once", alignment_checks_stay_with_the_guest, NULL, close_all),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}

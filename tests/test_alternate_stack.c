/* The alternate stack that a thread borrows, with SS_AUTODISARM and without: what the host's handlers see of
 * it, and that they are still told from the guest. */
#include <sys/mman.h>
#include <time.h>

#include "guest.h"

static const ls_options without = {.flags = LS_WITHOUT_AUTODISARM};

static volatile int calls, faults, wrong;
static volatile uint8_t *enough; /* the guest spins until it is not 0 */
static void *page;

#define SPIN "80 3f 00 / 74 fb" /* cmp byte [rdi], 0; je back */

static stack_t stack_now(void) {
  stack_t now;
  sigaltstack(NULL, &now);
  return now;
}

static bool is_on(const stack_t *stack) {
  return (uintptr_t)__builtin_frame_address(0) - (uintptr_t)stack->ss_sp < stack->ss_size;
}

static void must_be_on_a_stack(int sig) {
  (void)sig;
  stack_t now = stack_now();
  wrong = wrong + !(now.ss_flags == SS_ONSTACK && is_on(&now));
  calls = calls + 1;
  *enough = calls > 2;
}

static void must_be_on_none(int sig) {
  (void)sig;
  wrong = wrong + !(stack_now().ss_flags & SS_DISABLE);
  calls = calls + 1;
  *enough = calls > 2;
}

static void fault(int sig) {
  (void)sig;
  mprotect(page, LS_PAGE, PROT_NONE);
  *(volatile int *)page = 1;
  calls = calls + 1;
  *enough = calls > 2;
}

static void repair(int sig, siginfo_t *info, void *context) {
  (void)sig;
  (void)context;
  faults = faults + (info->si_addr == page);
  mprotect(page, LS_PAGE, PROT_READ | PROT_WRITE);
}

/* A guest that `handler` strikes. Installed before the executor is made, or when the thread has run a guest.
 */
static void struck_by(int sig, void (*handler)(int), const ls_options *options, bool before) {
  struct sigaction action = {.sa_handler = handler, .sa_flags = SA_ONSTACK}, old;
  struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = sig};
  struct itimerspec often = {{0, 5000000}, {0, 5000000}};
  ls_state state;
  ls_outcome out;
  timer_t timer;
  fill(&state);
  state.gpr[LS_RDI] = DATA;
  sigaction(sig, before ? &action : NULL, &old);
  guest g = guest_open(0, options);
  load(&g, "0f 0b");
  fault_in_guest(&g, &state);
  if (!before)
    sigaction(sig, &action, &old);
  enough = ls_executor_memory(g.executor, DATA_WINDOW);
  calls = wrong = 0;
  timer_create(CLOCK_PROCESS_CPUTIME_ID, &event, &timer);
  timer_settime(timer, 0, &often, NULL);
  load(&g, SPIN " / 0f 0b");
  ls_run r = {.state = &state, .limit_ms = 10000};
  must(ls_executor_run(g.executor, &r, &out, &error));
  timer_delete(timer);
  assert_int_equal(out.stop.signal, SIGILL);
  assert_true(calls > 2);
  assert_int_equal(wrong, 0);
  guest_close(&g);
  sigaction(sig, &old, NULL);
}

static void what_handlers_see(void **unused) {
  (void)unused;
  struck_by(SIGVTALRM, must_be_on_a_stack, &without, true);
  struck_by(SIGVTALRM, must_be_on_a_stack, &without, false);
  struck_by(SIGURG, must_be_on_a_stack, &without, true); /* the interrupt signal */
  struck_by(SIGVTALRM, must_be_on_none, NULL, true);
}

/* What a handler of the host's does on top of a guest is the host's. */
static void faults_of_handlers(void **unused) {
  (void)unused;
  struct sigaction action = {.sa_sigaction = repair, .sa_flags = SA_SIGINFO | SA_ONSTACK}, old;
  page = mmap(NULL, LS_PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  sigaction(SIGSEGV, &action, &old);
  for (int i = 0; i < 4; i++) {
    faults = 0;
    struck_by(SIGVTALRM, fault, i & 1 ? &without : NULL, i & 2);
    assert_int_equal(faults, calls);
  }
  sigaction(SIGSEGV, &old, NULL);
  munmap(page, LS_PAGE);
}

/* Each executor has it as it was told, and the host gets its own back. */
static void executors_by_turns(void **unused) {
  (void)unused;
  static uint8_t own[1 << 16];
  stack_t before;
  ls_state state;
  fill(&state);
  sigaltstack(&(stack_t){.ss_sp = own, .ss_size = sizeof own}, &before);
  guest g = guest_open(0, NULL), other = guest_open(1, &without);
  load(&g, "0f 0b");
  load(&other, "0f 0b");
  for (int i = 0; i < 3; i++) {
    ls_outcome out;
    fault_in_guest(&g, &state);
    assert_int_equal((unsigned)stack_now().ss_flags, 1U << 31); /* SS_AUTODISARM */
    must(run(&other, &state, 0, 0, &out));
    assert_int_equal(out.stop.signal, SIGILL);
    assert_int_equal(stack_now().ss_flags, 0);
  }
  assert_ptr_not_equal(stack_now().ss_sp, own);
  ls_thread_release();
  assert_ptr_equal(stack_now().ss_sp, own);
  assert_int_equal(stack_now().ss_flags, 0);
  guest_close(&g);
  guest_close(&other);
  sigaltstack(&before, NULL);
}

static void unknown_flags(void **unused) {
  (void)unused;
  ls_layout layout;
  ls_executor *executor;
  ls_layout_default(&layout, 0);
  assert_int_equal(ls_executor_create(LS_SIGNAL, &layout, &(ls_options){.flags = 2}, &executor, &error),
                   LS_ERR_ARGUMENT);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_teardown(what_handlers_see, close_all),
      cmocka_unit_test_teardown(faults_of_handlers, close_all),
      cmocka_unit_test_teardown(executors_by_turns, close_all),
      cmocka_unit_test(unknown_flags),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}

/* The harness looks after the host: whatever a run in the thread changes of it is noted by name, and put
 * back. */
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "check.h"
#include "oracle/host.h"
#include "oracle/oracle.h"

/* ---- What may be harmed ---- */

#define NAKED(name, text)                                                                                    \
  static __attribute__((naked)) void name(__attribute__((unused)) void *unused) {                            \
    __asm__(text "; ret");                                                                                   \
  }

NAKED(harm_nothing, "nop")
NAKED(harm_rbx, "inc %rbx")
NAKED(harm_rbp, "inc %rbp")
NAKED(harm_r12, "inc %r12")
NAKED(harm_r13, "inc %r13")
NAKED(harm_r14, "inc %r14")
NAKED(harm_r15, "inc %r15")
NAKED(harm_direction, "std")
NAKED(harm_alignment, "pushfq; orl $0x40000, (%rsp); popfq")
NAKED(harm_id, "pushfq; xorl $0x200000, (%rsp); popfq")
NAKED(harm_nested, "pushfq; orl $0x4000, (%rsp); popfq")
NAKED(harm_mxcsr, "push $0x9f80; ldmxcsr (%rsp); pop %rax")
NAKED(harm_sticky, "push $0x1fa0; ldmxcsr (%rsp); pop %rax")
NAKED(harm_fcw, "push $0x27f; fldcw (%rsp); pop %rax")
NAKED(harm_ds, "mov $0x2b, %eax; mov %eax, %ds")
NAKED(harm_es, "mov $0x2b, %eax; mov %eax, %es")

static uint8_t other_stack[65536];

static void harm_stack(void *unused) {
  (void)unused;
  assert_int_equal(sigaltstack(&(stack_t){.ss_sp = other_stack, .ss_size = sizeof other_stack}, NULL), 0);
}

static void harm_handler(void *unused) {
  (void)unused;
  signal(SIGUSR1, SIG_IGN);
}

static void harm_mask(void *unused) {
  (void)unused;
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGUSR2);
  sigprocmask(SIG_BLOCK, &set, NULL);
}

static const struct {
  const char *name;
  void (*harm)(void *);
} harms[] = {
    {"rbx", harm_rbx},
    {"rbp", harm_rbp},
    {"r12", harm_r12},
    {"r13", harm_r13},
    {"r14", harm_r14},
    {"r15", harm_r15},
    {"rflags", harm_direction},
    {"rflags", harm_alignment},
    {"rflags", harm_id},
    {"rflags", harm_nested},
    {"mxcsr", harm_mxcsr},
    {"mxcsr", harm_sticky},
    {"fcw", harm_fcw},
    {"ds", harm_ds},
    {"es", harm_es},
    {"alternate stack", harm_stack},
    {"signal mask", harm_mask},
    {"handler of signal 10", harm_handler},
};

/* ---- Tests ---- */

static bool is_noted(const host_watch *w, const char *name) {
  for (uint32_t i = 0; i < w->count && i < HOST_CHANGES_MAX; i++)
    if (strcmp(w->changes[i].name, name) == 0)
      return w->changes[i].before != w->changes[i].after;
  return false;
}

static void each_harm_is_named_and_undone(void **unused) {
  (void)unused;
  for (size_t i = 0; i < sizeof harms / sizeof *harms; i++) {
    host_watch w = {0};
    assert_false(host_call(&w, harm_nothing, NULL));
    w.calls = 0; /* all is looked at in the first call */
    if (!host_call(&w, harms[i].harm, NULL) || !is_noted(&w, harms[i].name))
      fail_msg("%s (row %zu) is not noted", harms[i].name, i);
    w.calls = 0;
    if (host_call(&w, harm_nothing, NULL) || w.count)
      fail_msg("a call that does nothing changes %s, after %s", w.changes[0].name, harms[i].name);
  }
  stack_t stack;
  sigset_t set;
  sigaltstack(NULL, &stack);
  assert_ptr_not_equal(stack.ss_sp, other_stack);
  sigprocmask(SIG_BLOCK, NULL, &set);
  assert_false(sigismember(&set, SIGUSR2));
}

/* VZEROUPPER is what keeps it from being noted. */
NAKED(use_upper_halves, "vpcmpeqd %ymm1, %ymm1, %ymm1")
NAKED(clear_upper_halves, "vpcmpeqd %ymm1, %ymm1, %ymm1; vzeroupper")

static void upper_halves_are_noted(void **unused) {
  (void)unused;
  host_watch w = {0};
  assert_true(host_call(&w, use_upper_halves, NULL) && is_noted(&w, "upper halves of ymm"));
  __asm__ volatile("vzeroupper");
  assert_false(host_call(&w, clear_upper_halves, NULL));
}

static void handlers_are_looked_at_now_and_then(void **unused) {
  (void)unused;
  host_watch w = {0};
  unsigned noted = 0;
  for (int i = 0; i < 128; i++) {
    noted += host_call(&w, harm_handler, NULL);
    signal(SIGUSR1, SIG_DFL);
  }
  assert_int_equal(noted, 2);
}

static void take_once(int sig) {
  (void)sig;
}

static void be_struck(void *unused) {
  (void)unused;
  raise(SIGUSR1);
}

/* A signal of the host's that came meanwhile is none of the library's doing. */
static void handlers_that_reset_themselves_are_no_harm(void **unused) {
  (void)unused;
  host_watch w = {0};
  struct sigaction once = {.sa_handler = take_once, .sa_flags = (int)SA_RESETHAND}, now;
  sigaction(SIGUSR1, &once, NULL);
  assert_false(host_call(&w, be_struck, NULL));
  sigaction(SIGUSR1, NULL, &now);
  assert_ptr_equal(now.sa_handler, SIG_DFL);
}

static oracle *the_oracle;
static void (*to_do)(void *);

static void tamper(ls_outcome *thread, ls_executor *executor, void *context) {
  (void)thread;
  (void)executor;
  (void)context;
  if (to_do)
    to_do(NULL);
}

static void judge(const testcase *test, oracle_result *result) {
  ls_error error = {.text = ""};
  if (oracle_run(the_oracle, test, result, &error))
    fail_msg("%s", error.text);
}

/* Even if it happens once: the next run in the thread does not. */
static void harm_mxcsr_once(void *unused) {
  to_do = NULL;
  harm_mxcsr(unused);
}

static void the_oracle_makes_it_a_difference(void **unused) {
  (void)unused;
  static testcase test;
  static oracle_result result;
  static void (*const tries[])(void *) = {harm_mxcsr, harm_mxcsr_once};
  ls_error error = {.text = ""};
  if (oracle_create(&(oracle_options){.tamper = tamper}, &the_oracle, &error))
    fail_msg("%s", error.text);
  testcase_init(&test);
  test.instructions[0] = (ls_instruction){.next = LS_NONE, .jump = LS_NONE, .length = 1, .bytes = {0x90}};
  for (size_t i = 0; i < sizeof tries / sizeof *tries; i++) {
    to_do = tries[i];
    judge(&test, &result);
    to_do = NULL;
    assert_int_equal(result.verdict, VERDICT_DIFFERENT);
    assert_int_equal(result.reason, REASON_HOST);
    assert_int_equal(result.differences.count, 1);
    assert_int_equal(result.differences.list[0].piece, PIECE_HOST);
    assert_string_equal(result.differences.list[0].name, "mxcsr");
    judge(&test, &result);
    assert_int_equal(result.verdict, VERDICT_SAME);
    assert_int_equal(result.reason, REASON_NONE);
  }
  oracle_destroy(the_oracle);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(each_harm_is_named_and_undone),
      cmocka_unit_test(handlers_are_looked_at_now_and_then),
      cmocka_unit_test(handlers_that_reset_themselves_are_no_harm),
      PART("in_use", upper_halves_are_noted, NULL, NULL),
      PART("oracle", the_oracle_makes_it_a_difference, NULL, NULL),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}

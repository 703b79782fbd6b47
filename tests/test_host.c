/* The host survives: what faulting guests leave of it. */
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "faults.h"
#include "files.h"
#include "processes.h"
#include "sanitizers.h"

enum { FAULTING_RUNS = 20000, REFERENCE_RUNS = 1000, SLOT = 11, SIGNALS = 64, DESCRIPTORS = 256 };

/* ---- All that a host can miss ------------------------------------------------------------------------- */

typedef struct kernel_handler {
  uint64_t handler, flags, restorer, mask;
} kernel_handler;

typedef struct host {
  kernel_handler handlers[SIGNALS + 1];
  uint64_t stack, stack_size, stack_flags, mask, fs, gs, mxcsr;
  uint16_t fcw, fsw, fs_selector, gs_selector, ds, es;
  uint64_t rflags;       /* all but the arithmetic ones */
  uint64_t third, minus; /* bits of 1/3 and -1/3 by SSE: the rounding mode at work */
  uint8_t third_x87[16]; /* 1/3 by x87 */
  uint64_t descriptors;  /* how many are open */
  struct {
    uint64_t device, inode, mode, flags, offset;
  } descriptor[DESCRIPTORS]; /* which */
  uint64_t timers;           /* POSIX timers of this process */
  uint64_t dispatched;       /* 1: a system call did not do what it should */
} host;

static void look_at_signals(host *h) {
  for (int sig = 1; sig <= SIGNALS; sig++)
    syscall(SYS_rt_sigaction, sig, NULL, &h->handlers[sig], 8);
  stack_t stack;
  sigaltstack(NULL, &stack);
  h->stack = (uintptr_t)stack.ss_sp;
  h->stack_size = stack.ss_size;
  h->stack_flags = (uint64_t)stack.ss_flags;
  syscall(SYS_rt_sigprocmask, SIG_BLOCK, NULL, &h->mask, 8);
  h->dispatched = syscall(SYS_getpid) != getpid();
}

static void look_at_cpu(host *h) {
  enum { GET_FS = 0x1003, GET_GS = 0x1004, ARITHMETIC = 0x8d5 }; /* asm/prctl.h; CF PF AF ZF SF OF */
  syscall(SYS_arch_prctl, GET_FS, &h->fs);
  syscall(SYS_arch_prctl, GET_GS, &h->gs);
  __asm__ volatile("fnstcw %0; fnstsw %1; stmxcsr %2" : "=m"(h->fcw), "=m"(h->fsw), "=m"(h->mxcsr));
  __asm__ volatile("mov %%fs, %0; mov %%gs, %1" : "=r"(h->fs_selector), "=r"(h->gs_selector));
  __asm__ volatile("mov %%ds, %0; mov %%es, %1" : "=r"(h->ds), "=r"(h->es));
  __asm__ volatile("pushfq; pop %0" : "=r"(h->rflags));
  h->rflags &= ~(uint64_t)ARITHMETIC;
  const double one = 1, three = 3, minus_three = -3;
  double quotient;
  __asm__ volatile("movsd %1, %%xmm0; divsd %2, %%xmm0; movsd %%xmm0, %0"
                   : "=m"(quotient)
                   : "m"(one), "m"(three)
                   : "xmm0");
  memcpy(&h->third, &quotient, sizeof quotient);
  __asm__ volatile("movsd %1, %%xmm0; divsd %2, %%xmm0; movsd %%xmm0, %0"
                   : "=m"(quotient)
                   : "m"(one), "m"(minus_three)
                   : "xmm0");
  memcpy(&h->minus, &quotient, sizeof quotient);
  __asm__ volatile("fldl %1; fdivl %2; fstpt %0" : "=m"(h->third_x87) : "m"(one), "m"(three));
}

static void look_at_descriptors(host *h) {
  struct stat file;
  for (int fd = 0; fd < DESCRIPTORS; fd++)
    if (fstat(fd, &file) == 0) {
      h->descriptors++;
      h->descriptor[fd].device = file.st_dev;
      h->descriptor[fd].inode = file.st_ino;
      h->descriptor[fd].mode = file.st_mode;
      h->descriptor[fd].flags = (uint64_t)fcntl(fd, F_GETFL) << 32 | (unsigned)fcntl(fd, F_GETFD);
    }
}

static void look(host *h) {
  memset(h, 0, sizeof *h);
  look_at_cpu(h); /* before the C library's own arithmetic */
  look_at_signals(h);
  look_at_descriptors(h);
  h->timers = count_lines("/proc/self/timers", "ID:");
  if (h->descriptors + 1 != count_entries("/proc/self/fd"))
    fail_msg("descriptors above %d are open", DESCRIPTORS);
}

/* Of two looks at what no run may change, an executor being there or not: while one is there, the handlers of
 * its signals, one timer, an alternate stack and the mask are the library's. */
static void same_host(const char *when, const host *a, const host *b, bool lent) {
  for (int sig = 1; sig <= SIGNALS; sig++)
    if (memcmp(&a->handlers[sig], &b->handlers[sig], sizeof a->handlers[sig]) && !lent)
      fail_msg("%s: the handler of signal %d changed", when, sig);
  for (int fd = 0; fd < DESCRIPTORS; fd++)
    if (memcmp(&a->descriptor[fd], &b->descriptor[fd], sizeof a->descriptor[fd]) && !lent)
      fail_msg("%s: descriptor %d changed", when, fd);
#define SAME(field)                                                                                          \
  do                                                                                                         \
    if (memcmp(&a->field, &b->field, sizeof a->field) != 0)                                                  \
      fail_msg("%s: %s changed", when, #field);                                                              \
  while (0)
  SAME(fs);
  SAME(gs);
  SAME(mxcsr);
  SAME(fcw);
  SAME(fsw);
  SAME(fs_selector);
  SAME(gs_selector);
  SAME(ds);
  SAME(es);
  SAME(rflags);
  SAME(third);
  SAME(minus);
  SAME(third_x87);
  SAME(dispatched);
  if (lent)
    return;
  SAME(stack);
  SAME(stack_size);
  SAME(stack_flags);
  SAME(mask);
  SAME(timers);
  SAME(descriptors);
#undef SAME
}

/* ---- A host with settings of its own ------------------------------------------------------------------ */

static volatile sig_atomic_t host_calls;

static void count_call(int sig) {
  (void)sig;
  host_calls = host_calls + 1;
}

static const int own_handlers[] = {SIGSEGV, SIGBUS, SIGFPE, SIGTRAP, SIGURG, SIGUSR2, SIGVTALRM, SIGCHLD};
enum { OWN_HANDLERS = sizeof own_handlers / sizeof *own_handlers };

typedef struct settings {
  struct sigaction handlers[OWN_HANDLERS];
  stack_t stack, own_stack;
  sigset_t mask;
  uint32_t mxcsr, x87[7]; /* FNSTENV */
  uint64_t gs;
} settings;

enum { SET_GS = 0x1001, GET_GS = 0x1004 };

/* Handlers, alternate stack, mask, rounding upwards with FTZ and sticky flags, a GS base. */
static void settle(settings *before) {
  static uint8_t own_stack[1 << 17], own_gs[64];
  static const uint32_t mxcsr = 0xdfa1; /* FTZ, round up, all masked, invalid and precision seen */
  static const uint16_t fcw = 0xa7f;    /* round up, 53 bits */
  struct sigaction action = {.sa_handler = count_call, .sa_flags = SA_ONSTACK | SA_NOCLDSTOP};
  sigaddset(&action.sa_mask, SIGUSR1);
  for (int i = 0; i < OWN_HANDLERS; i++)
    sigaction(own_handlers[i], &action, &before->handlers[i]);
  before->own_stack = (stack_t){.ss_sp = own_stack, .ss_size = sizeof own_stack};
  sigaltstack(&before->own_stack, &before->stack);
  sigset_t blocked;
  sigemptyset(&blocked);
  for (int sig = SIGILL; sig <= SIGFPE; sig++)
    sigaddset(&blocked, sig);
  sigaddset(&blocked, SIGURG);
  sigaddset(&blocked, SIGUSR1);
  sigprocmask(SIG_BLOCK, &blocked, &before->mask);
  syscall(SYS_arch_prctl, GET_GS, &before->gs);
  syscall(SYS_arch_prctl, SET_GS, own_gs);
  __asm__ volatile("stmxcsr %0; fnstenv %1" : "=m"(before->mxcsr), "=m"(before->x87));
  __asm__ volatile("fld1; fldpi; fdivrp; fldz; fldz; fdivrp; fcompp"); /* precision and invalid seen */
  __asm__ volatile("ldmxcsr %0; fldcw %1" : : "m"(mxcsr), "m"(fcw));
}

static void unsettle(const settings *before) {
  __asm__ volatile("ldmxcsr %0; fldenv %1" : : "m"(before->mxcsr), "m"(before->x87));
  syscall(SYS_arch_prctl, SET_GS, before->gs);
  sigprocmask(SIG_SETMASK, &before->mask, NULL);
  sigaltstack(&before->stack, NULL);
  for (int i = 0; i < OWN_HANDLERS; i++)
    sigaction(own_handlers[i], &before->handlers[i], NULL);
}

/* ---- What runs leave ---------------------------------------------------------------------------------- */

static unsigned mappings(void) {
  /* Sanitizers map memory for themselves as time goes by. */
  return count_lines("/proc/self/maps", ASAN || TSAN ? "lockstep" : "");
}

static ls_executor *current; /* so that a test that fails leaves nothing behind */

static int destroy_current(void **unused) {
  (void)unused;
  ls_executor_destroy(current);
  current = NULL;
  return 0;
}

/* Each kind of guest by itself: what one leaves behind the next may hide. */
static void check_each(const host *before, int kinds) {
  static host after;
  for (int i = 0; i < kinds; i++)
    if (can_run(i, current)) {
      run_guest(current, i);
      look(&after);
      same_host(guests[i].name, before, &after, true);
    }
}

/* Runs in an executor of that kind, watched. The first round pays for what is made once per process: the
 * first alternate stacks, buffers of the C library. */
static void check_host(ls_kind kind, int runs, int kinds) {
  static host before, warm, after;
  static settings outside;
  build_images();
  current = create(kind);
  unsigned done = 0;
  run_round(current, kinds, kinds, &done);
  destroy_current(NULL);
  host_calls = 0;
  settle(&outside);
  look(&before);
  unsigned maps_before = mappings();
  current = create(kind);
  check_each(&before, kinds);
  look(&warm);
  unsigned maps_warm = mappings();
  done = 0;
  run_round(current, runs, kinds, &done);
  look(&after);
  unsigned maps_after = mappings();
  unsigned descriptors_warm = (unsigned)warm.descriptors, descriptors_after = (unsigned)after.descriptors;
  int calls = host_calls;
  same_host("with an executor", &before, &after, true);
  assert_memory_equal(&warm.handlers, &after.handlers, sizeof warm.handlers);
  assert_memory_equal(&warm.descriptor, &after.descriptor, sizeof warm.descriptor);
  assert_int_equal(warm.mask, after.mask);
  assert_int_equal(warm.stack, after.stack);
  assert_int_equal(warm.timers, after.timers);
  destroy_current(NULL);
  look(&after);
  unsigned maps_destroyed = mappings();
  unsettle(&outside);
  same_host("after destroy", &before, &after, false);
  assert_int_equal(descriptors_warm, descriptors_after);
  assert_int_equal(maps_warm, maps_after);
  assert_int_equal(maps_before, maps_destroyed);
  assert_int_equal(calls, 0);
  destroy_images();
  print_message("%u faulting runs, %u mappings, %u descriptors\n", done, maps_after, descriptors_after);
}

static void faults_in_thread(void **unused) {
  (void)unused;
  check_host(LS_SIGNAL, FAULTING_RUNS, GUESTS);
}

static void faults_in_the_reference(void **unused) {
  (void)unused;
  pid_t pid;
  unsigned children = process_children(getpid(), &pid);
  check_host(LS_PTRACE, REFERENCE_RUNS, IN_REFERENCE);
  assert_int_equal(process_children(getpid(), &pid), children);
}

/* Executors come and go. */
static void a_hundred_executors(void **unused) {
  (void)unused;
  static host before, after;
  static settings outside;
  build_images();
  settle(&outside);
  unsigned maps_before = 0, done = 0;
  for (int round = 0; round < 100; round++) {
    current = create(LS_SIGNAL);
    run_round(current, GUESTS, GUESTS, &done);
    destroy_current(NULL);
    look(round ? &after : &before);
    maps_before = round ? maps_before : mappings();
  }
  unsigned maps_after = mappings();
  unsettle(&outside);
  same_host("after a hundred", &before, &after, false);
  assert_int_equal(maps_before, maps_after);
  destroy_images();
}

/* As language runtimes do, after the first run: each run, however it ends, leaves the base of the moment. */
static void a_gs_base_that_changes(void **unused) {
  (void)unused;
  static const uint8_t blocks[2][64];
  uint64_t before, now = 0;
  build_images();
  current = create(LS_SIGNAL);
  syscall(SYS_arch_prctl, GET_GS, &before);
  for (int i = 0; i < GUESTS; i++)
    for (int k = 0; k < 2; k++)
      if (can_run(i, current)) {
        syscall(SYS_arch_prctl, SET_GS, blocks[k]);
        run_guest(current, i);
        syscall(SYS_arch_prctl, GET_GS, &now);
        syscall(SYS_arch_prctl, SET_GS, before);
        if (now != (uintptr_t)blocks[k])
          fail_msg("%s, %d: %#" PRIx64, guests[i].name, k, now);
      }
  destroy_current(NULL);
  destroy_images();
}

int main(void) {
  ls_layout_default(&layout, SLOT);
  const struct CMUnitTest in_thread[] = {cmocka_unit_test_teardown(faults_in_thread, destroy_current),
                                         cmocka_unit_test_teardown(a_hundred_executors, destroy_current),
                                         PART("dispatch", faults_in_thread, NULL, destroy_current),
                                         PART("dispatch", a_hundred_executors, NULL, destroy_current),
                                         PART("fsgsbase", faults_in_thread, NULL, destroy_current),
                                         PART("fsgsbase", a_hundred_executors, NULL, destroy_current),
                                         PART("fsgsbase", a_gs_base_that_changes, NULL, destroy_current)};
  const struct CMUnitTest with_reference[] = {
      cmocka_unit_test_teardown(faults_in_the_reference, destroy_current)};
  int failed = is_wanted(LS_SIGNAL) ? cmocka_run_group_tests(in_thread, NULL, NULL) : 0;
  return failed + (is_wanted(LS_PTRACE) ? cmocka_run_group_tests(with_reference, NULL, NULL) : 0);
}

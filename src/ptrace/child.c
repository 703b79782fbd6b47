/* This file runs in a copy of a process that may have other threads, locks held by them, and sanitizers: it
 * calls no function of the C library and is not instrumented. */
#include "child.h"

#include <linux/futex.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>

#include "stub.h"

#ifndef __has_attribute
#define __has_attribute(x) 0
#endif
#if defined(__clang__) && __has_attribute(disable_sanitizer_instrumentation)
#define BARE __attribute__((disable_sanitizer_instrumentation, no_sanitize("coverage", "undefined")))
#elif defined(__clang__)
#define BARE __attribute__((no_sanitize("address", "thread", "memory", "undefined")))
#elif __has_attribute(no_sanitize_coverage)
#define BARE __attribute__((no_sanitize("address", "thread", "undefined"), no_sanitize_coverage))
#else
#define BARE __attribute__((no_sanitize("address", "thread", "undefined")))
#endif

enum { SIGNALS = 64, SIGSET_BYTES = 8, WAIT_SECONDS = 10, OLD_KERNEL_DESCRIPTORS = 65536 };

BARE static int64_t call(uint64_t number, uint64_t a, uint64_t b, uint64_t c, uint64_t d, uint64_t e,
                         uint64_t f) {
  int64_t result;
  register uint64_t r10 __asm__("r10") = d;
  register uint64_t r8 __asm__("r8") = e;
  register uint64_t r9 __asm__("r9") = f;
  __asm__ volatile("syscall"
                   : "=a"(result)
                   : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                   : "rcx", "r11", "memory");
  return result;
}

BARE static void leave(int code) {
  for (;;)
    call(SYS_exit_group, (uint64_t)code, 0, 0, 0, 0, 0);
}

/* Handlers would be in memory that goes away; an ignored signal would hide a fault from nobody but be odd. */
BARE static void reset_signals(void) {
  const uint64_t action[4] = {0}; /* the kernel's struct sigaction: handler, flags, restorer, mask */
  for (uint64_t i = 1; i <= SIGNALS; i++)
    call(SYS_rt_sigaction, i, (uint64_t)action, 0, SIGSET_BYTES, 0, 0);
}

BARE static void close_from_to(uint64_t first, uint64_t last) {
  if (first > last || call(SYS_close_range, first, last, 0, 0, 0, 0) == 0)
    return;
  for (uint64_t fd = first; fd <= last && fd < OLD_KERNEL_DESCRIPTORS; fd++) /* before Linux 5.9 */
    call(SYS_close, fd, 0, 0, 0, 0, 0);
}

BARE static void close_all_but(uint64_t a, uint64_t b) {
  uint64_t low = a < b ? a : b, high = a < b ? b : a;
  if (low > 0)
    close_from_to(0, low - 1);
  close_from_to(low + 1, high - 1);
  close_from_to(high + 1, UINT32_MAX);
}

BARE static void wait_for_go(const uint32_t *go) {
  const struct timespec patience = {.tv_sec = WAIT_SECONDS};
  while (__atomic_load_n(go, __ATOMIC_ACQUIRE) == 0)
    if (call(SYS_futex, (uint64_t)go, FUTEX_WAIT, 0, (uint64_t)&patience, 0, 0) == -110 /* ETIMEDOUT */)
      leave(CHILD_NOT_TRACED);
}

BARE static void map_inner(uint64_t inner, int fd) {
  static const struct {
    uint64_t from, to;
    int protection;
  } parts[] = {{GATE_CODE, GATE_IN, PROT_READ | PROT_EXEC},
               {GATE_IN, GATE_OUT, PROT_READ},
               {GATE_OUT, GATE_END, PROT_READ | PROT_WRITE}};
  for (unsigned i = 0; i < sizeof parts / sizeof parts[0]; i++)
    if (call(SYS_mmap, inner + parts[i].from, parts[i].to - parts[i].from, (uint64_t)parts[i].protection,
             MAP_SHARED | MAP_FIXED | MAP_POPULATE, (uint64_t)fd, parts[i].from) < 0)
      leave(CHILD_NO_GATE);
}

/* Robust futexes, the thread id's address, timers, the alternate stack's use and Syscall User Dispatch need
 * no care: a new process has none (kernel/fork.c, copy_process). */
BARE static void child_main(const child_setup *setup) {
  const struct rlimit none = {0, 0};
  call(SYS_prctl, PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0, 0);
  if (call(SYS_getppid, 0, 0, 0, 0, 0, 0) != setup->parent)
    leave(CHILD_ORPHAN);
  reset_signals();
  call(SYS_setrlimit, RLIMIT_CORE, (uint64_t)&none, 0, 0, 0, 0);
  call(SYS_prctl, PR_SET_DUMPABLE, 1, 0, 0, 0, 0);
  call(SYS_prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0, 0); /* lets it install a seccomp filter */
  call(SYS_prctl, PR_SET_NAME, (uint64_t) "lockstep-guest", 0, 0, 0, 0);
  wait_for_go(setup->go);
  close_all_but((uint64_t)setup->gate_fd, (uint64_t)setup->guest_fd);
  map_inner(setup->inner, setup->gate_fd);
  register uint64_t calls __asm__("r12") = setup->inner + GATE_OUT;
  __asm__ volatile("jmp *%0" : : "r"(setup->start), "r"(calls) : "memory");
  __builtin_unreachable();
}

BARE static int64_t clone_bare(void) {
  return call(SYS_clone, CLONE_UNTRACED, 0, 0, 0, 0, 0);
}

BARE pid_t child_fork(const child_setup *setup) {
  int64_t pid = clone_bare();
  if (pid == 0)
    child_main(setup);
  return (pid_t)pid;
}

BARE pid_t child_try_to_trace(const child_setup *unused) {
  (void)unused;
  int64_t pid = clone_bare();
  if (pid == 0) {
    reset_signals();
    call(SYS_ptrace, PTRACE_SEIZE, 0, 0, 0, 0, 0);
    leave(0);
  }
  return (pid_t)pid;
}

/* The kernel's own types and calls that libc wraps in ways that do not suit a signal handler. Internal. */
#ifndef LOCKSTEP_SIGNAL_KERNEL_H
#define LOCKSTEP_SIGNAL_KERNEL_H

#include <stdint.h>

/* struct sigaction of rt_sigaction (arch/x86/include/uapi/asm/signal.h). */
typedef struct kernel_action {
  uintptr_t handler;
  uint64_t flags;
  uintptr_t restorer;
  uint64_t mask; /* bit n-1 = signal n */
} kernel_action;

#define KERNEL_SA_RESTORER UINT64_C(0x04000000)

#ifndef PR_SET_SYSCALL_USER_DISPATCH
#define PR_SET_SYSCALL_USER_DISPATCH 59
#define PR_SYS_DISPATCH_OFF          0
#define PR_SYS_DISPATCH_ON           1
#endif
enum { SIGSYS_USER_DISPATCH = 2 }; /* si_code; SYS_USER_DISPATCH of asm-generic/siginfo.h */

static inline uint64_t signal_bit(int sig) {
  return UINT64_C(1) << (sig - 1);
}

#define HIDDEN __attribute__((visibility("hidden")))

/* A raw system call; returns what the kernel returns, -errno on failure. Uses no TLS, so it may be called
 * whatever FS is, and it is where Syscall User Dispatch lets calls pass. In entry.S. */
HIDDEN long kernel_call(long number, long a, long b, long c, long d);

/* What every signal of ours enters, and what its frame returns to: rt_sigreturn. In entry.S. */
HIDDEN void handler_entry(void);
HIDDEN void handler_return(void);

/* `syscall; ret $128`: repeats a system call of host code that has 136 bytes less RSP than it had, with its
 * return address there. In entry.S. */
HIDDEN void handler_repeat_call(void);

#endif

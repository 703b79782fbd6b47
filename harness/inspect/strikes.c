#include "inspect/strikes.h"

#include <signal.h>
#include <stddef.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

/* struct sigaction of rt_sigaction (arch/x86/include/uapi/asm/signal.h). libc's would set another restorer.
 */
typedef struct kernel_action {
  uintptr_t handler;
  uint64_t flags;
  uintptr_t restorer;
  uint64_t mask;
} kernel_action;

enum { RIP_OFFSET = 168, KEPT_MASK = 1023 };

_Static_assert(offsetof(ucontext_t, uc_mcontext.gregs) + sizeof(greg_t) * REG_RIP == RIP_OFFSET,
               "offset in assembly");
_Static_assert(KEPT_MASK == STRIKES_ROOM - 1, "mask in assembly");

extern volatile uint64_t strikes_kept[STRIKES_ROOM];
extern volatile uint32_t strikes_number;
extern uintptr_t strikes_next;
void strikes_handler(void);

volatile uint64_t strikes_kept[STRIKES_ROOM];
volatile uint32_t strikes_number;
uintptr_t strikes_next;

/* (signal, info, context): registers that a handler need not keep, no stack. */
__asm__(".text\n"
        ".globl strikes_handler\n"
        ".hidden strikes_handler\n"
        ".type strikes_handler, @function\n"
        "strikes_handler:\n"
        "  mov 168(%rdx), %rax\n"
        "  mov $1, %ecx\n"
        "  lock xadd %ecx, strikes_number(%rip)\n"
        "  and $1023, %ecx\n"
        "  lea strikes_kept(%rip), %r8\n"
        "  mov %rax, (%r8, %rcx, 8)\n"
        "  jmp *strikes_next(%rip)\n"
        ".size strikes_handler, . - strikes_handler\n");

static bool kernel_sigaction(const kernel_action *action, kernel_action *old) {
  return syscall(SYS_rt_sigaction, SIGURG, action, old, sizeof old->mask) == 0;
}

bool strikes_watch(void) {
  kernel_action action;
  if (!kernel_sigaction(NULL, &action) || action.handler <= 1)
    return false;
  if (action.handler == (uintptr_t)strikes_handler)
    return true;
  strikes_next = action.handler;
  action.handler = (uintptr_t)strikes_handler;
  return kernel_sigaction(&action, NULL);
}

uint32_t strikes_count(void) {
  return strikes_number;
}

uint64_t strikes_address(uint32_t number) {
  return strikes_kept[number & KEPT_MASK];
}

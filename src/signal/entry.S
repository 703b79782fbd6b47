/* Where signals enter, and the few system calls that must work while the guest's calls are blocked. */
#include "../flags.h"
#include "gate.h"

#define SYS_rt_sigreturn 15

/* Offsets in struct handler_frame (thread.h). */
#define FRAME_DS    0
#define FRAME_ES    2
#define FRAME_FS    4
#define FRAME_GS    6
#define FRAME_FLAGS 8
#define FRAME_SIZE  24 /* keeps RSP a multiple of 16 at the call */

  .text

/* void handler_entry(int signal, siginfo_t *info, ucontext_t *context)
 *
 *   RFLAGS = RFLAGS_CLEAN;                       the guest's AC and ID leak into a handler
 *   frame = {DS, ES, FS, GS, RFLAGS_CLEAN};      the signal frame lacks them
 *   handle_signal(signal, info, context, &frame);
 *   DS = frame.ds; ES = frame.es; RFLAGS = frame.flags;              ID and NT survive rt_sigreturn this way
 */
  .p2align 4
  .globl handler_entry
  .hidden handler_entry
  .type handler_entry, @function
handler_entry:
  .cfi_startproc
  pushq $RFLAGS_CLEAN
  .cfi_adjust_cfa_offset 8
  popfq
  .cfi_adjust_cfa_offset -8
  sub $FRAME_SIZE, %rsp
  .cfi_adjust_cfa_offset FRAME_SIZE
  mov %rsp, %rcx
  mov %ds, FRAME_DS(%rsp)
  mov %es, FRAME_ES(%rsp)
  mov %fs, FRAME_FS(%rsp)
  mov %gs, FRAME_GS(%rsp)
  movq $RFLAGS_CLEAN, FRAME_FLAGS(%rsp)
  call handle_signal
  movzwl FRAME_DS(%rsp), %eax
  mov %ds, %ecx
  cmp %ecx, %eax
  je 1f
  mov %eax, %ds
1:
  movzwl FRAME_ES(%rsp), %eax
  mov %es, %ecx
  cmp %ecx, %eax
  je 2f
  mov %eax, %es
2:
  pushq FRAME_FLAGS(%rsp)
  .cfi_adjust_cfa_offset 8
  popfq
  .cfi_adjust_cfa_offset -8
  lea FRAME_SIZE(%rsp), %rsp
  .cfi_adjust_cfa_offset -FRAME_SIZE
  ret
  .cfi_endproc
  .size handler_entry, . - handler_entry

/* The frame's return address. The kernel restores only some flags from the frame and leaves the others as
 * they were at this SYSCALL (arch/x86/kernel/signal_64.c, restore_sigcontext). Debuggers and unwinders know a
 * signal's frame by just these bytes, where no unwind table says anything of the byte before. */
  .p2align 4
  nop
  .globl handler_return
  .hidden handler_return
  .type handler_return, @function
handler_return:
  mov $SYS_rt_sigreturn, %rax
  syscall
  .size handler_return, . - handler_return

/* RET $128 takes the return address off and steps over the caller's red zone. No register is free: RCX and
 * R11 are the kernel's. */
  .p2align 4
  .globl handler_repeat_call
  .hidden handler_repeat_call
  .type handler_repeat_call, @function
handler_repeat_call:
  syscall
  ret $128
  .size handler_repeat_call, . - handler_repeat_call

/* long kernel_call(long number, long a, long b, long c, long d) */
  .p2align 4
  .globl kernel_call
  .hidden kernel_call
  .type kernel_call, @function
kernel_call:
  mov %rdi, %rax
  mov %rsi, %rdi
  mov %rdx, %rsi
  mov %rcx, %rdx
  mov %r8, %r10
  syscall
  ret
  .size kernel_call, . - kernel_call

  .section .note.GNU-stack, "", @progbits

/* void host_registers_call(void (*function)(void *), void *context, host_registers *before, host_registers *after,
 *                          bool fsgsbase);
 *
 * Calls function(context) with the callee-saved registers that `before` has, notes in `before` what else of the host's a
 * call must not change (System V ABI for x86-64, 3.2.1), in `after` what all of it is then, and puts it back. */

#define RBX     0
#define RBP     8
#define R12     16
#define R13     24
#define R14     32
#define R15     40
#define RFLAGS  48
#define MXCSR   56
#define FCW     64
#define DS      72
#define ES      80
#define FS      88
#define GS      96
#define FS_BASE 104
#define GS_BASE 112

#define SAVED_BEFORE   0
#define SAVED_AFTER    8
#define SAVED_FSGSBASE 16
#define ROOM           24

/* Into the structure at \to, by way of RAX. */
.macro look to
  pushfq
  pop RFLAGS(\to)
  stmxcsr MXCSR(\to)
  fnstcw FCW(\to)
  .irp selector, ds, es, fs, gs
  mov %\selector, %eax
  .ifc \selector, ds
  mov %rax, DS(\to)
  .endif
  .ifc \selector, es
  mov %rax, ES(\to)
  .endif
  .ifc \selector, fs
  mov %rax, FS(\to)
  .endif
  .ifc \selector, gs
  mov %rax, GS(\to)
  .endif
  .endr
  cmpb $0, SAVED_FSGSBASE(%rsp)
  je 1f
  rdfsbase %rax
  mov %rax, FS_BASE(\to)
  rdgsbase %rax
  mov %rax, GS_BASE(\to)
1:
.endm

  .text
  .globl host_registers_call
  .hidden host_registers_call
  .type host_registers_call, @function
host_registers_call:
  .cfi_startproc
  endbr64
  .irp register, rbx, rbp, r12, r13, r14, r15
  push %\register
  .cfi_adjust_cfa_offset 8
  .cfi_rel_offset \register, 0
  .endr
  sub $ROOM, %rsp
  .cfi_adjust_cfa_offset ROOM
  mov %rdx, SAVED_BEFORE(%rsp)
  mov %rcx, SAVED_AFTER(%rsp)
  mov %r8b, SAVED_FSGSBASE(%rsp)
  look %rdx
  mov %rdi, %rax
  mov %rsi, %rdi
  mov RBX(%rdx), %rbx
  mov RBP(%rdx), %rbp
  mov R12(%rdx), %r12
  mov R13(%rdx), %r13
  mov R14(%rdx), %r14
  mov R15(%rdx), %r15
  call *%rax

  mov SAVED_AFTER(%rsp), %rcx
  mov %rbx, RBX(%rcx)
  mov %rbp, RBP(%rcx)
  mov %r12, R12(%rcx)
  mov %r13, R13(%rcx)
  mov %r14, R14(%rcx)
  mov %r15, R15(%rcx)
  look %rcx
  mov SAVED_BEFORE(%rsp), %rdx
  push RFLAGS(%rdx)
  popfq
  ldmxcsr MXCSR(%rdx)
  mov FCW(%rdx), %eax
  cmp FCW(%rcx), %eax
  je 2f
  fnclex
  fldcw FCW(%rdx)
2:
  mov DS(%rdx), %eax
  cmp DS(%rcx), %eax
  je 3f
  mov %eax, %ds
3:
  mov ES(%rdx), %eax
  cmp ES(%rcx), %eax
  je 4f
  mov %eax, %es
4:
  cmpb $0, SAVED_FSGSBASE(%rsp)
  je 5f
  mov FS_BASE(%rdx), %rax
  wrfsbase %rax
  mov GS_BASE(%rdx), %rax
  wrgsbase %rax
5:
  add $ROOM, %rsp
  .cfi_adjust_cfa_offset -ROOM
  .irp register, r15, r14, r13, r12, rbp, rbx
  pop %\register
  .cfi_adjust_cfa_offset -8
  .cfi_restore \register
  .endr
  ret
  .cfi_endproc
  .size host_registers_call, .-host_registers_call
  .section .note.GNU-stack, "", @progbits

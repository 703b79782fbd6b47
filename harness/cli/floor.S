/* Bare ways in and out, for `lockstep bench`. No selectors, no safety, and only in floor_gate flags and MXCSR: what must
 * be paid.
 *   void floor_run(const ls_state *in, ls_state *out, const void *code, ls_vectors vectors);
 *   void floor_gate(const ls_state *in, ls_state *out, const void *code, ls_vectors vectors);
 *   void floor_run_xsave(const ls_state *in, ls_state *out, const void *code, void *area, uint64_t components);
 *   void floor_fill_xsave(void *area, uint64_t components);
 *   void floor_spin(const ls_state *in, floor_spinner *spinner, ls_vectors vectors);
 *   void floor_steps(const ls_state *in, uint64_t rounds, ls_vectors vectors); */
#include "state_offsets.h"

#define SAVE_CALLEE_SAVED                                                                                     \
  push %rbx; push %rbp; push %r12; push %r13; push %r14; push %r15

#define RESTORE_CALLEE_SAVED                                                                                  \
  pop %r15; pop %r14; pop %r13; pop %r12; pop %rbp; pop %rbx

  .bss
  .align 64
host_rsp:   .quad 0
out_state:  .quad 0
target:     .quad 0
guest_rax:  .quad 0
guest_rsp:  .quad 0
mode:       .quad 0
xsave_area: .quad 0
components: .quad 0

  .text

.macro zmm_all op, base
  .irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
  .ifc \op, load
  vmovdqu64 STATE_ZMM+64*\n(\base), %zmm\n
  .else
  vmovdqu64 %zmm\n, STATE_ZMM+64*\n(\base)
  .endif
  .endr
  .irp n, 0,1,2,3,4,5,6,7
  .ifc \op, load
  kmovq STATE_K+8*\n(\base), %k\n
  .else
  kmovq %k\n, STATE_K+8*\n(\base)
  .endif
  .endr
.endm

.macro ymm_all op, base
  .irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15
  .ifc \op, load
  vmovdqu STATE_ZMM+64*\n(\base), %ymm\n
  .else
  vmovdqu %ymm\n, STATE_ZMM+64*\n(\base)
  .endif
  .endr
.endm

.macro xmm_all op, base
  .irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15
  .ifc \op, load
  movups STATE_ZMM+64*\n(\base), %xmm\n
  .else
  movups %xmm\n, STATE_ZMM+64*\n(\base)
  .endif
  .endr
.endm

/* Vectors as wide as %edx says, from the state at %rdi. */
.macro load_vectors
  cmp $3, %edx
  je 3f
  cmp $2, %edx
  je 2f
  xmm_all load, %rdi
  jmp 4f
2:
  ymm_all load, %rdi
  jmp 4f
3:
  zmm_all load, %rdi
4:
.endm

/* Host code goes on with clean upper halves. */
.macro forget_vectors
  cmp $2, %edx
  jb 5f
  vzeroupper
5:
.endm

/* All vectors to the state at %rax. */
.macro store_vectors
  cmp $3, %edx
  je 3f
  cmp $2, %edx
  je 2f
  xmm_all store, %rax
  jmp 4f
2:
  ymm_all store, %rax
  jmp 4f
3:
  zmm_all store, %rax
4:
.endm

/* All general registers but RDI and RSP. */
.macro load_general
  mov STATE_GPR+0(%rdi), %rax
  mov STATE_GPR+8(%rdi), %rcx
  mov STATE_GPR+16(%rdi), %rdx
  mov STATE_GPR+24(%rdi), %rbx
  mov STATE_GPR+40(%rdi), %rbp
  mov STATE_GPR+48(%rdi), %rsi
  mov STATE_GPR+64(%rdi), %r8
  mov STATE_GPR+72(%rdi), %r9
  mov STATE_GPR+80(%rdi), %r10
  mov STATE_GPR+88(%rdi), %r11
  mov STATE_GPR+96(%rdi), %r12
  mov STATE_GPR+104(%rdi), %r13
  mov STATE_GPR+112(%rdi), %r14
  mov STATE_GPR+120(%rdi), %r15
.endm

/* All but RAX and RSP. */
.macro store_general
  mov %rcx, STATE_GPR+8(%rax)
  mov %rdx, STATE_GPR+16(%rax)
  mov %rbx, STATE_GPR+24(%rax)
  mov %rbp, STATE_GPR+40(%rax)
  mov %rsi, STATE_GPR+48(%rax)
  mov %rdi, STATE_GPR+56(%rax)
  mov %r8, STATE_GPR+64(%rax)
  mov %r9, STATE_GPR+72(%rax)
  mov %r10, STATE_GPR+80(%rax)
  mov %r11, STATE_GPR+88(%rax)
  mov %r12, STATE_GPR+96(%rax)
  mov %r13, STATE_GPR+104(%rax)
  mov %r14, STATE_GPR+112(%rax)
  mov %r15, STATE_GPR+120(%rax)
.endm

/* All GPRs from the state at %rdi, then to the code. */
enter_guest:
  mov %rsp, host_rsp(%rip)
  mov %rsi, out_state(%rip)
  mov %rdx, target(%rip)
  load_general
  mov STATE_GPR+32(%rdi), %rsp
  mov STATE_GPR+56(%rdi), %rdi
  jmp *target(%rip)

leave_guest:
  mov %rax, guest_rax(%rip)
  mov out_state(%rip), %rax
  store_general
  mov %rsp, STATE_GPR+32(%rax)
  mov guest_rax(%rip), %rcx
  mov %rcx, STATE_GPR+0(%rax)
  mov host_rsp(%rip), %rsp
  mov mode(%rip), %edx
  test %edx, %edx
  jz leave_by_xsave
  store_vectors
left:
  RESTORE_CALLEE_SAVED
  ret

leave_by_xsave:
  mov xsave_area(%rip), %rcx
  mov components(%rip), %eax
  test %eax, %eax
  jz 6f
  xor %edx, %edx
  xsave64 (%rcx)
  jmp left
6:
  fxsave64 (%rcx)
  jmp left

  .globl floor_run
  .type floor_run, @function
floor_run:
  SAVE_CALLEE_SAVED
  mov %rdx, %rax
  mov %ecx, %edx
  mov %ecx, mode(%rip)
  load_vectors
  mov %rax, %rdx
  jmp enter_guest
  .size floor_run, . - floor_run

/* As floor_run, with all of a state that user code can hold but x87: RFLAGS and MXCSR too, and the host's back. The code
 * returns to floor_gate_leave. */
  .globl floor_gate
  .type floor_gate, @function
floor_gate:
  SAVE_CALLEE_SAVED
  sub $8, %rsp
  stmxcsr (%rsp)
  mov %edx, %eax
  mov %rdx, target(%rip)
  mov %rsi, out_state(%rip)
  mov %ecx, %edx
  mov %ecx, mode(%rip)
  load_vectors
  ldmxcsr STATE_MXCSR(%rdi)
  mov %rsp, host_rsp(%rip)
  pushq STATE_RFLAGS(%rdi)
  popfq
  load_general
  mov STATE_GPR+32(%rdi), %rsp
  mov STATE_GPR+56(%rdi), %rdi
  jmp *target(%rip)

gate_leave:
  mov %rsp, guest_rsp(%rip)
  mov host_rsp(%rip), %rsp
  pushfq
  pushq $0x202
  popfq
  mov %rax, guest_rax(%rip)
  mov out_state(%rip), %rax
  popq STATE_RFLAGS(%rax)
  store_general
  mov guest_rsp(%rip), %rcx
  mov %rcx, STATE_GPR+32(%rax)
  mov guest_rax(%rip), %rcx
  mov %rcx, STATE_GPR+0(%rax)
  mov mode(%rip), %edx
  store_vectors
  stmxcsr STATE_MXCSR(%rax)
  ldmxcsr (%rsp)
  forget_vectors
  add $8, %rsp
  RESTORE_CALLEE_SAVED
  ret
  .size floor_gate, . - floor_gate

  .globl floor_run_xsave
  .type floor_run_xsave, @function
floor_run_xsave:
  SAVE_CALLEE_SAVED
  movl $0, mode(%rip)
  mov %rcx, xsave_area(%rip)
  mov %r8, components(%rip)
  mov %rdx, %r9
  test %r8, %r8
  jz 6f
  mov %r8d, %eax
  xor %edx, %edx
  xrstor64 (%rcx)
  jmp 7f
6:
  fxrstor64 (%rcx)
7:
  mov %r9, %rdx
  jmp enter_guest
  .size floor_run_xsave, . - floor_run_xsave

  .globl floor_fill_xsave
  .type floor_fill_xsave, @function
floor_fill_xsave:
  mov %esi, %eax
  xor %edx, %edx
  test %eax, %eax
  jz 6f
  xsave64 (%rdi)
  mov %rsi, 512(%rdi)
  jmp 7f
6:
  fxsave64 (%rdi)
7:
  movl $0x1f80, 24(%rdi)
  ret
  .size floor_fill_xsave, . - floor_fill_xsave

  .globl floor_fault
  .type floor_fault, @function
floor_fault:
  ud2
  ret
  .size floor_fault, . - floor_fault

  .globl floor_spin
  .type floor_spin, @function
floor_spin:
  load_vectors
1:
  incq 8(%rsi)
  cmpl $0, (%rsi)
  je 1b
  forget_vectors
  ret
  .size floor_spin, . - floor_spin

/* FLOOR_ROUND instructions a round, each trapped. */
  .globl floor_steps
  .type floor_steps, @function
floor_steps:
  load_vectors
  pushfq
  orl $0x100, (%rsp) /* TF */
  popfq
1:
  nop
  nop
  nop
  nop
  nop
  nop
  dec %rsi
  jnz 1b
  pushfq
  andl $~0x100, (%rsp)
  popfq
  forget_vectors
  ret
  .size floor_steps, . - floor_steps

  .section .data.rel.ro, "aw"
  .globl floor_leave, floor_gate_leave
  .align 8
floor_leave: .quad leave_guest
floor_gate_leave: .quad gate_leave

  .section .note.GNU-stack, "", @progbits

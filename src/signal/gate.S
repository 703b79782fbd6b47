/* The way into the guest and out of it: three templates, which differ in the vector registers they move. What
 * each label stands for is in gate.h. In C the whole would be:
 *
 *   enter(state) {                            exit: (every register is the guest's)
 *     save callee-saved registers, MXCSR,       save RSP, RFLAGS; back to the host's stack and flags
 *       RFLAGS, FCW if x87 is used;             outcome->state = general registers, selectors
 *     host_rsp = RSP;
 *     record->gs_base = GS's, if FSGSBASE;
 *     record->running = executor;               foreign = FS or GS is not the host's
 *     record->selector = BLOCK;                 DS, ES = the host's; result = GATE_EXITED
 *     if (attention)                          leave:
 *       result = GATE_INTERRUPTED,              outcome->state = vectors, MXCSR, x87 if used
 *       goto unstarted;                         FCW = the host's, if x87 is used
 *     if x87 is used, load it, else           tail:
 *       outcome->state = state's;               MXCSR = the host's; record->selector = ALLOW;
 *     load vectors, MXCSR, DS, ES,              if (foreign) FS and GS = the host's
 *       RFLAGS, general registers, RSP;         record->running = NULL; return result;
 *     goto entry;
 *   }                                         unstarted:
 *                                               FCW = the host's, if x87 is used; goto tail;
 *
 * `resume` and `unstarted` come from the handler, which has put FS and GS right, or from before the guest.
 *
 * POPF, LDMXCSR and loads of segment registers take longer than all else here, and mostly would change
 * nothing: each is left out where a comparison says so. Of the host's flags only those count that are not
 * dead at the return from a function.
 *
 * Nothing here touches guest memory or the guest's stack. While AC may be set, every access is aligned. */
#include "../state_offsets.h"
#include "gate.h"

#define FLAG_TF       0x100
#define FLAG_RF       0x10000
#define FLAGS_STATUS  0x8d5 /* OF, SF, ZF, AF, PF, CF */
#define FLAG_OF_SHIFT 11
#define USER_CS       0x33
#define USER_SS       0x2b
#define SYS_arch_prctl 158
#define ARCH_SET_GS   0x1001
#define ARCH_SET_FS   0x1002

/* Offsets from RSP behind the host's RFLAGS. */
#define SAVED_MXCSR 0
#define SAVED_FCW   8
#define SAVED_SIZE  16

.macro load_vectors_sse
  .irp i, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
  movups STATE_ZMM + 64 * \i(%rdi), %xmm\i
  .endr
.endm
.macro store_vectors_sse
  .irp i, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
  movups %xmm\i, STATE_ZMM + 64 * \i(%rax)
  .endr
.endm

.macro load_vectors_avx
  .irp i, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
  vmovups STATE_ZMM + 64 * \i(%rdi), %ymm\i
  .endr
.endm
.macro store_vectors_avx
  .irp i, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
  vmovups %ymm\i, STATE_ZMM + 64 * \i(%rax)
  .endr
.endm

.macro load_vectors_avx512
  .irp i, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31
  vmovups STATE_ZMM + 64 * \i(%rdi), %zmm\i
  .endr
  .irp i, 0, 1, 2, 3, 4, 5, 6, 7
  kmovq STATE_K + 8 * \i(%rdi), %k\i
  .endr
.endm
.macro store_vectors_avx512
  .irp i, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31
  vmovups %zmm\i, STATE_ZMM + 64 * \i(%rax)
  .endr
  .irp i, 0, 1, 2, 3, 4, 5, 6, 7
  kmovq %k\i, STATE_K + 8 * \i(%rax)
  .endr
.endm

/* Copies the STATE_FX_SIZE bytes that a state and an FXSAVE area share. Changes XMM0 or YMM0. */
.macro copy_fx_sse from, to
  .irp i, 0, 16, 32, 48, 64, 80, 96, 112, 128, 144
  movups \i + \from, %xmm0
  movups %xmm0, \i + \to
  .endr
.endm
.macro copy_fx_avx from, to
  .irp i, 0, 32, 64, 96, 128
  vmovups \i + \from, %ymm0
  vmovups %ymm0, \i + \to
  .endr
.endm
.macro copy_fx_avx512 from, to
  copy_fx_avx \from, \to
.endm

/* The host expects the upper halves of YMM0-15 to be zero: SSE instructions are slow otherwise. */
.macro clear_upper_sse
.endm
.macro clear_upper_avx
  vzeroupper
.endm
.macro clear_upper_avx512
  vzeroupper
.endm

/* The guest's RFLAGS from the state at RDI; EDX = what differs from the host's. Changes RAX and RCX. ADD sets
 * OF, which SAHF, that sets the others, leaves alone. SAHF is missing in 64-bit mode on some of the first
 * CPUs (LAHF_LM), none of which has AVX. */
.macro load_flags_sse
  pushq STATE_RFLAGS(%rdi)
  popfq
.endm
.macro load_flags_avx
  test $~FLAGS_STATUS, %edx
  jnz 1f
  mov STATE_RFLAGS(%rdi), %rcx
  mov %ecx, %eax
  shr $FLAG_OF_SHIFT, %ecx
  shl $8, %eax
  and $1, %ecx
  add $0x7f, %cl
  sahf
  jmp 2f
1:
  pushq STATE_RFLAGS(%rdi)
  popfq
2:
.endm
.macro load_flags_avx512
  load_flags_avx
.endm

/* Loads a data segment register from the state at RDI, unless it has that value already: a reload takes fifty
 * times as long as the comparison. */
.macro load_segment register, offset
  movzwl \offset(%rdi), %eax
  mov \register, %ecx
  cmp %ecx, %eax
  je 1f
  mov %eax, \register
1:
.endm

/* Back to the host's, which is in the record at RCX; EDX holds the guest's. */
.macro host_segment register, offset
  movzwl \offset(%rcx), %esi
  cmp %esi, %edx
  je 1f
  mov %esi, \register
1:
.endm

/* The host's FS or GS base, from the record at R12; `data` is the gate's. */
.macro host_base register, request, offset, data
  mov $\request, %edi
  mov \offset(%r12), %rsi
  mov $SYS_arch_prctl, %eax
  syscall
  test %eax, %eax
  jz 1f
  testb $GATE_FSGSBASE, \data + GATE_FLAGS(%rip)
  jz 1f
  xor %eax, %eax
  mov %eax, %\register
  wr\register\()base %rsi
1:
.endm

/* General registers but RSP and RDI from the state at RDI. Changes no flags. */
.macro load_general
  mov STATE_GPR + 0(%rdi), %rax
  mov STATE_GPR + 8(%rdi), %rcx
  mov STATE_GPR + 16(%rdi), %rdx
  mov STATE_GPR + 24(%rdi), %rbx
  mov STATE_GPR + 40(%rdi), %rbp
  mov STATE_GPR + 48(%rdi), %rsi
  mov STATE_GPR + 64(%rdi), %r8
  mov STATE_GPR + 72(%rdi), %r9
  mov STATE_GPR + 80(%rdi), %r10
  mov STATE_GPR + 88(%rdi), %r11
  mov STATE_GPR + 96(%rdi), %r12
  mov STATE_GPR + 104(%rdi), %r13
  mov STATE_GPR + 112(%rdi), %r14
  mov STATE_GPR + 120(%rdi), %r15
.endm

.macro gate vectors
  .p2align 6
  .irp place, begin, resume, unstarted, enter, end
  .globl gate_\vectors\()_\place
  .hidden gate_\vectors\()_\place
  .endr
  .type gate_\vectors\()_begin, @object
gate_\vectors\()_begin:
  .set .Ldata_\vectors, gate_\vectors\()_begin + GATE_CODE
  .set .Lx87_\vectors, .Ldata_\vectors + GATE_X87

  /* The exit. */
  mov %rsp, .Ldata_\vectors + GATE_GUEST_RSP(%rip)
  lea .Ldata_\vectors + GATE_STACK_TOP(%rip), %rsp
  pushfq
  mov .Ldata_\vectors + GATE_HOST_RSP(%rip), %rsp
  mov %rax, .Ldata_\vectors + GATE_GUEST_RAX(%rip)
  mov .Ldata_\vectors + GATE_STACK_TOP - 8(%rip), %rax
  xor (%rsp), %rax
  test $~FLAGS_STATUS, %eax
  jnz 8f
  add $8, %rsp
.Lstore_\vectors:
  mov .Ldata_\vectors + GATE_OUTCOME(%rip), %rax
  mov %rcx, STATE_GPR + 8(%rax)
  mov %rdx, STATE_GPR + 16(%rax)
  mov %rbx, STATE_GPR + 24(%rax)
  mov %rbp, STATE_GPR + 40(%rax)
  mov %rsi, STATE_GPR + 48(%rax)
  mov %rdi, STATE_GPR + 56(%rax)
  mov %r8, STATE_GPR + 64(%rax)
  mov %r9, STATE_GPR + 72(%rax)
  mov %r10, STATE_GPR + 80(%rax)
  mov %r11, STATE_GPR + 88(%rax)
  mov %r12, STATE_GPR + 96(%rax)
  mov %r13, STATE_GPR + 104(%rax)
  mov %r14, STATE_GPR + 112(%rax)
  mov %r15, STATE_GPR + 120(%rax)
  mov .Ldata_\vectors + GATE_GUEST_RAX(%rip), %rdx
  mov .Ldata_\vectors + GATE_GUEST_RSP(%rip), %rsi
  mov .Ldata_\vectors + GATE_STACK_TOP - 8(%rip), %rdi
  mov %rdx, STATE_GPR + 0(%rax)
  mov %rsi, STATE_GPR + 32(%rax)
  mov %rdi, STATE_RFLAGS(%rax)
  mov .Ldata_\vectors + GATE_RECORD(%rip), %rcx
  xor %ebx, %ebx
  mov %ss, %edx
  mov %cs, %esi
  shl $16, %edx
  or %esi, %edx
  mov %edx, STATE_CS(%rax) /* and STATE_SS: at once, as the way in reads them */
  mov %fs, %r12d
  mov %r12w, STATE_FS(%rax)
  mov %gs, %edx
  mov %dx, STATE_GS(%rax)
  or %rdx, %r12
  testb $GATE_FSGSBASE, .Ldata_\vectors + GATE_FLAGS(%rip)
  jz 2f
  rdfsbase %rsi
  rdgsbase %rdi
  xor RECORD_FS_BASE(%rcx), %rsi
  xor RECORD_GS_BASE(%rcx), %rdi
  or %rsi, %r12
  or %rdi, %r12
2:
  mov %ds, %edx
  mov %dx, STATE_DS(%rax)
  host_segment %ds, RECORD_DS
  mov %es, %edx
  mov %dx, STATE_ES(%rax)
  host_segment %es, RECORD_ES

.Lleave_\vectors:
  store_vectors_\vectors
  stmxcsr STATE_MXCSR(%rax) /* waits for what came before: here there is least of it to do after */
  testb $GATE_USES_X87, .Ldata_\vectors + GATE_FLAGS(%rip)
  jz 2f
  fxsave64 .Lx87_\vectors\()(%rip)
  copy_fx_\vectors .Lx87_\vectors\()(%rip), STATE_FX(%rax)
  fninit
  fldcw SAVED_FCW(%rsp)
2:
  mov STATE_MXCSR(%rax), %edx
  cmp %edx, SAVED_MXCSR(%rsp)
  je 3f
.Ltail_\vectors:
  ldmxcsr SAVED_MXCSR(%rsp)
3:
  clear_upper_\vectors
  movb $0, RECORD_SELECTOR(%rcx)
  test %r12, %r12
  jnz 5f
4:
  movq $0, RECORD_RUNNING(%rcx)
  mov %ebx, %eax
  add $SAVED_SIZE, %rsp
  pop %r15
  pop %r14
  pop %r13
  pop %r12
  pop %rbp
  pop %rbx
  ret

  /* By system call, which loads null selectors too, and works whether or not the kernel keeps what WRFSBASE
   * writes. Where seccomp refuses it, by instruction. */
5:
  mov %rcx, %r12
  host_base fs, ARCH_SET_FS, RECORD_FS_BASE, .Ldata_\vectors
  host_base gs, ARCH_SET_GS, RECORD_GS_BASE, .Ldata_\vectors
  mov %r12, %rcx
  jmp 4b

8:
  popfq
  jmp .Lstore_\vectors

gate_\vectors\()_resume:
  popfq
  xor %r12d, %r12d
  mov .Ldata_\vectors + GATE_OUTCOME(%rip), %rax
  mov .Ldata_\vectors + GATE_RECORD(%rip), %rcx
  jmp .Lleave_\vectors

gate_\vectors\()_unstarted:
.Lunstarted_\vectors:
  popfq
  xor %r12d, %r12d
  mov .Ldata_\vectors + GATE_RECORD(%rip), %rcx
  testb $GATE_USES_X87, .Ldata_\vectors + GATE_FLAGS(%rip)
  jz .Ltail_\vectors
  fninit
  fldcw SAVED_FCW(%rsp)
  jmp .Ltail_\vectors

  .p2align 4
gate_\vectors\()_enter:
  push %rbx
  push %rbp
  push %r12
  push %r13
  push %r14
  push %r15
  sub $SAVED_SIZE, %rsp
  stmxcsr SAVED_MXCSR(%rsp)
  testb $GATE_USES_X87, .Ldata_\vectors + GATE_FLAGS(%rip)
  jz 9f
  fnstcw SAVED_FCW(%rsp)
9:
  pushfq
  mov %rsp, .Ldata_\vectors + GATE_HOST_RSP(%rip)
  mov .Ldata_\vectors + GATE_RECORD(%rip), %rdx
  testb $GATE_FSGSBASE, .Ldata_\vectors + GATE_FLAGS(%rip)
  jz 2f
  rdgsbase %rax
  mov %rax, RECORD_GS_BASE(%rdx) /* before the handler may want it */
2:
  mov .Ldata_\vectors + GATE_EXECUTOR(%rip), %rax
  mov %rax, RECORD_RUNNING(%rdx)
  movb $1, RECORD_SELECTOR(%rdx)
  cmpl $0, .Ldata_\vectors + GATE_ATTENTION(%rip)
  jne 7f
  testb $GATE_USES_X87, .Ldata_\vectors + GATE_FLAGS(%rip)
  jnz 6f
  mov .Ldata_\vectors + GATE_OUTCOME(%rip), %rcx
  cmp %rdi, %rcx
  je .Lload_\vectors
  copy_fx_\vectors STATE_FX(%rdi), STATE_FX(%rcx)
.Lload_\vectors:
  load_vectors_\vectors
  mov STATE_MXCSR(%rdi), %eax
  cmp %eax, SAVED_MXCSR + 8(%rsp)
  je 1f
  ldmxcsr STATE_MXCSR(%rdi)
1:
  load_segment %ds, STATE_DS
  load_segment %es, STATE_ES
  mov STATE_RFLAGS(%rdi), %rdx
  xor (%rsp), %rdx
  lea .Ldata_\vectors + GATE_STACK_TOP(%rip), %rsp
  testb $FLAG_TF >> 8, STATE_RFLAGS + 1(%rdi)
  jnz 3f
  testb $GATE_FORCE_TF, .Ldata_\vectors + GATE_FLAGS(%rip)
  jnz 3f
  cmpl $(USER_SS << 16 | USER_CS), STATE_CS(%rdi) /* and STATE_SS, next to it */
  jne 3f
  load_flags_\vectors
  load_general
  mov STATE_GPR + 32(%rdi), %rsp
  mov STATE_GPR + 56(%rdi), %rdi
  jmp *.Ldata_\vectors + GATE_ENTRY(%rip)

  /* FXRSTOR and FXSAVE are faster than XRSTOR and XSAVE of this component alone (measured on Zen 5: 77 and 143
   * ns the pair). They load XMM0-15 too, which are loaded anew, and ignore the mask behind MXCSR. */
6:
  copy_fx_\vectors STATE_FX(%rdi), .Lx87_\vectors\()(%rip)
  fxrstor64 .Lx87_\vectors\()(%rip)
  jmp .Lload_\vectors

  /* With TF, and for an odd CS or SS, by IRET: it loads RIP, CS, RFLAGS, RSP and SS at once, so that the first trap
   * comes after exactly one instruction of the guest (SDM vol. 3, 18.3.1.4). */
3:
  movzwl STATE_SS(%rdi), %eax
  push %rax
  pushq STATE_GPR + 32(%rdi)
  mov STATE_RFLAGS(%rdi), %rax
  and $~FLAG_RF, %rax
  testb $GATE_FORCE_TF, .Ldata_\vectors + GATE_FLAGS(%rip)
  jz 4f
  or $FLAG_TF, %rax
4:
  push %rax
  movzwl STATE_CS(%rdi), %eax
  push %rax
  pushq .Ldata_\vectors + GATE_ENTRY(%rip)
  load_general
  mov STATE_GPR + 56(%rdi), %rdi
  iretq

7:
  mov $GATE_INTERRUPTED, %ebx
  jmp .Lunstarted_\vectors
gate_\vectors\()_end:
  .org gate_\vectors\()_begin + GATE_CODE /* an error if the code does not fit */
  .size gate_\vectors\()_begin, . - gate_\vectors\()_begin
.endm

  .section .rodata
  gate sse
  gate avx
  gate avx512

  .section .note.GNU-stack, "", @progbits

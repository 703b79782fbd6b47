/* Code that runs in the reference child at gate_inner(layout.gate). It is data to the process that links it: copied into
 * the gate's memfd, where it finds its own data at fixed distances (stub.h).
 *
 * Three parts, none of which returns:
 *
 *   exit   void at_gate(void): entered through the gate page's jump. Stores what the tracer
 *          cannot see afterwards or reads faster from shared memory:
 *            out->rsp = rsp; out->rcx = rcx; out->r11 = r11; out->fx = fxsave(); out->zmm/k = ...; bases; syscall;
 *          Moves only: no flag and no stack is touched. AC may be set, so every access is aligned. The
 *          system call is not executed, since the tracer resumes with PTRACE_SYSEMU.
 *   load   void load(void): entered by the tracer with the guest's general registers in place but RSP,
 *          which points at in->frame. Loads DS, ES, x87, MXCSR, vectors from in, and IRETQs to the guest.
 *          Whatever faults in here is a state that the CPU refuses.
 *   start  void start(stub_call *r12): runs system calls until one fails or the list ends, stopping at int3.
 */
#include "stub.h"

#define IN(offset)  stub + GATE_IN + (offset)(%rip)
#define OUT(offset) stub + GATE_OUT + (offset)(%rip)

  .macro label name
  .globl \name
  .hidden \name
\name:
  .endm

  .macro load_zmm n
  vmovdqa64 IN(GATE_ZMM + \n * 64), %zmm\n
  .endm
  .macro load_ymm n
  vmovdqa IN(GATE_ZMM + \n * 64), %ymm\n
  .endm
  .macro load_k n
  kmovq IN(GATE_K + \n * 8), %k\n
  .endm
  .macro store_zmm n
  vmovdqa64 %zmm\n, OUT(GATE_ZMM + \n * 64)
  .endm
  .macro store_ymm n
  vmovdqa %ymm\n, OUT(GATE_ZMM + \n * 64)
  .endm
  .macro store_k n
  kmovq %k\n, OUT(GATE_K + \n * 8)
  .endm
  .macro for8 what, base
  .irp i, 0, 1, 2, 3, 4, 5, 6, 7
  \what %(\base + \i)
  .endr
  .endm
  .altmacro

  .section .rodata.tracee_stub, "a", @progbits
  .balign 64
label tracee_stub_begin
stub: /* local, so that distances need no relocation */
  mov %rsp, OUT(GATE_RSP) /* here alone: tells an exit from a jump to anywhere else in here */
  jmp *IN(GATE_EXIT_TARGET)

/* ---- exit --------------------------------------------------------------------------------------------- */

/* RSP first: the kernel does not return to a non-canonical one, should anything enter it from here. */
  .macro save_scalar
  mov IN(GATE_SAFE_RSP), %rsp
  mov %rcx, OUT(GATE_RCX)
  mov %r11, OUT(GATE_R11)
  fxsave64 OUT(GATE_FX) /* x87, MXCSR, XMM0-15; no wait for pending exceptions (SDM vol. 1, 10.5.1) */
  .endm

label tracee_stub_exit_avx512
  save_scalar
  for8 store_zmm, 0
  for8 store_zmm, 8
  for8 store_zmm, 16
  for8 store_zmm, 24
  for8 store_k, 0
  jmp exit_tail

label tracee_stub_exit_avx
  save_scalar
  for8 store_ymm, 0
  for8 store_ymm, 8
  jmp exit_tail

label tracee_stub_exit_sse
  save_scalar

exit_tail:
  mov IN(GATE_FSGSBASE), %rcx
  jrcxz 1f /* the one branch that looks at no flag */
  rdfsbase %rcx
  mov %rcx, OUT(GATE_FSBASE)
  rdgsbase %rcx
  mov %rcx, OUT(GATE_GSBASE)
1:
  syscall
label tracee_stub_left
  ud2

/* ---- load --------------------------------------------------------------------------------------------- */

  .macro load_scalar
  mov IN(GATE_DS), %ds
  mov IN(GATE_ES), %es
  fxrstor64 IN(GATE_FX)
  .endm

  .macro load_all_avx512
  load_scalar
  for8 load_zmm, 0
  for8 load_zmm, 8
  for8 load_zmm, 16
  for8 load_zmm, 24
  for8 load_k, 0
  .endm

  .macro load_all_avx
  load_scalar
  for8 load_ymm, 0
  for8 load_ymm, 8
  .endm

label tracee_stub_load
label tracee_stub_load_avx512
  load_all_avx512
  iretq

label tracee_stub_load_avx
  load_all_avx
  iretq

label tracee_stub_load_sse /* of a CPU that has AVX: what is wider than XMM starts as zero */
  vzeroall
label tracee_stub_load_sse_only
  load_scalar
  iretq

label tracee_stub_step_avx512
  load_all_avx512
  jmp step_tail

label tracee_stub_step_avx
  load_all_avx
  jmp step_tail

label tracee_stub_step_sse
  vzeroall
label tracee_stub_step_sse_only
  load_scalar

/* RSP points at in->step_flags. SS is loaded for the fault alone; PTRACE_SETREGS sets it. */
step_tail:
  mov IN(GATE_FRAME + 32), %ss
  popfq
  syscall
label tracee_stub_stepping
label tracee_stub_load_end
  ud2

/* ---- start -------------------------------------------------------------------------------------------- */

label tracee_stub_start
  int3
label tracee_stub_hello
1:
  mov CALL_NUMBER(%r12), %rax
  cmp $-1, %rax
  je 2f
  mov CALL_ARGUMENT + 0(%r12), %rdi
  mov CALL_ARGUMENT + 8(%r12), %rsi
  mov CALL_ARGUMENT + 16(%r12), %rdx
  mov CALL_ARGUMENT + 24(%r12), %r10
  mov CALL_ARGUMENT + 32(%r12), %r8
  mov CALL_ARGUMENT + 40(%r12), %r9
  syscall
  mov CALL_MAY_FAIL(%r12), %rcx
  jrcxz 3f
  xor %eax, %eax
3:
  cmp $-4095, %rax /* errors are -4095 ... -1, as for every system call */
  jae 4f
  add $CALL_SIZE, %r12
  jmp 1b
2:
  int3
label tracee_stub_ready
4:
  int3
label tracee_stub_failed
  ud2
label tracee_stub_end
  .balign 64

  .section .note.GNU-stack, "", @progbits

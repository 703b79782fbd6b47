/* The gate of the reference child. One memfd, aliased in the tracer, of which the child maps at
 * inner = gate_inner(layout.gate):
 *
 *   inner + GATE_CODE  the stub (stub.S), read-execute; the gate page's jump leads to its first byte
 *   inner + GATE_IN    what the tracer hands in: struct gate_in, read-only in the child
 *   inner + GATE_OUT   what the stub hands out: struct gate_out; while the child starts up, its list of
 *                      system calls: struct stub_call[STUB_CALLS_MAX]
 *
 * and at layout.gate what the memfd holds at GATE_PAGE: the page that is the same in every executor
 * (gate_page_write), read-execute. The rest of LS_GATE_SIZE at both places is without access.
 *
 * Internal to src/ptrace. Included by assembly and C. */
#ifndef LOCKSTEP_PTRACE_STUB_H
#define LOCKSTEP_PTRACE_STUB_H

#define GATE_CODE 0x0000
#define GATE_IN   0x1000
#define GATE_OUT  0x2000
#define GATE_END  0x3000 /* of what lies at inner */
#define GATE_PAGE 0x3000
#define GATE_FILE 0x4000 /* bytes of the memfd */

/* Offsets in both gate_in and gate_out. */
#define GATE_ZMM 0
#define GATE_K   2048
#define GATE_FX  2112

/* Offsets in gate_in. */
#define GATE_FRAME       2624
#define GATE_STEP_FLAGS  2664
#define GATE_EXIT_TARGET 2672
#define GATE_FSGSBASE    2680
#define GATE_SAFE_RSP    2688
#define GATE_DS          2696
#define GATE_ES          2698

/* Offsets in gate_out. */
#define GATE_RCX    2624
#define GATE_R11    2632
#define GATE_FSBASE 2640
#define GATE_GSBASE 2648
#define GATE_RSP    2656

/* Offsets in stub_call. */
#define CALL_NUMBER   0
#define CALL_ARGUMENT 8
#define CALL_MAY_FAIL 56
#define CALL_SIZE     64

#ifndef __ASSEMBLER__

#include <linux/filter.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/time.h>

typedef struct gate_in {
  uint8_t zmm[32][64];
  uint64_t k[8];
  uint8_t fx[512];      /* loaded by FXRSTOR64 before zmm and k */
  uint64_t frame[5];    /* IRETQ's: RIP, CS, RFLAGS, RSP, SS (SDM vol. 3, 6.14.4) */
  uint64_t step_flags;  /* RFLAGS that POPFQ loads where the tracer sets all but the ID flag itself */
  uint64_t exit_target; /* the variant of the way out that suits the vectors */
  uint64_t fsgsbase;    /* 1: RDFSBASE executes */
  uint64_t safe_rsp;    /* any canonical address: nothing is pushed */
  uint16_t ds, es;
  uint32_t go;            /* futex: 1 once the child is traced */
  uint64_t no_signals;    /* an empty kernel sigset_t */
  struct itimerval timer; /* for ITIMER_PROF */
  struct sock_filter trap_all;
  struct sock_fprog filter; /* trap_all, at its address in the child */
} gate_in;

typedef struct gate_out {
  uint8_t zmm[32][64];
  uint64_t k[8];
  uint8_t fx[512];
  uint64_t rcx, r11; /* what SYSCALL overwrites */
  uint64_t fsbase, gsbase;
  uint64_t rsp;
} gate_out;

/* A system call of the child's start-up. */
typedef struct stub_call {
  uint64_t number; /* STUB_CALL_END ends the list */
  uint64_t argument[6];
  uint64_t may_fail; /* 1: go on whatever it returns */
} stub_call;

#define STUB_CALL_END  UINT64_MAX
#define STUB_CALLS_MAX 64

_Static_assert(sizeof(gate_in) <= GATE_OUT - GATE_IN, "gate_in fits its page");
_Static_assert(sizeof(gate_out) <= GATE_END - GATE_OUT, "gate_out fits its page");
_Static_assert(sizeof(stub_call) * STUB_CALLS_MAX <= GATE_END - GATE_OUT, "start-up calls fit their page");
_Static_assert(offsetof(gate_in, zmm) == GATE_ZMM && offsetof(gate_out, zmm) == GATE_ZMM, "GATE_ZMM");
_Static_assert(offsetof(gate_in, k) == GATE_K && offsetof(gate_out, k) == GATE_K, "GATE_K");
_Static_assert(offsetof(gate_in, fx) == GATE_FX && offsetof(gate_out, fx) == GATE_FX, "GATE_FX");
_Static_assert(GATE_FX % 64 == 0, "FXSAVE needs 16 bytes, and no access may split a line");
_Static_assert(offsetof(gate_in, frame) == GATE_FRAME, "GATE_FRAME");
_Static_assert(offsetof(gate_in, step_flags) == GATE_STEP_FLAGS, "GATE_STEP_FLAGS");
_Static_assert(offsetof(gate_in, exit_target) == GATE_EXIT_TARGET, "GATE_EXIT_TARGET");
_Static_assert(offsetof(gate_in, fsgsbase) == GATE_FSGSBASE, "GATE_FSGSBASE");
_Static_assert(offsetof(gate_in, ds) == GATE_DS && offsetof(gate_in, es) == GATE_ES, "GATE_DS, GATE_ES");
_Static_assert(offsetof(gate_out, rcx) == GATE_RCX && offsetof(gate_out, r11) == GATE_R11, "GATE_RCX");
_Static_assert(offsetof(gate_out, fsbase) == GATE_FSBASE, "GATE_FSBASE");
_Static_assert(offsetof(gate_out, gsbase) == GATE_GSBASE, "GATE_GSBASE");
_Static_assert(offsetof(gate_in, safe_rsp) == GATE_SAFE_RSP, "GATE_SAFE_RSP");
_Static_assert(offsetof(gate_out, rsp) == GATE_RSP, "GATE_RSP");
_Static_assert(offsetof(stub_call, argument) == CALL_ARGUMENT, "CALL_ARGUMENT");
_Static_assert(offsetof(stub_call, may_fail) == CALL_MAY_FAIL, "CALL_MAY_FAIL");
_Static_assert(sizeof(stub_call) == CALL_SIZE, "CALL_SIZE");

/* The stub's bytes, to be copied to GATE_CODE; they are position independent within the gate area and
 * never run where they are linked. Labels in them, by which the tracer tells stops apart: */
extern const uint8_t tracee_stub_begin[], tracee_stub_end[];
extern const uint8_t tracee_stub_start[];  /* way into start-up; r12 = the list of calls */
extern const uint8_t tracee_stub_hello[];  /* RIP of the first stop: nothing is unmapped yet */
extern const uint8_t tracee_stub_ready[];  /* RIP of the stop after the last call */
extern const uint8_t tracee_stub_failed[]; /* RIP of the stop after a call that failed: rax, r12 tell */
extern const uint8_t tracee_stub_load[];   /* [load, load_end) puts a state in place */
extern const uint8_t tracee_stub_load_sse[], tracee_stub_load_sse_only[], tracee_stub_load_avx[],
    tracee_stub_load_avx512[]; /* ways into it by vectors; ends in the guest */
extern const uint8_t tracee_stub_step_sse[], tracee_stub_step_sse_only[], tracee_stub_step_avx[],
    tracee_stub_step_avx512[];               /* the same, but ends in a system call stop at ... */
extern const uint8_t tracee_stub_stepping[]; /* ... this RIP: the tracer sets the general registers */
extern const uint8_t tracee_stub_load_end[];
extern const uint8_t tracee_stub_exit_sse[], tracee_stub_exit_avx[], tracee_stub_exit_avx512[];
extern const uint8_t tracee_stub_left[]; /* RIP of the system call stop after a clean run */

#endif
#endif

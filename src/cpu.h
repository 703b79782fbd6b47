/* What this CPU and kernel have: asked once, since CPUID may cost microseconds under a hypervisor. Internal.
 */
#ifndef LOCKSTEP_CPU_H
#define LOCKSTEP_CPU_H

#include <stdbool.h>
#include <stdint.h>

#include "lockstep.h"

/* Components of XCR0 and of an XSAVE area (SDM vol. 1, 13.1). */
enum {
  XSAVE_X87 = 0,
  XSAVE_SSE = 1,
  XSAVE_AVX = 2,
  XSAVE_OPMASK = 5,
  XSAVE_ZMM_HI256 = 6,
  XSAVE_HI16_ZMM = 7,
  XSAVE_COMPONENTS = 8
};

typedef struct cpu_features {
  uint64_t xcr0;
  ls_vectors vectors;                /* the widest */
  uint32_t xsave_size;               /* bytes of a standard-format area for all of XCR0 (leaf 0xD.0 EBX) */
  uint32_t offset[XSAVE_COMPONENTS]; /* of each component in the standard format, leaf 0xD */
  uint32_t size[XSAVE_COMPONENTS];
  uint32_t mxcsr_mask; /* writable bits of MXCSR, from FXSAVE (SDM vol. 1, 11.6.6) */
  bool fsgsbase; /* RDFSBASE executes; whether the kernel keeps what WRFSBASE writes is another matter */
} cpu_features;

/* The features, filled in by the first call. Thread safe; signal safe after the first call. */
const cpu_features *cpu(void);

/* Copies the vector, opmask, x87 and MXCSR part of a standard-format XSAVE area (as in a signal frame or from
 * PTRACE_GETREGSET NT_X86_XSTATE) into *state. `present` says which components the area has room for; those
 * whose XSTATE_BV bit is clear take their initial values (SDM vol. 1, 13.6). Signal safe. */
void xsave_read(const uint8_t *area, uint64_t present, ls_state *state);

#endif

/* Bare floors: the least that the measured thing could cost, written out by hand, to be measured beside it.
 */
#ifndef CLI_FLOOR_H
#define CLI_FLOOR_H

#include <stddef.h>

#include "lockstep.h"

/* Loads all registers of *in by plain moves, jumps to `code`, which must end with `jmp *floor_leave`, and
 * stores all registers to *out. Vectors as wide as `vectors` says. */
void floor_run(const ls_state *in, ls_state *out, const void *code, ls_vectors vectors);

/* The same with RFLAGS and MXCSR, which are the host's again at the return: by POPF, PUSHF, LDMXCSR and
 * STMXCSR. The code must end with `jmp *floor_gate_leave`. */
void floor_gate(const ls_state *in, ls_state *out, const void *code, ls_vectors vectors);

/* As floor_run with XRSTOR and XSAVE of those components in `area` (aligned to 64) in place of the moves of
 * vectors; with no components, by FXRSTOR and FXSAVE. */
void floor_run_xsave(const ls_state *in, ls_state *out, const void *code, void *area, uint64_t components);

/* Makes `area`, which is zero, what that takes: what the registers hold now, all components in use. */
void floor_fill_xsave(void *area, uint64_t components);

/* What XSAVE has to save for vectors of that width: components, and bytes of an area of them. No components
 * where the CPU has no XSAVE. */
typedef struct floor_area {
  uint64_t components;
  size_t size;
} floor_area;

floor_area floor_area_of(ls_vectors vectors);

/* Where code run by those above jumps to. */
extern const void *const floor_leave, *const floor_gate_leave;

enum { FLOOR_ROUND = 8 }; /* six nops, dec, jnz */

/* What floor_spin and another thread share. */
typedef struct floor_spinner {
  volatile int stop; /* not 0: it shall return */
  volatile uint64_t turns;
} floor_spinner;

/* Loads the vectors of *in and spins, counting its turns. */
void floor_spin(const ls_state *in, floor_spinner *spinner, ls_vectors vectors);

/* Waits until what counts `turns` is at it. */
static inline void floor_await(const volatile uint64_t *turns) {
  uint64_t before = *turns;
  while (*turns == before) {
  }
}

/* Loads the vectors of *in and executes `rounds` times FLOOR_ROUND instructions, each with TF set: the caller
 * has put a handler of SIGTRAP in place. */
void floor_steps(const ls_state *in, uint64_t rounds, ls_vectors vectors);

/* ud2, for a handler that skips its two bytes, and a return. */
void floor_fault(void);

#endif

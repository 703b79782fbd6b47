/* From ls_state to what ptrace and the stub understand, and back. Internal to src/ptrace. */
#ifndef LOCKSTEP_PTRACE_REGS_H
#define LOCKSTEP_PTRACE_REGS_H

#include <stdbool.h>
#include <sys/user.h>

#include "lockstep.h"
#include "stub.h"

/* Where FS and GS point in the child: recognisable, canonical, and 2 GiB and more from anything mapped, so
 * that an access through them faults at an address that tells (x86-64 user addresses end at 2^47). */
#define POISON_FS 0x6b6b00000000u
#define POISON_GS 0x6c6c00000000u

/* General registers, RFLAGS, CS, SS, DS, ES of the state; poisoned FS base, given GS base; no system call to
 * restart. RIP is left at 0. */
void regs_from_state(const ls_state *state, uint64_t gs_base, struct user_regs_struct *regs);

/* The reverse: general registers, RIP, RFLAGS, selectors. The rest of *state is left alone. */
void regs_to_state(const struct user_regs_struct *regs, ls_state *state);

/* Are FS, GS or their bases other than regs_from_state set them? */
bool regs_fs_gs_changed(const struct user_regs_struct *regs, uint64_t gs_base);

/* Puts into the shared page what the stub's way in loads to start at `rip`. */
void gate_put(gate_in *in, const ls_state *state, uint64_t rip, ls_vectors vectors);

/* Takes what the stub's way out stored: of the vectors and opmasks what `vectors` covers, x87, MXCSR, RSP,
 * RCX, R11. */
void gate_get(const gate_out *out, ls_vectors vectors, ls_state *state);

/* The components of an XSAVE area that `vectors` covers, as a bit set of XCR0's kind. */
uint64_t vectors_components(ls_vectors vectors);

/* Does x87 state differ? FOP, FIP and FDP count only where an exception is pending, since only then do all
 * CPUs keep them (AMD APM vol. 2, 11.5.12). */
bool x87_differs(const ls_state *a, const ls_state *b);

/* Replaces the x87 part of *to, MXCSR excepted. */
void x87_copy(ls_state *to, const ls_state *from);

#endif

/* The gate: the code and data through which a guest is entered and left. Shared by C and assembly. Internal.
 *
 * One gate per executor. The guest jumps to the layout's gate address G, where there is one page that is the
 * same in every executor (gate_page_write), and from there to I = gate_inner(G); LS_GATE_SIZE bytes each:
 *
 *   G                gate_page_write's bytes, read and execute: a jump to I
 *   the rest         inaccessible
 *
 *   I                code, read and execute: a copy of one of the templates in gate.S. Offset 0 is the exit.
 *   I + GATE_CODE    struct gate_data, read and write, one page. The code reaches it RIP-relative, since at
 *                    the exit no register is free.
 *   the rest         inaccessible
 *
 * All data is in one page because the way in writes to it: so the page is present and writable when the exit
 * needs it, and the exit cannot fault however bad the guest's RSP is. */
#ifndef LOCKSTEP_SIGNAL_GATE_H
#define LOCKSTEP_SIGNAL_GATE_H

#define GATE_CODE 4096 /* bytes of code, and so the distance of the data */

/* Offsets in struct gate_data. */
#define GATE_HOST_RSP  0
#define GATE_ENTRY     8
#define GATE_OUTCOME   16
#define GATE_RECORD    24
#define GATE_EXECUTOR  32
#define GATE_GUEST_RSP 40
#define GATE_GUEST_RAX 48
#define GATE_FLAGS     56
#define GATE_ATTENTION 60
#define GATE_STACK     64
#define GATE_STACK_TOP 256
#define GATE_X87       256

/* Bits of gate_data.flags. */
#define GATE_USES_X87 1
#define GATE_FORCE_TF 2
#define GATE_FSGSBASE 4

/* Offsets in struct thread_record (thread.h). */
#define RECORD_SELECTOR 0
#define RECORD_RUNNING  8
#define RECORD_FS_BASE  16
#define RECORD_GS_BASE  24
#define RECORD_DS       32
#define RECORD_ES       34

/* What the way out returns: the guest jumped to G; the handler ended the run and has filled in the general
 * registers and the stop; the CPU refused the state; nothing of the guest ran because of attention, or
 * because the way in was interrupted where the kernel cannot return to. */
#define GATE_EXITED      0
#define GATE_STOPPED     1
#define GATE_REFUSED     2
#define GATE_INTERRUPTED 3

#ifndef __ASSEMBLER__

#include <stddef.h>
#include <stdint.h>

#include "../lockstep.h"

struct thread_record;
struct signal_executor;

typedef struct gate_data {
  uint64_t host_rsp;                /* where the way in left the host's RFLAGS, MXCSR, FCW and registers */
  uint64_t entry;                   /* where the guest begins */
  ls_outcome *outcome;              /* its state comes first */
  struct thread_record *record;     /* of the thread that runs */
  struct signal_executor *executor; /* whose gate this is */
  uint64_t guest_rsp, guest_rax;    /* for a few instructions of the exit */
  uint32_t flags;
  _Atomic uint32_t attention;                        /* what executor->base.attention points to */
  uint64_t stack[(GATE_STACK_TOP - GATE_STACK) / 8]; /* for PUSHF, POPF and IRET */
  uint8_t x87[512];                                  /* FXSAVE area */
} gate_data;

_Static_assert(offsetof(gate_data, host_rsp) == GATE_HOST_RSP, "gate.S");
_Static_assert(offsetof(gate_data, entry) == GATE_ENTRY, "gate.S");
_Static_assert(offsetof(gate_data, outcome) == GATE_OUTCOME, "gate.S");
_Static_assert(offsetof(ls_outcome, state) == 0, "gate.S");
_Static_assert(offsetof(gate_data, record) == GATE_RECORD, "gate.S");
_Static_assert(offsetof(gate_data, executor) == GATE_EXECUTOR, "gate.S");
_Static_assert(offsetof(gate_data, guest_rsp) == GATE_GUEST_RSP, "gate.S");
_Static_assert(offsetof(gate_data, guest_rax) == GATE_GUEST_RAX, "gate.S");
_Static_assert(offsetof(gate_data, flags) == GATE_FLAGS, "gate.S");
_Static_assert(offsetof(gate_data, attention) == GATE_ATTENTION, "gate.S");
_Static_assert(offsetof(gate_data, stack) == GATE_STACK, "gate.S");
_Static_assert(offsetof(gate_data, x87) == GATE_X87 && GATE_X87 % 64 == 0, "gate.S");
_Static_assert(sizeof(gate_data) <= LS_PAGE && GATE_CODE % LS_PAGE == 0, "one page");

/* The templates, one for each ls_vectors, and places in them. Data, not code: only copies are run.
 *
 * `enter`, called as uint64_t enter(const ls_state *state), runs the guest and returns one of the above with
 * everything of the host as it was. It reads the state and gate_data and writes outcome->state, which may be
 * the same: after GATE_EXITED all but rip and what `finish` in executor.c adds. After GATE_REFUSED and
 * GATE_INTERRUPTED the state is as it was.
 *
 * `resume` is where the handler sends a thread that shall leave the guest: RSP = host_rsp, RBX = what enter
 * returns, DS and ES the host's, vectors, x87 and MXCSR the guest's. It stores these and returns from enter.
 *
 * `unstarted` is the same for a thread that shall leave before anything of the guest has run. It stores
 * nothing.
 *
 * From `enter` to `end` the code only reads the state: a fault there is a state that cannot be loaded. */
#define GATE_TEMPLATE(vectors)                                                                               \
  extern const uint8_t gate_##vectors##_begin[] __attribute__((visibility("hidden")));                       \
  extern const uint8_t gate_##vectors##_resume[] __attribute__((visibility("hidden")));                      \
  extern const uint8_t gate_##vectors##_unstarted[] __attribute__((visibility("hidden")));                   \
  extern const uint8_t gate_##vectors##_enter[] __attribute__((visibility("hidden")));                       \
  extern const uint8_t gate_##vectors##_end[] __attribute__((visibility("hidden")))
GATE_TEMPLATE(sse);
GATE_TEMPLATE(avx);
GATE_TEMPLATE(avx512);

typedef uint64_t (*gate_enter)(const ls_state *state);

#endif
#endif

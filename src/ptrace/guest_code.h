/* The little that the tracer must know about an instruction. Internal to src/ptrace. */
#ifndef LOCKSTEP_PTRACE_GUEST_CODE_H
#define LOCKSTEP_PTRACE_GUEST_CODE_H

#include <stdbool.h>

#include "sandbox.h"

typedef struct guest_code {
  bool known;      /* there are bytes of the guest at that address */
  bool fs_gs;      /* an FS or GS prefix is in effect */
  bool base;       /* reads or writes the base of FS or GS, or loads one of them */
  bool rep_string; /* a repeated string instruction: single steps stop after every iteration */
  bool pushf;      /* stores RFLAGS */
  bool popf;       /* loads RFLAGS: POPF, IRET */
} guest_code;

/* Looks at prefixes and opcode (SDM vol. 2, 2.1.1) of the instruction at a guest address. */
guest_code guest_code_at(const sandbox *box, uint64_t address);

#endif

/* The part of the importer that puts initial values right after a fault. Internal to it. */
#ifndef HARNESS_IMPORT_REPAIR_H
#define HARNESS_IMPORT_REPAIR_H

#include "forms/forms.h"
#include "testcase/testcase.h"

/* The number (LS_RAX …) of the general register that `reg` is or is part of, or -1. */
static inline int general_number(ZydisRegister reg) {
  int number = (int)ZydisRegisterGetLargestEnclosing(ZYDIS_MACHINE_MODE_LONG_64, reg) - ZYDIS_REGISTER_RAX;
  return number >= 0 && number < 16 ? number : -1;
}

enum {
  TRACE_MAX = 512,
  /* Code that is linked to a fixed address has addresses of its data in displacements and immediates: above
   * 4 MiB, where linkers put programs, and never what an offset in a structure or a frame looks like. */
  IMPORT_LINKED_MIN = 0x400000
};

/* What ran before a fault: the general registers before each instruction, and which it was. */
typedef struct trace_step {
  uint32_t instruction; /* LS_NONE: inserted code */
  uint64_t gpr[16];
} trace_step;

typedef struct trace {
  uint32_t count;
  bool overflow; /* more steps than fit: nothing can be said */
  trace_step steps[TRACE_MAX];
} trace;

/* Changes one initial value of `test` (a register, a cell of memory, or an immediate that was an
 * address) so that the last instruction of the
 * trace does not fault again the way `stop` says. `place` chooses among the places in a window. False if no
 * value was found that would help. */
bool repair_fault(testcase *test, const trace *path, const ls_stop *stop, unsigned place);

#endif

/* Machine code from elsewhere (a compiler, a crash, a data set) as a test case: cuts a block into
 * instructions, makes its memory operands refer to the sandbox, and finds initial values with which it runs
 * to its end. */
#ifndef HARNESS_IMPORT_H
#define HARNESS_IMPORT_H

#include "lockstep.h"
#include "testcase/testcase.h"

typedef enum import_status {
  IMPORT_OK,
  IMPORT_EMPTY,     /* no bytes */
  IMPORT_UNDECODED, /* bytes that are no instruction */
  IMPORT_TOO_LONG,  /* more than TESTCASE_INSTRUCTIONS_MAX instructions */
  IMPORT_FS_GS,     /* an operand in the thread-local segments, which the sandbox does not have */
  IMPORT_SYSTEM     /* the reference failed (the ls_error in the report says why) */
} import_status;

/* One word: "ok", "empty", "undecoded", "too-long", "fs-gs", "system". */
const char *import_status_name(import_status status);

typedef struct import_report {
  import_status status;
  size_t offset;     /* in the block, of the instruction that was refused */
  unsigned replaced; /* instructions whose result no two runs share (time stamp, CPUID), made into moves */
  bool ran;          /* by import_block with a reference: `stop` is meaningful */
  ls_stop stop;      /* how the test case ends in the reference; LS_STOP_EXIT is what is aimed at */
  unsigned runs;     /* of the reference, all attempts together */
  ls_error error;    /* with IMPORT_SYSTEM */
} import_report;

enum { IMPORT_ATTEMPTS = 32 };

/* Makes a test case of `size` bytes of machine code without running it. Control goes through the
 * instructions in order; a branch to an instruction of the block is linked to it, any other leaves the
 * program. RIP-relative and absolute operands are redirected into the data window, to a place of their own
 * for each original address. Registers that the block uses as bases get addresses in the data window, RSP and
 * RBP in the stack. Each `attempt` (0 … IMPORT_ATTEMPTS-1) gives other initial values. The test is valid
 * whatever the status; only with IMPORT_OK is it the block. */
import_status import_attempt(testcase *test, const uint8_t *code, size_t size, unsigned attempt,
                             import_report *report);

/* testcase_layout() with one more window, in which blocks note their registers while they are tried. */
const ls_layout *import_layout(void);

/* The same, trying attempts in `reference` (an executor for import_layout(); NULL: attempt 0, not run) until
 * the block leaves over a link. After a fault the value that formed the address at fault, in a
 * register or in memory, is put right and the block is run again. If no attempt gets to the end, the one that
 * got furthest is kept. Loads images into the executor and leaves the last one loaded but destroyed. */
import_status import_block(testcase *test, const uint8_t *code, size_t size, ls_executor *reference,
                           import_report *report);

#endif

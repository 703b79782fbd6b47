/* What may run in the calling thread. The rules of admission stand here once: for test cases
 * (oracle/oracle.c) and for programs that other threads disturb while they run (inspect/reference.c).
 *
 * A program is looked at twice: as it is laid out, and once the reference has run it. The reference's child
 * holds nothing but the guest's memory, so its outcome proves what the program touches: guest memory only,
 * until it stops, or faults at an address A. It may run in this process only if it stopped for a reason that
 * can be reproduced there without touching the host.
 *
 * All are for testcase_layout(), and for the thread that runs the harness. REASON_NONE: nothing speaks
 * against it; every other reason counts as oracle.h says. */
#ifndef HARNESS_ADMISSION_H
#define HARNESS_ADMISSION_H

#include "oracle/oracle.h"

/* Before it runs anywhere: lays the program out in `image` and looks through that (scan_image). With LS_OK
 * *reason is REASON_NONE: the reference may run it; infos[i] is what instruction i is, *uses_x87 whether any
 * uses x87 registers. Or REASON_PROGRAM or REASON_POLICY; *infos and *uses_x87 are then not complete, and
 * why->text, unless `why` is NULL, says what cannot be laid out, or names the row of the policy. Any other
 * status is an error of the host's (LS_ERR_MEMORY), which says nothing of the program and stands in *why too.
 */
ls_status admission_of_program(const ls_program *program, ls_image *image, scan_info *infos, bool *uses_x87,
                               oracle_reason *reason, ls_error *why);

/* If the reference did not run it: REASON_STATE where that is the program's own doing, REASON_REFERENCE_LOST
 * where it says nothing about it. REASON_NONE: an error of the host's. */
oracle_reason admission_of_error(ls_status status);

/* After the reference ran it: may it run in this process? `image` is what ran, `here` any in-thread executor
 * of this process, with the layout of test cases or another one; it is asked about the kernel and about
 * addresses, and runs nothing. REASON_TIMEOUT, _FS_GS, _FOREIGN, _SYSCALL, _ADDRESS. */
oracle_reason admission_of_outcome(const ls_outcome *reference, const ls_image *image, ls_executor *here);

/* Can the kernel return to this state from an interrupt? To an RSP that is not canonical it cannot: executors
 * then enter the guest anew, which takes long if it happens again and again. So a program that is interrupted
 * on purpose should never be in another state, which is for the caller to see to (REASON_STACK_POINTER). */
bool admission_bears_interrupts(const ls_state *state);

#endif

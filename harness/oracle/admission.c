#include "oracle/admission.h"

#include <signal.h>
#include <stdio.h>

enum { CANONICAL_BITS = 47 };

/* ---- Before it runs ---- */

static void name_row(const policy_row *row, ls_error *why) {
  if (why)
    snprintf(why->text, sizeof why->text, "%s", row->name);
}

ls_status admission_of_program(const ls_program *program, ls_image *image, scan_info *infos, bool *uses_x87,
                               oracle_reason *reason, ls_error *why) {
  ls_status status = ls_image_build(image, program, testcase_layout(), why);
  *reason = status == LS_ERR_PROGRAM ? REASON_PROGRAM : REASON_NONE;
  if (status)
    return status == LS_ERR_PROGRAM ? LS_OK : status;
  const policy_row *row = scan_image(image, program, infos, uses_x87);
  if (row) {
    name_row(row, why);
    *reason = REASON_POLICY;
  }
  return LS_OK;
}

oracle_reason admission_of_error(ls_status status) {
  if (status == LS_ERR_STATE)
    return REASON_STATE;
  return status == LS_ERR_CHILD ? REASON_REFERENCE_LOST : REASON_NONE;
}

/* ---- What a stop proves ---- */

/* In a window or a guard page beside it, or at the gate: mapped alike in every executor that has this layout,
 * whether one of this process has mapped it already or not. */
static bool in_guest(uint64_t address) {
  const ls_layout *layout = testcase_layout();
  bool in = address - layout->gate < LS_GATE_SIZE;
  for (uint32_t i = 0; i < layout->window_count; i++) {
    const ls_window *w = &layout->windows[i];
    in |= address - (w->address - LS_PAGE) < w->size + (uint64_t)2 * LS_PAGE;
  }
  return in;
}

/* Will the access that faulted in the reference fault in this process? No address is involved in a #GP and
 * the like. */
static bool faults_here(const ls_stop *stop, ls_executor *here) {
  if (stop->code == SI_KERNEL || (stop->signal != SIGSEGV && stop->signal != SIGBUS))
    return true;
  return in_guest(stop->address) || ls_address_faults(here, stop->address, 1);
}

bool admission_bears_interrupts(const ls_state *state) {
  int64_t top = (int64_t)state->gpr[LS_RSP] >> CANONICAL_BITS;
  return top == 0 || top == -1;
}

/* Was the system call made by a SYSCALL of the guest's own, which the thread can stop? SYSENTER on Intel
 * leaves RIP in the vDSO. */
static bool calls_by_itself(const ls_outcome *reference, const ls_image *image) {
  size_t size;
  const uint8_t *bytes = ls_image_bytes(image, &size);
  uint64_t at = reference->state.rip - 2 - testcase_layout()->windows[TESTCASE_CODE].address;
  return at < size - 1 && bytes[at] == 0x0f && bytes[at + 1] == 0x05;
}

static oracle_reason admission_of_call(const ls_outcome *reference, const ls_image *image,
                                       ls_executor *here) {
  if (!calls_by_itself(reference, image))
    return REASON_FOREIGN;
  return ls_executor_stops_syscalls(here) ? REASON_NONE : REASON_SYSCALL;
}

oracle_reason admission_of_outcome(const ls_outcome *reference, const ls_image *image, ls_executor *here) {
  const uint32_t touched = reference->touched;
  if (reference->stop.kind == LS_STOP_TIMEOUT)
    return REASON_TIMEOUT;
  if (touched & (LS_TOUCHED_FS_GS | LS_TOUCHED_FOREIGN))
    return touched & LS_TOUCHED_FS_GS ? REASON_FS_GS : REASON_FOREIGN;
  if (reference->stop.kind == LS_STOP_SYSCALL)
    return admission_of_call(reference, image, here);
  return reference->stop.kind != LS_STOP_FAULT || faults_here(&reference->stop, here) ? REASON_NONE
                                                                                      : REASON_ADDRESS;
}

/* The process's signal handlers while in-thread executors exist. Internal to src/signal.
 *
 * They are installed by rt_sigaction itself and not by libc's sigaction: sanitizers and libFuzzer intercept
 * the latter, and may delay a handler, wrap it, or install nothing. The action that stood there before is
 * the kernel's record too, so that a host's fault reaches just what it would have reached without us. */
#ifndef LOCKSTEP_SIGNAL_HANDLERS_H
#define LOCKSTEP_SIGNAL_HANDLERS_H

#include <stdbool.h>

#include "../lockstep.h"
#include "kernel.h"

enum { SIGNALS_MAX = 65 };

/* Installs the handlers for the fault signals and `interrupt_signal`, or counts one more user of them.
 * LS_ERR_HANDLER if the kernel does not show them in place afterwards. */
ls_status handlers_acquire(int interrupt_signal, ls_error *error);

/* Undoes one handlers_acquire. The last one puts the previous action of each signal back, unless somebody
 * installed another over ours. */
void handlers_release(int interrupt_signal);

/* Covers the host's handlers of all other signals that may strike a guest, those with SA_ONSTACK: ours is
 * entered first, so that they find the host's FS and system calls that are allowed, whatever they block. The
 * kernel does with their flags and their mask as it did. handlers_acquire does the same, the last
 * handlers_release undoes it. Another handler over ours stays as it is, but for the one that was covered.
 * Under the lock, while there is an executor. */
void handlers_cover(void);

/* Signal safe, without TLS: was the host's handler of `sig` covered, and so the mask set for it already? */
bool handlers_covered(int sig);

/* The six fault signals, as a mask. */
uint64_t handlers_fault_mask(void);

/* Signal safe, without TLS: what stood there before for `sig`. Writable, for SA_RESETHAND. `called`: ours was
 * not entered by the kernel but called by a handler which somebody had installed over ours and which may have
 * survived our last executor; then it is what stood there before both. */
kernel_action *handlers_previous(int sig, bool called);

#endif

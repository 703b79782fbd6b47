/* That there is one copy of this library among whose executors signals are shared out. Internal to
 * src/signal.
 *
 * A process can hold several copies: one in the program and one in a plugin, two plugins, two link
 * namespaces, of one version or of several. Their handlers could call each other; but a thread has only one
 * alternate stack and one selector of Syscall User Dispatch, so that guests of the copy that lent first would
 * make their system calls.
 *
 * Copies know nothing of each other, and no symbol, variable or signal handler is sure to be found by all. So
 * the copy that has an executor, or a thread that ran one, keeps a page at a place that all know, at which
 * mmap puts nothing of its own accord: fork hands it on, execve does away with it. It holds a copy_mark, and
 * is there with it from the first moment, since it is mapped from a file. */
#ifndef LOCKSTEP_SIGNAL_COPIES_H
#define LOCKSTEP_SIGNAL_COPIES_H

#include "../lockstep.h"

#define COPY_MAGIC "Lockstep signals"

/* Its beginning, the places and their order must never change. */
typedef struct copy_mark {
  char magic[16];   /* COPY_MAGIC without a terminator */
  uint64_t handler; /* address of the copy's handler_entry */
  uint32_t major, minor;
} copy_mark;

enum { COPY_PLACES = 4 };

/* Where a mark can be, in the order in which they are tried: what the first default gate leaves free below.
 */
uint64_t copy_place(int i);

/* Counts an executor of this copy. LS_ERR_COPY: another copy has executors, or threads that ran them.
 * LS_ERR_ADDRESS: no place is free. After thread_set_up. */
ls_status copy_acquire(ls_error *error);

/* Undoes one copy_acquire. */
void copy_release(void);

/* Under the lock: takes the mark away if this copy has neither executors nor threads. */
void copy_settle(void);

#endif

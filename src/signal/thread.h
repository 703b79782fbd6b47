/* What a thread lends while it runs guests: alternate stack, signal mask, timer, system-call dispatch.
 * Internal to src/signal.
 *
 * What the host must not do in the meantime: block the fault signals; let a handler without SA_ONSTACK strike
 * a running guest, whose RSP it would use; or leave a guest by a jump from a handler of any but our signals.
 *
 * Alternate stacks lie in slots, one per thread, so that a handler finds the thread's record by masking RSP,
 * without TLS: the FS base may be the guest's. Slots come in chunks of address space, mapped as threads need
 * them.
 *
 *   slot           struct thread_record
 *   slot + 1 page  guard page
 *   …              the alternate stack, to the end of the slot
 */
#ifndef LOCKSTEP_SIGNAL_THREAD_H
#define LOCKSTEP_SIGNAL_THREAD_H

#include <signal.h>
#include <stdbool.h>

#include "guest.h"
#include "kernel.h"
#include "timer.h"

enum { SELECTOR_ALLOW = 0, SELECTOR_BLOCK = 1 }; /* SYSCALL_DISPATCH_FILTER_* */

/* A base that the kernel refuses to load: putting it back changes nothing (arch/x86/kernel/process_64.c,
 * do_arch_prctl_64). Only without FSGSBASE. */
#define GS_BASE_UNKNOWN UINT64_MAX

#ifndef SS_AUTODISARM
#define SS_AUTODISARM (1U << 31)
#endif

typedef struct thread_record {
  /* Read and written by the gate. */
  volatile uint8_t selector;         /* of Syscall User Dispatch: does the kernel let system calls pass? */
  signal_executor *volatile running; /* from just before the guest until just after it, else NULL */
  uint64_t fs_base, gs_base;         /* the host's. GS: with FSGSBASE as at the last way in, else as when the
                                        thread attached, or GS_BASE_UNKNOWN. FS never changes: the thread's
                                        record is found by it */
  uint16_t ds, es;                   /* the host's */
  uint32_t epoch;                    /* fork_epoch() of the process this record is good in */
  /* Set by the run, used by the handler. */
  uint64_t steps_left; /* until a stepped run ends; 0 = not stepped */
  uint64_t coming_at;  /* stepped: RIP of the next instruction */
  uint8_t coming;      /* stepped: what it does to stepping, a step_effect */
  uint8_t guest_tf;    /* stepped: TF is set because the guest set it */
  uint8_t unsure;      /* a host handler was called and may have left by a jump: the alternate stack may be
                          disarmed */
  /* Only for thread.c, under its lock. */
  bool dispatch; /* Syscall User Dispatch is on, for calls from outside [allowed, allowed + allowed_size) */
  uint64_t allowed, allowed_size;
  uint64_t serial; /* of the executor last run in this thread, 0 = none */
  int tid;
  thread_timer timer;
  int stack_flags;       /* of the alternate stack lent: SS_AUTODISARM or 0 */
  stack_t host_stack;    /* the alternate stack that was there before */
  uint64_t host_blocked; /* signals that the host had blocked and attaching unblocked */
} thread_record;

_Static_assert(offsetof(thread_record, selector) == RECORD_SELECTOR, "gate.S");
_Static_assert(offsetof(thread_record, running) == RECORD_RUNNING, "gate.S");
_Static_assert(offsetof(thread_record, fs_base) == RECORD_FS_BASE, "gate.S");
_Static_assert(offsetof(thread_record, gs_base) == RECORD_GS_BASE, "gate.S");
_Static_assert(offsetof(thread_record, ds) == RECORD_DS, "gate.S");
_Static_assert(offsetof(thread_record, es) == RECORD_ES, "gate.S");

/* What entry.S keeps on its stack around the C part of the handler. */
typedef struct handler_frame {
  uint16_t ds, es; /* at the signal; what they hold at the end is loaded */
  uint16_t fs, gs; /* at the signal */
  uint64_t
      flags; /* loaded before rt_sigreturn: ID and NT, which it does not restore, stay as they are here */
  uint64_t reserved;
  uintptr_t return_address; /* handler_return, or in a handler that was installed over ours and calls it */
} handler_frame;

_Static_assert(offsetof(handler_frame, flags) == 8 && offsetof(handler_frame, return_address) == 24,
               "entry.S");

/* ---- Slots, in slots.c ---- */

enum {
  SLOT_SIZE = 256 << 10,
  SLOT_STACK = 2 * LS_PAGE, /* where in a slot the alternate stack begins */
  SLOT_STACK_SIZE = SLOT_SIZE - SLOT_STACK,
  CHUNK_SLOTS = 16,
  CHUNK_SIZE = CHUNK_SLOTS * SLOT_SIZE,
  CHUNKS = 64,
  THREAD_SLOTS = CHUNKS * CHUNK_SLOTS
};

/* Where the chunks lie, as many as there are; then 0. They are never unmapped. */
HIDDEN extern uintptr_t slot_chunks[CHUNKS];

/* Which slots belong to a thread. */
HIDDEN extern uint8_t thread_slot_used[THREAD_SLOTS];

/* Of a slot whose chunk is there. */
static inline thread_record *thread_slot(unsigned slot) {
  return (thread_record *)(slot_chunks[slot / CHUNK_SLOTS] + slot % CHUNK_SLOTS * (uintptr_t)SLOT_SIZE);
}

/* The record whose slot holds `address`, or NULL if none does. Signal safe, without TLS. */
static inline thread_record *thread_slot_of(uintptr_t address) {
  uintptr_t chunk;
  for (int i = 0; i < CHUNKS && (chunk = __atomic_load_n(&slot_chunks[i], __ATOMIC_ACQUIRE)); i++)
    if (address - chunk < CHUNK_SIZE)
      return (thread_record *)(address & -(uintptr_t)SLOT_SIZE);
  return NULL;
}

/* Maps the first chunk. False: no memory. */
bool slots_reserve(void);

/* A free slot, its record clear and its stack accessible; NULL and in errno why not: EAGAIN, all belong to
 * threads. Under the lock, as slot_free. */
thread_record *slot_claim(void);
void slot_free(const thread_record *record);

/* Has a thread one? Under the lock. */
bool slots_in_use(void);

/* ---- Threads ---- */

/* The calling thread's record, or NULL. */
extern _Thread_local thread_record *thread_current
    __attribute__((tls_model("initial-exec"), visibility("hidden")));

/* Once per process, before anything else here: maps the first slots, and arranges for fork to wait for the
 * lock. Thread safe; later calls only repeat the result. */
ls_status thread_set_up(ls_error *error);

/* Whether the calling thread could be made ready: borrows nothing. LS_ERR_SYSTEM: a seccomp filter refuses
 * what it takes (timers, alternate stacks). */
ls_status thread_try(int interrupt_signal, ls_error *error);

/* Makes the calling thread ready to run `executor`: borrows what is not borrowed yet, after a fork anew.
 * After success thread_current is set, its serial and epoch are the executor's and the process's, and the
 * executor's gate refers to it. */
ls_status thread_attach(signal_executor *executor, ls_error *error);

/* True if the calling thread's record is good for `executor`: no system call. Without a record there, the
 * executor attaches anew. */
static inline bool thread_ready(const signal_executor *executor) {
  const thread_record *record = thread_current;
  return record && record == executor->data->record && record->serial == executor->serial &&
         record->epoch == *executor->base.box.epoch && !(record->unsure | record->timer.lapsed);
}

/* Deletes the timers of all threads that ring with `sig`, which no executor uses any more. */
void thread_drop_timers(int sig);

/* 1 if the kernel has Syscall User Dispatch. */
bool thread_can_dispatch(void);

/* Sends thread `tid` the signal `sig` so that handle_signal knows it for a ring and nothing else: it does
 * what attention asks for. In handler.c; signal safe. */
HIDDEN void handler_ring(int tid, int sig);

/* Held while threads attach or release and while handlers are put in place or taken away, and across fork;
 * free in every new process, whoever held it in the old one. After thread_set_up. Not for signal handlers. */
void signal_lock(void);
void signal_unlock(void);

#endif

#include "mailbox.h"

#include <limits.h>
#include <linux/futex.h>
#include <sched.h>
#include <stdatomic.h>
#include <stddef.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum {
  SPINS = 2000,    /* about as long as a thread needs that must be woken on another core */
  UNDISTURBED = 16 /* runs that nobody asked in, before the guest is given to its thread */
};

/* ---- Sleeping ---- */

static void futex_wait(_Atomic uint32_t *word, uint32_t now) {
  syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, now, NULL, NULL, 0);
}

void word_wake(_Atomic uint32_t *word) {
  syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

uint32_t word_wait(_Atomic uint32_t *word, uint32_t now, uint32_t asleep) {
  uint32_t seen = atomic_load_explicit(word, memory_order_acquire);
  for (int i = 0; i < SPINS && seen == now; i++) {
    __builtin_ia32_pause();
    seen = atomic_load_explicit(word, memory_order_acquire);
  }
  if (seen != now || !atomic_compare_exchange_strong(word, &seen, asleep))
    return seen;
  while ((seen = atomic_load(word)) == asleep)
    futex_wait(word, asleep);
  return seen;
}

/* What has changed was written before; who is about to sleep says so before it looks for the last time. */
void mailbox_ring_bell(mailbox *box) {
  atomic_fetch_add(&box->bell, 1);
  if (atomic_load(&box->sleepers))
    word_wake(&box->bell);
}

/* ---- Barriers ---- */

/* What `owner` is while somebody takes the guest back, and `candidate` where there is no barrier. */
static const char no_thread;

/* From linux/membarrier.h, which may be older than the kernel. */
enum { PRIVATE_EXPEDITED = 1 << 3, REGISTER_PRIVATE_EXPEDITED = 1 << 4 };

/* Without it no guest is ever given to a thread. The first time in a process with threads the kernel waits
 * for all of them, some milliseconds. */
static bool have_barrier(void) {
  return syscall(SYS_membarrier, REGISTER_PRIVATE_EXPEDITED, 0) == 0;
}

/* Afterwards every other thread has either made visible what it had written, or will see what this one has.
 * If a seccomp filter that came later refuses the call: no store waits in a processor for that long. */
static void barrier(void) {
  const struct timespec long_enough = {.tv_nsec = 1000000};
  if (syscall(SYS_membarrier, PRIVATE_EXPEDITED, 0) != 0)
    nanosleep(&long_enough, NULL);
}

/* ---- Looking ---- */

void mailbox_open(mailbox *box, _Atomic uint32_t *word) {
  box->word = word;
  atomic_store(&box->bell, 0);
  atomic_store(&box->sleepers, 0);
  atomic_store(&box->coming, 0);
  atomic_store(&box->shared, 0);
  atomic_store(&box->own, 0);
  atomic_store(&box->owner, NULL);
  box->candidate = have_barrier() ? NULL : &no_thread;
  box->undisturbed = 0;
  atomic_store(word, MAILBOX_FREE);
}

int mailbox_runner(const mailbox *box) {
  int shared = atomic_load(&box->shared), own = atomic_load(&box->own);
  return own > 0 ? own : shared > 0 ? shared : 0;
}

/* A thread is in one of them after the other: from `own`, backing off, by `coming` to `shared`, and from
 * there to `own`. */
bool mailbox_is_left(const mailbox *box) {
  return atomic_load(&box->own) == 0 && atomic_load(&box->coming) == 0 && atomic_load(&box->shared) == 0 &&
         atomic_load(&box->own) == 0;
}

/* Waits while the word is `now` and, for a caller, there is a runner. */
static mailbox_word wait_while(mailbox *box, mailbox_word now, bool for_runner) {
  for (int i = 0; i < SPINS; i++) {
    if (mailbox_look(box) != now || (for_runner && !mailbox_runner(box)))
      return mailbox_look(box);
    __builtin_ia32_pause();
  }
  atomic_fetch_add(&box->sleepers, 1);
  if (for_runner && (atomic_load(&box->owner) || atomic_load(&box->own)))
    barrier(); /* it leaves by plain moves, and may not have seen that there is a caller to be woken */
  for (;;) {
    uint32_t bell = atomic_load(&box->bell);
    if (mailbox_look(box) != now || (for_runner && !mailbox_runner(box)))
      break;
    futex_wait(&box->bell, bell);
  }
  atomic_fetch_sub(&box->sleepers, 1);
  return mailbox_look(box);
}

void mailbox_wait_for_release(mailbox *box) {
  wait_while(box, MAILBOX_HELD, false);
}

mailbox_word mailbox_wait_for_answer(mailbox *box) {
  return wait_while(box, MAILBOX_POSTED, true);
}

/* ---- Giving the guest to a thread, and taking it back ---- */

/* After this the owner, should it not be in a run already, asks like everybody else. Several threads may do
 * this at once. */
static void take_back(mailbox *box, const void *self) {
  const void *owner = atomic_load(&box->owner);
  if (!owner)
    return;
  atomic_store(&box->owner, &no_thread);
  if (owner != self)
    barrier();
  atomic_store(&box->owner, NULL);
}

/* By a runner whose run is in `shared`: moves it to `own`. */
static bool give(mailbox *box, const void *self) {
  if (box->candidate != self || mailbox_look(box) != MAILBOX_FREE)
    return false;
  atomic_store(&box->own, atomic_load(&box->shared));
  atomic_store(&box->owner, self);
  atomic_store(&box->shared, 0);
  return true;
}

/* ---- The runner ---- */

static void leave_shared(mailbox *box) {
  if (mailbox_look(box) != MAILBOX_FREE)
    mailbox_ring_bell(box);
  atomic_store(&box->shared, 0);
}

/* Enters `shared`: as one who is about to leave, until it is known that the owner is in no run. False if
 * there is a run. */
static bool enter_shared(mailbox *box, const void *self, int tid) {
  int before = 0;
  while (!atomic_compare_exchange_strong(&box->shared, &before, -tid)) {
    if (before > 0)
      return false;
    before = 0;
    sched_yield();
  }
  take_back(box, self);
  if (atomic_load(&box->own) <= 0) {
    atomic_store(&box->shared, tid);
    return true;
  }
  leave_shared(box);
  return false;
}

/* By a thread that `coming` counts. */
static bool begin_counted(mailbox *box, const void *self, int tid) {
  bool begun;
  while ((begun = enter_shared(box, self, tid)) && mailbox_look(box) != MAILBOX_FREE) {
    atomic_store(&box->shared, -tid);
    leave_shared(box);
    for (mailbox_word word; (word = mailbox_look(box)) != MAILBOX_FREE;)
      wait_while(box, word, false);
  }
  atomic_fetch_sub(&box->coming, 1); /* behind this the mailbox may be gone, unless there is a run */
  return begun;
}

bool mailbox_begin_shared(mailbox *box, const void *self, int tid) {
  atomic_fetch_add(&box->coming, 1);
  return begin_counted(box, self, tid);
}

bool mailbox_back_off(mailbox *box, const void *self, int tid) {
  atomic_fetch_add(&box->coming, 1);
  atomic_store(&box->own, 0);
  mailbox_ring_bell(box);
  return begin_counted(box, self, tid);
}

void mailbox_end_shared(mailbox *box, const void *self, int tid) {
  if (!box->candidate)
    box->candidate = self;
  if (++box->undisturbed > UNDISTURBED && give(box, self)) {
    mailbox_end_own(box, tid);
    return;
  }
  atomic_store(&box->shared, -tid);
  leave_shared(box);
}

void mailbox_set(mailbox *box, mailbox_word to) {
  atomic_store(box->word, to);
  if (atomic_load(&box->sleepers))
    mailbox_ring_bell(box);
}

/* ---- Callers ---- */

bool mailbox_post(mailbox *box) {
  uint32_t expected = MAILBOX_FREE;
  return atomic_compare_exchange_strong(box->word, &expected, MAILBOX_POSTED);
}

bool mailbox_own(mailbox *box, const void *self) {
  const void *owner = atomic_load(&box->owner);
  if (owner != self)
    take_back(box, self);
  if (mailbox_runner(box))
    return false;
  if ((owner ? owner : box->candidate) != self) /* what a thread asks between its own runs does not disturb */
    box->undisturbed = 0;
  atomic_store(box->word, MAILBOX_OWNED);
  return true;
}

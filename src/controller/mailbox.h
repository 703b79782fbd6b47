/* How the thread that executes a guest and the threads that ask something of it agree on who has the guest's
 * memory: its state, its code, and all else that a controller calls the guest's. Internal.
 *
 * The runner is the thread in ls_execute. It notes that it is in a run; that alone gives it the guest.
 * Callers take turns by a mutex of the controller, so that there is at most one. It says in one word what it
 * wants:
 *
 *   word      who has the guest                    goes to
 *   FREE      the runner, nobody if there is none  POSTED (a caller asks), HELD (the guest pauses by itself)
 *   POSTED    the runner, nobody if there is none  FREE (the runner has answered), HELD (it waits), OWNED
 *                                                  (there is none, or none any more)
 *   HELD      a caller; the runner waits           FREE
 *   OWNED     a caller; there is no runner         FREE
 *
 * The word is the executor's `attention` too: everything but FREE, which is 0, keeps the guest from running.
 *
 * A runner says that it is in a run, and then looks at the word; a caller writes the word, and then looks for
 * a runner: so one sees the other, if neither processor lets its look overtake its word. For that, both would
 * need a locked instruction, which behind the stores of a whole register file costs as much as the way into a
 * guest and out. So a thread that has run a guest many times in a row, while nobody asked, gets it as its
 * own: it comes and goes by plain moves, and a caller that finds it between two runs takes the guest back, by
 * a system call that makes all processors wait for their moves (membarrier(2)).
 *
 * Each side waits for a moment in a loop, since the other mostly needs a few microseconds, and then by futex.
 */
#ifndef LOCKSTEP_CONTROLLER_MAILBOX_H
#define LOCKSTEP_CONTROLLER_MAILBOX_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

typedef enum mailbox_word { MAILBOX_FREE = 0, MAILBOX_POSTED, MAILBOX_HELD, MAILBOX_OWNED } mailbox_word;

typedef struct mailbox {
  _Atomic uint32_t *word;
  _Atomic uint32_t bell;     /* counts changes that somebody sleeps for */
  _Atomic uint32_t sleepers; /* threads that wait, or are about to wait, for it */
  _Atomic uint32_t coming;   /* threads that are on their way into a run, and in neither of these: */
  _Atomic int shared, own;   /* the runner's thread id, or its negative: it has left, but not yet the mailbox;
                                0: no run. `own` is written by the thread that the guest is given to */
  _Atomic(const void *) owner; /* that thread; or NULL: it is nobody's; or somebody is taking it back */
  const void *candidate;       /* the one thread that can be given it: `own` must not have two writers */
  uint32_t undisturbed;        /* runs of it */
} mailbox;

/* Takes over a word, which belongs to nobody now. */
void mailbox_open(mailbox *box, _Atomic uint32_t *word);

static inline mailbox_word mailbox_look(const mailbox *box) {
  return (mailbox_word)atomic_load(box->word);
}

/* Wakes who sleeps, after something has changed. */
void mailbox_ring_bell(mailbox *box);

/* ---- The runner: `self` tells its thread from all others, `tid` is its id ---- */

/* Begins a run. Waits while a caller has the guest. False if there is a run already. */
static inline bool mailbox_begin(mailbox *box, const void *self, int tid);

/* Ends it. The mailbox may be gone at the return: mailbox_is_left. */
static inline void mailbox_end(mailbox *box, const void *self, int tid);

/* Of a runner: says that it has answered (FREE) or waits (HELD). Of the caller that has the guest: FREE, it
 * gives it back. */
void mailbox_set(mailbox *box, mailbox_word to);

/* Of a runner that waits: returns once the word is not HELD. */
void mailbox_wait_for_release(mailbox *box);

/* ---- Callers ---- */

/* The thread id of the runner, or 0. Only who has posted can rely on it: that there was none. */
int mailbox_runner(const mailbox *box);

/* From FREE to POSTED; false if the word was something else. */
bool mailbox_post(mailbox *box);

/* After mailbox_post, while there is a runner: waits until it has answered or left; returns the word. */
mailbox_word mailbox_wait_for_answer(mailbox *box);

/* After mailbox_post, when there was no runner: makes the guest the caller's, whose word is OWNED. False if
 * there is a runner after all. */
bool mailbox_own(mailbox *box, const void *self);

/* Has the last runner no more use for the mailbox? */
bool mailbox_is_left(const mailbox *box);

/* ---- Words of other kinds ---- */

/* Waits until *word is not `now`: for a moment in a loop, then by futex, after *word was changed from `now`
 * to `asleep`, which tells the other side to call word_wake. Returns the new value. */
uint32_t word_wait(_Atomic uint32_t *word, uint32_t now, uint32_t asleep);
void word_wake(_Atomic uint32_t *word);

/* ---- By plain moves: in every run ---- */

#define SELDOM __attribute__((cold)) /* so that the way without a call is the straight one */

SELDOM bool mailbox_begin_shared(mailbox *box, const void *self, int tid);
SELDOM bool mailbox_back_off(mailbox *box, const void *self, int tid);
SELDOM void mailbox_end_shared(mailbox *box, const void *self, int tid);

/* The first look at `owner` only keeps other threads from writing to `own`. Whoever takes the guest back has
 * a barrier for the processor. */
static inline bool mailbox_begin(mailbox *box, const void *self, int tid) {
  if (atomic_load_explicit(&box->owner, memory_order_relaxed) != self ||
      atomic_load_explicit(&box->own, memory_order_relaxed) != 0)
    return mailbox_begin_shared(box, self, tid);
  atomic_store_explicit(&box->own, tid, memory_order_release);
  atomic_signal_fence(memory_order_seq_cst);
  if (atomic_load_explicit(&box->owner, memory_order_acquire) == self && mailbox_look(box) == MAILBOX_FREE)
    return true;
  return mailbox_back_off(box, self, tid);
}

static inline void mailbox_end_own(mailbox *box, int tid) {
  atomic_store_explicit(&box->own, -tid, memory_order_release);
  atomic_signal_fence(memory_order_seq_cst);
  if (mailbox_look(box) != MAILBOX_FREE)
    mailbox_ring_bell(box);
  atomic_store_explicit(&box->own, 0, memory_order_release); /* behind this the mailbox may be gone */
}

static inline void mailbox_end(mailbox *box, const void *self, int tid) {
  if (atomic_load_explicit(&box->shared, memory_order_relaxed) == tid)
    mailbox_end_shared(box, self, tid);
  else
    mailbox_end_own(box, tid);
}

#endif

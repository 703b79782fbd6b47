#include "mailbox.h"

#include <limits.h>
#include <linux/futex.h>
#include <stdatomic.h>
#include <stddef.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { SPINS = 2000 }; /* about as long as a thread needs that must be woken on another core */

static void futex_wait(_Atomic uint32_t *word, uint32_t now) {
  syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, now, NULL, NULL, 0);
}

void word_wake(_Atomic uint32_t *word) {
  syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

/* The value once it is not `now`, or `now` after a while. */
static uint32_t spin(_Atomic uint32_t *word, uint32_t now) {
  uint32_t seen = atomic_load_explicit(word, memory_order_acquire);
  for (int i = 0; i < SPINS && seen == now; i++) {
    __builtin_ia32_pause();
    seen = atomic_load_explicit(word, memory_order_acquire);
  }
  return seen;
}

uint32_t word_wait(_Atomic uint32_t *word, uint32_t now, uint32_t asleep) {
  uint32_t seen = spin(word, now);
  if (seen != now || !atomic_compare_exchange_strong(word, &seen, asleep))
    return seen;
  while ((seen = atomic_load(word)) == asleep)
    futex_wait(word, asleep);
  return seen;
}

void mailbox_open(mailbox *box, _Atomic uint32_t *word) {
  box->word = word;
  atomic_store(&box->sleepers, 0);
  atomic_store(word, MAILBOX_IDLE);
}

mailbox_word mailbox_look(const mailbox *box) {
  return (mailbox_word)atomic_load_explicit(box->word, memory_order_acquire);
}

bool mailbox_move(mailbox *box, mailbox_word from, mailbox_word to) {
  uint32_t expected = from;
  return atomic_compare_exchange_strong(box->word, &expected, to);
}

/* The word and then the sleepers here, the sleepers and then the word in mailbox_wait: one of the two sees
 * the other. */
void mailbox_set(mailbox *box, mailbox_word to) {
  _Atomic uint32_t *word = box->word;
  atomic_store(word, to);
  if (atomic_load(&box->sleepers))
    word_wake(word);
}

void mailbox_begin(mailbox *box) {
  atomic_store_explicit(box->word, MAILBOX_RUNNING, memory_order_release);
}

mailbox_word mailbox_wait(mailbox *box, mailbox_word now) {
  uint32_t seen = spin(box->word, now);
  if (seen != now)
    return (mailbox_word)seen;
  atomic_fetch_add(&box->sleepers, 1);
  while ((seen = atomic_load(box->word)) == now)
    futex_wait(box->word, now);
  atomic_fetch_sub(&box->sleepers, 1);
  return (mailbox_word)seen;
}

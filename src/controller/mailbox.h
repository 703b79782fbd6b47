/* One word by which the thread that executes a guest and the threads that ask something of it agree on who
 * has the guest's memory: its state, its code, and all else that a controller calls the guest's. Internal.
 *
 *   word      who has it      goes to
 *   IDLE      nobody          STARTING (ls_execute begins), OWNED (a caller)
 *   STARTING  the executor    RUNNING, at once
 *   OWNED     a caller        IDLE
 *   RUNNING   the executor    POSTED (a caller asks), HELD (the guest pauses by itself), IDLE (the run is
 * over) POSTED    the executor    RUNNING (it has answered), HELD (it waits), OWNED (the run is over) HELD a
 * caller        RUNNING
 *
 * The executor is the thread in ls_execute. Callers take turns by a mutex of the controller, so that there is
 * at most one. The word is the executor's `attention` too: everything but RUNNING, which is 0, keeps the
 * guest from running. Each side waits for a moment in a loop, since the other mostly needs a few
 * microseconds, and then by futex. */
#ifndef LOCKSTEP_CONTROLLER_MAILBOX_H
#define LOCKSTEP_CONTROLLER_MAILBOX_H

#include <stdbool.h>
#include <stdint.h>

typedef enum mailbox_word {
  MAILBOX_RUNNING = 0,
  MAILBOX_IDLE,
  MAILBOX_STARTING,
  MAILBOX_OWNED,
  MAILBOX_POSTED,
  MAILBOX_HELD
} mailbox_word;

typedef struct mailbox {
  _Atomic uint32_t *word;
  _Atomic uint32_t sleepers; /* threads that wait, or are about to wait, by futex */
} mailbox;

/* Takes over a word, which belongs to nobody now. */
void mailbox_open(mailbox *box, _Atomic uint32_t *word);

mailbox_word mailbox_look(const mailbox *box);

/* From `from` to `to`; false if the word was something else. */
bool mailbox_move(mailbox *box, mailbox_word from, mailbox_word to);

/* The same where nobody else can have changed it. Wakes who waits. */
void mailbox_set(mailbox *box, mailbox_word to);

/* From STARTING, for which nobody waits, to RUNNING. */
void mailbox_begin(mailbox *box);

/* Returns the word once it is not `now`. */
mailbox_word mailbox_wait(mailbox *box, mailbox_word now);

/* Waits until *word is not `now`: for a moment in a loop, then by futex, after *word was changed from `now`
 * to `asleep`, which tells the other side to call word_wake. Returns the new value. */
uint32_t word_wait(_Atomic uint32_t *word, uint32_t now, uint32_t asleep);
void word_wake(_Atomic uint32_t *word);

#endif

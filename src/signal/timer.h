/* The timers whose ticks bound a thread's runs and take samples. Internal to src/signal.
 *
 * The coarse one is on the thread's CPU time. Linux looks at such timers at its own clock interrupt only
 * (CONFIG_HZ, often 250 a second), and counts what it skipped as overrun. That costs nothing to speak of.
 *
 * The fine one is for samples that shall come more often than that. It is on CLOCK_MONOTONIC, whose timers
 * are exact, rings once, and is set anew at every ring: so far ahead that the CPU time of the guest, which
 * the handler reads, makes up a period. A ring that finds no guest does not set it: a thread that sleeps is
 * not woken again and again. The next run of a guest does, and the coarse one where no run begins. */
#ifndef LOCKSTEP_SIGNAL_TIMER_H
#define LOCKSTEP_SIGNAL_TIMER_H

#include <stdbool.h>
#include <stdint.h>

#include "kernel.h"

typedef struct thread_timer {
  int id;                  /* of the coarse timer, the kernel's, or -1 */
  int fine;                /* of the fine one, or -1 */
  int signal;              /* by which they ring; 0: there never was one */
  bool sampling;           /* as asked for */
  uint64_t tick_ns;        /* the period asked for */
  uint64_t seen;           /* with a fine timer: the thread's CPU time at the last ring */
  int64_t owed;            /* CPU time of guests that is in no sample yet; less than 0: a sample came early */
  volatile uint8_t lapsed; /* the fine one has rung without a guest, and is not set */
} thread_timer;

#define TIMER_NONE                                                                                           \
  (thread_timer) {                                                                                           \
    .id = -1, .fine = -1                                                                                     \
  }

/* Makes `timer` ring thread `tid`, which is the calling one, with `sig` every tick_ns of its CPU time, or as
 * often as the kernel looks; `value` goes with the signal. Does nothing if it does so already. With
 * `sampling` there is a fine timer too, where that makes more rings and few enough of the thread's time goes
 * into them (TIMER_SHARE): a ring takes 2 us on one machine and 50 on another, under a hypervisor. The first
 * such call in a process measures that, in some milliseconds at most; `sig` must get to handle_signal.
 * Returns 0 or an errno. */
int timer_start(thread_timer *timer, int tid, int sig, uint64_t tick_ns, bool sampling, void *value);

/* The call that failed, if timer_start did. */
const char *timer_call(const thread_timer *timer);

void timer_stop(thread_timer *timer);

/* What a ring costs the thread it interrupts, ns. 0: not yet measured. */
HIDDEN extern uint64_t timer_ring_ns;

/* A fine timer may take one part in so many of the time. All that is sampled shall take under 2 %: the sample
 * itself comes on top of that, and what the guest finds in no cache any more. On Zen 5 under a hypervisor
 * rings of 13 us took up to 25 us of the guest's time each. */
enum { TIMER_SHARE = 128 };

/* ---- For the handler, and without TLS: of a timer that has a fine one ---- */

static inline bool timer_is_fine(const thread_timer *timer) {
  return timer->fine >= 0;
}

/* The thread's CPU time since the last call. */
HIDDEN uint64_t timer_passed(thread_timer *timer);

/* How many periods are complete, after the guest has used `ns` more: it owes as many samples. */
HIDDEN uint32_t timer_periods(thread_timer *timer, uint64_t ns);

/* Sets it to ring when the next is. */
HIDDEN void timer_again(thread_timer *timer);

#endif

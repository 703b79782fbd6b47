/* The periodic timer on a thread's CPU time whose ticks bound runs and take samples. Internal to src/signal.
 */
#ifndef LOCKSTEP_SIGNAL_TIMER_H
#define LOCKSTEP_SIGNAL_TIMER_H

#include <stdint.h>

typedef struct thread_timer {
  int id;           /* the kernel's, or -1 */
  int signal;       /* by which it rings; 0: there never was one */
  uint64_t tick_ns; /* its period */
} thread_timer;

#define TIMER_NONE                                                                                           \
  (thread_timer) {                                                                                           \
    .id = -1                                                                                                 \
  }

/* Makes `timer` ring thread `tid`, which is the calling one, with `sig` every tick_ns of its CPU time;
 * `value` goes with the signal. Does nothing if it does so already. Returns 0 or an errno.
 *
 * Linux looks at CPU-time timers at its own clock interrupt only (CONFIG_HZ, often 250 a second), and counts
 * what it skipped as overrun. A perf event (PERF_COUNT_SW_TASK_CLOCK with F_SETSIG) rings at each tick, but
 * at 1 kHz took 3 % of a guest's time under a hypervisor, where this takes a tenth of one. */
int timer_start(thread_timer *timer, int tid, int sig, uint64_t tick_ns, void *value);

/* The call that failed, if timer_start did. */
const char *timer_call(const thread_timer *timer);

void timer_stop(thread_timer *timer);

#endif

/* The periodic timer on a thread's CPU time whose ticks bound runs and take samples. Internal to src/signal.
 */
#ifndef LOCKSTEP_SIGNAL_TIMER_H
#define LOCKSTEP_SIGNAL_TIMER_H

#include <signal.h>
#include <stdbool.h>
#include <stdint.h>

typedef struct thread_timer {
  int id;           /* of the kernel's timer, or -1 */
  int fd;           /* of a perf event in its place, or -1 */
  int signal;       /* by which it rings; 0: there never was one */
  uint64_t tick_ns; /* its period */
  bool fine;        /* was asked to be */
} thread_timer;

#define TIMER_NONE                                                                                           \
  (thread_timer) {                                                                                           \
    .id = -1, .fd = -1                                                                                       \
  }

/* Makes `timer` ring thread `tid`, which is the calling one, with `sig` every tick_ns of its CPU time;
 * `value` goes with the signal. Does nothing if it does so already. Returns 0 or an errno.
 *
 * Linux looks at CPU-time timers at its own clock interrupt only (CONFIG_HZ, often 250 a second), and counts
 * what it skipped as overrun. A `fine` timer rings each tick where the kernel lets this process use a perf
 * event for that (perf_event_open(2), perf_event_paranoid up to 2); its ticks are of time in user mode alone.
 */
int timer_start(thread_timer *timer, int tid, int sig, uint64_t tick_ns, bool fine, void *value);

void timer_stop(thread_timer *timer);

/* In a process that has forked: the timer was the other's. */
void timer_forget(thread_timer *timer);

/* A signal of a perf event brings no value, but says which descriptor it is about. Signal safe. */
static inline bool timer_is_event(const thread_timer *timer, int sig, const siginfo_t *info) {
  return timer->fd >= 0 && sig == timer->signal && info->si_code == POLL_IN && info->si_fd == timer->fd;
}

#endif

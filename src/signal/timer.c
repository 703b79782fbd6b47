/* As the handler calls some of it, all of it is compiled as the handler is. */
#include "timer.h"

#include <errno.h>
#include <signal.h>
#include <sys/syscall.h>
#include <time.h>

enum { NS_PER_S = 1000000000, COARSE_NS = 10000000 };

HIDDEN uint64_t timer_ring_ns;

/* ---- The kernel's timers ---- */

static struct timespec timespec_of(uint64_t ns) {
  return (struct timespec){.tv_sec = (time_t)(ns / NS_PER_S), .tv_nsec = (long)(ns % NS_PER_S)};
}

static uint64_t nanoseconds(const struct timespec *t) {
  return (uint64_t)t->tv_sec * NS_PER_S + (uint64_t)t->tv_nsec;
}

static int create(clockid_t clock, int tid, int sig, void *value, int *id) {
  struct sigevent event = {
      .sigev_notify = SIGEV_THREAD_ID, .sigev_signo = sig, .sigev_value.sival_ptr = value};
  event._sigev_un._tid = tid;
  long error = kernel_call(SYS_timer_create, clock, (long)&event, (long)id, 0);
  if (error)
    *id = -1;
  return (int)-error;
}

static int set(int id, uint64_t first, uint64_t period) {
  const struct itimerspec times = {.it_value = timespec_of(first), .it_interval = timespec_of(period)};
  return (int)-kernel_call(SYS_timer_settime, id, 0, (long)&times, 0);
}

static void drop(int *id) {
  if (*id >= 0)
    kernel_call(SYS_timer_delete, *id, 0, 0, 0);
  *id = -1;
}

/* ---- The fine one ---- */

uint64_t timer_passed(thread_timer *timer) {
  struct timespec now = {0};
  kernel_call(SYS_clock_gettime, CLOCK_THREAD_CPUTIME_ID, (long)&now, 0, 0);
  uint64_t passed = nanoseconds(&now) - timer->seen;
  timer->seen += passed;
  return passed;
}

/* A sample comes a little early where the clocks disagree, rather than after another ring. */
uint32_t timer_periods(thread_timer *timer, uint64_t ns) {
  int64_t period = (int64_t)timer->tick_ns, early = period / 8;
  timer->owed += (int64_t)ns;
  int64_t periods = (timer->owed + early) / period;
  timer->owed -= periods * period;
  return (uint32_t)periods;
}

void timer_again(thread_timer *timer) {
  timer->lapsed = 0;
  set(timer->fine, (uint64_t)((int64_t)timer->tick_ns - timer->owed), 0);
}

/* ---- Is it worth it? ---- */

static uint64_t now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return nanoseconds(&t);
}

/* The longest pause that a thread sees that does nothing but look at the clock until it is rung: UINT64_MAX
 * if it is not. */
static uint64_t pause_of_ring(thread_timer *timer) {
  enum { SOON_NS = 20000, LATE_NS = 20000000 };
  uint64_t start = now(), last = start, longest = 0;
  timer->lapsed = 0;
  if (set(timer->fine, SOON_NS, 0))
    return UINT64_MAX;
  for (bool rung = false; !rung;) {
    rung = timer->lapsed; /* before the clock: its pause is still to be seen */
    uint64_t t = now();
    longest = t - last > longest ? t - last : longest;
    last = t;
    if (!rung && t - start > LATE_NS)
      return UINT64_MAX;
  }
  return longest;
}

/* The second shortest: the shortest may be a ring that came between two looks, and longer ones are others'
 * doing, who want the processor too. So there are many tries while it is more than `enough`. */
static uint64_t measure(thread_timer *timer, uint64_t enough) {
  enum { RINGS = 32 };
  uint64_t shortest = UINT64_MAX, second = UINT64_MAX;
  for (int i = 0; i < RINGS && second > enough; i++) {
    uint64_t pause = pause_of_ring(timer);
    if (pause < shortest) {
      second = shortest;
      shortest = pause;
    } else if (pause < second) {
      second = pause;
    }
  }
  return second;
}

/* Does the kernel look at timers of CPU time less often than that? The resolution of a coarse clock is its
 * clock interrupt's period. Without high-resolution timers all others are no finer. */
static bool is_finer(uint64_t tick_ns) {
  struct timespec coarse, exact;
  return clock_getres(CLOCK_MONOTONIC_COARSE, &coarse) == 0 && tick_ns < nanoseconds(&coarse) &&
         clock_getres(CLOCK_MONOTONIC, &exact) == 0 && tick_ns > nanoseconds(&exact);
}

static void start_fine(thread_timer *timer, int tid, void *value) {
  if (!is_finer(timer->tick_ns) || create(CLOCK_MONOTONIC, tid, timer->signal, value, &timer->fine))
    return;
  uint64_t most = timer->tick_ns / TIMER_SHARE, cost = __atomic_load_n(&timer_ring_ns, __ATOMIC_RELAXED);
  if (!cost) {
    cost = measure(timer, most);
    __atomic_store_n(&timer_ring_ns, cost, __ATOMIC_RELAXED);
  }
  if (cost > most)
    drop(&timer->fine);
}

/* ---- Both ---- */

static bool is_as_asked(const thread_timer *timer, int sig, uint64_t tick_ns, bool sampling) {
  return timer->id >= 0 && timer->signal == sig && timer->tick_ns == tick_ns && timer->sampling == sampling;
}

int timer_start(thread_timer *timer, int tid, int sig, uint64_t tick_ns, bool sampling, void *value) {
  if (!is_as_asked(timer, sig, tick_ns, sampling)) {
    timer_stop(timer);
    timer->signal = sig;
    timer->tick_ns = tick_ns;
    timer->sampling = sampling;
    timer->owed = 0;
    int error = create(CLOCK_THREAD_CPUTIME_ID, tid, sig, value, &timer->id);
    if (error)
      return error;
    if (sampling)
      start_fine(timer, tid, value);
    timer->lapsed = timer_is_fine(timer);
    uint64_t period = timer_is_fine(timer) ? COARSE_NS : tick_ns;
    error = set(timer->id, period, period);
    if (error)
      return error;
  }
  if (timer->lapsed) {
    timer_passed(timer);
    timer_again(timer);
  }
  return 0;
}

const char *timer_call(const thread_timer *timer) {
  return timer->id < 0 ? "timer_create" : "timer_settime";
}

void timer_stop(thread_timer *timer) {
  drop(&timer->id);
  drop(&timer->fine);
  timer->lapsed = 0;
}

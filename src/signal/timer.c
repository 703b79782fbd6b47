#include "timer.h"

#include <errno.h>
#include <signal.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { NS_PER_S = 1000000000 };

int timer_start(thread_timer *timer, int tid, int sig, uint64_t tick_ns, void *value) {
  if (timer->id >= 0 && timer->signal == sig && timer->tick_ns == tick_ns)
    return 0;
  timer_stop(timer);
  timer->signal = sig;
  timer->tick_ns = tick_ns;
  struct sigevent event = {
      .sigev_notify = SIGEV_THREAD_ID, .sigev_signo = sig, .sigev_value.sival_ptr = value};
  event._sigev_un._tid = tid;
  if (syscall(SYS_timer_create, CLOCK_THREAD_CPUTIME_ID, &event, &timer->id)) {
    timer->id = -1;
    return errno;
  }
  struct timespec tick = {.tv_sec = (time_t)(tick_ns / NS_PER_S), .tv_nsec = (long)(tick_ns % NS_PER_S)};
  struct itimerspec period = {.it_interval = tick, .it_value = tick};
  return syscall(SYS_timer_settime, timer->id, 0, &period, NULL) ? errno : 0;
}

const char *timer_call(const thread_timer *timer) {
  return timer->id < 0 ? "timer_create" : "timer_settime";
}

void timer_stop(thread_timer *timer) {
  if (timer->id >= 0)
    syscall(SYS_timer_delete, timer->id);
  timer->id = -1;
}

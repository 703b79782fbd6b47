#include "timer.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/perf_event.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { NS_PER_S = 1000000000 };

/* ---- A perf event ---- */

static int open_event(uint64_t tick_ns) {
  struct perf_event_attr event = {.type = PERF_TYPE_SOFTWARE,
                                  .size = sizeof event,
                                  .config = PERF_COUNT_SW_TASK_CLOCK,
                                  .sample_period = tick_ns,
                                  .disabled = 1,
                                  .exclude_kernel = 1,
                                  .exclude_hv = 1,
                                  .wakeup_events = 1};
  return (int)syscall(SYS_perf_event_open, &event, 0, -1, -1, PERF_FLAG_FD_CLOEXEC);
}

/* F_SETSIG last but one: until then nothing is sent, and SIGIO never. */
static bool arm_event(int fd, int tid, int sig) {
  struct f_owner_ex owner = {F_OWNER_TID, tid};
  return fcntl(fd, F_SETOWN_EX, &owner) == 0 && fcntl(fd, F_SETSIG, sig) == 0 &&
         fcntl(fd, F_SETFL, O_ASYNC) == 0 && ioctl(fd, PERF_EVENT_IOC_ENABLE, 0) == 0;
}

/* Not with a real-time signal: where its queue is full the kernel sends SIGIO, which kills (fcntl(2),
 * F_SETSIG). */
static bool start_event(thread_timer *timer, int tid) {
  if (timer->signal >= SIGRTMIN)
    return false;
  timer->fd = open_event(timer->tick_ns);
  if (timer->fd >= 0 && arm_event(timer->fd, tid, timer->signal))
    return true;
  timer_stop(timer);
  return false;
}

/* ---- A timer ---- */

static int start_timer(thread_timer *timer, int tid, void *value) {
  struct sigevent event = {
      .sigev_notify = SIGEV_THREAD_ID, .sigev_signo = timer->signal, .sigev_value.sival_ptr = value};
  event._sigev_un._tid = tid;
  if (syscall(SYS_timer_create, CLOCK_THREAD_CPUTIME_ID, &event, &timer->id)) {
    timer->id = -1;
    return errno;
  }
  struct timespec tick = {.tv_sec = (time_t)(timer->tick_ns / NS_PER_S),
                          .tv_nsec = (long)(timer->tick_ns % NS_PER_S)};
  struct itimerspec period = {.it_interval = tick, .it_value = tick};
  return syscall(SYS_timer_settime, timer->id, 0, &period, NULL) ? errno : 0;
}

int timer_start(thread_timer *timer, int tid, int sig, uint64_t tick_ns, bool fine, void *value) {
  bool runs = timer->id >= 0 || timer->fd >= 0;
  if (runs && timer->signal == sig && timer->tick_ns == tick_ns && timer->fine == fine)
    return 0;
  timer_stop(timer);
  timer->signal = sig;
  timer->tick_ns = tick_ns;
  timer->fine = fine;
  return fine && start_event(timer, tid) ? 0 : start_timer(timer, tid, value);
}

/* What the event has sent comes before the first of these calls returns. */
void timer_stop(thread_timer *timer) {
  if (timer->id >= 0)
    syscall(SYS_timer_delete, timer->id);
  timer->id = -1;
  if (timer->fd < 0)
    return;
  ioctl(timer->fd, PERF_EVENT_IOC_DISABLE, 0);
  close(timer->fd);
  timer->fd = -1;
}

void timer_forget(thread_timer *timer) {
  if (timer->fd >= 0)
    close(timer->fd);
  timer->id = timer->fd = -1;
}

#include "wait.h"

#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <time.h>

enum { SYSCALL_STOP = SIGTRAP | 0x80 };

wait_report wait_decode(int status) {
  if (WIFEXITED(status))
    return (wait_report){.event = WAIT_DEAD, .code = WEXITSTATUS(status)};
  if (WIFSIGNALED(status))
    return (wait_report){.event = WAIT_DEAD, .signal = WTERMSIG(status)};
  if (status >> 16) /* PTRACE_EVENT_STOP; no other event was asked for (ptrace(2)) */
    return (wait_report){.event = WAIT_GROUP, .signal = WSTOPSIG(status)};
  if (WSTOPSIG(status) == SYSCALL_STOP)
    return (wait_report){.event = WAIT_SYSCALL};
  return (wait_report){.event = WAIT_SIGNAL, .signal = WSTOPSIG(status)};
}

wait_report wait_for(pid_t pid) {
  int status;
  pid_t got;
  do
    got = waitpid(pid, &status, __WALL);
  while (got < 0 && errno == EINTR);
  return got == pid ? wait_decode(status) : (wait_report){.event = WAIT_DEAD};
}

static int64_t milliseconds_now(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

wait_report wait_until(pid_t pid, int milliseconds) {
  int64_t end = milliseconds_now() + milliseconds;
  struct timespec pause = {.tv_nsec = 20000};
  for (;;) {
    int status;
    pid_t got = waitpid(pid, &status, __WALL | WNOHANG);
    if (got == pid)
      return wait_decode(status);
    if (got < 0 && errno != EINTR)
      return (wait_report){.event = WAIT_DEAD};
    if (milliseconds_now() >= end)
      return (wait_report){.event = WAIT_NOTHING};
    nanosleep(&pause, NULL);
    if (pause.tv_nsec < 200000)
      pause.tv_nsec *= 2;
  }
}

/* The child of a reference executor, seen from outside. */
#ifndef TESTS_CHILD_H
#define TESTS_CHILD_H

#include <signal.h>
#include <unistd.h>

#include "check.h"
#include "processes.h"

/* Fails the running test unless this process has just one. */
static inline pid_t only_child(void) {
  pid_t pid = 0;
  assert_int_equal(process_children(getpid(), &pid), 1);
  return pid;
}

/* For pthread_create; `pid` is a pid_t's address. */
static inline void *kill_soon(void *pid) {
  usleep(20000);
  kill(*(pid_t *)pid, SIGKILL);
  return NULL;
}

#endif

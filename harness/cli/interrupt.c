/* SIGINT and SIGTERM, for a command that has something to say before it ends. */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stddef.h>
#include <unistd.h>

#include "cli.h"

static volatile sig_atomic_t noted;

static void note(int sig) {
  noted = sig;
}

/* On the alternate stack, since a guest's RSP may point anywhere (lockstep.h, ls_executor_create). */
static void watch(int sig) {
  struct sigaction action = {.sa_handler = note, .sa_flags = SA_ONSTACK | SA_RESTART | (int)SA_RESETHAND},
                   before;
  sigemptyset(&action.sa_mask);
  if (sigaction(sig, NULL, &before) == 0 && before.sa_handler != SIG_IGN)
    sigaction(sig, &action, NULL);
}

void interrupt_watch(void) {
  watch(SIGINT);
  watch(SIGTERM);
}

int interrupt_noted(void) {
  return noted;
}

bool interrupt_cuts(size_t done, size_t total) {
  return noted && done < total;
}

json_t *interrupt_json(size_t done, size_t total) {
  if (!interrupt_cuts(done, total))
    return json_null();
  return json_pack("{si sI sI}", "signal", noted, "after", (json_int_t)done, "of", (json_int_t)total);
}

/* A read would be taken up again after the handler (SA_RESTART), a poll is not (signal(7)). Between the look
 * at `noted` and the wait no signal gets through. */
void interrupt_wait(int fd) {
  struct pollfd input = {.fd = fd, .events = POLLIN};
  sigset_t both, before;
  sigemptyset(&both);
  sigaddset(&both, SIGINT);
  sigaddset(&both, SIGTERM);
  sigprocmask(SIG_BLOCK, &both, &before);
  while (!noted && ppoll(&input, 1, NULL, &before) < 0 && errno == EINTR)
    ;
  sigprocmask(SIG_SETMASK, &before, NULL);
}

/* What every target that runs guests in this thread does before its first. */
#ifndef FUZZ_HANDLERS_H
#define FUZZ_HANDLERS_H

#include <signal.h>
#include <stddef.h>

/* An engine's own handlers (libFuzzer's SIGALRM among them) run on the stack that is current, which may be
 * the guest's, with any RSP at all. */
static inline void move_handlers_to_alternate_stack(void) {
  for (int signal_number = 1; signal_number < SIGRTMIN; signal_number++) {
    struct sigaction action;
    if (sigaction(signal_number, NULL, &action) != 0 || action.sa_handler == SIG_DFL ||
        action.sa_handler == SIG_IGN || (action.sa_flags & SA_ONSTACK))
      continue;
    action.sa_flags |= SA_ONSTACK;
    sigaction(signal_number, &action, NULL);
  }
}

#endif

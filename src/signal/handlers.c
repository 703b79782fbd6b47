/* Installing and taking away the process's signal handlers. */
#include "handlers.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/syscall.h>

#include "../error.h"
#include "thread.h"

static const int fault_signals[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP, SIGSYS};
enum { FAULT_SIGNALS = sizeof fault_signals / sizeof fault_signals[0] };

static struct {
  unsigned users;         /* executors that need it */
  kernel_action previous; /* valid from the first installation on, for handlers that chain to ours late */
  kernel_action below;    /* if buried: what was `previous` when another handler was first found over ours */
  bool buried;
  bool covered; /* the host's, see handlers_cover; with no users */
} table[SIGNALS_MAX];

uint64_t handlers_fault_mask(void) {
  uint64_t mask = 0;
  for (int i = 0; i < FAULT_SIGNALS; i++)
    mask |= signal_bit(fault_signals[i]);
  return mask;
}

kernel_action *handlers_previous(int sig, bool called) {
  return called && table[sig].buried ? &table[sig].below : &table[sig].previous;
}

static long kernel_sigaction(int sig, const kernel_action *action, kernel_action *old) {
  return kernel_call(SYS_rt_sigaction, sig, (long)action, (long)old, sizeof action->mask);
}

static bool is_ours(const kernel_action *action) {
  return action->handler == (uintptr_t)handler_entry;
}

/* A function of the host's, which may be what it put over ours and call that. */
static bool is_function(const kernel_action *action) {
  return action->handler != (uintptr_t)SIG_DFL && action->handler != (uintptr_t)SIG_IGN && !is_ours(action);
}

/* The previous action is known before ours can be called, and read again as it is replaced. All signals wait
 * until ours is handled: were a handler of the host's to run on top of it, with the guest's system calls
 * blocked and SIGSYS too, its first call outside the allowed range would kill (see borrow_dispatch). */
static ls_status install(int sig, ls_error *error) {
  kernel_action action = {(uintptr_t)handler_entry, SA_SIGINFO | SA_ONSTACK | SA_RESTART | KERNEL_SA_RESTORER,
                          (uintptr_t)handler_return, UINT64_MAX};
  kernel_action old, now;
  long result = kernel_sigaction(sig, NULL, &old);
  if (!result && is_ours(&old)) /* put back by somebody who had replaced it: then `previous` still holds */
    return LS_OK;
  if (!result) {
    table[sig].previous = old;
    result = kernel_sigaction(sig, &action, &old);
  }
  if (!result) {
    table[sig].previous = old;
    result = kernel_sigaction(sig, NULL, &now);
  }
  if (result)
    return error_set(error, LS_ERR_HANDLER, (int)-result, LS_NONE,
                     "no handler of signal %d can be installed: %s", sig, strerror((int)-result));
  if (!is_ours(&now))
    return error_set(
        error, LS_ERR_HANDLER, 0, LS_NONE,
        "the handler of signal %d was installed but is not there: something (a sandbox, a tracer, "
        "an emulator) keeps handlers for itself; run without it",
        sig);
  return LS_OK;
}

/* ---- Handlers of the host's ---- */

bool handlers_covered(int sig) {
  return table[sig].covered;
}

/* May it strike a guest, and is it not covered? If ours was there before, somebody has put it into a handler
 * of his own or keeps it to put it back: then only what it was over is covered again. */
static bool to_cover(int sig, const kernel_action *now) {
  return is_function(now) && now->flags & SA_ONSTACK &&
         (!table[sig].covered || now->handler == table[sig].previous.handler);
}

static void cover(int sig) {
  kernel_action now;
  if (table[sig].users || kernel_sigaction(sig, NULL, &now) || !to_cover(sig, &now))
    return;
  kernel_action action = {(uintptr_t)handler_entry, now.flags | SA_SIGINFO | KERNEL_SA_RESTORER,
                          (uintptr_t)handler_return, now.mask};
  table[sig].previous = now;
  table[sig].covered = true;
  kernel_sigaction(sig, &action, NULL);
}

/* Of libc's own signals the first is for pthread_cancel, whose handler may unwind what it struck. */
void handlers_cover(void) {
  enum { CANCEL = 32 };
  for (int sig = 1; sig < SIGNALS_MAX; sig++)
    if (sig != CANCEL)
      cover(sig);
}

/* A ring or a tick can have been sent to a thread that has not taken it yet, and would meet the default
 * action: most kill. What is pending is dropped with SIG_IGN. */
static void drop_pending(int sig) {
  const kernel_action ignore = {.handler = (uintptr_t)SIG_IGN};
  if (table[sig].previous.handler == (uintptr_t)SIG_DFL && !(signal_bit(sig) & handlers_fault_mask()))
    kernel_sigaction(sig, &ignore, NULL);
}

static void restore(int sig) {
  kernel_action now;
  if (kernel_sigaction(sig, NULL, &now))
    return;
  if (is_ours(&now)) {
    drop_pending(sig);
    kernel_sigaction(sig, &table[sig].previous, NULL);
  } else if (is_function(&now) && now.handler != table[sig].previous.handler && !table[sig].buried) {
    table[sig].below = table[sig].previous;
    table[sig].buried = true;
  }
}

static void uncover(int sig) {
  if (table[sig].covered)
    restore(sig);
  table[sig].covered = false;
}

static ls_status acquire_one(int sig, ls_error *error) {
  if (table[sig].users == 0) {
    uncover(sig);
    ls_status status = install(sig, error);
    if (status)
      return status;
  }
  table[sig].users++;
  return LS_OK;
}

static void release_one(int sig) {
  if (--table[sig].users > 0)
    return;
  thread_drop_timers(sig);
  restore(sig);
}

ls_status handlers_acquire(int interrupt_signal, ls_error *error) {
  int done = 0;
  signal_lock();
  ls_status status = LS_OK;
  while (!status && done < FAULT_SIGNALS) {
    status = acquire_one(fault_signals[done], error);
    done += !status;
  }
  if (!status)
    status = acquire_one(interrupt_signal, error);
  while (status && done > 0)
    release_one(fault_signals[--done]);
  if (!status)
    handlers_cover();
  signal_unlock();
  return status;
}

void handlers_release(int interrupt_signal) {
  signal_lock();
  for (int i = 0; i < FAULT_SIGNALS; i++)
    release_one(fault_signals[i]);
  release_one(interrupt_signal);
  if (table[fault_signals[0]].users)
    cover(interrupt_signal);
  else
    for (int sig = 1; sig < SIGNALS_MAX; sig++)
      uncover(sig);
  signal_unlock();
}

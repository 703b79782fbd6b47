/* Lending and giving back what a thread needs to run guests. */
#include "thread.h"

#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "../cpu.h"
#include "../error.h"
#include "copies.h"
#include "handlers.h"

#ifndef AT_MINSIGSTKSZ
#define AT_MINSIGSTKSZ 51
#endif

enum {
  HOST_ROOM = 64 << 10,      /* bytes of a stack that are left for a host's handler */
  ARCH_GET_FS_BASE = 0x1003, /* asm/prctl.h */
  ARCH_GET_GS_BASE = 0x1004
};

_Thread_local thread_record *thread_current __attribute__((tls_model("initial-exec"), visibility("hidden")));

static pthread_key_t exit_key;
static ls_status setup_status;

/* ---- Lock and forks ---- */

/* Under the lock, in a process that has forked: its thread has neither its timer nor Syscall User Dispatch,
 * and the other threads are not there. Whoever forked may have called _Fork or the kernel itself, which run
 * no fork handler: so every use of the lock asks the page that the kernel wipes. The thread that forked is
 * the child's first. Should another be here before it, nothing but that thread tells which slot it has: then
 * all slots stay taken. */
static void adopt(void) {
  static uint32_t epoch; /* of the process to whose threads the slots belong */
  const uint32_t *now = fork_epoch();
  if (!now || *now == epoch)
    return;
  epoch = *now;
  bool first = kernel_call(SYS_gettid, 0, 0, 0, 0) == kernel_call(SYS_getpid, 0, 0, 0, 0);
  for (unsigned slot = 0; slot < THREAD_SLOTS; slot++) {
    thread_record *record = thread_slot(slot);
    if (!thread_slot_used[slot])
      continue;
    record->timer.id = record->timer.fine = -1;
    record->dispatch = false;
    record->tid = 0;
    if (first && record != thread_current)
      slot_free(record);
  }
}

/* Not a mutex of libc: whoever forks by the kernel's own call, while another thread holds that, leaves it
 * held in the child for good. A word that the kernel wipes is free there. What the other thread was about
 * stays half done in the child: that can cost it a slot, or leave handlers in place beyond the last executor.
 */
enum { LOCK_FREE, LOCK_HELD, LOCK_AWAITED };

void signal_lock(void) {
  uint32_t *word = fork_lock(), was = LOCK_FREE;
  if (!__atomic_compare_exchange_n(word, &was, LOCK_HELD, 0, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED))
    while (__atomic_exchange_n(word, LOCK_AWAITED, __ATOMIC_ACQUIRE) != LOCK_FREE)
      kernel_call(SYS_futex, (long)word, FUTEX_WAIT_PRIVATE, LOCK_AWAITED, 0);
  adopt();
}

void signal_unlock(void) {
  copy_settle();
  uint32_t *word = fork_lock();
  if (__atomic_exchange_n(word, LOCK_FREE, __ATOMIC_RELEASE) == LOCK_AWAITED)
    kernel_call(SYS_futex, (long)word, FUTEX_WAKE_PRIVATE, 1, 0);
}

/* ---- Once per process ---- */

/* The lock is free again. */
static void after_fork_in_child(void) {
  signal_lock();
  signal_unlock();
}

static void at_thread_exit(void *record) {
  (void)record;
  ls_thread_release();
}

/* Whoever forks by fork waits until nobody has the lock, so that what the child finds is whole. */
static void set_up(void) {
  if (!fork_lock() || !slots_reserve() || pthread_key_create(&exit_key, at_thread_exit) ||
      pthread_atfork(signal_lock, signal_unlock, after_fork_in_child))
    setup_status = LS_ERR_MEMORY;
  if (getauxval(AT_MINSIGSTKSZ) + HOST_ROOM > SLOT_STACK_SIZE)
    setup_status = LS_ERR_CPU;
}

ls_status thread_set_up(ls_error *error) {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  pthread_once(&once, set_up);
  if (!setup_status)
    return LS_OK;
  return error_set(error, setup_status, 0, LS_NONE, "no alternate stacks: %s",
                   setup_status == LS_ERR_CPU ? "signal frames are too large here" : "out of address space");
}

/* ---- Alternate stack and mask ---- */

static void *slot_stack(thread_record *record) {
  return (uint8_t *)record + SLOT_STACK;
}

/* Puts ours in place. What was there before is remembered, unless that is ours as a handler left it that went
 * away by a jump (disarmed). */
static int borrow_stack(thread_record *record, int flags, bool is_new) {
  stack_t ours = {.ss_sp = slot_stack(record), .ss_size = SLOT_STACK_SIZE, .ss_flags = flags};
  stack_t now;
  if (sigaltstack(NULL, &now))
    return errno;
  bool is_there = now.ss_sp == ours.ss_sp && !(now.ss_flags & SS_DISABLE);
  if (is_there && record->stack_flags == flags)
    return 0;
  if (!is_there && (is_new || !(now.ss_flags & SS_DISABLE)))
    record->host_stack = now;
  if (sigaltstack(&ours, NULL))
    return errno;
  record->stack_flags = flags;
  return 0;
}

static void return_stack(thread_record *record) {
  stack_t now;
  if (sigaltstack(NULL, &now))
    return;
  bool ours = now.ss_sp == slot_stack(record);
  bool disarmed = record->unsure && (now.ss_flags & SS_DISABLE);
  if (ours || disarmed)
    sigaltstack(&record->host_stack, NULL);
}

/* By raw calls: a set of libc has no way to say "these bits" without a loop. */
static int change_mask(int how, uint64_t mask, uint64_t *old) {
  return (int)-kernel_call(SYS_rt_sigprocmask, how, (long)&mask, (long)old, sizeof mask);
}

static int borrow_mask(thread_record *record, int interrupt_signal) {
  uint64_t ours = handlers_fault_mask() | signal_bit(interrupt_signal), old = 0;
  int error = change_mask(SIG_UNBLOCK, ours, &old);
  record->host_blocked |= old & ours;
  return error;
}

/* ---- Syscall User Dispatch ---- */

/* The kernel looks at the selector's address first: EFAULT says that it knows the request, and nothing has
 * changed (kernel/entry/syscall_user_dispatch.c). */
bool thread_can_dispatch(void) {
  return prctl(PR_SET_SYSCALL_USER_DISPATCH, PR_SYS_DISPATCH_ON, 0, 0, UINTPTR_MAX) != 0 && errno == EFAULT;
}

/* A kernel without it, or a seccomp filter that refuses it with whatever error, is none: it goes without. */
static int refused_dispatch(int why) {
  return thread_can_dispatch() ? why : 0;
}

/* Takes [start, end) out of the range in which calls are allowed; what stays is the part around `keep`. */
static void narrow(uint64_t start, uint64_t end, uint64_t keep, uint64_t *low, uint64_t *high) {
  if (end <= keep && end > *low)
    *low = end;
  if (start > keep && start < *high)
    *high = start;
}

/* The kernel lets calls from one range of addresses pass whatever the selector says. It is the widest around
 * handler_return that holds no window of a guest: it must hold that, since rt_sigreturn is called while the
 * selector says BLOCK, and as much of the host as possible, since handlers of the host may interrupt the
 * guest that are not covered (handlers.h). Of those, what is outside it (libc beside a program linked to low
 * addresses) reaches repeat_host_call in handler.c. An executor run after another in the same thread narrows
 * the range further. */
static int borrow_dispatch(thread_record *record, const signal_executor *executor) {
  uint64_t keep = (uintptr_t)handler_return;
  uint64_t low = record->dispatch ? record->allowed : LS_PAGE;
  uint64_t high = record->dispatch ? record->allowed + record->allowed_size : INT64_MAX;
  const ls_layout *layout = &executor->base.box.layout;
  for (uint32_t i = 0; i < layout->window_count; i++)
    narrow(layout->windows[i].address, layout->windows[i].address + layout->windows[i].size, keep, &low,
           &high);
  if (record->dispatch && low == record->allowed && high - low == record->allowed_size)
    return 0;
  if (prctl(PR_SET_SYSCALL_USER_DISPATCH, PR_SYS_DISPATCH_ON, low, high - low, &record->selector))
    return refused_dispatch(errno);
  record->dispatch = true;
  record->allowed = low;
  record->allowed_size = high - low;
  return 0;
}

/* ---- Timer ---- */

void thread_drop_timers(int sig) {
  for (unsigned slot = 0; slot < THREAD_SLOTS; slot++)
    if (thread_slot_used[slot] && thread_slot(slot)->timer.signal == sig)
      timer_stop(&thread_slot(slot)->timer);
}

/* A slow periodic timer, whose ticks the handler counts. A one-shot timer per run would cost two system
 * calls, and can ring before the guest is entered and so be lost. */
static int borrow_timer(thread_record *record, const ls_executor *executor) {
  return timer_start(&record->timer, record->tid, executor->options.interrupt_signal, executor->tick_ns,
                     executor->sampling, record);
}

/* ---- Attaching and releasing ---- */

/* A seccomp filter may refuse the call. Then the instruction tells, or for FS the TCB, whose first word is
 * its own address (System V ABI, x86-64 TLS). */
static uint64_t host_fs_base(void) {
  uint64_t base;
  if (kernel_call(SYS_arch_prctl, ARCH_GET_FS_BASE, (long)&base, 0, 0) == 0)
    return base;
  if (cpu()->fsgsbase)
    __asm__ volatile("rdfsbase %0" : "=r"(base));
  else
    __asm__ volatile("mov %%fs:0, %0" : "=r"(base));
  return base;
}

static uint64_t host_gs_base(void) {
  uint64_t base;
  if (kernel_call(SYS_arch_prctl, ARCH_GET_GS_BASE, (long)&base, 0, 0) == 0)
    return base;
  if (!cpu()->fsgsbase)
    return GS_BASE_UNKNOWN;
  __asm__ volatile("rdgsbase %0" : "=r"(base));
  return base;
}

/* Of a thread that has no record yet, or that is the one that survived a fork. */
static void renew(thread_record *record, uint32_t epoch) {
  record->epoch = epoch;
  record->tid = (int)syscall(SYS_gettid);
  record->fs_base = host_fs_base();
  record->gs_base = host_gs_base();
  __asm__ volatile("mov %%ds, %0" : "=r"(record->ds));
  __asm__ volatile("mov %%es, %0" : "=r"(record->es));
  record->selector = SELECTOR_ALLOW;
  __atomic_store_n(&record->running, NULL, __ATOMIC_RELAXED);
}

static void release(thread_record *record) {
  timer_stop(&record->timer);
  if (record->dispatch)
    prctl(PR_SET_SYSCALL_USER_DISPATCH, PR_SYS_DISPATCH_OFF, 0, 0, 0);
  return_stack(record);
  if (record->host_blocked)
    change_mask(SIG_BLOCK, record->host_blocked, NULL);
  thread_current = NULL;
  pthread_setspecific(exit_key, NULL);
  slot_free(record);
}

static ls_status cannot_run(ls_error *error, const char *call, int why) {
  return error_set(error, LS_ERR_SYSTEM, why, LS_NONE, "this thread cannot run guests: %s: %s%s", call,
                   strerror(why), error_advice(why));
}

static ls_status borrow(thread_record *record, const signal_executor *executor, bool all, bool is_new,
                        ls_error *error) {
  const char *what = NULL;
  int why = 0;
  int sig = executor->base.options.interrupt_signal;
  int flags = executor->base.options.flags & LS_WITHOUT_AUTODISARM ? 0 : (int)SS_AUTODISARM;
  if ((all || record->stack_flags != flags) && (why = borrow_stack(record, flags, is_new)))
    what = why == EINVAL ? "sigaltstack (try LS_WITHOUT_AUTODISARM)" : "sigaltstack";
  else if ((all || record->timer.signal != sig) && (why = borrow_mask(record, sig)))
    what = "rt_sigprocmask";
  else if ((why = borrow_dispatch(record, executor)))
    what = "prctl(PR_SET_SYSCALL_USER_DISPATCH)";
  else if ((why = borrow_timer(record, &executor->base)))
    what = timer_call(&record->timer);
  return why ? cannot_run(error, what, why) : LS_OK;
}

/* A period of which nothing is seen. */
ls_status thread_try(int interrupt_signal, ls_error *error) {
  const uint64_t long_enough = UINT64_C(3600000000000);
  thread_timer timer = TIMER_NONE;
  stack_t stack;
  if (sigaltstack(NULL, &stack))
    return cannot_run(error, "sigaltstack", errno);
  int why = timer_start(&timer, (int)syscall(SYS_gettid), interrupt_signal, long_enough, false, NULL);
  const char *what = timer_call(&timer);
  timer_stop(&timer);
  return why ? cannot_run(error, what, why) : LS_OK;
}

static ls_status no_slot(int why, ls_error *error) {
  if (why == EAGAIN)
    return error_set(error, LS_ERR_MEMORY, 0, LS_NONE,
                     "no alternate stack left: at most %d threads can run guests", THREAD_SLOTS);
  return error_set(error, LS_ERR_MEMORY, why, LS_NONE, "no alternate stack for this thread: %s",
                   strerror(why));
}

static ls_status attach(signal_executor *executor, ls_error *error) {
  uint32_t epoch = *executor->base.box.epoch;
  thread_record *record = thread_current;
  bool is_new = !record, all = is_new || record->epoch != epoch || record->unsure;
  if (is_new)
    record = slot_claim();
  if (is_new && record && (errno = pthread_setspecific(exit_key, record))) {
    slot_free(record);
    record = NULL;
  }
  if (!record)
    return no_slot(errno, error);
  if (record->epoch != epoch)
    renew(record, epoch);
  if (is_new)
    handlers_cover();
  thread_current = record;
  record->serial = 0;
  ls_status status = borrow(record, executor, all, is_new, error);
  if (status) {
    release(record);
    return status;
  }
  record->unsure = 0;
  record->serial = executor->serial;
  __atomic_store_n(&executor->data->record, record, __ATOMIC_RELEASE);
  return LS_OK;
}

ls_status thread_attach(signal_executor *executor, ls_error *error) {
  signal_lock();
  ls_status status = attach(executor, error);
  signal_unlock();
  return status;
}

void ls_thread_release(void) {
  thread_record *record = thread_current;
  if (!record)
    return;
  signal_lock();
  release(record);
  signal_unlock();
}

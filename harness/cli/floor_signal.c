#include "floor_signal.h"

#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

/* Not the interrupt signal, whose handler is the library's. */
enum {
  SIGNAL = SIGUSR1,
  STACK_ROOM = 65536,
  LEGACY_SIZE = 512, /* FXSAVE; its last bytes say how large the whole is (asm/sigcontext.h) */
  SIZE_OFFSET = 464 + 16,
  XSAVE_ROOM = 16384
};

static struct {
  gregset_t general;
  uint8_t xsave[XSAVE_ROOM];
} copied;
static _Atomic int answered;

static void answer_signal(int number, siginfo_t *info, void *context) {
  (void)number;
  (void)info;
  const mcontext_t *frame = &((ucontext_t *)context)->uc_mcontext;
  const uint8_t *area = (const uint8_t *)frame->fpregs;
  uint32_t size;
  memcpy(&copied.general, &frame->gregs, sizeof copied.general);
  memcpy(&size, area + SIZE_OFFSET, sizeof size);
  memcpy(copied.xsave, area, size >= LEGACY_SIZE && size <= XSAVE_ROOM ? size : LEGACY_SIZE);
  atomic_store_explicit(&answered, 1, memory_order_release);
}

static void only_return(int number) {
  (void)number;
}

/* A handler and an alternate stack for the length of a floor. */
typedef struct floor_lent {
  int number;
  struct sigaction action;
  stack_t stack;
} lent;

static void lend(lent *before, int number, const struct sigaction *action) {
  static _Alignas(64) uint8_t room[STACK_ROOM];
  const stack_t stack = {.ss_sp = room, .ss_size = sizeof room};
  before->number = number;
  sigaltstack(&stack, &before->stack);
  sigaction(number, action, &before->action);
}

static void give_back(const lent *before) {
  sigaction(before->number, &before->action, NULL);
  sigaltstack(&before->stack, NULL);
}

void floor_answer_spin(floor_answer *answer) {
  const struct sigaction action = {.sa_sigaction = answer_signal, .sa_flags = SA_SIGINFO | SA_ONSTACK};
  lent before;
  lend(&before, SIGNAL, &action);
  answer->tid = gettid();
  floor_spin(answer->start, &answer->spinner, answer->vectors);
  give_back(&before);
}

void floor_answer_ask(floor_answer *answer) {
  atomic_store_explicit(&answered, 0, memory_order_relaxed);
  syscall(SYS_tgkill, getpid(), answer->tid, SIGNAL);
  while (!atomic_load_explicit(&answered, memory_order_acquire)) {
  }
}

void floor_step_all(const ls_state *start, uint64_t rounds, ls_vectors vectors) {
  const struct sigaction action = {.sa_handler = only_return, .sa_flags = SA_ONSTACK};
  lent before;
  lend(&before, SIGTRAP, &action);
  floor_steps(start, rounds, vectors);
  give_back(&before);
}

int floor_timer_start(floor_timer *timer, long rate) {
  static lent before;
  const struct sigaction action = {.sa_handler = only_return, .sa_flags = SA_ONSTACK};
  const struct timespec period = {.tv_nsec = 1000000000 / rate};
  const struct itimerspec ring = {period, period};
  struct sigevent event = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SIGNAL};
  event._sigev_un._tid = gettid();
  timer->lent = &before;
  lend(&before, SIGNAL, &action);
  if (syscall(SYS_timer_create, CLOCK_MONOTONIC, &event, &timer->id) == 0 &&
      syscall(SYS_timer_settime, timer->id, 0, &ring, NULL) == 0)
    return 0;
  give_back(&before);
  return -1;
}

void floor_timer_stop(floor_timer *timer) {
  syscall(SYS_timer_delete, timer->id);
  give_back(timer->lent);
}

/* Guests of the in-thread executor that other threads ring for, and what tells whether such a guest was
 * disturbed: for the one test program that includes it. Everything but what the ringers do is for the thread
 * of the tests. */
#ifndef TESTS_ATTENTION_H
#define TESTS_ATTENTION_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "executor.h"
#include "guest.h"

/* Ticks so rare that none answers in place of a ring that was lost: then the test hangs. */
enum { PATIENCE = 8 /* seconds */, NO_TICKS = 10000000 };

/* lea rcx, [rcx+1]; lea rdx, [rdx+1]; jmp back: no flag changes, and at no place is a count lost or repeated.
 */
#define COUNTING "48 8d 49 01 / 48 8d 52 01 / eb f6"
enum { SECOND = 4, JUMP = 8 };

/* ---- Threads that ring ---- */

typedef struct ringer {
  pthread_t thread;
  ls_executor *executor; /* NULL: sends the signal `sig` without attention, as the host does */
  int tid, sig;
  unsigned spins; /* at most, between two rings */
  bool waits;     /* until the last ring was answered */
  _Atomic bool stop;
  bool runs;
} ringer;

static ringer ringers[2];

static inline unsigned random_below(uint64_t *seed, unsigned bound) {
  *seed = *seed * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
  return (unsigned)(*seed >> 33) % bound;
}

/* Whoever sleeps is let in at once when it wakes, even if the guest has the only core. */
static inline void await_answer(ringer *r) {
  enum { SPINS = 1000 };
  for (unsigned i = 0; atomic_load(r->executor->attention) && !atomic_load(&r->stop); i++)
    if (i < SPINS)
      __builtin_ia32_pause();
    else
      usleep(1);
}

static inline void ring(ringer *r) {
  if (!r->executor) {
    syscall(SYS_tgkill, getpid(), r->tid, r->sig);
    return;
  }
  if (r->waits)
    await_answer(r);
  atomic_store(r->executor->attention, 1);
  r->executor->ops->interrupt(r->executor, r->tid);
}

static inline void *ring_on(void *context) {
  ringer *r = context;
  uint64_t seed = 1;
  while (!atomic_load(&r->stop)) {
    for (unsigned n = random_below(&seed, r->spins); n; n--)
      __builtin_ia32_pause();
    ring(r);
  }
  return NULL;
}

static inline void start(int which, const ringer *what) {
  ringer *r = &ringers[which];
  memset(r, 0, sizeof *r);
  r->executor = what->executor;
  r->tid = (int)syscall(SYS_gettid);
  r->sig = what->sig;
  r->spins = what->spins;
  r->waits = what->waits;
  r->runs = pthread_create(&r->thread, NULL, ring_on, r) == 0;
  assert_true(r->runs);
}

static inline void stop_ringers(void) {
  for (int i = 0; i < 2; i++) {
    atomic_store(&ringers[i].stop, true);
    if (ringers[i].runs)
      pthread_join(ringers[i].thread, NULL);
    ringers[i].runs = false;
  }
}

static inline int tear_down(void **unused) {
  stop_ringers();
  return close_all(unused);
}

/* ---- Guests ---- */

static inline guest open_guest(const ls_options *options) {
  guest g = guest_open(0, options);
  g.executor->time_left = TIME_ENDLESS;
  return g;
}

static inline ls_status go(guest *g, const ls_state *state, uint64_t rip, uint32_t uses, uint64_t steps,
                           ls_outcome *out) {
  ls_run r = {.state = state, .uses = uses, .steps = steps};
  return executor_go(g->executor, &r, rip, out, &error);
}

/* From out->state on; a request that was answered is taken back. */
static inline ls_stop_kind go_on(guest *g, uint32_t uses, uint64_t steps, ls_outcome *out) {
  must(go(g, &out->state, out->state.rip, uses, steps, out));
  if (out->stop.kind == LS_STOP_INTERRUPTED)
    atomic_store(g->executor->attention, 0);
  return out->stop.kind;
}

static inline void same_kind(const char *name, const ls_outcome *out, ls_stop_kind kind) {
  if (out->stop.kind != kind)
    fail_msg("%s: expected stop %d, got %d (signal %d, code %d) at 0x%lx", name, (int)kind,
             (int)out->stop.kind, out->stop.signal, out->stop.code, (unsigned long)out->state.rip);
}

static inline ls_outcome outcome_of(const ls_state *start, uint64_t rip) {
  ls_outcome out;
  memset(&out, 0xa5, sizeof out);
  out.state = *start;
  out.state.rip = rip;
  return out;
}

static inline void fill_counting(ls_state *state) {
  fill_x87(state);
  state->rflags |= RFLAGS_DF | RFLAGS_AC;
  state->gpr[LS_RCX] = 0;
  state->gpr[LS_RDX] = 0;
}

/* Is it the state of COUNTING, begun from `start`, and not before `count`? */
static inline void check_counting(const char *name, const ls_state *start, const ls_state *got,
                                  uint64_t count) {
  ls_state expected = *start;
  uint64_t rcx = got->gpr[LS_RCX];
  if (rcx < count)
    fail_msg("%s: back from %lu to %lu", name, (unsigned long)count, (unsigned long)rcx);
  expected.gpr[LS_RCX] = rcx;
  expected.gpr[LS_RDX] = rcx - (got->rip == CODE + SECOND);
  expected.rip = got->rip;
  if (got->rip != CODE && got->rip != CODE + SECOND && got->rip != CODE + JUMP)
    fail_msg("%s: at 0x%lx", name, (unsigned long)got->rip);
  same_state(name, &expected, got);
}

/* Where the threads share one core, a round takes a time slice: then fewer must do. */
static inline bool patient(time_t since) {
  return time(NULL) - since < PATIENCE;
}

/* Lets COUNTING be interrupted `rounds` times, or for as long as we are patient. */
static inline void count_interrupted(const char *name, guest *g, const ls_state *from, uint32_t uses,
                                     unsigned rounds) {
  time_t since = time(NULL);
  ls_outcome out = outcome_of(from, CODE);
  unsigned done = 0, progress = 0;
  for (; done < rounds && (done % 64 || patient(since)); done++) {
    uint64_t count = out.state.gpr[LS_RCX];
    go_on(g, uses, 0, &out);
    same_kind(name, &out, LS_STOP_INTERRUPTED);
    check_counting(name, from, &out.state, count);
    progress += out.state.gpr[LS_RCX] > count;
  }
  if (!progress)
    fail_msg("%s: the guest never got anywhere", name);
  if (done < rounds)
    print_message("%s: only %u of %u rounds on this machine\n", name, done, rounds);
}

#define WITH_RINGERS(test)          cmocka_unit_test_teardown(test, tear_down)
#define WITH_RINGERS_OF(part, test) PART(part, test, NULL, tear_down)

#endif

/* Samples that come more often than the kernel looks at timers of CPU time: by a timer that is exact, where
 * its rings cost little, and else with weights. What they are said to cost is set here, so that both ways are
 * gone on every machine. In the thread. */
#include <errno.h>

#include "controlled.h"
#include "signal/timer.h"

enum { RATE = 1000, PERIODS = 60, CHEAP_NS = 1 };

#define DEAR_NS UINT64_MAX
#define LOOP    "1 48ff03; 2 eb00 >1!" /* counts the first cell */

typedef struct tally {
  uint64_t samples, weight;
} tally;

static void count_sample(const ls_sample *sample, void *context) {
  tally *t = context;
  t->samples++;
  t->weight += sample->weight;
}

static guest *sampled(tally *t, const char *text) {
  guest *g = guest_open(NULL);
  load(g, text);
  must(ls_sample_start(g->controller, RATE, count_sample, t, 0, &error));
  return g;
}

/* As long as PERIODS periods are, of CPU time. */
static void run_on(guest *g) {
  assert_int_equal(run_limited(g, 1, (ls_limits){.limit_ms = PERIODS})->kind, LS_STOP_TIMEOUT);
}

/* Of the guest's time by the clock that its limit goes by: no more than a tick or two can be missing, or what
 * a tick can be late by too much. */
static void is_complete(const tally *t) {
  print_message("  %llu samples, weight %llu\n", (unsigned long long)t->samples,
                (unsigned long long)t->weight);
  if (t->weight < PERIODS / 2 || t->weight > PERIODS * 2)
    fail_msg("of %d periods %llu were sampled", PERIODS, (unsigned long long)t->weight);
}

/* ---- What a timer can do here ---- */

static volatile sig_atomic_t rings, overruns;

static void count_ring(int sig, siginfo_t *info, void *context) {
  (void)sig;
  (void)context;
  rings++;
  overruns += info->si_overrun;
}

static uint64_t nanoseconds(clockid_t clock) {
  struct timespec now;
  assert_int_equal(clock_gettime(clock, &now), 0);
  return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

/* The share of its periods at which a timer of the kernel's rings that nobody has to do with, in percent:
 * where clock interrupts come late, several are one ring (half of them in an emulator whose CPU others want
 * too). */
static uint64_t share_of_a_bare_timer(void) {
  struct sigaction action = {.sa_sigaction = count_ring, .sa_flags = SA_SIGINFO | SA_RESTART}, before;
  struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGALRM};
  const struct itimerspec period = {{0, 1000000}, {0, 1000000}};
  timer_t timer;
  rings = overruns = 0;
  sigaction(SIGALRM, &action, &before);
  assert_int_equal(timer_create(CLOCK_MONOTONIC, &event, &timer), 0);
  assert_int_equal(timer_settime(timer, 0, &period, NULL), 0);
  for (uint64_t end = nanoseconds(CLOCK_MONOTONIC) + PERIODS * UINT64_C(1000000);
       nanoseconds(CLOCK_MONOTONIC) < end;) {
  }
  timer_delete(timer);
  sigaction(SIGALRM, &before, NULL);
  return 100 * (uint64_t)rings / (uint64_t)(rings + overruns + !rings);
}

/* Of the periods that passed, samples came at two thirds of those at which a timer can ring. */
static void are_nearly_all(const tally *t) {
  uint64_t share = 100;
  for (unsigned i = 0; i < 4 && t->samples * 300 < t->weight * 2 * share; i++) {
    uint64_t bare = share_of_a_bare_timer();
    share = bare < share ? bare : share;
  }
  if (t->samples * 300 < t->weight * 2 * share)
    fail_msg("%llu samples for %llu periods, of which a timer sees %llu %%", (unsigned long long)t->samples,
             (unsigned long long)t->weight, (unsigned long long)share);
}

/* ---- Tests ---- */

/* Among them ones that are late, since the CPU was somebody else's. */
static void a_thousand_are_a_thousand(void **unused) {
  (void)unused;
  tally t = {0};
  timer_ring_ns = CHEAP_NS;
  run_on(sampled(&t, LOOP));
  is_complete(&t);
  are_nearly_all(&t);
}

static void dear_rings_are_fewer(void **unused) {
  (void)unused;
  struct timespec coarse;
  tally t = {0};
  timer_ring_ns = DEAR_NS;
  run_on(sampled(&t, LOOP));
  is_complete(&t);
  assert_int_equal(clock_getres(CLOCK_MONOTONIC_COARSE, &coarse), 0);
  assert_true(t.samples < t.weight);
  assert_true(t.samples * (uint64_t)coarse.tv_nsec <= 2 * t.weight * 1000000);
}

static void their_cost_is_measured_once(void **unused) {
  (void)unused;
  tally t = {0};
  timer_ring_ns = 0;
  guest *g = guest_open(NULL);
  load(g, LOOP);
  run_on(g);
  assert_int_equal(timer_ring_ns, 0);
  must(ls_sample_start(g->controller, LS_SAMPLE_RATE_MIN, count_sample, &t, 0, &error));
  run_on(g);
  assert_int_equal(timer_ring_ns, 0);
  must(ls_sample_start(g->controller, RATE, count_sample, &t, 0, &error));
  run_on(g);
  uint64_t cost = timer_ring_ns;
  print_message("  a ring: %llu ns\n", (unsigned long long)cost);
  assert_true(cost > 0);
  t = (tally){0};
  must(ls_sample_start(g->controller, RATE, count_sample, &t, 0, &error));
  run_on(g);
  is_complete(&t);
  assert_int_equal(timer_ring_ns, cost);
}

static unsigned sleeps_cut_short(unsigned count) {
  unsigned cut = 0;
  while (count--)
    cut += nanosleep(&(struct timespec){.tv_nsec = 3000000}, NULL) != 0;
  return cut;
}

/* Between runs it rings once, and no more; and again in the next run. */
static void who_sleeps_is_not_woken(void **unused) {
  (void)unused;
  tally t = {0};
  timer_ring_ns = CHEAP_NS;
  guest *g = sampled(&t, LOOP);
  for (int i = 0; i < 3; i++) {
    t = (tally){0};
    run_on(g);
    is_complete(&t);
    are_nearly_all(&t);
    assert_true(sleeps_cut_short(10) <= 1);
  }
}

/* Of runs that are shorter than a period, as much as is theirs: the loop takes ten microseconds and more, the
 * host next to nothing. */
static void short_runs_are_sampled(void **unused) {
  (void)unused;
  tally t = {0};
  timer_ring_ns = CHEAP_NS;
  guest *g = sampled(&t, "1 b910270000; 2 ffc9; 3 7500 >2");
  while (t.samples < PERIODS)
    assert_int_equal(run(g, 1)->kind, LS_STOP_EXIT);
  are_nearly_all(&t);
}

/* The timers are the thread's: a run without samples after one with them has the coarse one alone. */
static void others_are_not_sampled(void **unused) {
  (void)unused;
  tally t = {0};
  timer_ring_ns = CHEAP_NS;
  guest *g = sampled(&t, LOOP), *other = guest_open(NULL);
  load(other, LOOP);
  run_on(g);
  uint64_t samples = t.samples;
  run_on(other);
  assert_int_equal(t.samples, samples);
  run_on(g);
  assert_true(t.samples > samples);
  must(ls_sample_stop(g->controller, &error));
  samples = t.samples;
  run_on(g);
  assert_int_equal(t.samples, samples);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      TEST(a_thousand_are_a_thousand), TEST(dear_rings_are_fewer),   TEST(their_cost_is_measured_once),
      TEST(who_sleeps_is_not_woken),   TEST(short_runs_are_sampled), TEST(others_are_not_sampled),
  };
  kind = LS_SIGNAL;
  return run_chosen("in thread", tests, sizeof tests / sizeof *tests, NULL, NULL);
}

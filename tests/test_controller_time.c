/* Controllers: a run is charged with the guest's CPU time, not with what others do meanwhile in the guest's
 * thread. */
#include <time.h>

#include "child.h"
#include "related.h"

enum { LIMIT_MS = 80, MS = 1000000 };

static uint64_t clock_ns(clockid_t clock) {
  struct timespec now;
  assert_int_equal(clock_gettime(clock, &now), 0);
  return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

typedef struct burner {
  uint64_t burnt; /* ns of this thread's CPU time */
  uint64_t weight;
  unsigned calls;
} burner;

/* Most of the time from one of the kernel's clock interrupts to the next. */
static void burn(const ls_sample *sample, void *context) {
  enum { EACH_MS = 3 };
  burner *b = context;
  uint64_t begun = clock_ns(CLOCK_THREAD_CPUTIME_ID), now = begun;
  b->weight += sample->weight;
  while (now - begun < EACH_MS * MS)
    now = clock_ns(CLOCK_THREAD_CPUTIME_ID);
  b->burnt += now - begun;
  b->calls++;
}

static void sample_callbacks_are_not_charged(void **unused) {
  (void)unused;
  burner b = {0};
  guest *g = guest_open(NULL);
  load(g, "1 48ffc0; 2 eb00 >1!");
  run_limited(g, 1, (ls_limits){.limit_ms = 1}); /* the child is there */
  clockid_t clock = CLOCK_THREAD_CPUTIME_ID;
  must(ls_sample_start(g->controller, LS_SAMPLE_RATE_MAX, burn, &b, 0, &error));
  run_limited(g, 1, (ls_limits){.limit_ms = 1});
  if (kind == LS_PTRACE)
    assert_int_equal(clock_getcpuclockid(only_child(), &clock), 0);
  b = (burner){0};
  uint64_t begun = clock_ns(clock);
  assert_int_equal(run_limited(g, 1, (ls_limits){.limit_ms = LIMIT_MS})->kind, LS_STOP_TIMEOUT);
  uint64_t used = clock_ns(clock) - begun - (kind == LS_SIGNAL ? b.burnt : 0);
  print_message("  %u callbacks, %llu us for them, %llu us for the guest, weight %llu\n", b.calls,
                (unsigned long long)b.burnt / 1000, (unsigned long long)used / 1000,
                (unsigned long long)b.weight);
  assert_true(b.calls > 3);
  if (used < (LIMIT_MS - 1) * UINT64_C(1) * MS)
    fail_msg("timed out after %llu us of its own", (unsigned long long)used / 1000);
  if (b.weight > used * 3 / 2 / MS) /* periods of 1 ms */
    fail_msg("samples of %llu ms in %llu us", (unsigned long long)b.weight, (unsigned long long)used / 1000);
}

static void steps_are_charged(void **unused) {
  (void)unused;
  guest *g = guest_open(NULL);
  load(g, "1 48ffc0; 2 eb00 >1!");
  must(ls_pause(g->controller, &error));
  start_limited(g, 1, (ls_limits){.limit_ms = LIMIT_MS});
  assert_int_equal(ls_step(g->controller, UINT64_C(1) << 40, &error), LS_ERR_IDLE);
  assert_int_equal(finish(g)->kind, LS_STOP_TIMEOUT);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      TEST(sample_callbacks_are_not_charged),
      TEST(steps_are_charged),
  };
  return RUN_BOTH(tests);
}

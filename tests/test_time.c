/* Whose CPU time counts: a run is charged with its own only, in both executors, however many ran before it.
 */
#include <time.h>

#include "child.h"
#include "must.h"
#include "places.h"
#include "raw.h"

enum { SLOT = 11, MS = 1000000, TICK_MS = 1, LIMIT_MS = 20 };

static ls_executor *executor;

static uint64_t clock_ns(clockid_t clock) {
  struct timespec now;
  assert_int_equal(clock_gettime(clock, &now), 0);
  return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* Of the thread or the child that runs the guest. */
static clockid_t clock_of(ls_kind kind) {
  clockid_t clock = CLOCK_THREAD_CPUTIME_ID;
  if (kind == LS_PTRACE)
    assert_int_equal(clock_getcpuclockid(only_child(), &clock), 0);
  return clock;
}

static void load(ls_image *image, const void *code, size_t size) {
  static ls_instruction pieces[RAW_PIECES];
  const ls_program program = raw_program(code, size, pieces);
  must(ls_image_build(image, &program, &layout, &error));
  must(ls_executor_load(executor, image, &error));
}

static ls_stop_kind run(uint64_t count, uint64_t steps, uint32_t limit_ms) {
  static ls_state state;
  static ls_outcome outcome;
  ls_state_init(&state);
  state.gpr[LS_RCX] = count;
  state.gpr[LS_RSP] = S + 0x800;
  must(ls_executor_run(executor, &(ls_run){.state = &state, .steps = steps, .limit_ms = limit_ms}, &outcome,
                       &error));
  return outcome.stop.kind;
}

/* A limit of many such runs, however slow the machine is, and of a tick at least. */
static uint32_t limit_of_many(clockid_t clock, uint64_t count, uint64_t steps) {
  enum { MEASURED = 64, MANY = 16 };
  uint64_t from = clock_ns(clock);
  for (unsigned i = 0; i < MEASURED; i++)
    assert_int_equal(run(count, steps, 0), LS_STOP_EXIT);
  return TICK_MS + (uint32_t)((clock_ns(clock) - from) * MANY / MEASURED / MS);
}

/* Runs of some microseconds, whose limit is two or three of the kernel's clock interrupts, until the timer
 * has rung some dozen times. Most rings meet the way in or out; a few meet a guest. A run may time out only
 * if it took that long itself, as where a hypervisor stopped it. */
static void short_runs(ls_kind kind, uint64_t steps) {
  enum { COUNT = 10000, RINGS = 12, INTERRUPT_MS = 10 };
  const uint64_t count = steps ? 3 : COUNT;
  clockid_t clock = clock_of(kind);
  const uint32_t limit_ms = limit_of_many(clock, count, steps);
  uint64_t now = clock_ns(clock), end = now + UINT64_C(1) * RINGS * INTERRUPT_MS * limit_ms * MS;
  for (unsigned runs = 0; now < end; runs++) {
    uint64_t before = now;
    ls_stop_kind got = run(count, steps, limit_ms);
    now = clock_ns(clock);
    if (got != LS_STOP_EXIT && (got != LS_STOP_TIMEOUT || now - before < UINT64_C(1) * limit_ms * MS))
      fail_msg("run %u of a few microseconds: %s after %llu ns of %u ms", runs, ls_stop_kind_name(got),
               (unsigned long long)(now - before), limit_ms);
  }
}

/* Never less than the limit, whatever was used by those before. A tick can be late by itself. Nor much more,
 * however many ticks were missed, if the machine is not taken away meanwhile: the best of some counts. */
static void endless_runs(ls_kind kind, uint64_t steps) {
  enum { RUNS = 4, MOST_MS = 2 * LIMIT_MS + 10 };
  uint64_t least = UINT64_MAX;
  for (unsigned i = 0; i < RUNS || (least > MOST_MS * MS && i < 4 * RUNS); i++) {
    clockid_t clock = clock_of(kind);
    uint64_t before = clock_ns(clock);
    assert_int_equal(run(0, steps, LIMIT_MS), LS_STOP_TIMEOUT);
    uint64_t used = clock_ns(clock) - before;
    if (used < (LIMIT_MS - TICK_MS) * MS)
      fail_msg("timed out after %llu ns of its own", (unsigned long long)used);
    least = used < least ? used : least;
  }
  if (least > MOST_MS * MS)
    fail_msg("none timed out before %llu ns of its own", (unsigned long long)least);
}

static void check_kind(ls_kind kind) {
  ls_image *image = ls_image_create();
  must(ls_executor_create(kind, &layout, &(ls_options){.tick_ms = TICK_MS}, &executor, &error));
  load(image, "\x48\xff\xc9\x75\xfb", 5); /* dec rcx; jnz */
  run(1, 0, 0);
  short_runs(kind, 0);
  if (kind == LS_PTRACE)
    short_runs(kind, 1000);
  endless_runs(kind, 0);
  endless_runs(kind, UINT64_MAX);
  short_runs(kind, 0);
  ls_executor_destroy(executor);
  ls_image_destroy(image);
}

static void own_time_only(void **unused) {
  (void)unused;
  for (int kind = LS_SIGNAL; kind <= LS_PTRACE; kind++)
    if (is_wanted((ls_kind)kind))
      check_kind((ls_kind)kind);
}

int main(void) {
  ls_layout_default(&layout, SLOT);
  const struct CMUnitTest tests[] = {cmocka_unit_test(own_time_only)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}

/* Interrupting a guest of the reference from other threads, and going on with it: what executor.h asks of an
 * executor beyond a single run from one thread. */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "check.h"
#include "executor.h"
#include "flags.h"
#include "processes.h"
#include "raw.h"

enum { SLOT = 12, DEADLINE_S = 60 };
enum { CODE, DATA, CONSTANTS, STACK };

#define MS UINT64_C(1000000)
#define D  (layout.windows[DATA].address)
#define S  (layout.windows[STACK].address)
#define X  (layout.windows[CODE].address)

static ls_layout layout;
static ls_executor *executor;
static ls_image *image;
static ls_error error;
static ls_outcome outcome;

/* ---- Helpers ------------------------------------------------------------------------------------------ */

static void must(ls_status status) {
  if (status)
    fail_msg("%s: %s", ls_status_name(status), error.text);
}

static uint64_t nanoseconds(clockid_t clock) {
  struct timespec now;
  assert_int_equal(clock_gettime(clock, &now), 0);
  return (uint64_t)now.tv_sec * 1000 * MS + (uint64_t)now.tv_nsec;
}

static bool too_late(uint64_t since) {
  return nanoseconds(CLOCK_MONOTONIC) - since > DEADLINE_S * 1000 * MS;
}

static uint64_t mix(uint64_t x) {
  x *= UINT64_C(0x9e3779b97f4a7c15);
  return x ^ (x >> 29);
}

static void load(const char *code, size_t size) {
  static ls_instruction pieces[RAW_PIECES];
  const ls_program program = raw_program(code, size, pieces);
  must(ls_image_build(image, &program, &layout, &error));
  must(ls_executor_load(executor, image, &error));
  executor->time_left = TIME_ENDLESS;
}

#define LOAD(code) load(code, sizeof code - 1)

static _Atomic uint64_t segments; /* begun */

static ls_stop_kind go(const ls_run *run, uint64_t address) {
  segments++;
  must(executor_go(executor, run, address, &outcome, &error));
  return outcome.stop.kind;
}

/* Goes on in place, at the RIP that was left. */
static ls_stop_kind go_on(uint64_t steps) {
  return go(&(ls_run){.state = &outcome.state, .uses = LS_USES_X87, .steps = steps}, outcome.state.rip);
}

/* A value of its own in every register, lane and byte that the CPU loads. */
static void fill_state(ls_state *s, uint64_t seed) {
  ls_state_init(s);
  for (unsigned i = 0; i < offsetof(ls_state, rip); i += 8) {
    uint64_t lane = mix(mix(seed) + i);
    memcpy((uint8_t *)s + i, &lane, sizeof lane);
  }
  for (unsigned i = 0; i < 8; i++)
    memcpy(s->st[i], &s->zmm[i + 3][5], 10);
  s->gpr[LS_RSP] = 0x123456789abd;
  s->rflags = RFLAGS_CLEAN | (mix(seed + 1) & RFLAGS_USER & ~(uint64_t)(RFLAGS_TF | RFLAGS_NT));
  s->ds = 0x2b;
  s->es = 0x33;
  s->mxcsr = 0x1f80 ^ (mix(seed + 2) & 0xe07f);
  s->fcw = (uint16_t)(0x7f | (mix(seed + 3) & 0xf00));
  s->fsw = (uint16_t)(mix(seed + 4) & 0x7f7f & ~0x80u);
  s->ftw = (uint8_t)mix(seed + 5);
}

static void check_state(const char *name, const ls_state *expected, const ls_state *got) {
  static ls_state a, b;
  a = *expected, b = *got;
  ls_state_canonicalise(&a);
  ls_state_canonicalise(&b);
  size_t row = 0, count;
  if (!ls_state_difference(&a, &b, &row))
    return;
  const ls_register *r = &ls_registers(&count)[row];
  char x[256], y[256];
  ls_register_print(r, &a, x, sizeof x);
  ls_register_print(r, &b, y, sizeof y);
  fail_msg("%s: %s: expected %s, got %s", name, r->name, x, y);
}

static void set_tick(uint64_t ns) {
  executor->tick_ns = ns;
  executor->ops->changed(executor);
}

static pid_t only_child(void) {
  pid_t pid = 0;
  assert_int_equal(process_children(getpid(), &pid), 1);
  return pid;
}

/* ---- Somebody else who rings -------------------------------------------------------------------------- */

static struct {
  pthread_t thread;
  uint32_t longest; /* random part of the pause before a ring, in turns of an empty loop */
  _Atomic int64_t pause;
  bool rings;
  _Atomic bool stop;
} ringer;

static void call_guest(void) {
  *executor->attention = 1;
  executor->ops->interrupt(executor, 0);
}

/* Once in each segment, at a random moment. */
static void *ring(void *unused) {
  (void)unused;
  for (uint64_t n = 0; !ringer.stop;) {
    if (n == segments)
      continue;
    n = segments;
    for (volatile int64_t i = ringer.pause + (int64_t)(mix(n) % ringer.longest); i > 0; i--) {
    }
    call_guest();
  }
  return NULL;
}

/* Whether there is anything to ask for or not. */
static void *ring_all_the_time(void *unused) {
  (void)unused;
  for (uint64_t n = 1; !ringer.stop; n++) {
    *executor->attention = mix(n) >> 7 & 1;
    executor->ops->interrupt(executor, 0);
  }
  return NULL;
}

static void start_ringing(void *(*how)(void *), uint32_t longest) {
  ringer.longest = longest;
  ringer.pause = 0;
  ringer.stop = false;
  assert_int_equal(pthread_create(&ringer.thread, NULL, how, NULL), 0);
  ringer.rings = true;
}

static void stop_ringing(void) {
  if (!ringer.rings)
    return;
  ringer.stop = true;
  pthread_join(ringer.thread, NULL);
  ringer.rings = false;
  *executor->attention = 0;
}

/* ---- Around each test ---------------------------------------------------------------------------------- */

static int setup(void **unused) {
  (void)unused;
  ls_layout_default(&layout, SLOT);
  must(ls_executor_create(LS_PTRACE, &layout, NULL, &executor, &error));
  image = ls_image_create();
  return 0;
}

static int teardown(void **unused) {
  (void)unused;
  stop_ringing();
  ls_executor_destroy(executor);
  ls_image_destroy(image);
  executor = NULL;
  return 0;
}

/* ---- Endless guests ----------------------------------------------------------------------------------- */

/* lea r15, [r15+1]; lea r14, [r14+3]; jmp to the start: no flag changes, and the two registers and RIP say
 * whether every instruction was executed just once. */
#define COUNTING "\x4d\x8d\x7f\x01\x4d\x8d\x76\x03\xeb\xf6"

static bool check_counting(const ls_state *start, ls_state *expected) {
  const ls_state *got = &outcome.state;
  uint64_t at = got->rip - X;
  if (at != 0 && at != 4 && at != 8)
    fail_msg("stopped at %#llx", (unsigned long long)got->rip);
  uint64_t ones = got->gpr[LS_R15] - start->gpr[LS_R15], threes = got->gpr[LS_R14] - start->gpr[LS_R14];
  assert_int_equal(threes, 3 * (ones - (at == 4)));
  assert_true(ones >= expected->gpr[LS_R15] - start->gpr[LS_R15]);
  bool moved = got->gpr[LS_R15] != expected->gpr[LS_R15];
  expected->gpr[LS_R15] = got->gpr[LS_R15];
  expected->gpr[LS_R14] = got->gpr[LS_R14];
  expected->rip = got->rip;
  check_state("counting", expected, got);
  return moved;
}

/* Interrupts and goes on until `times` segments have executed something. */
static void interrupt_counting(const ls_state *from, uint64_t steps, uint32_t longest, unsigned times) {
  static ls_state start, expected;
  start = expected = outcome.state = *from;
  outcome.state.rip = X;
  LOAD(COUNTING);
  set_tick(20000 * MS); /* rings alone interrupt it; should none come, it times out */
  executor->time_left = steps ? TIME_ENDLESS : 1;
  start_ringing(ring, longest);
  uint64_t since = nanoseconds(CLOCK_MONOTONIC);
  for (unsigned moved = 0; moved < times;) {
    assert_int_equal(go_on(steps), LS_STOP_INTERRUPTED);
    assert_int_equal(outcome.stop.signal, 0);
    assert_int_equal(outcome.stop.instruction, 0);
    moved += check_counting(&start, &expected);
    assert_int_equal(outcome.touched, 0);
    assert_false(too_late(since));
    *executor->attention = 0;
  }
  stop_ringing();
}

static void test_endless(void **unused) {
  (void)unused;
  static ls_state s;
  for (unsigned seed = 0; seed < 8; seed++) {
    fill_state(&s, seed);
    interrupt_counting(&s, 0, 100000, 300);
  }
}

/* RSP is nobody's business on the way out. */
static void test_garbage_rsp(void **unused) {
  (void)unused;
  static ls_state s;
  static const uint64_t garbage[] = {0, 3, 0x7fffffffffff, 0xffffffff80000001};
  for (unsigned i = 0; i < sizeof garbage / sizeof *garbage; i++) {
    fill_state(&s, 100 + i);
    s.gpr[LS_RSP] = garbage[i];
    interrupt_counting(&s, 0, 100000, 50);
  }
}

static void test_steps_endless(void **unused) {
  (void)unused;
  static ls_state s;
  fill_state(&s, 200);
  interrupt_counting(&s, UINT64_MAX, 1000000, 200);
}

/* What a segment touched is told from its own start, which is where the outcome goes. fld1; jmp self */
static void test_x87_in_place(void **unused) {
  (void)unused;
  static ls_state s;
  fill_state(&s, 250);
  outcome.state = s;
  set_tick(2 * MS);
  executor->sampling = true;
  LOAD("\xd9\xe8\xeb\xfe");
  assert_int_equal(go(&(ls_run){.state = &outcome.state}, X), LS_STOP_INTERRUPTED);
  assert_int_equal(outcome.touched, LS_USES_X87);
  s.rip = X + 2;
  check_state("x87 in place", &s, &outcome.state);
}

/* jmp far [rbx] into 32-bit code: inc edi; lea esi, [esi+3]; jmp to the former. */
static void test_32_bit_code(void **unused) {
  (void)unused;
  ls_state_init(&outcome.state);
  outcome.state.rip = X;
  outcome.state.gpr[LS_RBX] = D;
  outcome.state.gpr[LS_RSP] = S + 0x800;
  const struct {
    uint32_t offset;
    uint16_t selector;
  } pointer = {(uint32_t)X + 2, 0x23};
  memcpy(ls_executor_memory(executor, DATA), &pointer, 6);
  LOAD("\xff\x2b\x47\x8d\x76\x03\xeb\xfa");
  start_ringing(ring, 100000);
  uint64_t since = nanoseconds(CLOCK_MONOTONIC), last = 0;
  for (unsigned inside = 0; inside < 300;) {
    assert_int_equal(go_on(inside % 3 ? 0 : 100000), LS_STOP_INTERRUPTED);
    const ls_state *s = &outcome.state;
    if (s->rip != X) {
      assert_int_equal(s->cs, 0x23);
      assert_int_equal((uint32_t)s->gpr[LS_RSI], (uint32_t)(3 * (s->gpr[LS_RDI] - (s->rip == X + 3))));
      inside += s->gpr[LS_RDI] > last;
      last = s->gpr[LS_RDI];
    }
    assert_int_equal(s->gpr[LS_RSP], S + 0x800);
    assert_false(too_late(since));
    *executor->attention = 0;
  }
  stop_ringing();
}

/* ---- Before, after, and on the way -------------------------------------------------------------------- */

/* mov [rbx], rax */
static void test_before(void **unused) {
  (void)unused;
  static ls_state s;
  fill_state(&s, 300);
  s.gpr[LS_RBX] = D;
  s.rip = X + 1000; /* not what counts */
  LOAD("\x48\x89\x03");
  uint64_t *cell = ls_executor_memory(executor, DATA);
  for (uint64_t steps = 0; steps <= 5; steps += 5) {
    *cell = 0;
    *executor->attention = 1;
    ls_state expected = s;
    expected.rip = X;
    assert_int_equal(go(&(ls_run){.state = &s, .uses = LS_USES_X87, .steps = steps}, X), LS_STOP_INTERRUPTED);
    check_state("before", &expected, &outcome.state);
    assert_int_equal(outcome.touched, 0);
    assert_int_equal(go_on(steps), LS_STOP_INTERRUPTED);
    check_state("before, in place", &expected, &outcome.state);
    assert_int_equal(*cell, 0);
    *executor->attention = 0;
    assert_int_equal(go_on(steps), LS_STOP_EXIT);
    assert_int_equal(*cell, s.gpr[LS_RAX]);
  }
}

/* Rings that nobody hears, or that are no longer meant: the runs are as if there had been none. */
static void test_in_vain(void **unused) {
  (void)unused;
  static ls_state s;
  fill_state(&s, 400);
  pid_t pid = only_child();
  LOAD("\x48\xff\xc0"); /* inc rax */
  for (unsigned i = 0; i < 500; i++) {
    executor->ops->interrupt(executor, 0);
    call_guest();
    *executor->attention = 0;
    kill(pid, SIGURG);
    assert_int_equal(go(&(ls_run){.state = &s, .uses = LS_USES_X87, .steps = i % 2 * 9}, X), LS_STOP_EXIT);
    assert_int_equal(outcome.state.gpr[LS_RAX], s.gpr[LS_RAX] + 1);
  }
  assert_int_equal(only_child(), pid);
}

static void *ring_in_vain(void *context) {
  const pid_t *pid = context;
  for (unsigned i = 0; i < 300; i++) {
    kill(*pid, SIGURG);
    usleep(100);
  }
  return NULL;
}

static void test_in_vain_while_running(void **unused) {
  (void)unused;
  static ls_state s, expected;
  fill_state(&s, 500);
  LOAD(COUNTING);
  pid_t pid = only_child();
  pthread_t thread;
  pthread_create(&thread, NULL, ring_in_vain, &pid);
  executor->time_left = 200 * MS;
  expected = s;
  assert_int_equal(go(&(ls_run){.state = &s, .uses = LS_USES_X87}, X), LS_STOP_TIMEOUT);
  check_counting(&s, &expected);
  pthread_join(thread, NULL);
}

/* ---- Guests that end by themselves -------------------------------------------------------------------- */

static const struct guest {
  const char *code;
  size_t size;
  uint64_t steps; /* 0: run through */
  bool homing;
} guests[] = {
#define GUEST(bytes, ...)                                                                                    \
  { .code = bytes, .size = sizeof bytes - 1, __VA_ARGS__ }
    GUEST("\x90", .homing = true),
    /* mov [rbx], rax; add rax, rdx; adc [rbx+8], rax; addps xmm1, xmm2; inc [rbx+16] */
    GUEST("\x48\x89\x03\x48\x01\xd0\x48\x11\x43\x08\x0f\x58\xca\x48\xff\x43\x10", .homing = true),
    /* mov ecx, 3000; mov rdi, rbx; rep stosb; mov ecx, 200; 1: imul rax, rdx; add [rbx], rax; dec ecx; jnz 1b
     */
    GUEST("\xb9\xb8\x0b\0\0\x48\x89\xdf\xf3\xaa\xb9\xc8\0\0\0\x48\x0f\xaf\xc2\x48\x01\x03\xff\xc9\x75\xf5",
          .steps = 0),
    /* mov ecx, 16000; 1: dec ecx; jnz 1b: longer than it takes a ring to arrive */
    GUEST("\xb9\x80\x3e\0\0\xff\xc9\x75\xfc", .homing = true),
    /* the third for a million: interrupted in the loop for certain */
    GUEST(
        "\xb9\xb8\x0b\0\0\x48\x89\xdf\xf3\xaa\xb9\x40\x42\x0f\0\x48\x0f\xaf\xc2\x48\x01\x03\xff\xc9\x75\xf5",
        .steps = 0),
    /* pushf; popf; push rax; mov ecx, 20; mov rdi, rbx; rep stosb; pushf; pop [rbx+64]; fld1; fstp [rbx+80]
     */
    GUEST("\x9c\x9d\x50\xb9\x14\0\0\0\x48\x89\xdf\xf3\xaa\x9c\x8f\x43\x40\xd9\xe8\xdd\x5b\x50",
          .steps = 10000),
};

enum { GUESTS = sizeof guests / sizeof *guests };

static int count_step(const ls_state *state, void *context) {
  (void)state;
  ++*(uint64_t *)context;
  return 0;
}

static void clear_memory(void) {
  for (unsigned i = DATA; i <= STACK; i++)
    if (i != CONSTANTS)
      memset(ls_executor_memory(executor, i), 0, layout.windows[i].size);
}

typedef struct ending {
  ls_state state;
  uint64_t steps;
  uint8_t data[LS_PAGE], stack[LS_PAGE];
} ending;

/* Runs to the end, through interruptions; *interrupted counts those after the first instruction. */
static void run_to_end(const struct guest *g, const ls_state *s, ending *to, unsigned *interrupted) {
  clear_memory();
  executor->control->exit = UINT64_MAX;
  to->steps = 0;
  outcome.state = *s;
  outcome.state.rip = X;
  ls_run run = {.state = &outcome.state, .uses = LS_USES_X87, .visitor = count_step, .context = &to->steps};
  for (;;) {
    run.steps = g->steps ? g->steps - to->steps : 0;
    ls_stop_kind kind = go(&run, outcome.state.rip);
    *executor->attention = 0;
    if (g->homing) /* rings come about when the guest leaves */
      ringer.pause += kind == LS_STOP_EXIT ? -300 : 300;
    if (kind == LS_STOP_EXIT)
      break;
    assert_int_equal(kind, LS_STOP_INTERRUPTED);
    assert_int_not_equal(outcome.stop.instruction, LS_NONE); /* at the gate it is as good as out */
    *interrupted += outcome.state.rip != X;
  }
  to->state = outcome.state;
  memcpy(to->data, ls_executor_memory(executor, DATA), sizeof to->data);
  memcpy(to->stack, ls_executor_memory(executor, STACK), sizeof to->stack);
}

/* At least so many times, and until it has been interrupted `least` times. */
static unsigned hammer(const struct guest *g, unsigned times, unsigned least, uint32_t longest) {
  unsigned interrupted = 0;
  static ls_state s;
  static ending expected, got;
  fill_state(&s, 600);
  s.gpr[LS_RBX] = D;
  s.gpr[LS_RSP] = S + 0x800;
  s.rflags &= ~(uint64_t)(RFLAGS_DF | RFLAGS_AC);
  load(g->code, g->size);
  run_to_end(g, &s, &expected, &interrupted);
  start_ringing(ring, longest);
  uint64_t since = nanoseconds(CLOCK_MONOTONIC);
  for (unsigned i = 0; i < times || interrupted < least; i++) {
    assert_false(too_late(since));
    run_to_end(g, &s, &got, &interrupted);
    check_state("hammered", &expected.state, &got.state);
    assert_int_equal(got.steps, expected.steps);
    assert_memory_equal(got.data, expected.data, sizeof got.data);
    assert_memory_equal(got.stack, expected.stack, sizeof got.stack);
  }
  stop_ringing();
  return interrupted;
}

static void test_short_guests(void **unused) {
  (void)unused;
  for (unsigned i = 0; i < GUESTS; i++) {
    bool is_long = i >= 4;
    unsigned interrupted = hammer(&guests[i], is_long ? 200 : 4000, is_long ? 20 : 0,
                                  is_long            ? 50000
                                  : guests[i].homing ? 1000
                                                     : 25000);
    print_message("guest %u: interrupted %u times\n", i, interrupted);
  }
}

/* ---- Time --------------------------------------------------------------------------------------------- */

static void test_sampling(void **unused) {
  (void)unused;
  ls_state_init(&outcome.state);
  outcome.state.rip = X;
  pid_t before = only_child();
  set_tick(40 * MS);
  assert_int_equal(process_children(getpid(), &before), 0);
  executor->sampling = true;
  LOAD(COUNTING);
  for (unsigned i = 0; i < 8; i++) {
    assert_int_equal(go_on(i % 4 ? 0 : UINT64_MAX), LS_STOP_INTERRUPTED);
    assert_true(executor->sample_ticks > 0); /* more where the machine is busy */
    executor->sample_ticks = 0;
  }
  assert_int_equal(executor->time_left, TIME_ENDLESS);
  assert_int_equal(outcome.state.gpr[LS_R14] / 3, outcome.state.gpr[LS_R15] - (outcome.state.rip == X + 4));
  assert_int_not_equal(only_child(), before);
  clockid_t clock;
  assert_int_equal(clock_getcpuclockid(only_child(), &clock), 0);
  assert_true(nanoseconds(clock) > 7 * 30 * MS); /* the kernel's own ticks are up to 10 ms apart */
  executor->time_left = 140 * MS;                /* the fourth tick */
  for (unsigned i = 0; i < 3; i++)
    assert_int_equal(go_on(0), LS_STOP_INTERRUPTED);
  assert_int_equal(go_on(0), LS_STOP_TIMEOUT);
}

/* A limit holds over all segments, however short each is. */
static void check_limit(uint64_t steps, uint64_t tick, uint32_t longest, ls_stop_kind other) {
  clockid_t clock;
  set_tick(tick);
  ls_state_init(&outcome.state);
  outcome.state.rip = X;
  LOAD(COUNTING);
  executor->time_left = 1;
  go_on(1); /* makes the child */
  assert_int_equal(clock_getcpuclockid(only_child(), &clock), 0);
  uint64_t since = nanoseconds(CLOCK_MONOTONIC), used = nanoseconds(clock);
  unsigned parts = 0;
  ls_stop_kind kind;
  executor->time_left = 150 * MS;
  start_ringing(ring, longest);
  while ((kind = go_on(steps)) != LS_STOP_TIMEOUT) {
    assert_true(kind == LS_STOP_INTERRUPTED || kind == other);
    *executor->attention = 0;
    parts++;
    assert_false(too_late(since));
  }
  stop_ringing();
  assert_true(parts > 10);
  assert_in_range(nanoseconds(clock) - used, 100 * MS, 10000 * MS);
}

static void test_limit_in_segments(void **unused) {
  (void)unused;
  check_limit(0, 10 * MS, 100000, LS_STOP_INTERRUPTED);
  check_limit(5, 20000 * MS, 1000000, LS_STOP_STEPS); /* stepped runs do not need ticks */
  check_limit(UINT64_MAX, 20000 * MS, 1000000, LS_STOP_INTERRUPTED);
}

/* ---- Threads and children ----------------------------------------------------------------------------- */

static void *run_once(void *context) {
  static ls_state s;
  fill_state(&s, 700);
  ls_run run = {.state = &s, .steps = *(uint64_t *)context};
  ls_error why;
  return ls_executor_run(executor, &run, &outcome, &why) == LS_OK && outcome.stop.kind == LS_STOP_EXIT &&
                 outcome.state.gpr[LS_RAX] == s.gpr[LS_RAX] + 1
             ? context
             : NULL;
}

static void run_elsewhere(uint64_t steps) {
  pthread_t thread;
  void *result;
  assert_int_equal(pthread_create(&thread, NULL, run_once, &steps), 0);
  pthread_join(thread, &result);
  assert_ptr_equal(result, &steps);
}

/* Each thread ends before the next one runs: its child has been killed, or is about to be. */
static void test_threads_in_turn(void **unused) {
  (void)unused;
  LOAD("\x48\xff\xc0");
  uint64_t none = 0;
  for (unsigned i = 0; i < 20; i++) {
    run_elsewhere(i % 2 * 10);
    only_child();
    if (i % 3 == 0) {
      assert_non_null(run_once(&none));
      pid_t mine = only_child();
      assert_non_null(run_once(&none));
      assert_int_equal(only_child(), mine);
    }
  }
}

typedef struct creator {
  pthread_barrier_t made, done;
} creator;

static void *create_and_wait(void *context) {
  creator *c = context;
  ls_status status = ls_executor_create(LS_PTRACE, &layout, NULL, &executor, &error);
  pthread_barrier_wait(&c->made);
  pthread_barrier_wait(&c->done);
  return status ? NULL : c;
}

/* The creating thread lives and has never run it; then it has ended. */
static void test_other_creator(void **unused) {
  (void)unused;
  creator c;
  pthread_t thread;
  void *result;
  uint64_t none = 0;
  ls_executor_destroy(executor);
  pthread_barrier_init(&c.made, NULL, 2);
  pthread_barrier_init(&c.done, NULL, 2);
  assert_int_equal(pthread_create(&thread, NULL, create_and_wait, &c), 0);
  pthread_barrier_wait(&c.made);
  LOAD("\x48\xff\xc0");
  assert_non_null(run_once(&none));
  pid_t pid = only_child();
  pthread_barrier_wait(&c.done);
  pthread_join(thread, &result);
  assert_ptr_equal(result, &c);
  assert_non_null(run_once(&none));
  assert_int_equal(only_child(), pid);
  pthread_barrier_destroy(&c.made);
  pthread_barrier_destroy(&c.done);
}

static void *kill_soon(void *context) {
  usleep(20000);
  kill(*(pid_t *)context, SIGKILL);
  return NULL;
}

/* Errors leave a state that is in place as it was. */
static void check_killed(uint64_t steps) {
  static ls_state before;
  fill_state(&outcome.state, 800);
  outcome.state.rip = X;
  before = outcome.state;
  pid_t pid = only_child();
  pthread_t thread;
  pthread_create(&thread, NULL, kill_soon, &pid);
  const ls_run run = {.state = &outcome.state, .steps = steps};
  assert_int_equal(executor_go(executor, &run, X, &outcome, &error), LS_ERR_CHILD);
  pthread_join(thread, NULL);
  assert_memory_equal(&before, &outcome.state, sizeof before);
  executor->time_left = 20 * MS;
  assert_int_equal(go_on(steps), LS_STOP_TIMEOUT);
  assert_int_not_equal(only_child(), pid);
}

static void test_killed(void **unused) {
  (void)unused;
  LOAD(COUNTING);
  check_killed(0);
  executor->time_left = TIME_ENDLESS;
  check_killed(UINT64_MAX);
}

static void test_refused_state(void **unused) {
  (void)unused;
  static ls_state before;
  LOAD(COUNTING);
  for (uint64_t steps = 0; steps <= 5; steps += 5) {
    fill_state(&outcome.state, 900);
    outcome.state.mxcsr |= 1u << 31;
    before = outcome.state;
    const ls_run run = {.state = &outcome.state, .steps = steps};
    assert_int_equal(executor_go(executor, &run, X, &outcome, &error), LS_ERR_STATE);
    assert_memory_equal(&before, &outcome.state, sizeof before);
  }
}

static void test_changed_under_rings(void **unused) {
  (void)unused;
  static ls_state s;
  fill_state(&s, 1000);
  LOAD("\x48\xff\xc0");
  start_ringing(ring_all_the_time, 0);
  for (unsigned i = 0; i < 100; i++) {
    ls_stop_kind kind = go(&(ls_run){.state = &s}, X);
    assert_true(kind == LS_STOP_EXIT || kind == LS_STOP_INTERRUPTED);
    uint64_t more = outcome.state.gpr[LS_RAX] - s.gpr[LS_RAX];
    assert_int_equal(more, kind == LS_STOP_EXIT || outcome.state.rip != X);
    executor->ops->changed(executor);
    pid_t pid;
    assert_int_equal(process_children(getpid(), &pid), 0);
  }
  stop_ringing();
}

static void *change(void *unused) {
  (void)unused;
  executor->ops->changed(executor);
  return NULL;
}

/* The code window moves; said by another thread. */
static void test_moved_code(void **unused) {
  (void)unused;
  static ls_state s;
  fill_state(&s, 1100);
  LOAD("\x48\xff\xc0");
  assert_int_equal(go(&(ls_run){.state = &s}, X), LS_STOP_EXIT);
  layout.windows[CODE].address += 0x20000;
  executor->box.layout = layout;
  pthread_t thread;
  pthread_create(&thread, NULL, change, NULL);
  pthread_join(thread, NULL);
  LOAD("\x48\xff\xc0");
  assert_int_equal(go(&(ls_run){.state = &s}, X), LS_STOP_EXIT);
  assert_int_equal(outcome.state.gpr[LS_RAX], s.gpr[LS_RAX] + 1);
  only_child();
}

#define WITH_EXECUTOR(test) cmocka_unit_test_setup_teardown(test, setup, teardown)

int main(void) {
  ls_layout_default(&layout, SLOT);
  int failed = find_reference(&layout);
  if (failed)
    return failed;
  const struct CMUnitTest tests[] = {
      WITH_EXECUTOR(test_endless),           WITH_EXECUTOR(test_garbage_rsp),
      WITH_EXECUTOR(test_steps_endless),     WITH_EXECUTOR(test_x87_in_place),
      WITH_EXECUTOR(test_32_bit_code),       WITH_EXECUTOR(test_before),
      WITH_EXECUTOR(test_in_vain),           WITH_EXECUTOR(test_in_vain_while_running),
      WITH_EXECUTOR(test_short_guests),      WITH_EXECUTOR(test_sampling),
      WITH_EXECUTOR(test_limit_in_segments), WITH_EXECUTOR(test_threads_in_turn),
      WITH_EXECUTOR(test_other_creator),     WITH_EXECUTOR(test_killed),
      WITH_EXECUTOR(test_refused_state),     WITH_EXECUTOR(test_changed_under_rings),
      WITH_EXECUTOR(test_moved_code),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}

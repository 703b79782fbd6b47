/* Interrupting a guest of the reference from other threads, and going on with it: what executor.h asks of an
 * executor beyond a single run. */
#include "ptrace_attention.h"

/* ---- Endless guests ----------------------------------------------------------------------------------- */

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
  same_state("counting", expected, got);
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
    fill_seeded(&s, seed);
    interrupt_counting(&s, 0, 100000, 40);
  }
}

/* RSP is nobody's business on the way out. */
static void test_garbage_rsp(void **unused) {
  (void)unused;
  static ls_state s;
  static const uint64_t garbage[] = {0, 3, 0x7fffffffffff, 0xffffffff80000001};
  for (unsigned i = 0; i < sizeof garbage / sizeof *garbage; i++) {
    fill_seeded(&s, 100 + i);
    s.gpr[LS_RSP] = garbage[i];
    interrupt_counting(&s, 0, 100000, 50);
  }
}

static void test_steps_endless(void **unused) {
  (void)unused;
  static ls_state s;
  fill_seeded(&s, 200);
  interrupt_counting(&s, UINT64_MAX, 1000000, 200);
}

/* What a segment touched is told from its own start, which is where the outcome goes. fld1; jmp self */
static void test_x87_in_place(void **unused) {
  (void)unused;
  static ls_state s;
  fill_seeded(&s, 250);
  outcome.state = s;
  set_tick(2 * MS);
  executor->sampling = true;
  LOAD("\xd9\xe8\xeb\xfe");
  assert_int_equal(go(&(ls_run){.state = &outcome.state}, X), LS_STOP_INTERRUPTED);
  assert_int_equal(outcome.touched, LS_USES_X87);
  s.rip = X + 2;
  same_state("x87 in place", &s, &outcome.state);
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
  const ls_state before = outcome.state;
  assert_int_equal(go_on(1), LS_STOP_STEPS);
  outcome.state = before;
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
  fill_seeded(&s, 300);
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
    same_state("before", &expected, &outcome.state);
    assert_int_equal(outcome.touched, 0);
    assert_int_equal(go_on(steps), LS_STOP_INTERRUPTED);
    same_state("before, in place", &expected, &outcome.state);
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
  fill_seeded(&s, 400);
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
  fill_seeded(&s, 500);
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
  fill_seeded(&s, 600);
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
    same_state("hammered", &expected.state, &got.state);
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
    unsigned interrupted = hammer(&guests[i], is_long ? 50 : 1000, is_long ? 20 : 0,
                                  is_long            ? 50000
                                  : guests[i].homing ? 1000
                                                     : 25000);
    print_message("guest %u: interrupted %u times\n", i, interrupted);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      WITH_EXECUTOR(test_endless),
      WITH_EXECUTOR(test_garbage_rsp),
      WITH_EXECUTOR(test_steps_endless),
      WITH_EXECUTOR(test_x87_in_place),
      WITH_EXECUTOR_OF("code32", test_32_bit_code),
      WITH_EXECUTOR(test_before),
      WITH_EXECUTOR(test_in_vain),
      WITH_EXECUTOR(test_in_vain_while_running),
      WITH_EXECUTOR(test_short_guests),
  };
  ls_layout_default(&layout, SLOT);
  return cmocka_run_group_tests(tests, NULL, NULL);
}

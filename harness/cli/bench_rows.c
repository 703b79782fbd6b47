/* Runs of executors: the loops. Each checks what it gets on every turn, since checking is part of what is
 * measured; a wrong result ends the benchmark. */
#include "bench_rows.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>

#include "floor.h"
#include "floor_ptrace.h"
#include "oracle/oracle.h"

enum { XSAVE_ROOM = 16384, CODE_ROOM = LS_PAGE, COMPARED = LS_PAGE - LS_CONTROL_SIZE };

/* One way to run the eight instructions: where from, and what must come out. */
typedef struct lane {
  ls_state start;
  ls_outcome outcome, expected;
  uint8_t *memory; /* the page they use, as this process sees it */
  uint8_t after[LS_PAGE];
} lane;

typedef struct bench {
  lane bare, bare_x87, thread, thread_x87, reference;
  ls_executor *in_thread, *in_child;
  ls_image *image, *image_x87, *image_fault;
  uint8_t page[LS_PAGE];
  const void *contents[LS_WINDOWS_MAX];
  void *code, *code_x87; /* for the floors */
  uint8_t *xsave, *xsave_before, *xsave_after;
  ls_vectors vectors;
  floor_area area;
  pid_t child;
  oracle *oracle;
  oracle_result verdict;
  testcase test;
  testcase_contents test_contents;
} bench;

/* Eight instructions of everyday kinds: loads, stores, integer and vector arithmetic, the stack. RSI points
 * to the page. The last is another one where x87 is to be in play. */
typedef struct machine_code {
  uint8_t length, bytes[8];
} machine_code;

static const machine_code eight[] = {
    {3, {0x48, 0x01, 0xd8}},       /* add rax, rbx */
    {4, {0x48, 0x0f, 0xaf, 0xca}}, /* imul rcx, rdx */
    {4, {0x48, 0x8b, 0x7e, 0x40}}, /* mov rdi, [rsi+0x40] */
    {4, {0x48, 0x89, 0x46, 0x48}}, /* mov [rsi+0x48], rax */
    {4, {0x66, 0x0f, 0xfe, 0xc1}}, /* paddd xmm0, xmm1 */
    {4, {0x0f, 0x11, 0x46, 0x50}}, /* movups [rsi+0x50], xmm0 */
    {1, {0x53}},                   /* push rbx */
    {3, {0x4d, 0x31, 0xc1}},       /* xor r9, r8 */
};
static const machine_code fld1 = {2, {0xd9, 0xe8}};
static const machine_code ud2 = {2, {0x0f, 0x0b}};
enum { EIGHT = sizeof eight / sizeof *eight };

/* ---- The loops ---- */

static void check(lane *l, const char *what) {
  if (memcmp(l->memory, l->after, LS_PAGE) != 0)
    bench_give_up(what, "memory is not as expected");
  if (memcmp(&l->outcome.state, &l->expected.state, sizeof l->outcome.state) != 0)
    bench_give_up(what, "a register is not as expected");
}

static void loop_bare(void *suite, int times) {
  bench *b = suite;
  lane *l = &b->bare;
  for (int i = 0; i < times; i++) {
    memcpy(l->memory, b->page, LS_PAGE);
    floor_run(&l->start, &l->outcome.state, b->code, b->vectors);
    check(l, "floor");
  }
}

static void loop_bare_x87(void *suite, int times) {
  bench *b = suite;
  lane *l = &b->bare_x87;
  for (int i = 0; i < times; i++) {
    memcpy(l->memory, b->page, LS_PAGE);
    memcpy(b->xsave, b->xsave_before, b->area.size);
    floor_run_xsave(&l->start, &l->outcome.state, b->code_x87, b->xsave, b->area.components);
    if (memcmp(l->memory, l->after, LS_PAGE) != 0 || memcmp(b->xsave, b->xsave_after, b->area.size) != 0)
      bench_give_up("floor", "memory or vectors are not as expected");
  }
  __asm__ volatile("fninit");
}

static void run_once(bench *b, ls_executor *x, lane *l, uint32_t uses) {
  ls_error error;
  const ls_run run = {.state = &l->start, .uses = uses};
  if (ls_executor_reset(x, b->contents, &error) || ls_executor_run(x, &run, &l->outcome, &error))
    bench_give_up("run", error.text);
  ls_state_canonicalise(&l->outcome.state);
}

static void use_image(ls_executor *x, const ls_image *image) {
  ls_error error;
  if (ls_executor_load(x, image, &error))
    bench_give_up("load", error.text);
}

static void loop_thread(void *suite, int times) {
  bench *b = suite;
  use_image(b->in_thread, b->image);
  for (int i = 0; i < times; i++) {
    run_once(b, b->in_thread, &b->thread, 0);
    check(&b->thread, "thread");
  }
}

static void loop_thread_x87(void *suite, int times) {
  bench *b = suite;
  use_image(b->in_thread, b->image_x87);
  for (int i = 0; i < times; i++) {
    run_once(b, b->in_thread, &b->thread_x87, LS_USES_X87);
    check(&b->thread_x87, "thread with x87");
  }
}

static void skip_ud2(int number, siginfo_t *info, void *context) {
  (void)number;
  (void)info;
  ((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP] += 2;
}

/* With a handler and an alternate stack of its own, put in place for the loop. */
static void loop_bare_fault(void *suite, int times) {
  static uint8_t room[65536];
  const struct sigaction mine = {.sa_sigaction = skip_ud2, .sa_flags = SA_SIGINFO | SA_ONSTACK};
  const stack_t stack = {.ss_sp = room, .ss_size = sizeof room};
  struct sigaction before;
  stack_t stack_before;
  (void)suite;
  sigaltstack(&stack, &stack_before);
  sigaction(SIGILL, &mine, &before);
  for (int i = 0; i < times; i++)
    floor_fault();
  sigaction(SIGILL, &before, NULL);
  sigaltstack(&stack_before, NULL);
}

static void loop_thread_fault(void *suite, int times) {
  bench *b = suite;
  ls_error error;
  const ls_run run = {.state = &b->thread.start};
  use_image(b->in_thread, b->image_fault);
  for (int i = 0; i < times; i++) {
    if (ls_executor_run(b->in_thread, &run, &b->thread.outcome, &error))
      bench_give_up("run", error.text);
    if (b->thread.outcome.stop.signal != SIGILL)
      bench_give_up("thread", "no SIGILL");
  }
}

static void loop_bare_reference(void *suite, int times) {
  bench *b = suite;
  for (int i = 0; i < times; i++)
    if (floor_ptrace_trip(b->child) != 0)
      bench_give_up("floor", "the child was lost");
}

static void loop_reference(void *suite, int times) {
  bench *b = suite;
  use_image(b->in_child, b->image);
  for (int i = 0; i < times; i++) {
    run_once(b, b->in_child, &b->reference, 0);
    check(&b->reference, "reference");
  }
}

/* Both executors of the oracle one after the other, with the memory that every test case has. */
static void loop_two_runs(void *suite, int times) {
  bench *b = suite;
  static ls_outcome outcome;
  ls_error error;
  const ls_run run = {.state = &b->test.state, .fuel = b->test.fuel};
  for (int i = 0; i < times; i++)
    for (int kind = LS_SIGNAL; kind <= LS_PTRACE; kind++) {
      ls_executor *x = oracle_executor(b->oracle, (ls_kind)kind);
      if (ls_executor_reset(x, b->test_contents.window, &error) || ls_executor_run(x, &run, &outcome, &error))
        bench_give_up("run", error.text);
    }
}

static void loop_differential(void *suite, int times) {
  bench *b = suite;
  ls_error error;
  for (int i = 0; i < times; i++)
    if (oracle_run(b->oracle, &b->test, &b->verdict, &error) || b->verdict.verdict != VERDICT_SAME)
      bench_give_up("oracle", verdict_name(b->verdict.verdict));
}

static const bench_row rows[] = {
    {.name = "thread", .floor = loop_bare, .ours = loop_thread, .times = 20000, .target = 1.5},
    {.name = "thread_x87", .floor = loop_bare_x87, .ours = loop_thread_x87, .times = 20000, .target = 1.3},
    {.name = "thread_fault",
     .floor = loop_bare_fault,
     .ours = loop_thread_fault,
     .times = 1000,
     .target = 1.2},
    {.name = "reference", .floor = loop_bare_reference, .ours = loop_reference, .times = 500, .target = 1.6},
    {.name = "differential", .floor = loop_two_runs, .ours = loop_differential, .times = 500, .target = 1.1},
    {.name = "reference_over_thread",
     .floor = loop_thread,
     .ours = loop_reference,
     .floor_of_floor = loop_bare,
     .floor_of_ours = loop_bare_reference,
     .times = 500,
     .target = 0.8,
     .goal = BENCH_AT_LEAST},
};

/* ---- Making it all ---- */

/* Code and one page, which holds data, stack and control: the least that a sandbox can be. */
static void small_layout(ls_layout *layout) {
  ls_layout_default(layout, LS_LAYOUT_SLOTS - 1);
  layout->window_count = 2;
  layout->windows[1].size = LS_PAGE;
  layout->control = layout->windows[1].address + COMPARED;
}

static void chain(ls_instruction *in, const machine_code *const *code, uint32_t count) {
  for (uint32_t i = 0; i < count; i++) {
    in[i] = (ls_instruction){
        .id = i, .next = i + 1 < count ? i + 1 : LS_NONE, .jump = LS_NONE, .length = code[i]->length};
    memcpy(in[i].bytes, code[i]->bytes, code[i]->length);
  }
}

static const machine_code **the_eight(const machine_code *last) {
  static const machine_code *code[EIGHT];
  for (int i = 0; i < EIGHT; i++)
    code[i] = &eight[i];
  if (last)
    code[EIGHT - 1] = last;
  return code;
}

static ls_image *build(const ls_layout *layout, const machine_code *const *code, uint32_t count) {
  ls_instruction in[EIGHT];
  ls_error error;
  chain(in, code, count);
  const ls_program program = {in, count, 0};
  ls_image *image = ls_image_create();
  if (!image || ls_image_build(image, &program, layout, &error))
    bench_give_up("build", image ? error.text : "no memory");
  return image;
}

/* The same instructions for a floor: `jmp *[rip]` behind them, to floor_leave. */
static void *floor_code(const machine_code *const *code) {
  uint8_t *room = mmap(NULL, CODE_ROOM, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (room == MAP_FAILED)
    bench_give_up("floor", "no memory");
  uint8_t *at = room;
  for (int i = 0; i < EIGHT; i++) {
    memcpy(at, code[i]->bytes, code[i]->length);
    at += code[i]->length;
  }
  static const uint8_t jump[6] = {0xff, 0x25};
  memcpy(at, jump, sizeof jump);
  memcpy(at + sizeof jump, &floor_leave, sizeof floor_leave);
  mprotect(room, CODE_ROOM, PROT_READ | PROT_EXEC);
  return room;
}

static void fill_start(ls_state *start, ls_vectors vectors, uint64_t memory) {
  ls_state_init(start);
  for (unsigned i = 0; i < 16; i++)
    start->gpr[i] = 0x0101010101010101u * i;
  for (size_t i = 0; i < sizeof start->zmm; i++)
    ((uint8_t *)start->zmm)[i] = (uint8_t)(i * 7);
  if (vectors == LS_VECTORS_AVX512)
    for (unsigned i = 0; i < 8; i++)
      start->k[i] = 0x1111111111111111u * i;
  start->gpr[LS_RSI] = memory;
  start->gpr[LS_RSP] = memory + LS_PAGE / 2;
}

/* Runs `loop` once with an expectation of its own making: what the first run gives, all must give. */
static void expect(bench *b, lane *l, void (*first)(bench *b)) {
  first(b);
  l->expected = l->outcome;
  memcpy(l->after, l->memory, LS_PAGE);
}

static void first_bare(bench *b) {
  memcpy(b->bare.memory, b->page, LS_PAGE);
  floor_run(&b->bare.start, &b->bare.outcome.state, b->code, b->vectors);
}

static void first_bare_x87(bench *b) {
  memcpy(b->bare_x87.memory, b->page, LS_PAGE);
  floor_run_xsave(&b->bare_x87.start, &b->bare_x87.outcome.state, b->code_x87, b->xsave, b->area.components);
  memcpy(b->xsave_after, b->xsave, XSAVE_ROOM);
  __asm__ volatile("fninit");
}

static void first_thread(bench *b) {
  use_image(b->in_thread, b->image);
  run_once(b, b->in_thread, &b->thread, 0);
}

static void first_thread_x87(bench *b) {
  use_image(b->in_thread, b->image_x87);
  run_once(b, b->in_thread, &b->thread_x87, LS_USES_X87);
}

static void first_reference(bench *b) {
  use_image(b->in_child, b->image);
  run_once(b, b->in_child, &b->reference, 0);
}

static void make_lanes(bench *b, const ls_layout *layout) {
  uint8_t *bare = aligned_alloc(LS_PAGE, LS_PAGE);
  if (bare == NULL)
    bench_give_up("floor", "no memory");
  b->bare.memory = b->bare_x87.memory = bare;
  b->thread.memory = b->thread_x87.memory = ls_executor_memory(b->in_thread, 1);
  b->reference.memory = ls_executor_memory(b->in_child, 1);
  b->contents[1] = b->page;
  lane *const bares[] = {&b->bare, &b->bare_x87};
  lane *const guests[] = {&b->thread, &b->thread_x87, &b->reference};
  for (size_t i = 0; i < sizeof bares / sizeof bares[0]; i++)
    fill_start(&bares[i]->start, b->vectors, (uint64_t)bare);
  for (size_t i = 0; i < sizeof guests / sizeof guests[0]; i++)
    fill_start(&guests[i]->start, b->vectors, layout->windows[1].address);
}

static void make_floors(bench *b) {
  b->code = floor_code(the_eight(NULL));
  b->code_x87 = floor_code(the_eight(&fld1));
  b->xsave = aligned_alloc(64, XSAVE_ROOM);
  b->xsave_before = aligned_alloc(64, XSAVE_ROOM);
  b->xsave_after = aligned_alloc(64, XSAVE_ROOM);
  if (!b->xsave || !b->xsave_before || !b->xsave_after)
    bench_give_up("floor", "no memory");
  memset(b->xsave, 0, XSAVE_ROOM);
  floor_fill_xsave(b->xsave, b->area.components);
  memcpy(b->xsave_before, b->xsave, XSAVE_ROOM);
}

static ls_status make_test(bench *b, ls_error *error) {
  const oracle_options options = {.vectors = b->vectors};
  testcase_init(&b->test);
  chain(b->test.instructions, the_eight(NULL), EIGHT);
  b->test.count = EIGHT;
  fill_start(&b->test.state, b->vectors, testcase_layout()->windows[TESTCASE_DATA].address);
  testcase_normalise(&b->test);
  testcase_contents_make(&b->test, &b->test_contents);
  ls_status status = oracle_create(&options, &b->oracle, error);
  if (!status)
    status = oracle_run(b->oracle, &b->test, &b->verdict, error);
  return status;
}

static ls_status make_executors(bench *b, const ls_layout *layout, ls_error *error) {
  const ls_options options = {.vectors = b->vectors};
  ls_status status = ls_executor_create(LS_SIGNAL, layout, &options, &b->in_thread, error);
  if (!status)
    status = ls_executor_create(LS_PTRACE, layout, &options, &b->in_child, error);
  return status;
}

static void destroy(void *suite) {
  bench *b = suite;
  if (b->child > 0)
    floor_ptrace_end(b->child);
  oracle_destroy(b->oracle);
  ls_executor_destroy(b->in_thread);
  ls_executor_destroy(b->in_child);
  ls_image_destroy(b->image);
  ls_image_destroy(b->image_x87);
  ls_image_destroy(b->image_fault);
  free(b->bare.memory);
  free(b->xsave);
  free(b->xsave_before);
  free(b->xsave_after);
  free(b);
}

static void *create(const bench_setting *setting, ls_error *error) {
  bench *b = aligned_alloc(64, (sizeof *b + 63) / 64 * 64);
  ls_layout layout;
  if (!b)
    bench_give_up("bench", "no memory");
  memset(b, 0, sizeof *b);
  b->vectors = setting->vectors;
  b->area = floor_area_of(setting->vectors);
  small_layout(&layout);
  for (size_t i = 0; i < LS_PAGE; i++)
    b->page[i] = (uint8_t)(i * 13);
  if (make_executors(b, &layout, error) || make_test(b, error)) {
    destroy(b);
    return NULL;
  }
  b->image = build(&layout, the_eight(NULL), EIGHT);
  b->image_x87 = build(&layout, the_eight(&fld1), EIGHT);
  b->image_fault = build(&layout, (const machine_code *[]){&ud2}, 1);
  make_lanes(b, &layout);
  make_floors(b);
  b->child = floor_ptrace_start();
  expect(b, &b->bare, first_bare);
  expect(b, &b->bare_x87, first_bare_x87);
  expect(b, &b->thread, first_thread);
  expect(b, &b->thread_x87, first_thread_x87);
  expect(b, &b->reference, first_reference);
  return b;
}

const bench_suite bench_runs = {create, destroy, rows, sizeof rows / sizeof *rows};

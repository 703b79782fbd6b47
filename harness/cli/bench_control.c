/* Requests of controllers, from this thread to a guest in another one that is busy in user code. */
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "bench_programs.h"
#include "bench_rows.h"
#include "bench_thread.h"
#include "floor.h"
#include "floor_ptrace.h"
#include "floor_signal.h"

enum {
  MANY = 10000,       /* instructions of a program to be replaced */
  DATA_WINDOW = 1,    /* of the default layout */
  XSAVE_ROOM = 16384, /* all of XCR0 */
  WORK = 40000000,    /* turns of the loop that is sampled */
  RATE = 1000         /* samples a second */
};

/* A controller, and the thread that executes it. */
typedef struct guest {
  ls_controller *controller;
  volatile uint64_t *turns; /* counted by the endless program, as this process sees it */
  ls_stop stop;
  ls_status status; /* of ls_execute */
  ls_error error;
} guest;

typedef struct control {
  ls_state start; /* distinct bytes in all vectors */
  ls_vectors vectors;
  floor_area area;
  bench_thread *other;
  guest thread, child; /* endless programs */
  guest nops;          /* an endless program that steps are counted in */
  guest one, one_x87;  /* a program of one instruction */
  guest work;          /* a program that ends after WORK turns */
  floor_answer answer;
  floor_spinner *spinner; /* of the peer, shared with it */
  pid_t peer;             /* spins for PTRACE_INTERRUPT */
  uint8_t *code[2];       /* the one instruction, for floors: leaves to floor_gate_leave, floor_leave */
  uint8_t *xsave;         /* a state for the latter */
  ls_program many[2];     /* of MANY instructions, at different addresses */
  ls_program most[2];     /* as many as there can be */
  ls_image *image;
  ls_layout wide; /* has room for the images of both */
} control;

static void must(const char *what, ls_status status, const ls_error *error) {
  if (status)
    bench_give_up(what, error->text);
}

/* ---- A guest that runs ---- */

static void execute(void *context) {
  guest *g = context;
  g->status = ls_execute(g->controller, 0, NULL, &g->stop, &g->error);
}

/* Returns when it is in its loop. */
static void start_guest(control *c, guest *g) {
  bench_thread_start(c->other, execute, g);
  floor_await(g->turns);
}

static void end_guest(control *c, guest *g) {
  bench_thread_wait(c->other);
  must("ls_execute", g->status, &g->error);
  if (g->stop.kind != LS_STOP_CANCELLED)
    bench_give_up("guest", ls_stop_kind_name(g->stop.kind));
}

static void cancel_guest(control *c, guest *g) {
  ls_error error;
  must("ls_cancel", ls_cancel(g->controller, &error), &error);
  end_guest(c, g);
}

/* Not counted: what is measured is a request to code that runs, not to a thread still on its way back. */
static void await_running(const volatile uint64_t *turns) {
  bench_pause();
  floor_await(turns);
  bench_go_on();
}

/* ---- The loops ---- */

static void spin(void *context) {
  ls_thread_release(); /* no timer, no dispatch of system calls */
  floor_answer_spin(context);
}

static void loop_answer(void *suite, int times) {
  control *c = suite;
  bench_pause();
  c->answer = (floor_answer){.start = &c->start, .vectors = c->vectors};
  bench_thread_start(c->other, spin, &c->answer);
  bench_go_on();
  for (int i = 0; i < times; i++) {
    await_running(&c->answer.spinner.turns);
    floor_answer_ask(&c->answer);
  }
  bench_pause();
  c->answer.spinner.stop = 1;
  bench_thread_wait(c->other);
  bench_go_on();
}

static void get_states(control *c, guest *g, int times) {
  static ls_state state;
  ls_position position;
  ls_error error;
  bench_pause();
  start_guest(c, g);
  bench_go_on();
  for (int i = 0; i < times; i++) {
    await_running(g->turns);
    must("ls_get_state", ls_get_state(g->controller, &state, &position, &error), &error);
    if (position.activity != LS_RUNNING || memcmp(state.zmm[5], c->start.zmm[5], 16) != 0)
      bench_give_up("ls_get_state", "not the guest's state");
  }
  bench_pause();
  cancel_guest(c, g);
  bench_go_on();
}

static void loop_get_state(void *suite, int times) {
  control *c = suite;
  get_states(c, &c->thread, times);
}

static void loop_get_state_child(void *suite, int times) {
  control *c = suite;
  get_states(c, &c->child, times);
}

static void loop_peer(void *suite, int times) {
  control *c = suite;
  bench_pause();
  int failed = floor_ptrace_go(c->peer);
  bench_go_on();
  for (int i = 0; i < times && !failed; i++) {
    await_running(&c->spinner->turns);
    failed |= floor_ptrace_look(c->peer);
  }
  bench_pause();
  if (failed || floor_ptrace_stop(c->peer))
    bench_give_up("floor", "the child was lost");
  bench_go_on();
}

static int add_one(ls_state *state, ls_position *position, void *context) {
  (void)position;
  (void)context;
  state->gpr[LS_RAX]++;
  return 0;
}

static void loop_change_state(void *suite, int times) {
  control *c = suite;
  static ls_state before, after;
  ls_error error;
  bench_pause();
  start_guest(c, &c->thread);
  must("ls_get_state", ls_get_state(c->thread.controller, &before, NULL, &error), &error);
  bench_go_on();
  for (int i = 0; i < times; i++) {
    await_running(c->thread.turns);
    must("ls_change_state", ls_change_state(c->thread.controller, add_one, NULL, &error), &error);
  }
  bench_pause();
  must("ls_get_state", ls_get_state(c->thread.controller, &after, NULL, &error), &error);
  if (after.gpr[LS_RAX] - before.gpr[LS_RAX] != (uint64_t)times)
    bench_give_up("ls_change_state", "a change was lost, or made twice");
  cancel_guest(c, &c->thread);
  bench_go_on();
}

static void loop_cancel(void *suite, int times) {
  control *c = suite;
  ls_error error;
  for (int i = 0; i < times; i++) {
    bench_pause();
    start_guest(c, &c->thread);
    bench_go_on();
    must("ls_cancel", ls_cancel(c->thread.controller, &error), &error);
    bench_pause();
    end_guest(c, &c->thread);
    bench_go_on();
  }
}

/* Steps: `times` rounds of the loop, in the other thread both. */
typedef struct bare_steps {
  const ls_state *start;
  ls_vectors vectors;
  uint64_t rounds;
} bare_steps;

static void step_bare(void *context) {
  const bare_steps *s = context;
  ls_thread_release();
  floor_step_all(s->start, s->rounds, s->vectors);
}

static void loop_bare_steps(void *suite, int times) {
  control *c = suite;
  bare_steps s = {&c->start, c->vectors, (uint64_t)times};
  bench_thread_start(c->other, step_bare, &s);
  bench_thread_wait(c->other);
}

static void loop_steps(void *suite, int times) {
  control *c = suite;
  static ls_state before, after;
  ls_position position;
  ls_error error;
  bench_pause();
  must("ls_pause", ls_pause(c->nops.controller, &error), &error);
  bench_thread_start(c->other, execute, &c->nops);
  do
    must("ls_get_state", ls_get_state(c->nops.controller, &before, &position, &error), &error);
  while (position.activity != LS_PAUSED);
  bench_go_on();
  must("ls_step", ls_step(c->nops.controller, (uint64_t)times * FLOOR_ROUND, &error), &error);
  bench_pause();
  must("ls_get_state", ls_get_state(c->nops.controller, &after, NULL, &error), &error);
  if (before.gpr[LS_RSI] - after.gpr[LS_RSI] != (uint64_t)times)
    bench_give_up("ls_step", "not as many instructions as asked for");
  cancel_guest(c, &c->nops);
  bench_go_on();
}

static void loop_bare(void *suite, int times) {
  control *c = suite;
  static ls_state out;
  for (int i = 0; i < times; i++)
    floor_gate(&c->start, &out, c->code[0], c->vectors);
}

static void loop_bare_x87(void *suite, int times) {
  control *c = suite;
  static ls_state out;
  for (int i = 0; i < times; i++)
    floor_run_xsave(&c->start, &out, c->code[1], c->xsave, c->area.components);
  __asm__ volatile("fninit");
}

static void execute_all(guest *g, ls_stop_kind kind, int times) {
  for (int i = 0; i < times; i++) {
    execute(g);
    must("ls_execute", g->status, &g->error);
    if (g->stop.kind != kind)
      bench_give_up("guest", ls_stop_kind_name(g->stop.kind));
  }
}

static void loop_execute(void *suite, int times) {
  control *c = suite;
  execute_all(&c->one, LS_STOP_EXIT, times);
}

static void loop_execute_x87(void *suite, int times) {
  control *c = suite;
  execute_all(&c->one_x87, LS_STOP_EXIT, times);
}

static void build_all(control *c, const ls_program *programs, int times) {
  ls_error error;
  for (int i = 0; i < times; i++)
    must("ls_image_build", ls_image_build(c->image, &programs[i % 2], &c->wide, &error), &error);
}

static void loop_build(void *suite, int times) {
  control *c = suite;
  build_all(c, c->many, times);
}

static void loop_build_most(void *suite, int times) {
  control *c = suite;
  build_all(c, c->most, times);
}

/* While the guest runs the part that both programs begin with. */
static void update_all(control *c, const ls_program *programs, int times) {
  ls_error error;
  bench_pause();
  must("ls_update_code", ls_update_code(c->thread.controller, &programs[1], &error), &error);
  start_guest(c, &c->thread);
  bench_go_on();
  for (int i = 0; i < times; i++)
    must("ls_update_code", ls_update_code(c->thread.controller, &programs[i % 2], &error), &error);
  bench_pause();
  cancel_guest(c, &c->thread);
  bench_go_on();
}

static void loop_update(void *suite, int times) {
  control *c = suite;
  update_all(c, c->many, times);
}

static void loop_update_most(void *suite, int times) {
  control *c = suite;
  update_all(c, c->most, times);
}

static int begin_work(ls_state *state, ls_position *position, void *context) {
  (void)position;
  (void)context;
  state->gpr[LS_RSI] = WORK;
  return 0;
}

static void do_work(control *c, int times) {
  ls_error error;
  for (int i = 0; i < times; i++) {
    must("ls_change_state", ls_change_state(c->work.controller, begin_work, NULL, &error), &error);
    execute_all(&c->work, LS_STOP_EXIT, 1);
  }
}

static void loop_work(void *suite, int times) {
  do_work(suite, times);
}

static void count_sample(const ls_sample *sample, void *context) {
  *(uint64_t *)context += sample->weight;
}

static void loop_work_sampled(void *suite, int times) {
  control *c = suite;
  ls_error error;
  uint64_t periods = 0;
  ls_controller *controller = c->work.controller;
  bench_pause();
  must("ls_sample_start", ls_sample_start(controller, RATE, count_sample, &periods, 0, &error), &error);
  bench_go_on();
  do_work(c, times);
  bench_pause();
  must("ls_sample_stop", ls_sample_stop(controller, &error), &error);
  if (periods == 0)
    bench_give_up("ls_sample_start", "there were no samples");
  bench_go_on();
}

/* What samples cost at the least that come a thousand times a second, not as often as the kernel looks at
 * timers of CPU time. */
static void loop_work_timed(void *suite, int times) {
  bench_pause();
  floor_timer timer;
  if (floor_timer_start(&timer, RATE))
    bench_give_up("floor", "no timer");
  bench_go_on();
  do_work(suite, times);
  bench_pause();
  floor_timer_stop(&timer);
  bench_go_on();
}

static const bench_row rows[] = {
    {.name = "get_state", .floor = loop_answer, .ours = loop_get_state, .times = 500, .target = 1.2},
    {.name = "ptrace_over_get_state",
     .floor = loop_get_state,
     .ours = loop_peer,
     .times = 500,
     .target = 2,
     .goal = BENCH_AT_LEAST},
    {.name = "ptrace_over_answer", .floor = loop_answer, .ours = loop_peer, .times = 500, .goal = BENCH_NONE},
    {.name = "get_state_ptrace",
     .floor = loop_peer,
     .ours = loop_get_state_child,
     .times = 200,
     .goal = BENCH_NONE},
    {.name = "change_state", .floor = loop_answer, .ours = loop_change_state, .times = 500, .target = 1.2},
    {.name = "cancel", .floor = loop_answer, .ours = loop_cancel, .times = 200, .target = 1.2},
    {.name = "step",
     .floor = loop_bare_steps,
     .ours = loop_steps,
     .times = 250,
     .target = 1.2,
     .items = FLOOR_ROUND},
    {.name = "execute", .floor = loop_bare_x87, .ours = loop_execute_x87, .times = 20000, .target = 1.5},
    {.name = "execute_without_x87", .floor = loop_bare, .ours = loop_execute, .times = 20000, .target = 1.5},
    {.name = "update_10000_each",
     .floor = loop_build,
     .ours = loop_update,
     .times = 10,
     .target = 100,
     .goal = BENCH_NS_AT_MOST,
     .items = MANY,
     .without_vectors = true},
    {.name = "update_65536",
     .floor = loop_build_most,
     .ours = loop_update_most,
     .times = 2,
     .target = 20e6,
     .goal = BENCH_NS_AT_MOST,
     .without_vectors = true},
    {.name = "sampled_1khz",
     .floor = loop_work,
     .ours = loop_work_sampled,
     .times = 8,
     .target = 1.02,
     .clock = CLOCK_THREAD_CPUTIME_ID,
     .without_vectors = true},
    {.name = "finer_timer_1khz",
     .floor = loop_work,
     .ours = loop_work_timed,
     .times = 8,
     .goal = BENCH_NONE,
     .clock = CLOCK_THREAD_CPUTIME_ID,
     .without_vectors = true},
};

/* ---- Making it all ---- */

static void fill_start(ls_state *start) {
  ls_state_init(start);
  for (size_t i = 0; i < sizeof start->zmm; i++)
    ((uint8_t *)start->zmm)[i] = (uint8_t)(i * 7);
}

typedef struct beginning {
  const ls_state *start;
  uint64_t data;
} beginning;

static int begin(ls_state *state, ls_position *position, void *context) {
  const beginning *b = context;
  (void)position;
  memcpy(state->zmm, b->start->zmm, sizeof state->zmm);
  state->gpr[LS_RDI] = b->data;
  return 0;
}

static ls_status make_guest(control *c, guest *g, ls_kind kind, uint32_t flags, const ls_program *program,
                            ls_error *error) {
  const ls_controller_options options = {.executor.vectors = c->vectors, .flags = flags};
  ls_layout layout;
  ls_status status = ls_controller_create(kind, &options, &g->controller, error);
  if (status)
    return status;
  ls_controller_layout(g->controller, &layout);
  beginning b = {&c->start, layout.windows[DATA_WINDOW].address};
  g->turns = ls_controller_memory(g->controller, DATA_WINDOW);
  status = ls_update_code(g->controller, program, error);
  return status ? status : ls_change_state(g->controller, begin, &b, error);
}

static ls_status make_guests(control *c, ls_error *error) {
  static const uint8_t nop[] = {BENCH_NOP};
  ls_instruction loop[BENCH_ENDLESS], round[FLOOR_ROUND], single = bench_plain(0, nop, sizeof nop);
  single.next = LS_NONE;
  const ls_program forever = {loop, bench_endless(loop), 0}, steps = {round, bench_nops(round), 0},
                   one = {&single, 1, 0};
  const struct {
    guest *guest;
    ls_kind kind;
    uint32_t flags;
    const ls_program *program;
  } all[] = {
      {&c->thread, LS_SIGNAL, 0, &forever}, {&c->child, LS_PTRACE, 0, &forever},
      {&c->nops, LS_SIGNAL, 0, &steps},     {&c->one, LS_SIGNAL, LS_WITHOUT_X87, &one},
      {&c->one_x87, LS_SIGNAL, 0, &one},    {&c->work, LS_SIGNAL, 0, &steps},
  };
  ls_status status = LS_OK;
  for (size_t i = 0; i < sizeof all / sizeof *all && !status; i++)
    status = make_guest(c, all[i].guest, all[i].kind, all[i].flags, all[i].program, error);
  return status;
}

static void make_floor_code(control *c) {
  static const uint8_t code[] = {BENCH_NOP, 0xff, 0x25, 0, 0, 0, 0};
  const void *const leave[] = {floor_gate_leave, floor_leave};
  uint8_t *page = mmap(NULL, LS_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (page == MAP_FAILED)
    bench_give_up("floor", "no memory");
  for (int i = 0; i < 2; i++) {
    c->code[i] = page + i * LS_PAGE / 2;
    memcpy(c->code[i], code, sizeof code);
    memcpy(c->code[i] + sizeof code, &leave[i], sizeof leave[i]);
  }
  mprotect(page, LS_PAGE, PROT_READ | PROT_EXEC);
}

static void make_floors(control *c, int other) {
  make_floor_code(c);
  c->xsave = aligned_alloc(64, XSAVE_ROOM);
  if (!c->xsave)
    bench_give_up("floor", "no memory");
  memset(c->xsave, 0, XSAVE_ROOM);
  floor_fill_xsave(c->xsave, c->area.components);
  c->spinner = mmap(NULL, LS_PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (c->spinner == MAP_FAILED)
    bench_give_up("floor", "no memory");
  c->peer = floor_ptrace_spin(&c->start, c->spinner, other, c->vectors);
  if (c->peer < 0)
    bench_give_up("floor", "no child");
}

static void make_programs(control *c) {
  for (int shift = 0; shift < 2; shift++) {
    c->many[shift] = bench_large(MANY, shift);
    c->most[shift] = bench_large(LS_PROGRAM_MAX, shift);
  }
  ls_layout_default(&c->wide, LS_LAYOUT_SLOTS - 1);
  c->wide.windows[LS_CODE_WINDOW].size = UINT64_C(16) * LS_PROGRAM_MAX;
  c->wide.windows[LS_CODE_WINDOW].address -= UINT64_C(32) * LS_PROGRAM_MAX;
  c->image = ls_image_create();
  if (!c->image)
    bench_give_up("programs", "no memory");
}

static void destroy(void *suite) {
  control *c = suite;
  guest *const guests[] = {&c->thread, &c->child, &c->nops, &c->one, &c->one_x87, &c->work};
  bench_thread_destroy(c->other);
  for (size_t i = 0; i < sizeof guests / sizeof guests[0]; i++)
    ls_controller_destroy(guests[i]->controller);
  if (c->peer > 0)
    floor_ptrace_end(c->peer);
  for (int i = 0; i < 2; i++) {
    free((void *)c->many[i].instructions);
    free((void *)c->most[i].instructions);
  }
  ls_image_destroy(c->image);
  if (c->code[0])
    munmap(c->code[0], LS_PAGE);
  if (c->spinner)
    munmap(c->spinner, LS_PAGE);
  free(c->xsave);
  free(c);
}

static void *create(const bench_setting *setting, ls_error *error) {
  control *c = aligned_alloc(64, (sizeof *c + 63) / 64 * 64);
  if (!c)
    bench_give_up("bench", "no memory");
  memset(c, 0, sizeof *c);
  c->vectors = setting->vectors;
  c->area = floor_area_of(setting->vectors);
  fill_start(&c->start);
  c->other = bench_thread_create(setting->other);
  if (!c->other)
    bench_give_up("bench", "no thread");
  if (make_guests(c, error)) {
    destroy(c);
    return NULL;
  }
  make_programs(c);
  make_floors(c, setting->other);
  return c;
}

const bench_suite bench_control = {create, destroy, rows, sizeof rows / sizeof *rows};

/* Guests under controllers of one kind at a time: for the one test program that includes it. What fails,
 * fails the running test, so only the thread of the tests calls these functions unless their text says
 * otherwise. */
#ifndef TESTS_CONTROLLED_H
#define TESTS_CONTROLLED_H

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <time.h>

#include "flags.h"
#include "must.h"
#include "states.h"

enum { CODE, DATA, CONSTANTS, STACK }; /* windows of the default layouts */

static ls_kind kind; /* of all controllers of this round */

static inline void expect(ls_status expected, ls_status got) {
  if (expected != got)
    fail_msg("expected %s, got %s: %s", ls_status_name(expected), ls_status_name(got), got ? error.text : "");
}

/* Where a test cannot be failed, in other threads and in forked processes: returns what does not hold. */
#define CHECK(condition)                                                                                     \
  do                                                                                                         \
    if (!(condition))                                                                                        \
      return #condition;                                                                                     \
  while (0)

/* ---- Waiting ------------------------------------------------------------------------------------------ */

static inline double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static inline void doze(void) {
  nanosleep(&(struct timespec){.tv_nsec = 100000}, NULL);
}

/* Long enough for any machine that still works. */
#define WAIT_UNTIL(condition)                                                                                \
  for (double wait_start = now(); !(condition); doze())                                                      \
    if (now() - wait_start > 60)                                                                             \
  fail_msg("%s:%d: waited in vain for %s", __FILE__, __LINE__, #condition)

/* ---- Programs ----------------------------------------------------------------------------------------- */

enum { CODE_MAX = 512 };

typedef struct code {
  ls_instruction in[CODE_MAX];
  uint64_t next[CODE_MAX], jump[CODE_MAX]; /* ids */
  ls_program program;
} code;

#define FOLLOWS UINT64_MAX       /* as a link: to the instruction that stands behind it in the text */
#define LEAVES  (UINT64_MAX - 1) /* out of the program */

static inline uint64_t parse_id(const char **at) {
  if (**at == '-') {
    ++*at;
    return LEAVES;
  }
  return strtoull(*at, (char **)at, 10);
}

static inline void parse_bytes(const char **at, ls_instruction *in) {
  for (; **at != ' ' && **at != ';' && **at; *at += 2) {
    const char digits[3] = {(*at)[0], (*at)[1], 0};
    in->bytes[in->length++] = (uint8_t)strtoul(digits, NULL, 16);
  }
}

/* What may follow the bytes; returns how often the instruction stands there. */
static inline uint32_t parse_links(const char **at, ls_instruction *in, uint64_t *next, uint64_t *jump) {
  uint32_t times = 1;
  *next = FOLLOWS;
  *jump = LEAVES;
  for (char c; (c = **at) && c != ';';) {
    ++*at;
    if (c == '!')
      in->flags = LS_NEVER_FALLS_THROUGH;
    else if (c == '=')
      *next = parse_id(at);
    else if (c == '*')
      times = (uint32_t)parse_id(at);
    else if (c == '>') {
      in->field = LS_FIELD_BRANCH;
      in->field_size = **at == '>' ? 4 : 1;
      in->field_offset = (uint8_t)(in->length - in->field_size);
      *at += **at == '>';
      *jump = parse_id(at);
    }
  }
  return times;
}

static inline uint32_t link_index(const code *c, uint64_t link, uint32_t follower) {
  if (link == FOLLOWS)
    return follower < c->program.count ? follower : LS_NONE;
  for (uint32_t i = 0; i < c->program.count; i++)
    if (c->in[i].id == link)
      return i;
  return LS_NONE;
}

/* A program from text: instructions separated by ';', each an id and bytes in hex, and behind them, as
 * needed, >ID   a branch whose last byte is its field, and where it goes; >>ID: whose last four bytes are =ID
 * what follows it, if that is not what stands behind it; the last one leaves the program !     it never falls
 * through *N    N of them in a row, with consecutive ids An ID that is '-' leaves the program. Any thread. */
static inline const ls_program *assemble(code *c, const char *text, uint32_t flags) {
  memset(c, 0, sizeof *c);
  uint32_t count = 0;
  for (const char *at = text; *at; at += *at == ';') {
    ls_instruction in = {.id = parse_id(&at)};
    at += strspn(at, " ");
    parse_bytes(&at, &in);
    uint64_t next, jump;
    for (uint32_t left = parse_links(&at, &in, &next, &jump); left; left--, count++, in.id++) {
      c->in[count] = in;
      c->next[count] = left > 1 ? FOLLOWS : next;
      c->jump[count] = jump;
    }
  }
  c->program = (ls_program){c->in, count, flags};
  for (uint32_t i = 0; i < count; i++) {
    c->in[i].next = link_index(c, c->next[i], i + 1);
    c->in[i].jump = link_index(c, c->jump[i], LS_NONE);
  }
  return &c->program;
}

/* ---- Guests ------------------------------------------------------------------------------------------- */

typedef struct guest {
  ls_controller *controller;
  ls_layout layout;
  _Atomic uint64_t *cells; /* this process's view of the data window */
  /* of its last execution: */
  bool threaded; /* it has a thread of its own, not yet joined */
  pthread_t thread;
  uint64_t entry;
  ls_limits limits;
  ls_status status;
  ls_error error;
  ls_stop stop;
  atomic_bool over;
} guest;

enum { GUESTS = 16 };
static guest guests[GUESTS]; /* so that a test that fails leaves nothing behind for the next one */

static inline void set_gpr(guest *g, unsigned reg, uint64_t value);

/* With RBX at its data. */
static inline guest *guest_open(const ls_controller_options *options) {
  guest *g = guests;
  while (g->controller)
    g++;
  memset(g, 0, sizeof *g);
  must(ls_controller_create(kind, options, &g->controller, &error));
  ls_controller_layout(g->controller, &g->layout);
  g->cells = ls_controller_memory(g->controller, DATA);
  assert_non_null(g->cells);
  set_gpr(g, LS_RBX, g->layout.windows[DATA].address);
  return g;
}

static inline void guest_close(guest *g) {
  ls_controller_destroy(g->controller);
  if (g->threaded)
    pthread_join(g->thread, NULL);
  memset(g, 0, sizeof *g);
}

static inline int close_all(void **unused) {
  (void)unused;
  for (int i = 0; i < GUESTS; i++)
    if (guests[i].controller)
      guest_close(&guests[i]);
  return 0;
}

static inline ls_status load_flagged(guest *g, const char *text, uint32_t flags) {
  code c;
  return ls_update_code(g->controller, assemble(&c, text, flags), &error);
}

static inline void load(guest *g, const char *text) {
  must(load_flagged(g, text, 0));
}

/* ---- State -------------------------------------------------------------------------------------------- */

static inline int put_state(ls_state *state, ls_position *position, void *context) {
  (void)position;
  *state = *(const ls_state *)context;
  return 0;
}

static inline void set_state(guest *g, ls_state *state) {
  must(ls_change_state(g->controller, put_state, state, &error));
}

static inline ls_position look(guest *g, ls_state *state) {
  ls_position position;
  must(ls_get_state(g->controller, state, &position, &error));
  return position;
}

static inline void set_gpr(guest *g, unsigned reg, uint64_t value) {
  ls_state state;
  look(g, &state);
  state.gpr[reg] = value; /* of an idle or paused guest: nobody changes it meanwhile */
  set_state(g, &state);
}

static inline uint64_t get_gpr(guest *g, unsigned reg) {
  ls_state state;
  look(g, &state);
  return state.gpr[reg];
}

static inline void is_at(guest *g, uint64_t id, ls_activity activity) {
  static const char *const names[] = {"idle", "running", "paused"};
  ls_position p = look(g, NULL);
  if (p.id != id || p.activity != activity || p.instruction == LS_NONE || p.part != LS_PART_BODY)
    fail_msg("expected %llu, %s; is at %llu (#%x), part %d, %s", (unsigned long long)id, names[activity],
             (unsigned long long)p.id, p.instruction, (int)p.part, names[p.activity]);
}

/* A value of its own in every byte, of x87 ones the exponents valid; no exception unmasked or pending. */
static inline void fill_state(ls_state *state) {
  ls_state_init(state);
  uint8_t *bytes = (uint8_t *)state;
  for (size_t i = 0; i < offsetof(ls_state, rip); i++)
    bytes[i] = (uint8_t)(i * 41 + i / 253 + 7);
  state->gpr[LS_RSP] = UINT64_C(0x4b1234567);
  state->rflags = RFLAGS_CLEAN | RFLAGS_CF | RFLAGS_AF | RFLAGS_SF | RFLAGS_ID;
  state->mxcsr = 0x7fa1;
  state->fcw = 0xc7f;
  state->fsw = 0x6d21;
  state->ftw = 0xff;
  for (int i = 0; i < 8; i++)
    for (int j = 0; j < 10; j++)
      state->st[i][j] = (uint8_t)(j < 8 ? 0x80 | (i * 9 + j) : j == 8 ? 0x11 + i : 0x40);
}

/* But for where the guest was. */
static inline void same_registers(const char *name, const ls_state *expected, const ls_state *got) {
  ls_state a = *expected, b = *got;
  a.rip = b.rip = 0;
  same_state(name, &a, &b);
}

/* ---- Running ------------------------------------------------------------------------------------------ */

/* Any thread. */
static inline void *execute(void *context) {
  guest *g = context;
  g->status = ls_execute(g->controller, g->entry, &g->limits, &g->stop, &g->error);
  atomic_store(&g->over, true);
  return NULL;
}

/* Runs it in a thread of its own, and returns when it is no longer idle, or over. */
static inline void start_limited(guest *g, uint64_t id, ls_limits limits) {
  g->entry = id;
  g->limits = limits;
  atomic_store(&g->over, false);
  g->threaded = pthread_create(&g->thread, NULL, execute, g) == 0;
  assert_true(g->threaded);
  WAIT_UNTIL(atomic_load(&g->over) || look(g, NULL).activity != LS_IDLE);
}

static inline void start(guest *g, uint64_t id) {
  start_limited(g, id, (ls_limits){0});
}

static inline void start_paused(guest *g, uint64_t id) {
  must(ls_pause(g->controller, &error));
  start(g, id);
  is_at(g, id, LS_PAUSED);
}

/* Waits for its end. */
static inline const ls_stop *finish(guest *g) {
  WAIT_UNTIL(atomic_load(&g->over));
  pthread_join(g->thread, NULL);
  g->threaded = false;
  error = g->error;
  must(g->status);
  return &g->stop;
}

/* Runs it in this thread. */
static inline const ls_stop *run_limited(guest *g, uint64_t id, ls_limits limits) {
  memset(&g->stop, 0xa5, sizeof g->stop);
  must(ls_execute(g->controller, id, &limits, &g->stop, &error));
  return &g->stop;
}

static inline const ls_stop *run(guest *g, uint64_t id) {
  return run_limited(g, id, (ls_limits){0});
}

static inline void stopped(const ls_stop *stop, ls_stop_kind stop_kind, uint64_t id, ls_part part) {
  if (stop->kind != stop_kind || stop->id != id || stop->part != part)
    fail_msg("expected %s, id %llu, part %d; got %s, id %llu, part %d, signal %d/%d",
             ls_stop_kind_name(stop_kind), (unsigned long long)id, part, ls_stop_kind_name(stop->kind),
             (unsigned long long)stop->id, stop->part, stop->signal, stop->code);
}

static inline void cancel(guest *g) {
  must(ls_cancel(g->controller, &error));
  const ls_stop *stop = finish(g);
  if (stop->kind != LS_STOP_CANCELLED)
    fail_msg("expected cancelled, got %s", ls_stop_kind_name(stop->kind));
}

static inline void counts_on(guest *g, unsigned cell) {
  uint64_t before = g->cells[cell];
  WAIT_UNTIL(g->cells[cell] != before);
}

/* ---- Both kinds --------------------------------------------------------------------------------------- */

static inline int run_both(const struct CMUnitTest *tests, size_t count) {
  static const char *const names[] = {[LS_SIGNAL] = "in thread", [LS_PTRACE] = "in the child"};
  int failed = 0;
  for (kind = LS_SIGNAL; kind <= LS_PTRACE; kind++)
    if (is_wanted(kind))
      failed += run_chosen(names[kind], tests, count, NULL, NULL);
  return failed;
}

#define RUN_BOTH(tests)         run_both(tests, sizeof(tests) / sizeof *(tests))
#define TEST(function)          cmocka_unit_test_teardown(function, close_all)
#define TEST_OF(part, function) PART(part, function, NULL, close_all)

#endif

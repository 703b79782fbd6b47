/* Requests to guests, each checked: for the one test program that includes it. Threads other than the main
 * one use it, so nothing here is an assertion of cmocka's. */
#ifndef TESTS_STRESS_REQUESTS_H
#define TESTS_STRESS_REQUESTS_H

#include <pthread.h>
#include <sched.h>
#include <unistd.h>

#include "stress_guest.h"

enum {
  STEPS_MAX = 3,
  ROOM = 16, /* samples read at a time */
  RATE = 1000
};

/* ---- What is asked ---- */

typedef enum request_kind {
  GET,
  CHANGE,
  DISCARD, /* a visitor that spoils all and takes it back */
  MOVE,
  REFUSE, /* a change that must be refused */
  PAUSE,
  RESUME,
  STEP,
  RUN_UNTIL,
  UPDATE,
  CANCEL,
  SAMPLE_START,
  SAMPLE_STOP,
  SAMPLE_READ,
  KINDS
} request_kind;

enum { UNKNOWN = LS_PAUSED + 1, ACTIVITIES }; /* of a guest: an ls_activity, or that nobody looked */

static const struct {
  const char *name;
  unsigned weight;
} kinds[KINDS] = {
    [GET] = {"get", 250},
    [CHANGE] = {"change", 150},
    [DISCARD] = {"discarded change", 30},
    [MOVE] = {"move", 30},
    [REFUSE] = {"refused change", 30},
    [PAUSE] = {"pause", 40},
    [RESUME] = {"resume", 250},
    [STEP] = {"step", 60},
    [RUN_UNTIL] = {"run until", 40},
    [UPDATE] = {"update code", 30},
    [CANCEL] = {"cancel", 4},
    [SAMPLE_START] = {"start sampling", 20},
    [SAMPLE_STOP] = {"stop sampling", 20},
    [SAMPLE_READ] = {"read samples", 40},
};

/* A controller, the thread that executes it, and what is known of it. */
typedef struct guest {
  ls_controller *controller;
  unsigned number;
  loop loop;
  cells *memory; /* as this process sees it */
  pthread_t thread;
  pthread_rwlock_t alone; /* held for writing by who wants to be its only requester */
  _Atomic uint64_t answers;
  _Atomic uint64_t executed; /* instructions that it has executed at least */
  _Atomic uint64_t changes;  /* that were made, as their callers know */
  _Atomic uint64_t cancels;  /* the same */
  _Atomic uint64_t samples;
  _Atomic uint64_t exits; /* calls of on_exit */
  uint64_t visits;        /* changes as visitors know: they are never at work at the same time */
  uint64_t cancelled;     /* stops: by its own thread */
  _Atomic bool finish, finished;
} guest;

typedef struct requester {
  pthread_t thread;
  uint32_t random;
  uint64_t requests; /* to be made */
  _Atomic unsigned doing, guest_number;
  _Atomic int tid;
  uint64_t met[KINDS][ACTIVITIES];
  uint64_t superseded, idle;
  ls_instruction program[PIECES + DEAD_MAX];
} requester;

static _Atomic uint64_t answered; /* in all */
static _Atomic int failures;

/* Of any thread: cmocka's own assertions work in the main one only. */
__attribute__((format(printf, 1, 2))) static void complain(const char *format, ...) {
  enum { SHOWN = 10 };
  char text[2 * SAY];
  va_list list;
  va_start(list, format);
  vsnprintf(text, sizeof text, format, list);
  va_end(list);
  if (atomic_fetch_add(&failures, 1) < SHOWN)
    fprintf(stderr, "%s\n", text);
}

static bool failed(void) {
  return atomic_load(&failures) > 0;
}

/* One request more is answered. Is `status` one of two that may be? */
static bool answer(requester *r, guest *g, ls_status status, ls_status fine, ls_status fine_too,
                   const ls_error *error) {
  atomic_fetch_add(&answered, 1);
  atomic_fetch_add(&g->answers, 1);
  if (status != fine && status != fine_too)
    complain("%s: %s: %s", kinds[r->doing].name, ls_status_name(status), error->text);
  r->idle += status == LS_ERR_IDLE;
  r->superseded += status == LS_ERR_SUPERSEDED;
  return status == LS_OK;
}

/* ---- Looking ---- */

/* What must hold of a state that was asked for when so much was known already. */
typedef struct known {
  uint64_t executed, changes;
} known;

static known what_is_known(guest *g) {
  return (known){atomic_load(&g->executed), atomic_load(&g->changes)};
}

/* Returns how many instructions the guest has executed. */
static uint64_t check_state(const char *who, guest *g, const ls_state *state, uint64_t id,
                            const cells *memory, known before) {
  char why[SAY];
  if (!loop_check(&g->loop, state, id, memory, why)) {
    complain("%s, guest %u: %s", who, g->number, why);
    return 0;
  }
  uint64_t executed = loop_executed(&g->loop, state, loop_position(id));
  if (executed < before.executed)
    complain("%s: %llu instructions executed, after %llu had been seen", who, (unsigned long long)executed,
             (unsigned long long)before.executed);
  if (state->gpr[LS_R12] < before.changes)
    complain("%s: %llu changes, after %llu had been made", who, (unsigned long long)state->gpr[LS_R12],
             (unsigned long long)before.changes);
  uint64_t most = atomic_load(&g->executed);
  while (most < executed && !atomic_compare_exchange_weak(&g->executed, &most, executed)) {
  }
  return executed;
}

static void check_position(const ls_position *p) {
  if (p->activity > LS_PAUSED || p->part != LS_PART_BODY)
    complain("position: activity %u, part %u", p->activity, p->part);
}

static uint64_t look(requester *r, guest *g, ls_state *state, ls_position *position) {
  ls_error error;
  known before = what_is_known(g);
  r->doing = GET;
  if (!answer(r, g, ls_get_state(g->controller, state, position, &error), LS_OK, LS_OK, &error))
    return 0;
  check_position(position);
  r->met[GET][position->activity]++;
  return check_state("get", g, state, position->id, NULL, before);
}

static void get(requester *r, guest *g) {
  ls_state state;
  ls_position position;
  look(r, g, &state, &position);
}

/* For requests that do not say what they met: every now and then somebody looks first. */
static void count(requester *r, guest *g, request_kind what) {
  ls_position position = {.activity = (ls_activity)UNKNOWN};
  ls_error error;
  if (stress_random(&r->random) % 4 == 0) {
    r->doing = GET;
    answer(r, g, ls_get_state(g->controller, NULL, &position, &error), LS_OK, LS_OK, &error);
    r->met[GET][position.activity]++;
  }
  r->met[what][position.activity]++;
  r->doing = what;
}

/* ---- Changing ---- */

typedef struct visit {
  requester *requester;
  guest *guest;
  request_kind what;
  known before;
  ls_status expected;
  bool may_be_idle; /* LS_ERR_IDLE is as good */
} visit;

static void spoil(ls_state *state, ls_position *position) {
  memset(state->zmm, 0xee, sizeof state->zmm);
  memset(state->gpr, 0xee, sizeof state->gpr);
  memset(state->st, 0xee, sizeof state->st);
  position->id = loop_id(0);
}

static void add_change(visit *v, ls_state *state) {
  guest *g = v->guest;
  g->visits++;
  g->memory->changes++;
  put_changes(&g->loop, state, state->gpr[LS_R12] + 1);
}

/* To the beginning of the next round. */
static void move(guest *g, ls_state *state, ls_position *position) {
  unsigned at = loop_position(position->id);
  uint64_t next = state->gpr[LS_RAX] + (at == 0);
  if (at == 0 || at >= g->loop.length)
    return;
  for (unsigned i = 0; i < g->loop.length; i++)
    put_counter(state, g->loop.sequence[i], next);
  g->memory->counter = next;
  state->gpr[LS_RSP] = g->loop.stack;
  position->id = loop_id(0);
}

/* One of the changes that must be refused. */
static void refuse(visit *v, ls_state *state, ls_position *position) {
  v->expected = LS_ERR_ARGUMENT;
  switch (stress_random(&v->requester->random) % 3) {
  case 0:
    position->id = FIRST_ID + 1;
    v->may_be_idle = position->activity == LS_IDLE;
    break;
  case 1:
    state->rflags |= RFLAGS_IOPL;
    v->expected = LS_ERR_STATE;
    break;
  default:
    state->mxcsr = UINT32_MAX;
    v->expected = LS_ERR_STATE;
    break;
  }
  put_changes(&v->guest->loop, state, UINT64_MAX);
}

static int visitor(ls_state *state, ls_position *position, void *context) {
  visit *v = context;
  ls_error error;
  guest *g = v->guest;
  v->requester->met[v->what][position->activity]++;
  check_position(position);
  check_state("visitor", g, state, position->id, g->memory, v->before);
  if (v->requester->tid != gettid())
    complain("a visitor is called in another thread");
  if (stress_random(&v->requester->random) % 16 == 0 &&
      ls_get_state(g->controller, NULL, NULL, &error) != LS_ERR_BUSY)
    complain("a call from inside a visitor is answered");
  if (v->what == CHANGE)
    add_change(v, state);
  else if (v->what == DISCARD)
    spoil(state, position);
  else if (v->what == REFUSE)
    refuse(v, state, position);
  else if (position->activity != LS_IDLE)
    move(g, state, position);
  else if (position->id != loop_id(0)) {
    spoil(state, position);
    v->expected = LS_ERR_IDLE;
  }
  return v->what == DISCARD;
}

static void change(requester *r, guest *g, request_kind what) {
  ls_error error;
  visit v = {.requester = r, .guest = g, .what = what, .before = what_is_known(g), .expected = LS_OK};
  r->doing = what;
  ls_status status = ls_change_state(g->controller, visitor, &v, &error);
  answer(r, g, status, v.expected, v.may_be_idle ? LS_ERR_IDLE : v.expected, &error);
  if (status == LS_OK && what == CHANGE)
    atomic_fetch_add(&g->changes, 1);
}

/* ---- Controlling ---- */

static void pause_guest(requester *r, guest *g) {
  ls_error error;
  count(r, g, PAUSE);
  answer(r, g, ls_pause(g->controller, &error), LS_OK, LS_OK, &error);
}

static void resume(requester *r, guest *g) {
  ls_error error;
  count(r, g, RESUME);
  answer(r, g, ls_resume(g->controller, &error), LS_OK, LS_OK, &error);
}

/* Of a step and a run to an instruction: may somebody come between? */
static bool answer_move(requester *r, guest *g, ls_status status, const ls_error *error) {
  return answer(r, g, status, status == LS_ERR_SUPERSEDED ? LS_ERR_SUPERSEDED : LS_OK, LS_ERR_IDLE, error);
}

static bool step(requester *r, guest *g, uint64_t steps) {
  ls_error error;
  count(r, g, STEP);
  uint64_t before = atomic_load(&g->executed);
  if (!answer_move(r, g, ls_step(g->controller, steps, &error), &error))
    return false;
  uint64_t most = atomic_load(&g->executed);
  while (most < before + steps && !atomic_compare_exchange_weak(&g->executed, &most, before + steps)) {
  }
  return true;
}

static bool run_until(requester *r, guest *g, uint64_t id) {
  ls_error error;
  count(r, g, RUN_UNTIL);
  return answer_move(r, g, ls_run_until(g->controller, id, &error), &error);
}

/* The same loop in another shape; some need a code window larger than it was at first. */
static void update(requester *r, guest *g) {
  ls_error error;
  uint32_t random = stress_random(&r->random);
  shape s = {.seed = random, .dead = random % 64, .fuel = random & 64};
  if (random % 512 == 0)
    s.dead = DEAD_MAX;
  const ls_program program = loop_program(&g->loop, &s, r->program);
  count(r, g, UPDATE);
  answer(r, g, ls_update_code(g->controller, &program, &error), LS_OK, LS_OK, &error);
}

static void cancel(requester *r, guest *g) {
  ls_error error;
  count(r, g, CANCEL);
  if (answer(r, g, ls_cancel(g->controller, &error), LS_OK, LS_ERR_IDLE, &error))
    atomic_fetch_add(&g->cancels, 1);
}

/* ---- Sampling ---- */

static void check_sample(guest *g, const ls_sample *sample, const cells *memory) {
  const known nothing = {0, 0};
  check_state("sample", g, &sample->state, sample->id, memory, nothing);
  if (!sample->weight)
    complain("a sample weighs nothing");
  atomic_fetch_add(&g->samples, 1);
}

static void sampled(const ls_sample *sample, void *context) {
  ls_error error;
  guest *g = context;
  check_sample(g, sample, g->memory);
  if (!pthread_equal(pthread_self(), g->thread))
    complain("a sample is taken in another thread");
  if (atomic_load(&g->samples) % 16 == 0 && ls_get_state(g->controller, NULL, NULL, &error) != LS_ERR_BUSY)
    complain("a call from inside a sample callback is answered");
}

static void sample_start(requester *r, guest *g) {
  ls_error error;
  bool calls = stress_random(&r->random) & 1;
  count(r, g, SAMPLE_START);
  answer(r, g, ls_sample_start(g->controller, RATE, calls ? sampled : NULL, g, ROOM, &error), LS_OK, LS_OK,
         &error);
}

static void sample_stop(requester *r, guest *g) {
  ls_error error;
  count(r, g, SAMPLE_STOP);
  answer(r, g, ls_sample_stop(g->controller, &error), LS_OK, LS_OK, &error);
}

static void sample_read(requester *r, guest *g) {
  ls_error error;
  ls_sample samples[ROOM];
  uint32_t got = 0;
  count(r, g, SAMPLE_READ);
  answer(r, g, ls_sample_read(g->controller, samples, ROOM, &got, NULL, &error), LS_OK, LS_OK, &error);
  for (uint32_t i = 0; i < got && i < ROOM; i++)
    check_sample(g, &samples[i], NULL);
}

/* ---- Alone with a guest ---- */

static void expect_number(const char *what, uint64_t want, uint64_t got) {
  if (want != got && !failed())
    complain("%s: expected %llu, got %llu", what, (unsigned long long)want, (unsigned long long)got);
}

/* Until the guest runs again, if it is idle: a pause outlives that. */
static uint64_t await(requester *r, guest *g, ls_state *state, ls_activity activity) {
  for (;;) {
    ls_position position;
    uint64_t executed = look(r, g, state, &position);
    if (position.activity == activity || failed())
      return executed;
    if (position.activity != LS_IDLE)
      complain("the guest is not as it was left");
    sched_yield();
  }
}

/* How many instructions there are from one position to the next time that it is at another. */
static uint64_t distance(const loop *l, unsigned from, unsigned to) {
  return (to + l->length - from - 1) % l->length + 1;
}

static void check_steps(requester *r, guest *g, uint64_t *executed) {
  ls_state state;
  uint64_t steps = 1 + stress_random(&r->random) % STEPS_MAX;
  unsigned to = stress_random(&r->random) % g->loop.length;
  if (!step(r, g, steps))
    complain("a step that nobody disturbs fails");
  expect_number("after a step", *executed + steps, await(r, g, &state, LS_PAUSED));
  *executed += steps;
  if (!run_until(r, g, loop_id(to)))
    complain("a run to an instruction that nobody disturbs fails");
  *executed += distance(&g->loop, (unsigned)(*executed % g->loop.length), to);
  expect_number("after a run to an instruction", *executed, await(r, g, &state, LS_PAUSED));
}

/* Without a request, which could wake up a guest that was forgotten. */
static void await_progress(const guest *g) {
  const volatile uint64_t *cell = &g->memory->counter;
  uint64_t before = *cell;
  while (*cell == before && !failed())
    sched_yield();
}

/* What can be said exactly when nobody else makes requests. Ends with a guest that runs. */
static void be_alone(requester *r, guest *g) {
  ls_state first, second;
  pthread_rwlock_wrlock(&g->alone);
  sample_stop(r, g);
  uint64_t samples = atomic_load(&g->samples);
  pause_guest(r, g);
  uint64_t executed = await(r, g, &first, LS_PAUSED);
  change(r, g, CHANGE);
  update(r, g);
  expect_number("of a paused guest", executed, await(r, g, &second, LS_PAUSED));
  expect_number("changes", first.gpr[LS_R12] + 1, second.gpr[LS_R12]);
  check_steps(r, g, &executed);
  resume(r, g);
  await_progress(g);
  if (await(r, g, &first, LS_RUNNING) <= executed && !failed())
    complain("a guest that runs stays where it was");
  expect_number("samples after the end of sampling", samples, atomic_load(&g->samples));
  pthread_rwlock_unlock(&g->alone);
}

#endif

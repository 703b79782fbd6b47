/* What a requester does for each kind of request. */
#include <inttypes.h>
#include <sched.h>
#include <string.h>

#include "inspect/crew_inner.h"

enum { SAMPLE_ROOM = 32, SAMPLES_AT_ONCE = 8 };

/* ---- Journals ---- */

static bool room_for(const journal *j, uint32_t looks) {
  return j->count + looks <= LOOKS_MAX;
}

/* ---- Answers ---- */

enum { MAY_BE_IDLE = 1, MAY_BE_SUPERSEDED = 2 };

static unsigned bit_of(ls_status status) {
  return status == LS_ERR_IDLE ? MAY_BE_IDLE : status == LS_ERR_SUPERSEDED ? MAY_BE_SUPERSEDED : 0;
}

/* Was it done? If not, it must be for a reason that is allowed. */
static bool answer(worker *w, const request *q, ls_status status, unsigned allowed, const ls_error *error) {
  crew *c = w->c;
  journal *j = &c->journals[w->number];
  uint32_t current = j->current;
  if (c->s->wild)
    allowed |= MAY_BE_IDLE | MAY_BE_SUPERSEDED;
  if (j->answers[current].status == LS_OK)
    j->answers[current].status = status;
  atomic_fetch_add(&c->answered[q->kind][status == LS_OK ? 0 : status == LS_ERR_IDLE ? 1 : 2], 1);
  if (status != LS_OK && !(bit_of(status) & allowed) && !crew_excuses(c, status, error))
    crew_complain(c, "thread %u, request %u (%s) was answered %s: %s", w->number, current,
                  request_name(q->kind), ls_status_name(status), error->text);
  return status == LS_OK;
}

/* ---- Looking ---- */

static look *get(worker *w, const request *q) {
  crew *c = w->c;
  journal *j = &c->journals[w->number];
  ls_error error = {.text = ""};
  look *l = journal_add(j);
  l->request = j->current;
  l->begin = crew_tick(c);
  ls_status status = ls_get_state(c->controller, &l->state, &l->position, &error);
  if (c->options.tamper)
    c->options.tamper(&l->state, &l->position, c->options.tamper_context);
  l->end = crew_tick(c);
  answer(w, q, status, 0, &error);
  return l;
}

/* A second look, which must be as the first one says. */
static look *get_after(worker *w, const request *q, const look *first, sight_relation relation,
                       uint64_t count, uint32_t target) {
  look *l = get(w, q);
  if (w->c->s->wild || first->position.activity != LS_PAUSED)
    return l;
  l->relation = relation;
  l->from = (uint32_t)(first - w->c->journals[w->number].looks);
  l->count = count;
  l->target = target;
  if (l->position.activity != LS_PAUSED)
    crew_complain(w->c, "thread %u, request %u (%s): the guest is not paused any more", w->number,
                  w->c->journals[w->number].current, request_name(q->kind));
  return l;
}

/* The program ended instead. */
static void note_end(worker *w, const look *first, sight_relation relation, uint64_t count, uint32_t target) {
  if (w->c->s->wild || first->position.activity != LS_PAUSED)
    return;
  look *l = journal_add(&w->c->journals[w->number]);
  l->position = first->position;
  l->request = w->c->journals[w->number].current;
  l->begin = crew_tick(w->c);
  l->end = l->begin;
  l->relation = relation;
  l->from = (uint32_t)(first - w->c->journals[w->number].looks);
  l->count = count;
  l->target = target;
}

static void do_look(worker *w, const request *q) {
  get(w, q);
}

typedef struct visit {
  worker *w;
  look *into;
  bool scribbles;
} visit;

static void scribble(ls_state *state) {
  for (unsigned i = 0; i < 16; i++)
    state->gpr[i] = ~state->gpr[i];
  for (unsigned i = 0; i < 8; i++)
    state->k[i] = ~state->k[i];
  for (unsigned i = 0; i < sizeof state->zmm; i++)
    (&state->zmm[0][0])[i] ^= 0x5a;
  for (unsigned i = 0; i < 8; i++)
    for (unsigned b = 0; b < 8; b++)
      state->st[i][b] ^= 0x3c;
  state->rflags ^= 0x8d5; /* SDM vol. 1, 3.4.3: the status flags, */
  state->mxcsr ^= 0x6000; /* 10.2.3: rounding */
}

static int visit_guest(ls_state *state, ls_position *position, void *context) {
  visit *v = context;
  crew *c = v->w->c;
  ls_state state_too;
  v->into->state = *state;
  v->into->position = *position;
  v->into->end = crew_tick(c);
  if (ls_get_state(c->controller, &state_too, NULL, NULL) != LS_ERR_BUSY)
    crew_complain(c, "a visitor got at the controller that it was called by");
  if (v->scribbles)
    scribble(state);
  if (v->scribbles)
    position->id ^= 1;
  return v->scribbles;
}

static void do_visit(worker *w, const request *q) {
  ls_error error = {.text = ""};
  visit v = {.w = w, .into = journal_add(&w->c->journals[w->number]), .scribbles = q->other};
  v.into->request = w->c->journals[w->number].current;
  v.into->begin = crew_tick(w->c);
  answer(w, q, ls_change_state(w->c->controller, visit_guest, &v, &error), 0, &error);
}

/* ---- With the guest paused ---- */

static void wait_turns(uint32_t turns) {
  for (uint32_t i = 0; i < turns; i++)
    __asm__ volatile("");
}

static look *pause_and_look(worker *w, const request *q) {
  ls_error error = {.text = ""};
  answer(w, q, ls_pause(w->c->controller, &error), 0, &error);
  look *l = get(w, q);
  if (l->position.activity == LS_RUNNING && !w->c->s->wild)
    crew_complain(w->c, "thread %u, request %u (%s): the guest runs after a pause", w->number,
                  w->c->journals[w->number].current, request_name(q->kind));
  return l;
}

static void go_on(worker *w, const request *q) {
  ls_error error = {.text = ""};
  answer(w, q, ls_resume(w->c->controller, &error), 0, &error);
}

static void do_hold(worker *w, const request *q) {
  look *first = pause_and_look(w, q);
  wait_turns(q->count * 16);
  get_after(w, q, first, SIGHT_SAME, 0, LS_NONE);
}

static void do_step(worker *w, const request *q) {
  ls_error error = {.text = ""};
  look *first = pause_and_look(w, q);
  ls_status status = ls_step(w->c->controller, q->count, &error);
  if (answer(w, q, status, MAY_BE_IDLE, &error))
    get_after(w, q, first, SIGHT_STEPS, q->count, LS_NONE);
  else if (status == LS_ERR_IDLE)
    note_end(w, first, SIGHT_NO_STEPS, q->count, LS_NONE);
}

static void do_until(worker *w, const request *q) {
  ls_error error = {.text = ""};
  look *first = pause_and_look(w, q);
  ls_status status = ls_run_until(w->c->controller, w->c->s->list[q->target].id, &error);
  if (answer(w, q, status, MAY_BE_IDLE, &error))
    get_after(w, q, first, SIGHT_UNTIL, 0, q->target);
  else if (status == LS_ERR_IDLE)
    note_end(w, first, SIGHT_NO_UNTIL, 0, q->target);
}

/* ---- Changing it, and back ---- */

typedef struct change {
  crew *c;
  const look *first;
  uint64_t target; /* id to go to and come back from, or 0 */
  ls_state expected;
  bool back;
} change;

static void check_expected(change *g, const ls_state *state, const ls_position *position) {
  size_t row = 0, count;
  ls_state got = *state;
  subject_canonicalise(&got);
  got.rip = g->expected.rip = 0;
  if (ls_state_difference(&g->expected, &got, &row)) {
    char want[256], have[256];
    const ls_register *reg = &ls_registers(&count)[row];
    ls_register_print(reg, &g->expected, want, sizeof want);
    ls_register_print(reg, &got, have, sizeof have);
    crew_complain(g->c, "a changed state is not what it was changed to: %s is %s, not %s", reg->name, have,
                  want);
  }
  if (g->target && position->id != g->target)
    crew_complain(g->c, "a guest that was moved is at 0x%" PRIx64 ", not 0x%" PRIx64, position->id,
                  g->target);
}

static int change_guest(ls_state *state, ls_position *position, void *context) {
  change *g = context;
  if (g->back) {
    check_expected(g, state, position);
    *state = g->first->state;
    position->id = g->first->position.id;
    return 0;
  }
  if (g->target)
    position->id = g->target;
  else
    scribble(state);
  g->expected = *state;
  subject_canonicalise(&g->expected);
  return 0;
}

/* An RSP that is not canonical makes a guest fault that is interrupted (and this one's is inverted), but it
 * does not run meanwhile. */
static void change_and_back(worker *w, const request *q, uint64_t target) {
  ls_error error = {.text = ""};
  look *first = pause_and_look(w, q);
  if (first->position.activity != LS_PAUSED || first->position.instruction == LS_NONE)
    return;
  change g = {.c = w->c, .first = first, .target = target};
  bool done = answer(w, q, ls_change_state(w->c->controller, change_guest, &g, &error), 0, &error);
  g.back = true;
  if (done)
    answer(w, q, ls_change_state(w->c->controller, change_guest, &g, &error), 0, &error);
  get_after(w, q, first, SIGHT_SAME, 0, LS_NONE);
}

static void do_change(worker *w, const request *q) {
  change_and_back(w, q, 0);
}

static void do_move(worker *w, const request *q) {
  change_and_back(w, q, w->c->s->list[q->target].id);
}

/* ---- Code ---- */

static void do_reload(worker *w, const request *q) {
  ls_error error = {.text = ""};
  ls_program program = crew_program(w->c, q->grow || (q->other && w->c->s->movable));
  if (q->grow)
    program.count += SUBJECT_FILLER;
  answer(w, q, ls_update_code(w->c->controller, &program, &error), 0, &error);
}

/* The guest's thread puts the code back, and takes gone_id away. */
static void do_gone(worker *w, const request *q) {
  static ls_instruction rest[SUBJECT_MAX]; /* under the crew's `control` */
  ls_error error = {.text = ""};
  crew *c = w->c;
  look *first = pause_and_look(w, q);
  uint32_t at = subject_index(c->s, first->position.id);
  if (first->position.activity != LS_PAUSED || at == LS_NONE || c->s->count < 2)
    return;
  const ls_program program = {rest, subject_without(c->s, at, rest), c->s->flags};
  atomic_store(&c->gone_id, first->position.id);
  if (!answer(w, q, ls_update_code(c->controller, &program, &error), 0, &error)) {
    atomic_store(&c->gone_id, 0);
    return;
  }
  go_on(w, q);
  while (atomic_load(&c->gone_id))
    sched_yield();
}

static void do_cancel(worker *w, const request *q) {
  ls_error error = {.text = ""};
  if (answer(w, q, ls_cancel(w->c->controller, &error), MAY_BE_IDLE, &error))
    atomic_fetch_add(&w->c->cancels, 1);
}

/* ---- Samples ---- */

static void take_sample(crew *c, journal *j, const ls_sample *sample, uint64_t begin) {
  look *l = journal_add(j);
  l->state = sample->state;
  l->position = (ls_position){
      .id = sample->id, .instruction = sample->instruction, .part = LS_PART_BODY, .activity = LS_RUNNING};
  l->begin = begin;
  l->end = crew_tick(c);
  if (!sample->weight)
    crew_complain(c, "a sample stands for no time at all");
}

static void sample_callback(const ls_sample *sample, void *context) {
  crew *c = context;
  c->counts.samples++;
  take_sample(c, &c->journals[GUEST_JOURNAL], sample, crew_tick(c));
}

static void do_sample(worker *w, const request *q) {
  ls_error error = {.text = ""};
  ls_status status = ls_sample_start(w->c->controller, LS_SAMPLE_RATE_MAX, q->other ? sample_callback : NULL,
                                     w->c, SAMPLE_ROOM, &error);
  answer(w, q, status, 0, &error);
}

ls_status request_read_samples(crew *c, journal *j, uint32_t *count, ls_error *error) {
  static _Thread_local ls_sample samples[SAMPLES_AT_ONCE];
  *count = 0;
  ls_status status = ls_sample_read(c->controller, samples, SAMPLES_AT_ONCE, count, NULL, error);
  for (uint32_t i = 0; !status && i < *count; i++)
    take_sample(c, j, &samples[i], c->began);
  return status;
}

static void do_samples_read(worker *w, const request *q) {
  ls_error error = {.text = ""};
  uint32_t count;
  answer(w, q, request_read_samples(w->c, &w->c->journals[w->number], &count, &error), 0, &error);
}

static void do_sample_stop(worker *w, const request *q) {
  ls_error error = {.text = ""};
  answer(w, q, ls_sample_stop(w->c->controller, &error), 0, &error);
}

/* ---- Without order ---- */

static void do_pause(worker *w, const request *q) {
  ls_error error = {.text = ""};
  answer(w, q, ls_pause(w->c->controller, &error), 0, &error);
}

static void do_bare_step(worker *w, const request *q) {
  ls_error error = {.text = ""};
  answer(w, q, ls_step(w->c->controller, q->count, &error), 0, &error);
}

static void do_bare_until(worker *w, const request *q) {
  ls_error error = {.text = ""};
  answer(w, q, ls_run_until(w->c->controller, w->c->s->list[q->target].id, &error), 0, &error);
}

/* ---- All kinds ---- */

typedef enum manner {
  MANNER_FREE,   /* beside everything else */
  MANNER_LOOKS,  /* but not while somebody changes the guest */
  MANNER_PAUSES, /* nobody else may pause or resume meanwhile */
  MANNER_CHANGES /* … nor look */
} manner;

static const struct {
  void (*run)(worker *w, const request *q);
  manner manner;
} kinds[REQUEST_KINDS] = {
    [REQUEST_LOOK] = {do_look, MANNER_LOOKS},
    [REQUEST_VISIT] = {do_visit, MANNER_LOOKS},
    [REQUEST_HOLD] = {do_hold, MANNER_PAUSES},
    [REQUEST_STEP] = {do_step, MANNER_PAUSES},
    [REQUEST_UNTIL] = {do_until, MANNER_PAUSES},
    [REQUEST_CHANGE] = {do_change, MANNER_CHANGES},
    [REQUEST_MOVE] = {do_move, MANNER_CHANGES},
    [REQUEST_RELOAD] = {do_reload, MANNER_LOOKS},
    [REQUEST_CANCEL] = {do_cancel, MANNER_PAUSES},
    [REQUEST_GONE] = {do_gone, MANNER_CHANGES},
    [REQUEST_SAMPLE] = {do_sample, MANNER_FREE},
    [REQUEST_SAMPLES_READ] = {do_samples_read, MANNER_FREE},
    [REQUEST_SAMPLE_STOP] = {do_sample_stop, MANNER_FREE},
    [REQUEST_PAUSE] = {do_pause, MANNER_FREE},
    [REQUEST_RESUME] = {go_on, MANNER_FREE},
    [REQUEST_BARE_STEP] = {do_bare_step, MANNER_FREE},
    [REQUEST_BARE_UNTIL] = {do_bare_until, MANNER_FREE},
};

static void take_locks(crew *c, manner how) {
  if (how == MANNER_PAUSES || how == MANNER_CHANGES)
    pthread_mutex_lock(&c->control);
  if (how == MANNER_LOOKS)
    pthread_rwlock_rdlock(&c->quiet);
  if (how == MANNER_CHANGES)
    pthread_rwlock_wrlock(&c->quiet);
}

static void give_locks(crew *c, manner how) {
  if (how == MANNER_LOOKS || how == MANNER_CHANGES)
    pthread_rwlock_unlock(&c->quiet);
  if (how == MANNER_PAUSES || how == MANNER_CHANGES)
    pthread_mutex_unlock(&c->control);
}

void request_carry_out(worker *w, const request *q, uint32_t index) {
  enum { LOOKS_OF_ONE = 3, KEPT_WHEN_OVER = 8 };
  crew *c = w->c;
  journal *j = &c->journals[w->number];
  manner how = kinds[q->kind].manner;
  j->current = index;
  if (!room_for(j, LOOKS_OF_ONE) || (atomic_load(&c->over) && (index + c->s->seed) % KEPT_WHEN_OVER))
    return;
  wait_turns(q->delay);
  j->answers[index].begin = crew_tick(c);
  j->answers[index].status = LS_OK;
  take_locks(c, how);
  kinds[q->kind].run(w, q);
  if ((how == MANNER_PAUSES || how == MANNER_CHANGES) && !q->stay)
    go_on(w, q);
  give_locks(c, how);
  j->answers[index].end = crew_tick(c);
  atomic_fetch_add(&c->asked[q->kind], 1);
}

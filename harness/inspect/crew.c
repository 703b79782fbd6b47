#include <inttypes.h>
#include <sched.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "inspect/crew_inner.h"
#include "inspect/strikes.h"
#include "no_memory.h"

uint64_t crew_tick(crew *c) {
  return atomic_fetch_add(&c->clock, 1) + 1;
}

void crew_complain(crew *c, const char *format, ...) {
  va_list arguments;
  pthread_mutex_lock(&c->lock);
  if (!c->trouble[0]) {
    va_start(arguments, format);
    vsnprintf(c->trouble, sizeof c->trouble, format, arguments);
    va_end(arguments);
  }
  pthread_mutex_unlock(&c->lock);
}

static bool is_hosts(ls_status status) {
  return status == LS_ERR_MEMORY || status == LS_ERR_ADDRESS || status == LS_ERR_SYSTEM ||
         status == LS_ERR_CHILD || status == LS_ERR_NO_REFERENCE;
}

bool crew_excuses(crew *c, ls_status status, const ls_error *error) {
  if (!is_hosts(status))
    return false;
  pthread_mutex_lock(&c->lock);
  if (!c->host.status)
    c->host = *error;
  pthread_mutex_unlock(&c->lock);
  return true;
}

ls_program crew_program(const crew *c, bool moved) {
  ls_program program = subject_program(c->s);
  if (moved)
    program.instructions = c->order;
  return program;
}

look *journal_add(journal *j) {
  static _Thread_local look lost;
  look *l = j->count < LOOKS_MAX ? &j->looks[j->count++] : &lost;
  l->relation = SIGHT_FREE;
  l->from = LS_NONE;
  l->count = 0;
  l->target = LS_NONE;
  l->request = LS_NONE;
  l->stopped = false;
  return l;
}

/* Whatever else happens, the last thing that happens is a resume. */
static void requester_round(worker *w) {
  crew *c = w->c;
  ls_error error = {.text = ""};
  while (!atomic_load_explicit(&c->go, memory_order_acquire))
    sched_yield();
  for (uint32_t i = 0; i < c->p->count; i++)
    request_carry_out(w, &c->p->requests[w->number][i], i);
  c->journals[w->number].current = c->p->count;
  pthread_mutex_lock(&c->control);
  ls_status status = ls_resume(c->controller, &error);
  if (status && !crew_excuses(c, status, &error))
    crew_complain(c, "the last resume failed: %s", error.text);
  pthread_mutex_unlock(&c->control);
}

/* ---- Threads ---- */

static void *requester_main(void *argument) {
  worker *w = argument;
  crew *c = w->c;
  uint64_t seen = 0;
  pthread_mutex_lock(&c->lock);
  for (;;) {
    while (!c->ending && c->round == seen)
      pthread_cond_wait(&c->begin, &c->lock);
    if (c->ending)
      break;
    seen = c->round;
    if (w->number >= c->wanted)
      continue;
    if (++c->arrived == c->wanted)
      pthread_cond_broadcast(&c->done);
    pthread_mutex_unlock(&c->lock);
    requester_round(w);
    pthread_mutex_lock(&c->lock);
    if (--c->active == 0)
      pthread_cond_broadcast(&c->done);
  }
  pthread_mutex_unlock(&c->lock);
  free(w);
  return NULL;
}

static void give_up(crew *c) {
  fprintf(stderr, "lockstep: STUCK: a round did not end within %u s\n", c->options.patience_s);
  crew_print(stderr, c);
  abort();
}

/* Wakes every second; a round that it meets too often is stuck. */
static void *watch_main(void *argument) {
  crew *c = argument;
  uint64_t round = 0;
  uint32_t met = 0;
  pthread_mutex_lock(&c->lock);
  while (!c->ending) {
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec++;
    pthread_cond_timedwait(&c->done, &c->lock, &until);
    met = c->busy && c->round == round ? met + 1 : 0;
    round = c->round;
    if (met > c->options.patience_s)
      give_up(c);
  }
  pthread_mutex_unlock(&c->lock);
  return NULL;
}

static bool start_requester(crew *c) {
  worker *w = malloc(sizeof *w);
  if (!w)
    return false;
  *w = (worker){c, c->started};
  if (pthread_create(&c->threads[c->started], NULL, requester_main, w) != 0) {
    free(w);
    return false;
  }
  c->started++;
  return true;
}

ls_status crew_create(crew **out, const crew_options *options, ls_error *error) {
  crew *c = aligned_alloc(64, (sizeof *c + 63) / 64 * 64);
  if (!c)
    return no_memory(error, "a crew");
  memset(c, 0, sizeof *c);
  c->options = *options;
  pthread_mutex_init(&c->lock, NULL);
  pthread_mutex_init(&c->control, NULL);
  pthread_rwlock_init(&c->quiet, NULL);
  pthread_cond_init(&c->begin, NULL);
  pthread_cond_init(&c->done, NULL);
  while (c->started < REQUESTERS_MAX && start_requester(c)) {
  }
  c->watched = pthread_create(&c->watch, NULL, watch_main, c) == 0;
  if (c->started == REQUESTERS_MAX && c->watched) {
    *out = c;
    return LS_OK;
  }
  crew_destroy(c);
  *error = (ls_error){.status = LS_ERR_SYSTEM, .index = LS_NONE, .text = "no thread could be made"};
  return LS_ERR_SYSTEM;
}

void crew_destroy(crew *c) {
  if (!c)
    return;
  pthread_mutex_lock(&c->lock);
  c->ending = true;
  pthread_cond_broadcast(&c->begin);
  pthread_cond_broadcast(&c->done);
  pthread_mutex_unlock(&c->lock);
  for (uint32_t i = 0; i < c->started; i++)
    pthread_join(c->threads[i], NULL);
  if (c->watched)
    pthread_join(c->watch, NULL);
  for (int kind = 0; kind < KINDS; kind++)
    ls_controller_destroy(c->controllers[kind]);
  pthread_mutex_destroy(&c->lock);
  pthread_mutex_destroy(&c->control);
  pthread_rwlock_destroy(&c->quiet);
  pthread_cond_destroy(&c->begin);
  pthread_cond_destroy(&c->done);
  free(c);
}

/* ---- The guest's thread ---- */

static void on_exit_of_guest(ls_controller *controller, const ls_stop *stop, void *context) {
  crew *c = context;
  ls_position position = {.activity = LS_RUNNING};
  c->exits++;
  c->exit_stop = *stop;
  if (ls_get_state(controller, NULL, &position, NULL) != LS_OK || position.activity != LS_IDLE)
    crew_complain(c, "in the exit callback the guest is not idle");
}

static ls_status get_controller(crew *c, ls_error *error) {
  ls_controller **place = &c->controllers[c->s->kind];
  const ls_controller_options options = {
      .layout = testcase_layout(), .on_exit = on_exit_of_guest, .context = c};
  ls_status status = *place ? LS_OK : ls_controller_create(c->s->kind, &options, place, error);
  if (!status && c->s->kind == LS_SIGNAL)
    strikes_watch();
  c->controller = *place;
  return status;
}

static int set_state(ls_state *state, ls_position *position, void *context) {
  const crew *c = context;
  (void)position;
  *state = c->s->state;
  return 0;
}

static ls_status load(crew *c, ls_error *error) {
  const ls_program program = crew_program(c, c->p->moves && c->s->seed & 1);
  for (uint32_t i = TESTCASE_DATA; i < TESTCASE_WINDOWS; i++)
    memcpy(ls_controller_memory(c->controller, i), c->s->contents.window[i],
           testcase_layout()->windows[i].size);
  ls_status status = ls_update_code(c->controller, &program, error);
  if (!status)
    status = ls_change_state(c->controller, set_state, c, error);
  if (!status && c->p->begins_paused)
    status = ls_pause(c->controller, error);
  return status;
}

/* Selectors that a guest has loaded cannot be taken away from its controller, nor a code window that has
 * grown. */
static void renew_if_spoilt(crew *c, const inspect_ending *ending) {
  const ls_state *given = &c->s->state, *state = &ending->state;
  bool grown = memcmp(&ending->code, &testcase_layout()->windows[TESTCASE_CODE], sizeof ending->code) != 0;
  c->counts.grown += grown;
  if (!grown && state->ss == given->ss && state->ds == given->ds && state->es == given->es)
    return;
  ls_controller_destroy(c->controller);
  c->controllers[c->s->kind] = NULL;
}

/* What was cancelled, or lost its instruction, is looked at and goes on. */
static bool goes_on(crew *c, const ls_stop *stop, ls_error *error, ls_status *status) {
  if (stop->kind != LS_STOP_CANCELLED && stop->kind != LS_STOP_GONE)
    return false;
  look *l = journal_add(&c->journals[GUEST_JOURNAL]);
  l->begin = crew_tick(c);
  *status = ls_get_state(c->controller, &l->state, &l->position, error);
  l->position.id = stop->id;
  l->stopped = true;
  l->end = crew_tick(c);
  if (stop->kind == LS_STOP_CANCELLED) {
    c->counts.cancelled++;
    return stop->instruction != LS_NONE;
  }
  c->counts.gone++;
  uint64_t id = atomic_load(&c->gone_id);
  if (id != stop->id)
    crew_complain(c, "0x%" PRIx64 " is gone, but 0x%" PRIx64 " was taken away", stop->id, id);
  const ls_program program = crew_program(c, c->s->seed & 2);
  *status = *status ? *status : ls_update_code(c->controller, &program, error);
  atomic_store(&c->gone_id, 0);
  return true;
}

static void check_exit_callback(crew *c, const ls_stop *stop, uint32_t runs) {
  if (c->exits != runs || c->exit_stop.kind != stop->kind || c->exit_stop.id != stop->id)
    crew_complain(c, "the exit callback was called %u times in %u runs, or for another stop", c->exits, runs);
}

/* Runs the guest to its end. */
static ls_status execute(crew *c, ls_stop *stop, bool *ended, ls_error *error) {
  const ls_limits limits = {.fuel = c->s->fuel};
  uint64_t id = c->s->list[c->s->entry].id;
  ls_status status = LS_OK;
  uint32_t runs = 0;
  bool more = true;
  while (more && !status) {
    status = ls_execute(c->controller, id, &limits, stop, error);
    if (status)
      return status;
    check_exit_callback(c, stop, ++runs);
    c->cancelled += stop->kind == LS_STOP_CANCELLED;
    more = goes_on(c, stop, error, &status);
    id = stop->id;
  }
  *ended = stop->kind != LS_STOP_CANCELLED;
  return status;
}

/* ---- A round ---- */

/* Most runs are over in less time than it takes to wake a thread: the guest waits until all are there. */
static void begin_round(crew *c) {
  atomic_store(&c->go, false);
  pthread_mutex_lock(&c->lock);
  c->began = crew_tick(c);
  c->wanted = c->active = c->p->requesters;
  c->arrived = 0;
  c->busy = true;
  c->round++;
  pthread_cond_broadcast(&c->begin);
  while (c->arrived < c->wanted)
    pthread_cond_wait(&c->done, &c->lock);
  pthread_mutex_unlock(&c->lock);
  atomic_store_explicit(&c->go, true, memory_order_release);
}

static void end_round(crew *c) {
  pthread_mutex_lock(&c->lock);
  while (c->active)
    pthread_cond_wait(&c->done, &c->lock);
  c->busy = false;
  pthread_mutex_unlock(&c->lock);
  for (int kind = 0; kind < REQUEST_KINDS; kind++) {
    c->counts.requests[kind] = c->asked[kind];
    for (int how = 0; how < ANSWERS; how++)
      c->counts.answers[kind][how] = c->answered[kind][how];
  }
}

static void reset_round(crew *c, const subject *s, const plan *p) {
  c->s = s;
  c->p = p;
  subject_shuffle(s, c->order);
  if (p->grows)
    subject_fill(s, c->order);
  for (int i = 0; i < JOURNALS; i++) {
    c->journals[i].count = 0;
    memset(c->journals[i].answers, 0, sizeof c->journals[i].answers);
    c->journals[i].current = 0;
  }
  c->trouble[0] = '\0';
  c->host = (ls_error){0};
  c->over = false;
  c->cancels = 0;
  c->cancelled = 0;
  c->gone_id = 0;
  c->exits = 0;
}

static ls_status finish(crew *c, inspect_ending *ending, const ls_stop *stop, ls_error *error) {
  uint32_t count = 0;
  ls_position position;
  ls_layout layout;
  ls_controller_layout(c->controller, &layout);
  ending->code = layout.windows[TESTCASE_CODE];
  ending->stop = *stop;
  ls_status status = ls_get_state(c->controller, &ending->state, &position, error);
  if (c->options.tamper)
    c->options.tamper(&ending->state, &position, c->options.tamper_context);
  if (!status && (position.activity != LS_IDLE || position.id != stop->id || position.part != stop->part))
    crew_complain(c, "after the run the guest is not at its stop");
  subject_canonicalise(&ending->state);
  for (uint32_t i = TESTCASE_DATA; i < TESTCASE_WINDOWS; i++)
    memcpy(ending->memory[i], ls_controller_memory(c->controller, i), testcase_layout()->windows[i].size);
  if (!status)
    status = ls_sample_stop(c->controller, error);
  do {
    if (!status)
      status = request_read_samples(c, &c->journals[GUEST_JOURNAL], &count, error);
  } while (!status && count);
  return status;
}

/* Threads that go against each other may cancel the same run. */
static void check_cancels(crew *c) {
  uint32_t asked = c->cancels;
  if (c->s->wild ? c->cancelled > asked || (asked && !c->cancelled) : c->cancelled != asked)
    crew_complain(c, "%u runs were cancelled, and %u ended so", asked, c->cancelled);
}

ls_status crew_run(crew *c, const subject *s, const plan *p, inspect_ending *ending, bool *ended,
                   ls_error *error) {
  ls_stop stop = {0};
  reset_round(c, s, p);
  ls_status status = get_controller(c, error);
  if (!status)
    status = load(c, error);
  if (status)
    return status;
  begin_round(c);
  c->struck = strikes_count();
  status = execute(c, &stop, ended, error);
  atomic_store(&c->over, true);
  if (status && !crew_excuses(c, status, error))
    crew_complain(c, "ls_execute: %s: %s", ls_status_name(status), error->text);
  end_round(c);
  if (c->host.status) {
    c->trouble[0] = '\0'; /* it may be a consequence */
    *error = c->host;
    return c->host.status;
  }
  check_cancels(c);
  if (!status)
    status = finish(c, ending, &stop, error);
  if (!status)
    renew_if_spoilt(c, ending);
  return status;
}

/* ---- What happened ---- */

const journal *crew_journal(const crew *c, uint32_t index) {
  return &c->journals[index];
}

const char *crew_trouble(const crew *c) {
  return c->trouble[0] ? c->trouble : NULL;
}

uint32_t crew_strikes(const crew *c) {
  return c->struck;
}

const crew_counts *crew_counts_of(const crew *c) {
  return &c->counts;
}

void crew_print(FILE *to, const crew *c) {
  fprintf(to, "%s controller, %s schedule%s; what is answered is the first that is not OK\n",
          c->s->kind == LS_PTRACE ? "reference's" : "in-thread", c->s->wild ? "wild" : "orderly",
          c->p->begins_paused ? ", begins paused" : "");
  for (uint32_t i = 0; i < c->p->requesters; i++) {
    const journal *j = &c->journals[i];
    uint32_t current = j->current;
    for (uint32_t n = 0; n < c->p->count && n <= current; n++) {
      fprintf(to, "  %c thread %u, request %2u [%6" PRIu64 " to %6" PRIu64 "] ", n == current ? '>' : ' ', i,
              n, j->answers[n].begin, n == current ? 0 : j->answers[n].end);
      plan_print_request(to, &c->p->requests[i][n]);
      fprintf(to, ": %s\n", ls_status_name(j->answers[n].status));
    }
  }
}

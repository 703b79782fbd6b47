/* Very many requests of all kinds from several threads to guests that run: every call returns, each is
 * answered once, and what is seen is a state that the guest has had between two instructions.
 *
 *   test_stress [REQUESTS]    in all, to guests in threads of this process; a fifth of them to children
 *
 * There are more threads than many machines have cores, and most requests wait for one of them to be given a
 * core: how long that takes depends on what else the machine does. So the default is what suits everyday
 * work; `test_stress 1000000` is the long run. */
#include <stdlib.h>
#include <time.h>

#include "files.h"
#include "processes.h"
#include "sanitizers.h"
#include "stress_requests.h"

enum {
  REQUESTS = 9000,
  REQUESTS_SANITIZED = 5000,
  IN_CHILDREN_DIVISOR = 5, /* requests to children cost much more */
  REQUESTERS = 4,
  GUESTS = 2,
  PATIENCE_S = 120, /* without any answer */
  OFTEN = 20,       /* of a thousand requests of a kind, at least so many must meet a running guest */
  ENOUGH = 100,     /* requests of a kind for that to be asked of them */
  DWELL = 4         /* requests that an idle guest waits for before it runs again */
};

static guest guests[GUESTS];
static requester requesters[REQUESTERS];
static uint64_t requests_wanted = TSAN || ASAN ? REQUESTS_SANITIZED : REQUESTS;

/* ---- Threads ---- */

static request_kind draw(requester *r) {
  unsigned all = 0;
  for (int i = 0; i < KINDS; i++)
    all += kinds[i].weight;
  unsigned at = stress_random(&r->random) % all;
  int what = 0;
  while (at >= kinds[what].weight)
    at -= kinds[what++].weight;
  return (request_kind)what;
}

static void request(requester *r, guest *g, request_kind what) {
  static void (*const requests[KINDS])(requester *, guest *) = {
      [GET] = get,
      [PAUSE] = pause_guest,
      [RESUME] = resume,
      [UPDATE] = update,
      [CANCEL] = cancel,
      [SAMPLE_START] = sample_start,
      [SAMPLE_STOP] = sample_stop,
      [SAMPLE_READ] = sample_read,
  };
  pthread_rwlock_rdlock(&g->alone);
  if (requests[what])
    requests[what](r, g);
  else if (what == STEP)
    step(r, g, 1 + stress_random(&r->random) % STEPS_MAX);
  else if (what == RUN_UNTIL)
    run_until(r, g, loop_id(stress_random(&r->random) % g->loop.length));
  else
    change(r, g, what);
  pthread_rwlock_unlock(&g->alone);
}

static void *requester_thread(void *context) {
  enum { ALONE_EVERY = 512 };
  requester *r = context;
  r->tid = gettid();
  uint64_t end = r->requests;
  while (atomic_load(&answered) < end && !failed()) {
    unsigned number = stress_random(&r->random) % GUESTS;
    r->guest_number = number;
    if (stress_random(&r->random) % ALONE_EVERY == 0)
      be_alone(r, &guests[number]);
    else
      request(r, &guests[number], draw(r));
  }
  return NULL;
}

static void check_stop(guest *g, const ls_stop *stop) {
  ls_state state;
  ls_position position;
  ls_error error;
  const known before = what_is_known(g);
  if (stop->kind != LS_STOP_CANCELLED)
    complain("the guest stopped by itself: %s, signal %d, instruction %u", ls_stop_kind_name(stop->kind),
             stop->signal, stop->instruction);
  if (ls_get_state(g->controller, &state, &position, &error) || position.activity != LS_IDLE ||
      position.id != stop->id)
    complain("a guest that has stopped is not where it stopped");
  else
    check_state("after the stop", g, &state, position.id, NULL, before);
}

static void *guest_thread(void *context) {
  guest *g = context;
  ls_stop stop = {.id = loop_id(0)};
  ls_error error;
  while (!atomic_load(&g->finish)) {
    ls_status status = ls_execute(g->controller, stop.id, NULL, &stop, &error);
    if (status) {
      complain("ls_execute: %s: %s", ls_status_name(status), error.text);
      break;
    }
    g->cancelled++;
    check_stop(g, &stop);
    uint64_t dwell = atomic_load(&g->answers) + DWELL;
    while (atomic_load(&g->answers) < dwell && !atomic_load(&g->finish) && !failed())
      sched_yield();
  }
  atomic_store(&g->finished, true);
  return NULL;
}

static void exited(ls_controller *controller, const ls_stop *stop, void *context) {
  guest *g = context;
  ls_position position;
  ls_error error;
  if (ls_get_state(controller, NULL, &position, &error) || position.activity != LS_IDLE ||
      position.id != stop->id)
    complain("on_exit does not find the guest idle where it stopped");
  atomic_fetch_add(&g->exits, 1);
}

/* ---- Watching ---- */

static _Atomic bool watched;
static pthread_t dog;

static void show_task(const char *what, int tid) {
  char path[64], line[256];
  snprintf(path, sizeof path, "/proc/self/task/%d/syscall", tid);
  FILE *file = fopen(path, "r");
  if (file && fgets(line, sizeof line, file))
    fprintf(stderr, "%s, thread %d: %s", what, tid, line);
  if (file)
    fclose(file);
}

static void show_all(void) {
  fprintf(stderr, "no request was answered for %d s\n", PATIENCE_S);
  for (int i = 0; i < REQUESTERS; i++)
    fprintf(stderr, "requester %d, thread %d: %s of guest %u\n", i, requesters[i].tid,
            kinds[requesters[i].doing].name, requesters[i].guest_number);
  for (int i = 0; i < GUESTS; i++)
    fprintf(stderr, "guest %d: %llu answers, %llu cancels, %llu exits, counter %llu%s\n", i,
            (unsigned long long)guests[i].answers, (unsigned long long)guests[i].cancels,
            (unsigned long long)guests[i].exits,
            (unsigned long long)(guests[i].memory ? guests[i].memory->counter : 0),
            guests[i].finished ? ", over" : "");
  DIR *tasks = opendir("/proc/self/task");
  for (struct dirent *entry; tasks && (entry = readdir(tasks));)
    if (entry->d_name[0] != '.')
      show_task("system call and its arguments", (int)strtol(entry->d_name, NULL, 10));
}

/* A call that does not return must not keep the test from failing. */
static void *watchdog(void *unused) {
  enum { LOOK_MS = 100 };
  const struct timespec pause_time = {.tv_nsec = LOOK_MS * 1000000};
  uint64_t last = 0;
  (void)unused;
  for (int silent = 0; atomic_load(&watched); silent++) {
    uint64_t now = atomic_load(&answered);
    silent = now == last ? silent : 0;
    last = now;
    if (silent > PATIENCE_S * 1000 / LOOK_MS) {
      show_all();
      _exit(1);
    }
    nanosleep(&pause_time, NULL);
  }
  return NULL;
}

static void start_watch(void) {
  atomic_store(&watched, true);
  pthread_create(&dog, NULL, watchdog, NULL);
}

static void end_watch(void) {
  atomic_store(&watched, false);
  pthread_join(dog, NULL);
}

/* ---- The tests ---- */

static void must(ls_status status, const ls_error *error) {
  if (status)
    fail_msg("%s: %s", ls_status_name(status), error->text);
}

static int start_state(ls_state *state, ls_position *position, void *context) {
  (void)position;
  loop_start(context, state);
  return 0;
}

/* The second one without x87. */
static void open_guest(guest *g, ls_kind kind, unsigned number) {
  ls_error error;
  ls_layout layout;
  bool x87 = number == 0;
  const ls_controller_options options = {.on_exit = exited, .context = g, .flags = x87 ? 0 : LS_WITHOUT_X87};
  memset(g, 0, sizeof *g);
  g->number = number;
  must(ls_controller_create(kind, &options, &g->controller, &error), &error);
  ls_controller_layout(g->controller, &layout);
  loop_make(&g->loop, number + 1, x87);
  g->loop.data = layout.windows[DATA_WINDOW].address;
  g->loop.stack = g->loop.data + layout.windows[DATA_WINDOW].size;
  g->memory = ls_controller_memory(g->controller, DATA_WINDOW);
  const shape plain = {.seed = 1};
  const ls_program program = loop_program(&g->loop, &plain, requesters[0].program);
  must(ls_update_code(g->controller, &program, &error), &error);
  must(ls_change_state(g->controller, start_state, &g->loop, &error), &error);
  pthread_rwlockattr_t fair;
  pthread_rwlockattr_init(&fair);
  pthread_rwlockattr_setkind_np(&fair, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
  pthread_rwlock_init(&g->alone, &fair);
}

/* Waits for the first instructions, so that there is a position for everybody to see. */
static void start_guest(guest *g) {
  pthread_create(&g->thread, NULL, guest_thread, g);
  await_progress(g);
}

static void end_guest(guest *g) {
  ls_error error;
  atomic_store(&g->finish, true);
  while (!atomic_load(&g->finished)) {
    atomic_fetch_add(&g->cancels, ls_cancel(g->controller, &error) == LS_OK);
    sched_yield();
  }
  pthread_join(g->thread, NULL);
}

/* Nothing lost, nothing twice. */
static void check_sums(guest *g) {
  ls_state state;
  ls_position position;
  ls_error error;
  must(ls_get_state(g->controller, &state, &position, &error), &error);
  check_state("at the end", g, &state, position.id, g->memory, what_is_known(g));
  expect_number("changes in the registers", g->changes, state.gpr[LS_R12]);
  expect_number("calls of visitors", g->changes, g->visits);
  expect_number("guests cancelled", g->cancels, g->cancelled);
  expect_number("calls of on_exit", g->cancelled, g->exits);
}

static void show_met(void) {
  print_message("%18s %9s %9s %9s %9s\n", "", "running", "paused", "idle", "not seen");
  for (int i = 0; i < KINDS; i++) {
    uint64_t met[ACTIVITIES] = {0};
    for (int j = 0; j < REQUESTERS; j++)
      for (int k = 0; k < ACTIVITIES; k++)
        met[k] += requesters[j].met[i][k];
    print_message("%18s %9llu %9llu %9llu %9llu\n", kinds[i].name, (unsigned long long)met[LS_RUNNING],
                  (unsigned long long)met[LS_PAUSED], (unsigned long long)met[LS_IDLE],
                  (unsigned long long)met[UNKNOWN]);
    uint64_t seen = met[LS_RUNNING] + met[LS_PAUSED] + met[LS_IDLE];
    if (seen >= ENOUGH && (met[LS_RUNNING] * 1000 < seen * OFTEN || !met[LS_PAUSED]))
      complain("%s: did not meet running and paused guests often enough to be a test", kinds[i].name);
  }
}

static void show_rest(uint64_t wanted) {
  uint64_t superseded = 0, idle = 0;
  for (int i = 0; i < REQUESTERS; i++) {
    superseded += requesters[i].superseded;
    idle += requesters[i].idle;
  }
  print_message("%llu requests: %llu superseded, %llu idle; %llu and %llu samples, %llu and %llu cancelled\n",
                (unsigned long long)wanted, (unsigned long long)superseded, (unsigned long long)idle,
                (unsigned long long)guests[0].samples, (unsigned long long)guests[1].samples,
                (unsigned long long)guests[0].cancelled, (unsigned long long)guests[1].cancelled);
}

static void make_requester(unsigned i, uint64_t wanted) {
  requester *r = &requesters[i];
  memset(r, 0, sizeof *r);
  r->random = 2463534242u + i * 77777;
  r->requests = wanted;
}

static void start_requesters(uint64_t wanted) {
  for (unsigned i = 0; i < REQUESTERS; i++) {
    requester *r = &requesters[i];
    make_requester(i, wanted);
    pthread_create(&r->thread, NULL, requester_thread, r);
  }
}

static void stress(ls_kind kind, uint64_t wanted) {
  atomic_store(&answered, 0);
  for (unsigned i = 0; i < GUESTS; i++)
    open_guest(&guests[i], kind, i);
  start_watch();
  for (unsigned i = 0; i < GUESTS; i++)
    start_guest(&guests[i]);
  start_requesters(wanted);
  for (int i = 0; i < REQUESTERS; i++)
    pthread_join(requesters[i].thread, NULL);
  for (unsigned i = 0; i < GUESTS; i++)
    end_guest(&guests[i]);
  end_watch();
  for (unsigned i = 0; i < GUESTS; i++)
    check_sums(&guests[i]);
  show_met();
  show_rest(wanted);
}

static int close_guests(void **unused) {
  (void)unused;
  for (int i = 0; i < GUESTS; i++) {
    ls_controller_destroy(guests[i].controller);
    guests[i].controller = NULL;
  }
  return 0;
}

static void many_requests_to_threads(void **unused) {
  (void)unused;
  stress(LS_SIGNAL, requests_wanted);
  assert_int_equal(failures, 0);
}

static void many_requests_to_children(void **unused) {
  (void)unused;
  stress(LS_PTRACE, requests_wanted / IN_CHILDREN_DIVISOR);
  assert_int_equal(failures, 0);
}

/* ---- What is left ---- */

/* What this process has that controllers could forget to give back. */
typedef struct belongings {
  unsigned descriptors, mappings, threads, timers, children;
} belongings;

/* Sanitizers map memory for themselves as time goes by. */
static belongings count_belongings(void) {
  pid_t pid;
  return (belongings){count_entries("/proc/self/fd"),
                      count_lines("/proc/self/maps", ASAN || TSAN ? "lockstep" : ""),
                      count_entries("/proc/self/task"), count_lines("/proc/self/timers", "ID:"),
                      process_children(getpid(), &pid)};
}

static _Atomic pid_t short_lived;

static void *short_life(void *context) {
  guest *g = context;
  ls_stop stop;
  ls_error error;
  short_lived = gettid();
  if (ls_execute(g->controller, loop_id(0), NULL, &stop, &error) || stop.kind != LS_STOP_CANCELLED)
    complain("a guest that was destroyed was not cancelled");
  return NULL;
}

/* pthread_join() returns when the thread is about to go; the kernel still lists it for a while. */
static void await_end(pid_t tid) {
  char path[64];
  snprintf(path, sizeof path, "/proc/self/task/%d", tid);
  while (access(path, F_OK) == 0)
    sched_yield();
}

/* A controller that has done a bit of everything when it is destroyed: running, paused or idle. */
static void live_and_die(ls_kind kind, unsigned round) {
  enum { REQUESTS_IN_LIFE = 20 };
  guest *g = &guests[0];
  requester *r = &requesters[0];
  ls_error error;
  open_guest(g, kind, round % 2);
  make_requester(0, 0);
  r->random += round;
  r->tid = gettid();
  pthread_create(&g->thread, NULL, short_life, g);
  await_progress(g);
  for (int i = 0; i < REQUESTS_IN_LIFE; i++) {
    request_kind what = draw(r);
    request(r, g, what == CANCEL ? GET : what);
  }
  if (round % 3 == 0)
    pause_guest(r, g);
  if (round % 3 == 1)
    must(ls_cancel(g->controller, &error), &error);
  g->memory = NULL;
  ls_controller_destroy(g->controller);
  g->controller = NULL;
  pthread_join(g->thread, NULL);
  await_end(short_lived);
}

/* The first ones pay for what is made once per process. */
static void leave_nothing(ls_kind kind) {
  enum { WARM = 6, ROUNDS = 12 };
  belongings before = {0};
  start_watch();
  for (unsigned round = 0; round < WARM + ROUNDS && !failed(); round++) {
    if (round == WARM)
      before = count_belongings();
    live_and_die(kind, round);
  }
  const belongings after = count_belongings();
  end_watch();
  assert_int_equal(failures, 0);
  assert_int_equal(before.descriptors, after.descriptors);
  assert_int_equal(before.mappings, after.mappings);
  assert_int_equal(before.threads, after.threads);
  assert_int_equal(before.timers, after.timers);
  assert_int_equal(before.children, after.children);
}

static void threads_leave_nothing(void **unused) {
  (void)unused;
  leave_nothing(LS_SIGNAL);
}

static void children_leave_nothing(void **unused) {
  (void)unused;
  leave_nothing(LS_PTRACE);
}

int main(int argc, char **argv) {
  if (argc > 1)
    requests_wanted = strtoull(argv[1], NULL, 10);
  const struct CMUnitTest threads[] = {cmocka_unit_test_teardown(threads_leave_nothing, close_guests),
                                       cmocka_unit_test_teardown(many_requests_to_threads, close_guests)};
  const struct CMUnitTest children[] = {cmocka_unit_test_teardown(children_leave_nothing, close_guests),
                                        cmocka_unit_test_teardown(many_requests_to_children, close_guests)};
  int bad = is_wanted(LS_SIGNAL) ? cmocka_run_group_tests(threads, NULL, NULL) : 0;
  return bad + (is_wanted(LS_PTRACE) ? cmocka_run_group_tests(children, NULL, NULL) : 0);
}

/* How much address space in-thread executors take, which `ulimit -v` counts, and that their threads are many
 * all the same. */
#include <errno.h>
#include <pthread.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "guest.h"
#include "processes.h"
#include "signal/thread.h"

enum { MIB = 1 << 20, ROOM = 25 * MIB, STACK_BYTES = 256 << 10 };

/* What is mapped once per process must not be there yet. Returns what `body` does. */
static int in_child(int (*body)(void)) {
  fflush(NULL);
  pid_t child = fork();
  if (!child) {
    alarm(100);
    _exit(body());
  }
  int status = -1;
  waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static bool allow_more(uint64_t bytes) {
  uint64_t now = (uint64_t)process_status(getpid(), "VmSize") << 10;
  struct rlimit limit;
  getrlimit(RLIMIT_AS, &limit);
  limit.rlim_cur = now + bytes;
  return setrlimit(RLIMIT_AS, &limit) == 0;
}

/* `ud2`, by an executor of slot `slot`. */
static ls_status fault_once(unsigned slot, ls_error *problem) {
  guest g = {.image = ls_image_create()};
  ls_instruction ud2 = {.bytes = {0x0f, 0x0b}, .length = 2, .next = LS_NONE, .jump = LS_NONE};
  ls_program program = {.instructions = &ud2, .count = 1};
  ls_state state;
  ls_outcome out;
  ls_run r = {.state = &state};
  ls_state_init(&state);
  ls_layout_default(&g.layout, slot);
  ls_status status = ls_executor_create(LS_SIGNAL, &g.layout, NULL, &g.executor, problem);
  if (!status)
    status = ls_image_build(g.image, &program, &g.layout, problem);
  if (!status)
    status = ls_executor_load(g.executor, g.image, problem);
  if (!status)
    status = ls_executor_run(g.executor, &r, &out, problem);
  if (!status && out.stop.signal != SIGILL)
    status = LS_ERR_STATE;
  ls_executor_destroy(g.executor);
  ls_image_destroy(g.image);
  return status;
}

/* ---- An executor ---- */

static int runs_in_little_room(void) {
  return !allow_more(ROOM) || fault_once(0, &error) != LS_OK;
}

static void an_executor_takes_a_tenth_of_256_mib(void **unused) {
  (void)unused;
  assert_int_equal(in_child(runs_in_little_room), 0);
}

static int says_what_is_missing(void) {
  ls_status status = allow_more(0) ? fault_once(0, &error) : LS_OK;
  return status != LS_ERR_MEMORY || error.sys_errno != ENOMEM;
}

static void without_room_it_says_so(void **unused) {
  (void)unused;
  assert_int_equal(in_child(says_what_is_missing), 0);
}

/* ---- Threads ---- */

typedef struct crew {
  guest g; /* what they run, one after the other, while all stay attached */
  pthread_mutex_t turn;
  pthread_barrier_t all_ran;
  unsigned ran, refused;
} crew;

static void *run_and_stay(void *shared) {
  crew *c = shared;
  ls_state state;
  ls_outcome out;
  ls_error problem;
  fill(&state);
  ls_run r = {.state = &state};
  pthread_mutex_lock(&c->turn);
  ls_status status = ls_executor_run(c->g.executor, &r, &out, &problem);
  c->ran += status == LS_OK && out.stop.signal == SIGILL;
  c->refused += status == LS_ERR_MEMORY;
  pthread_mutex_unlock(&c->turn);
  pthread_barrier_wait(&c->all_ran);
  return NULL;
}

/* `room`: bytes that may be mapped once the threads are there. */
static void run_threads(crew *c, unsigned count, uint64_t room) {
  pthread_t *thread = malloc(count * sizeof *thread);
  pthread_attr_t small;
  *c = (crew){.g = guest_open(0, NULL)};
  load(&c->g, "0f 0b");
  pthread_mutex_init(&c->turn, NULL);
  pthread_barrier_init(&c->all_ran, NULL, count);
  pthread_attr_init(&small);
  pthread_attr_setstacksize(&small, STACK_BYTES);
  pthread_mutex_lock(&c->turn);
  for (unsigned i = 0; i < count; i++)
    assert_int_equal(pthread_create(&thread[i], &small, run_and_stay, c), 0);
  if (room < RLIM_INFINITY)
    assert_true(allow_more(room));
  pthread_mutex_unlock(&c->turn);
  for (unsigned i = 0; i < count; i++)
    pthread_join(thread[i], NULL);
  pthread_attr_destroy(&small);
  pthread_barrier_destroy(&c->all_ran);
  guest_close(&c->g);
  free(thread);
}

static void threads_have_slots_as_they_come(void **unused) {
  (void)unused;
  crew c;
  for (unsigned count = CHUNK_SLOTS; count <= 4 * CHUNK_SLOTS; count += CHUNK_SLOTS + 1) {
    run_threads(&c, count, RLIM_INFINITY);
    assert_int_equal(c.ran, count);
  }
}

static int runs_as_many_as_there_is_room_for(void) {
  crew c;
  run_threads(&c, CHUNK_SLOTS + 2, 0);
  return c.ran != CHUNK_SLOTS || c.refused != 2;
}

static void a_thread_without_room_is_refused(void **unused) {
  (void)unused;
  assert_int_equal(in_child(runs_as_many_as_there_is_room_for), 0);
}

static void more_threads_than_slots_are_refused(void **unused) {
  (void)unused;
  enum { TOO_MANY = 3 };
  crew c;
  run_threads(&c, THREAD_SLOTS + TOO_MANY, RLIM_INFINITY);
  assert_int_equal(c.ran, THREAD_SLOTS);
  assert_int_equal(c.refused, TOO_MANY);
  run_threads(&c, CHUNK_SLOTS, RLIM_INFINITY);
  assert_int_equal(c.ran, CHUNK_SLOTS);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      PART("no_sanitizer", an_executor_takes_a_tenth_of_256_mib, NULL, NULL),
      PART("no_sanitizer", a_thread_without_room_is_refused, NULL, NULL),
      PART("no_sanitizer", without_room_it_says_so, NULL, NULL),
      cmocka_unit_test_teardown(threads_have_slots_as_they_come, close_all),
      PART("no_sanitizer", more_threads_than_slots_are_refused, NULL, close_all),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}

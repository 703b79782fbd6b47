/* Several executors in a thread, several threads, and processes that fork: in-thread executors do not get in
 * each other's way. */
#include <pthread.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "guest.h"
#include "sanitizers.h"
#include "signal/thread.h"

/* ---- Executors and threads ---- */

static void several_executors_in_a_thread(void **unused) {
  (void)unused;
  guest g[3];
  for (unsigned i = 0; i < 3; i++)
    g[i] = guest_open(i, &(ls_options){.interrupt_signal = i == 2 ? SIGUSR2 : 0, .tick_ms = 1 + i});
  ls_state state;
  ls_outcome out;
  fill(&state);
  for (unsigned round = 0; round < 30; round++) {
    guest *one = &g[round % 3];
    load(one, round % 5 == 0 ? "eb fe" : round % 2 ? "0f 0b" : "90");
    must(run(one, &state, 0, 0, &out));
    assert_int_equal(out.stop.kind, round % 5 == 0 ? LS_STOP_TIMEOUT
                                    : round % 2    ? LS_STOP_FAULT
                                                   : LS_STOP_EXIT);
    if (!in_part("dispatch"))
      continue;
    load(one, "0f 05");
    must(run(one, &state, 0, 0, &out));
    assert_int_equal(out.stop.kind, LS_STOP_SYSCALL);
  }
  for (int i = 0; i < 3; i++)
    guest_close(&g[i]);
}

static void *thread_main(void *slot) {
  uintptr_t bad = 0;
  for (int round = 0; round < 20; round++) {
    guest g = {.image = ls_image_create()};
    ls_layout_default(&g.layout, *(unsigned *)slot);
    if (ls_executor_create(LS_SIGNAL, &g.layout, NULL, &g.executor, NULL))
      return (void *)1;
    ls_state state;
    ls_outcome out;
    fill(&state);
    for (int i = 0; i < 200; i++) {
      ls_instruction in = {.length = 2, .bytes = {0x0f, 0x0b}, .next = LS_NONE, .jump = LS_NONE};
      if (i % 4)
        in = (ls_instruction){.length = 1, .bytes = {0x90}, .next = LS_NONE, .jump = LS_NONE};
      ls_program p = {.instructions = &in, .count = 1};
      ls_run r = {.state = &state};
      bad += ls_image_build(g.image, &p, &g.layout, NULL) || ls_executor_load(g.executor, g.image, NULL) ||
             ls_executor_run(g.executor, &r, &out, NULL) ||
             out.stop.kind != (i % 4 ? LS_STOP_EXIT : LS_STOP_FAULT) ||
             memcmp(out.state.zmm, state.zmm, sizeof state.zmm) != 0 ||
             out.state.gpr[LS_RSP] != state.gpr[LS_RSP];
    }
    if (round % 2)
      ls_thread_release();
    guest_close(&g);
  }
  return (void *)bad;
}

static void threads(void **unused) {
  (void)unused;
  pthread_t thread[4];
  unsigned slots[4];
  for (unsigned i = 0; i < 4; i++) {
    slots[i] = 10 + i;
    pthread_create(&thread[i], NULL, thread_main, &slots[i]);
  }
  for (int i = 0; i < 4; i++) {
    void *bad;
    pthread_join(thread[i], &bad);
    assert_null(bad);
  }
}

static void *run_once(void *context) {
  guest *g = context;
  ls_state state;
  ls_outcome out;
  fill(&state);
  return (void *)(uintptr_t)(run(g, &state, 0, 0, &out) || out.stop.kind != LS_STOP_FAULT);
}

/* One executor, used by one thread after the other and by the first again. */
static void handed_from_thread_to_thread(void **unused) {
  (void)unused;
  guest g = guest_open(0, NULL);
  load(&g, "0f 0b");
  for (int i = 0; i < 3; i++) {
    pthread_t thread;
    void *bad;
    assert_null(run_once(&g));
    pthread_create(&thread, NULL, run_once, &g);
    pthread_join(thread, &bad);
    assert_null(bad);
  }
  assert_null(run_once(&g));
  guest_close(&g);
}

/* ---- Forks ---- */

static int run_in_child(guest *g, const ls_state *state) {
  static const char *const codes[] = {"90", "0f 0b", "eb fe", "0f 05", "c6 00 01"};
  static const ls_stop_kind kinds[] = {LS_STOP_EXIT, LS_STOP_FAULT, LS_STOP_TIMEOUT, LS_STOP_SYSCALL,
                                       LS_STOP_EXIT};
  ls_outcome out;
  for (int i = 0; i < 5; i++) {
    if (kinds[i] == LS_STOP_SYSCALL && !in_part("dispatch"))
      continue;
    load(g, codes[i]);
    if (run(g, state, 0, 0, &out) || out.stop.kind != kinds[i])
      return 1 + i;
  }
  return 0;
}

static pid_t fork_by_kernel(void) {
  return (pid_t)syscall(SYS_fork);
}

static void it_becomes_the_childs(pid_t (*how)(void)) {
  guest g = guest_open(0, NULL);
  ls_state state;
  fill(&state);
  state.gpr[LS_RAX] = DATA;
  load(&g, "90");
  ls_outcome out;
  must(run(&g, &state, 0, 0, &out));
  pid_t child = how();
  if (!child) {
    alarm(100);
    _exit(run_in_child(&g, &state));
  }
  int status;
  waitpid(child, &status, 0);
  assert_true(WIFEXITED(status));
  assert_int_equal(WEXITSTATUS(status), 0);
  assert_int_equal(*(uint8_t *)ls_executor_memory(g.executor, DATA_WINDOW), 0);
  assert_int_equal(run_in_child(&g, &state), 0);
  guest_close(&g);
}

static void fork_makes_it_the_childs(void **unused) {
  (void)unused;
  it_becomes_the_childs(fork);
}

/* As _Fork does, and whoever calls clone: no fork handler runs. */
static void a_fork_without_handlers_too(void **unused) {
  (void)unused;
  it_becomes_the_childs(fork_by_kernel);
}

static void *hold_the_lock(void *held) {
  signal_lock();
  pthread_barrier_wait(held);
  pthread_barrier_wait(held);
  signal_unlock();
  return NULL;
}

static void a_fork_while_another_thread_holds_the_lock(void **unused) {
  (void)unused;
  guest g = guest_open(0, NULL);
  ls_state state;
  pthread_t other;
  pthread_barrier_t held;
  fill(&state);
  state.gpr[LS_RAX] = DATA;
  pthread_barrier_init(&held, NULL, 2);
  pthread_create(&other, NULL, hold_the_lock, &held);
  pthread_barrier_wait(&held);
  pid_t child = fork_by_kernel();
  if (!child) {
    alarm(100);
    _exit(run_in_child(&g, &state));
  }
  pthread_barrier_wait(&held);
  pthread_join(other, NULL);
  pthread_barrier_destroy(&held);
  int status = -1;
  waitpid(child, &status, 0);
  assert_int_equal(status, 0);
  assert_int_equal(run_in_child(&g, &state), 0);
  guest_close(&g);
}

/* Whose number the host's own timer has in the child, where the kernel counts from 0 again. */
static void it_leaves_timers_of_the_childs_host_alone(void **unused) {
  (void)unused;
  guest g = guest_open(0, NULL);
  ls_state state;
  ls_outcome out;
  fill(&state);
  load(&g, "90");
  must(run(&g, &state, 0, 0, &out));
  pid_t child = fork_by_kernel();
  if (!child) {
    enum { ENOUGH = 8 };
    timer_t timer[ENOUGH];
    struct itimerspec left;
    int bad = 0;
    for (int i = 0; i < ENOUGH; i++)
      bad += timer_create(CLOCK_MONOTONIC, &(struct sigevent){.sigev_notify = SIGEV_NONE}, &timer[i]) != 0;
    ls_thread_release();
    for (int i = 0; i < ENOUGH; i++)
      bad += timer_gettime(timer[i], &left) != 0;
    _exit(bad);
  }
  int status = -1;
  waitpid(child, &status, 0);
  assert_int_equal(status, 0);
  guest_close(&g);
}

static void *make_and_destroy(void *stop) {
  ls_executor *executor;
  ls_layout layout;
  ls_layout_default(&layout, 5);
  while (!__atomic_load_n((int *)stop, __ATOMIC_RELAXED))
    if (ls_executor_create(LS_SIGNAL, &layout, NULL, &executor, NULL) == LS_OK)
      ls_executor_destroy(executor);
  return NULL;
}

/* Before any run in this process. Not under TSan, whose pthread_once, unlike glibc's, waits for ever in a
 * child forked in the middle of one. */
static void fork_while_another_thread_makes_executors(void **unused) {
  (void)unused;
  int stop = 0, status = 0;
  pthread_t other;
  pthread_create(&other, NULL, make_and_destroy, &stop);
  for (int i = 0; i < 60 && !status; i++) {
    pid_t child = fork();
    if (!child) {
      ls_executor *executor;
      ls_layout layout;
      alarm(20);
      ls_layout_default(&layout, 6);
      _exit(ls_executor_create(LS_SIGNAL, &layout, NULL, &executor, NULL));
    }
    waitpid(child, &status, 0);
  }
  __atomic_store_n(&stop, 1, __ATOMIC_RELAXED);
  pthread_join(other, NULL);
  assert_int_equal(status, 0);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      PART("forks", fork_while_another_thread_makes_executors, NULL, close_all),
      cmocka_unit_test_teardown(several_executors_in_a_thread, close_all),
      cmocka_unit_test_teardown(threads, close_all),
      cmocka_unit_test_teardown(handed_from_thread_to_thread, close_all),
      cmocka_unit_test_teardown(fork_makes_it_the_childs, close_all),
      cmocka_unit_test_teardown(a_fork_without_handlers_too, close_all),
      PART("forks", a_fork_while_another_thread_holds_the_lock, NULL, close_all),
      cmocka_unit_test_teardown(it_leaves_timers_of_the_childs_host_alone, close_all),
      PART("dispatch", several_executors_in_a_thread, NULL, close_all),
      PART("dispatch", fork_makes_it_the_childs, NULL, close_all),
      PART("dispatch", a_fork_without_handlers_too, NULL, close_all),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}

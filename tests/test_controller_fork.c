/* Controllers in a process that forks, whatever goes on in other threads at that moment. Every test in both
 * kinds. */
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "processes.h"
#include "related.h"
#include "sanitizers.h"

/* In the child, for a controller whose guest may be running in the parent. */
static const char *use_in_child(guest *g) {
  code text;
  ls_stop stop;
  ls_state state;
  ls_position p;
  ls_controller *c = g->controller;
  CHECK(ls_get_state(c, &state, &p, &error) == LS_OK);
  CHECK(p.activity == LS_IDLE);
  CHECK(ls_cancel(c, &error) == LS_ERR_IDLE);
  CHECK(ls_update_code(c, assemble(&text, "7 48ff03; 8 48ffc0", 0), &error) == LS_OK);
  state.gpr[LS_RAX] = 41;
  CHECK(ls_change_state(c, put_state, &state, &error) == LS_OK);
  CHECK(ls_execute(c, 7, NULL, &stop, &error) == LS_OK);
  CHECK(stop.kind == LS_STOP_EXIT && stop.id == 8);
  CHECK(ls_get_state(c, &state, NULL, &error) == LS_OK);
  CHECK(state.gpr[LS_RAX] == 42);
  _Atomic uint64_t *cells = ls_controller_memory(c, DATA);
  uint64_t before = cells[0];
  for (uint64_t i = 1; i < 5; i++) {
    CHECK(ls_execute(c, 7, NULL, &stop, &error) == LS_OK);
    CHECK(cells[0] == before + i);
  }
  CHECK(ls_update_code(c, assemble(&text, "1 f4", 0), &error) == LS_OK);
  CHECK(ls_execute(c, 1, NULL, &stop, &error) == LS_OK);
  CHECK(stop.kind == LS_STOP_FAULT && stop.signal == SIGSEGV);
  CHECK(ls_update_code(c, assemble(&text, "1 ebfe", 0), &error) == LS_OK);
  CHECK(ls_execute(c, 1, &(ls_limits){.limit_ms = 1}, &stop, &error) == LS_OK);
  CHECK(stop.kind == LS_STOP_TIMEOUT);
  ls_controller_destroy(c);
  return NULL;
}

static pid_t fork_by_kernel(void) {
  return (pid_t)syscall(SYS_fork);
}

static void fork_and_use_by(pid_t (*how)(void), guest *g) {
  fflush(NULL);
  pid_t child = how();
  if (!child) {
    alarm(100);
    const char *trouble = use_in_child(g);
    if (trouble)
      fprintf(stderr, "in the child: not %s: %s\n", trouble, error.text);
    fflush(stderr);
    _exit(trouble != NULL);
  }
  int status = -1;
  assert_int_equal(waitpid(child, &status, 0), child);
  if (!WIFEXITED(status) || WEXITSTATUS(status))
    fail_msg("the child ended with status %#x", status);
}

static void fork_and_use(guest *g) {
  fork_and_use_by(fork, g);
}

static void a_fork_without_handlers(void **unused) {
  (void)unused;
  guest *g = guest_open(NULL);
  load(g, "1 48ff03");
  for (int i = 0; i < 3; i++) {
    run(g, 1);
    fork_and_use_by(fork_by_kernel, g);
  }
}

static void a_fork_of_an_idle_one(void **unused) {
  (void)unused;
  guest *g = guest_open(NULL);
  fork_and_use(g); /* before its first run, and after */
  load(g, "1 48ff03");
  for (uint64_t i = 1; i < 5; i++) {
    run(g, 1);
    fork_and_use(g);
    assert_int_equal(g->cells[0], i);
  }
}

/* The memory is both processes' until the child's first run. */
static void a_fork_before_new_code(void **unused) {
  (void)unused;
  guest *g = guest_open(NULL);
  int told[2];
  char byte = 0;
  load(g, "1 48ffc0; 2 48ffc0");
  set_gpr(g, LS_RAX, 40);
  assert_int_equal(pipe(told), 0);
  fflush(NULL);
  pid_t child = fork();
  if (!child) {
    alarm(100);
    ls_stop stop;
    bool right = read(told[0], &byte, 1) == 1 && ls_execute(g->controller, 1, NULL, &stop, &error) == LS_OK &&
                 stop.kind == LS_STOP_EXIT && stop.id == 2 && get_gpr(g, LS_RAX) == 42;
    _exit(!right);
  }
  load(g, "1 f4; 3 48ffc8; 4 48ffc8");
  assert_int_equal(write(told[1], &byte, 1), 1);
  int status = -1;
  assert_int_equal(waitpid(child, &status, 0), child);
  assert_int_equal(status, 0);
  stopped(run(g, 3), LS_STOP_EXIT, 4, LS_PART_NEXT);
  assert_int_equal(get_gpr(g, LS_RAX), 38);
  close(told[0]);
  close(told[1]);
}

static void a_fork_beside_a_guest(void **unused) {
  (void)unused;
  guest *g = guest_open(NULL);
  related_load(g);
  start(g, 1);
  for (int i = 0; i < 20; i++) {
    if (i % 4 == 3)
      must(ls_pause(g->controller, &error));
    fork_and_use(g);
    is_related(g, "in the parent");
    must(ls_resume(g->controller, &error));
    counts_on(g, 0);
  }
  cancel(g);
  is_related(g, "in the parent");
}

static void *ask_often(void *context) {
  guest *g = context;
  code text;
  while (!atomic_load(&g->over)) {
    ls_get_state(g->controller, NULL, NULL, NULL);
    ls_update_code(g->controller, assemble(&text, related_code(), 0), NULL);
  }
  return NULL;
}

/* Whatever other threads hold at that moment. */
static void a_fork_among_requests(void **unused) {
  (void)unused;
  guest *g = guest_open(NULL);
  pthread_t askers[2];
  related_load(g);
  start(g, 1);
  for (int i = 0; i < 2; i++)
    assert_int_equal(pthread_create(&askers[i], NULL, ask_often, g), 0);
  int bad = 0;
  for (int i = 0; i < 60 && !bad; i++) {
    fflush(NULL);
    pid_t child = fork();
    if (!child) {
      alarm(60);
      _exit(use_in_child(g) != NULL);
    }
    waitpid(child, &bad, 0);
  }
  ls_status status = ls_cancel(g->controller, &error);
  for (int i = 0; i < 2; i++)
    pthread_join(askers[i], NULL);
  must(status);
  if (bad)
    fail_msg("a child ended with status %#x", bad);
  finish(g);
  is_related(g, "in the parent");
}

/* A program so large that the code window must grow. */
static void *make_grow(void *context) {
  enum { MANY = 20000 };
  static ls_instruction many[MANY];
  guest *g = context;
  for (uint32_t i = 0; i < MANY; i++)
    many[i] = (ls_instruction){
        .id = i + 1, .next = i + 1 < MANY ? i + 1 : LS_NONE, .jump = LS_NONE, .length = 1, .bytes = {0x90}};
  for (uint32_t count = 10; count <= MANY; count += count)
    ls_update_code(g->controller, &(ls_program){many, count, 0}, &g->error);
  atomic_store(&g->over, true);
  return NULL;
}

/* The child has the old code or the new, whole. */
static void a_fork_beside_new_code(void **unused) {
  (void)unused;
  int bad = 0;
  for (int i = 0; i < 20 && !bad; i++) {
    guest *g = guest_open(NULL);
    pthread_t grower;
    load(g, "1 90");
    assert_int_equal(pthread_create(&grower, NULL, make_grow, g), 0);
    while (!atomic_load(&g->over) && !bad) {
      fflush(NULL);
      pid_t child = fork();
      if (!child) {
        alarm(60);
        ls_stop stop;
        bool right = ls_execute(g->controller, 1, NULL, &stop, &error) == LS_OK && stop.kind == LS_STOP_EXIT;
        _exit(!right || use_in_child(g) != NULL);
      }
      waitpid(child, &bad, 0);
    }
    pthread_join(grower, NULL);
    guest_close(g);
  }
  if (bad)
    fail_msg("a child ended with status %#x", bad);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      TEST(a_fork_of_an_idle_one),
      TEST(a_fork_without_handlers),
      TEST(a_fork_before_new_code),
      TEST(a_fork_beside_a_guest),
      TEST_OF("no_tsan", a_fork_among_requests),
      TEST_OF("no_tsan", a_fork_beside_new_code),
  };
  return RUN_BOTH(tests);
}

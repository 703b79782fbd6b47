/* Several copies of Lockstep in a process: this program has one, and so has each shared library it loads.
 * Argument: such a library (plugin.c). */
#include <dlfcn.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "must.h"
#include "plugin.h"
#include "processes.h"
#include "signal/copies.h"

static const char *path;
static plugin_functions own, other;

/* ---- Copies and their guests ---- */

static const plugin_functions *functions_of(void *library) {
  const plugin_functions *functions = library ? dlsym(library, "plugin") : NULL;
  if (!functions)
    fail_msg("%s", dlerror());
  return functions;
}

static int load_other(void **unused) {
  (void)unused;
  other = *functions_of(dlopen(path, RTLD_NOW | RTLD_LOCAL));
  return 0;
}

/* A kind of stop, or -1: it did not run. */
static int stop_of(const plugin_functions *copy, ls_controller *c, const uint8_t *code, uint8_t length) {
  ls_stop stop;
  return copy->run(c, code, length, &stop, &error) ? -1 : (int)stop.kind;
}

/* All that needs the signals, and no two guests of one kind in a row. NULL, or what went wrong. */
static const char *try_guests(const plugin_functions *copy, ls_controller *c) {
  static const uint8_t nop[] = {0x90}, ud2[] = {0x0f, 0x0b}, call[] = {0x0f, 0x05};
  for (int i = 0; i < 3; i++) {
    if (stop_of(copy, c, nop, sizeof nop) != LS_STOP_EXIT)
      return "nop";
    if (stop_of(copy, c, ud2, sizeof ud2) != LS_STOP_FAULT)
      return "ud2";
    if (in_part("dispatch") && stop_of(copy, c, call, sizeof call) != LS_STOP_SYSCALL)
      return "syscall";
  }
  return NULL;
}

static void check_guests(const plugin_functions *copy, ls_controller *c) {
  const char *trouble = try_guests(copy, c);
  if (trouble)
    fail_msg("%s: %s", trouble, error.text);
}

static void *occupy(int place, int protection) {
  void *wanted = (void *)copy_place(place);
  void *got = mmap(wanted, LS_PAGE, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
  assert_ptr_equal(got, wanted);
  return got;
}

static ls_controller *create(const plugin_functions *copy, unsigned slot) {
  ls_controller *made;
  must(copy->create(LS_SIGNAL, slot, &made, &error));
  return made;
}

static void destroy(const plugin_functions *copy, ls_controller *c) {
  copy->destroy(c);
  copy->release();
}

static void check_refused(const plugin_functions *copy, const char *who) {
  ls_controller *made;
  for (unsigned slot = 0; slot < 2; slot++) {
    assert_int_equal(copy->create(LS_SIGNAL, slot, &made, &error), LS_ERR_COPY);
    assert_non_null(strstr(error.text, who));
  }
}

/* ---- One at a time ---- */

static void the_second_is_refused(void **unused) {
  (void)unused;
  ls_controller *c = create(&own, 0);
  check_refused(&other, "in the program");
  check_guests(&own, c);
  check_refused(&other, "in the program");
  check_guests(&own, c);
  destroy(&own, c);
}

static void whichever_it_is(void **unused) {
  (void)unused;
  ls_controller *c = create(&other, 0);
  check_refused(&own, path);
  check_guests(&other, c);
  destroy(&other, c);
}

static void host_handler(int sig) {
  (void)sig;
}

static void the_handlers_are_the_hosts_in_between(void **unused) {
  (void)unused;
  struct sigaction before, now;
  const struct sigaction mine = {.sa_handler = host_handler};
  sigaction(SIGILL, &mine, &before);
  for (int round = 0; round < 4; round++) {
    const plugin_functions *copy = round % 2 ? &own : &other;
    ls_controller *c = create(copy, 0);
    check_guests(copy, c);
    destroy(copy, c);
    sigaction(SIGILL, NULL, &now);
    assert_ptr_equal(now.sa_handler, host_handler);
  }
  sigaction(SIGILL, &before, NULL);
}

/* A host may install its own after ours: then it is not by the handlers that copies know of each other. */
static void a_handler_over_the_first_ones_changes_nothing(void **unused) {
  (void)unused;
  ls_controller *c = create(&own, 0);
  struct sigaction ours[NSIG];
  const struct sigaction mine = {.sa_handler = host_handler};
  for (int sig = 1; sig < SIGSYS; sig++)
    sigaction(sig, &mine, &ours[sig]);
  check_refused(&other, "in the program");
  for (int sig = 1; sig < SIGSYS; sig++)
    sigaction(sig, &ours[sig], NULL);
  check_guests(&own, c);
  destroy(&own, c);
}

typedef struct visit {
  ls_controller *c;
  const char *trouble;
  pthread_barrier_t ran, over;
} visit;

static void *run_and_wait(void *shared) {
  visit *v = shared;
  v->trouble = try_guests(&other, v->c);
  pthread_barrier_wait(&v->ran);
  pthread_barrier_wait(&v->over);
  return NULL;
}

static void a_thread_that_ran_guests_counts(void **unused) {
  (void)unused;
  visit v = {.c = create(&other, 0)};
  pthread_t thread;
  pthread_barrier_init(&v.ran, NULL, 2);
  pthread_barrier_init(&v.over, NULL, 2);
  pthread_create(&thread, NULL, run_and_wait, &v);
  pthread_barrier_wait(&v.ran);
  destroy(&other, v.c);
  check_refused(&own, path);
  pthread_barrier_wait(&v.over);
  pthread_join(thread, NULL);
  assert_null(v.trouble);
  ls_controller *c = create(&own, 0);
  check_guests(&own, c);
  destroy(&own, c);
}

/* ---- At once ---- */

enum { ROUNDS = 300 };

typedef struct racer {
  const plugin_functions *copy;
  unsigned slot;
  pthread_barrier_t *line;
  bool made[ROUNDS];
  unsigned failed; /* neither made nor refused */
} racer;

static void *create_and_destroy(void *shared) {
  racer *r = shared;
  for (int round = 0; round < ROUNDS; round++) {
    ls_controller *c = NULL;
    pthread_barrier_wait(r->line);
    ls_status status = r->copy->create(LS_SIGNAL, r->slot, &c, NULL);
    r->made[round] = status == LS_OK;
    r->failed += status && status != LS_ERR_COPY;
    pthread_barrier_wait(r->line);
    r->copy->destroy(c);
  }
  return NULL;
}

/* Both may be refused. */
static void race(void) {
  pthread_t thread[2];
  pthread_barrier_t line;
  racer racers[] = {{.copy = &own, .slot = 0, .line = &line}, {.copy = &other, .slot = 1, .line = &line}};
  unsigned made[] = {0, 0};
  pthread_barrier_init(&line, NULL, 2);
  for (int i = 0; i < 2; i++)
    pthread_create(&thread[i], NULL, create_and_destroy, &racers[i]);
  for (int i = 0; i < 2; i++)
    pthread_join(thread[i], NULL);
  pthread_barrier_destroy(&line);
  for (int round = 0; round < ROUNDS; round++) {
    assert_false(racers[0].made[round] && racers[1].made[round]);
    made[0] += racers[0].made[round];
    made[1] += racers[1].made[round];
  }
  print_message("the program's copy came first %u times, the library's %u times\n", made[0], made[1]);
  assert_int_equal(racers[0].failed + racers[1].failed, 0);
}

/* Something readable has the second place: each looks at that too, before and after it has taken the first.
 */
static void two_at_once_are_not_two(void **unused) {
  (void)unused;
  race();
  void *page = occupy(1, PROT_READ | PROT_WRITE);
  race();
  munmap(page, LS_PAGE);
}

/* ---- Forks ---- */

static int is_the_same_here(ls_controller *c) {
  ls_controller *made;
  if (other.create(LS_SIGNAL, 1, &made, &error) != LS_ERR_COPY || try_guests(&own, c))
    return 1;
  destroy(&own, c);
  if (other.create(LS_SIGNAL, 1, &made, &error) || try_guests(&other, made))
    return 2;
  return 0;
}

static int wait_for(pid_t child) {
  int status = -1;
  waitpid(child, &status, 0);
  return status;
}

static void a_process_that_forks_hands_it_on(void **unused) {
  (void)unused;
  ls_controller *c = create(&own, 0);
  check_guests(&own, c);
  for (int raw = 0; raw < 2; raw++) {
    fflush(NULL);
    pid_t child = raw ? (pid_t)syscall(SYS_fork) : fork();
    if (!child) {
      alarm(100);
      _exit(is_the_same_here(c));
    }
    assert_int_equal(wait_for(child), 0);
  }
  check_refused(&other, "in the program");
  destroy(&own, c);
}

/* ---- Places ---- */

/* What was in the way of the first copy may be gone when the second looks. */
static void what_is_in_the_way_is_gone_round(void **unused) {
  (void)unused;
  static const int protections[] = {PROT_NONE, PROT_READ | PROT_WRITE};
  for (int i = 0; i < 2; i++) {
    void *page = occupy(0, protections[i]);
    ls_controller *c = create(&own, 0);
    check_refused(&other, "in the program");
    munmap(page, LS_PAGE);
    check_refused(&other, "in the program");
    check_guests(&own, c);
    destroy(&own, c);
  }
}

static void without_a_place_there_is_no_executor(void **unused) {
  (void)unused;
  void *page[COPY_PLACES];
  ls_controller *c;
  for (int i = 0; i < COPY_PLACES; i++)
    page[i] = occupy(i, i % 2 ? PROT_NONE : PROT_READ);
  assert_int_equal(own.create(LS_SIGNAL, 0, &c, &error), LS_ERR_ADDRESS);
  for (int i = 0; i < COPY_PLACES; i++)
    munmap(page[i], LS_PAGE);
  c = create(&own, 0);
  check_guests(&own, c);
  destroy(&own, c);
}

/* ---- Other ways ---- */

static void the_reference_works_in_all(void **unused) {
  (void)unused;
  ls_controller *c = create(&own, 0), *reference;
  must(other.create(LS_PTRACE, 0, &reference, &error));
  check_guests(&other, reference);
  check_guests(&own, c);
  check_guests(&other, reference);
  other.destroy(reference);
  destroy(&own, c);
}

/* The same file, with all of its libraries, again. */
static void another_link_namespace_is_a_copy_too(void **unused) {
  (void)unused;
#ifdef LM_ID_NEWLM
  void *library = dlmopen(LM_ID_NEWLM, path, RTLD_NOW);
  const plugin_functions *third = functions_of(library);
  ls_controller *c = create(&own, 0);
  check_refused(third, "in ");
  destroy(&own, c);
  c = create(third, 0);
  check_guests(third, c);
  check_refused(&own, "in ");
  check_refused(&other, "in ");
  dlclose(library);
  check_guests(third, c);
  destroy(third, c);
#else
  fail_msg("there is no dlmopen");
#endif
}

/* ---- Closing ---- */

/* In a process in which the library was never used, so that nothing has kept it yet. */
static void in_child(int (*body)(void)) {
  fflush(NULL);
  pid_t child = fork();
  if (!child) {
    alarm(200);
    _exit(body());
  }
  assert_int_equal(wait_for(child), 0);
}

static void *open_and_create(const char *name, ls_controller **c) {
  void *library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
  const plugin_functions *functions = library ? dlsym(library, "plugin") : NULL;
  if (!functions || functions->create(LS_SIGNAL, 0, c, &error))
    return NULL;
  other = *functions;
  return library;
}

static int close_before_the_thread_ends(void) {
  visit v = {.trouble = "not run"};
  pthread_t thread;
  void *library = open_and_create(path, &v.c);
  if (!library)
    return 1;
  pthread_barrier_init(&v.ran, NULL, 2);
  pthread_barrier_init(&v.over, NULL, 2);
  pthread_create(&thread, NULL, run_and_wait, &v);
  pthread_barrier_wait(&v.ran);
  other.destroy(v.c);
  dlclose(library);
  pthread_barrier_wait(&v.over);
  pthread_join(thread, NULL);
  return v.trouble != NULL;
}

static void a_thread_that_ran_guests_ends_after_dlclose(void **unused) {
  (void)unused;
  in_child(close_before_the_thread_ends);
}

static int close_with_a_guest(void) {
  ls_controller *c;
  void *library = open_and_create(path, &c);
  if (!library)
    return 1;
  dlclose(library);
  pid_t child = fork();
  if (!child)
    _exit(try_guests(&other, c) != NULL);
  return wait_for(child) || try_guests(&other, c);
}

static void what_is_closed_still_works(void **unused) {
  (void)unused;
  in_child(close_with_a_guest);
}

/* As many times as there are thread-specific keys, and more. */
static int open_and_close(void) {
  enum { HEAP_KB = 1000 }; /* less than a page each time */
  long before = 0;
  for (int i = 0; i < PTHREAD_KEYS_MAX + 10; i++) {
    ls_controller *c;
    void *library = open_and_create(path, &c);
    if (!library || try_guests(&other, c))
      return 1;
    destroy(&other, c);
    dlclose(library);
    if (i < 10)
      before = process_status(getpid(), "VmSize");
  }
  return process_status(getpid(), "VmSize") > before + HEAP_KB;
}

static void opening_and_closing_takes_nothing(void **unused) {
  (void)unused;
  in_child(open_and_close);
}

/* The linker knows it by the name under which it was loaded, which is no path any more. */
static int load_by_a_relative_path(void) {
  char *directory = strdup(path), *name = strrchr(directory, '/');
  char relative[PATH_MAX];
  *name = 0;
  snprintf(relative, sizeof relative, "./%s", name + 1);
  if (chdir(directory))
    return 1;
  ls_controller *c;
  void *library = dlopen(relative, RTLD_NOW | RTLD_LOCAL);
  if (!library || chdir("/") || !open_and_create(relative, &c))
    return 1;
  destroy(&other, c);
  dlclose(library);
  dlclose(library);
  free(directory);
  return dlopen(relative, RTLD_NOW | RTLD_NOLOAD) == NULL;
}

static void it_is_found_by_any_name(void **unused) {
  (void)unused;
  in_child(load_by_a_relative_path);
}

int main(int argc, char **argv) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(a_thread_that_ran_guests_ends_after_dlclose),
      cmocka_unit_test(what_is_closed_still_works),
      PART("no_sanitizer", opening_and_closing_takes_nothing, NULL, NULL),
      cmocka_unit_test(it_is_found_by_any_name),
      cmocka_unit_test_setup(the_second_is_refused, load_other),
      cmocka_unit_test_setup(whichever_it_is, load_other),
      cmocka_unit_test_setup(the_handlers_are_the_hosts_in_between, load_other),
      cmocka_unit_test_setup(a_handler_over_the_first_ones_changes_nothing, load_other),
      cmocka_unit_test_setup(a_thread_that_ran_guests_counts, load_other),
      cmocka_unit_test_setup(two_at_once_are_not_two, load_other),
      cmocka_unit_test_setup(a_process_that_forks_hands_it_on, load_other),
      cmocka_unit_test_setup(what_is_in_the_way_is_gone_round, load_other),
      cmocka_unit_test_setup(without_a_place_there_is_no_executor, load_other),
      PART("dispatch", the_second_is_refused, load_other, NULL),
      PART("dispatch", whichever_it_is, load_other, NULL),
      PART("dispatch", the_handlers_are_the_hosts_in_between, load_other, NULL),
      PART("dispatch", a_handler_over_the_first_ones_changes_nothing, load_other, NULL),
      PART("dispatch", a_process_that_forks_hands_it_on, load_other, NULL),
      PART("ptrace", the_reference_works_in_all, load_other, NULL),
      PART("namespaces", another_link_namespace_is_a_copy_too, load_other, NULL),
  };
  if (argc != 2) {
    printf("usage: %s LIBRARY\n", argv[0]);
    return 2;
  }
  path = argv[1];
  own = plugin;
  return cmocka_run_group_tests(tests, NULL, NULL);
}

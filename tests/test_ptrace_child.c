/* The child of a reference: it holds nothing but the guest, lives through what others do to it, and belongs
 * to one thread of one process. */
#include <errno.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "files.h"
#include "ptrace_fixture.h"

enum { CALL_MSEAL = 462 };

/* ---- What it holds ---- */

/* Has the kernel sealed mappings of this process (CONFIG_MSEAL_SYSTEM_MAPPINGS)? Nobody else has here. */
static int has_seals(void) {
  char line[512];
  int sealed = 0;
  FILE *maps = fopen("/proc/self/smaps", "r");
  while (fgets(line, sizeof line, maps))
    sealed |= strncmp(line, "VmFlags:", 8) == 0 && strstr(line, " sl") != NULL;
  fclose(maps);
  return sealed;
}

static int is_allowed(uint64_t from, uint64_t to, const char *line) {
  if (strstr(line, "[vsyscall]"))
    return 1;
  if (strstr(line, "[vdso]") || strstr(line, "[vvar"))
    return has_seals();
  if ((from >= G && to <= G + LS_GATE_SIZE) || (from >= INNER && to <= INNER + LS_GATE_SIZE))
    return 1;
  for (uint32_t i = 0; i < layout.window_count; i++) {
    const ls_window *w = &layout.windows[i];
    if (from + LS_PAGE >= w->address && to <= w->address + w->size + LS_PAGE)
      return 1;
  }
  return strstr(line, "---p") != NULL; /* guards of neighbours may be one mapping */
}

static void test_child_is_bare(void **state) {
  (void)state;
  char path[64], line[512];
  pid_t pid = only_child();
  snprintf(path, sizeof path, "/proc/%d/maps", (int)pid);
  FILE *maps = fopen(path, "r");
  unsigned count = 0;
  while (fgets(line, sizeof line, maps)) {
    unsigned long long from, to;
    assert_int_equal(sscanf(line, "%llx-%llx", &from, &to), 2);
    if (!is_allowed(from, to, line))
      fail_msg("mapped in the child: %s", line);
    count++;
  }
  fclose(maps);
  assert_true(count > 3 + layout.window_count);
  snprintf(path, sizeof path, "/proc/%d/fd", (int)pid);
  assert_int_equal(access(path, R_OK), 0);
  assert_int_equal(count_entries(path), 0);
}

static int seal(const char *name) {
  char line[512];
  unsigned long from, to;
  FILE *maps = fopen("/proc/self/maps", "r");
  int sealed = 0;
  while (fgets(line, sizeof line, maps))
    if (strstr(line, name) && sscanf(line, "%lx-%lx", &from, &to) == 2)
      sealed |= syscall(CALL_MSEAL, from, to - from, 0) == 0;
  fclose(maps);
  return sealed;
}

/* In a process of its own: seals last. 0: as expected. */
static int with_seals(void) {
  ls_executor *executor = NULL;
  if (!seal("[vdso]") || !seal("[vvar"))
    return 5;
  if (ls_executor_create(LS_PTRACE, &layout, NULL, &executor, &error))
    return 1;
  ls_executor_destroy(executor);
  void *own = mmap(NULL, LS_PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (syscall(CALL_MSEAL, own, LS_PAGE, 0) != 0)
    return 2;
  if (ls_executor_create(LS_PTRACE, &layout, NULL, &executor, &error) != LS_ERR_NO_REFERENCE)
    return 3;
  return strstr(error.text, "mseal") ? 0 : 4;
}

/* What the kernel has sealed stays in the child; what the host has sealed must not. */
static void test_sealed(void **state) {
  (void)state;
  pid_t pid = fork();
  if (pid == 0)
    _exit(with_seals());
  int status;
  assert_int_equal(waitpid(pid, &status, 0), pid);
  assert_true(WIFEXITED(status));
  assert_int_equal(WEXITSTATUS(status), 0);
}

/* ---- What others do to it ---- */

static void *disturb(void *context) {
  static const int signals[] = {SIGINT,  SIGWINCH, SIGTSTP, SIGSTOP, SIGCONT, SIGSEGV,
                                SIGTRAP, SIGPROF,  SIGCHLD, SIGTERM, SIGURG,  SIGHUP};
  pid_t pid = *(pid_t *)context;
  for (unsigned i = 0; i < 10 * sizeof signals / sizeof signals[0]; i++) {
    kill(pid, signals[i % (sizeof signals / sizeof signals[0])]);
    usleep(300);
  }
  return NULL;
}

static void test_signals_from_outside(void **state) {
  fixture *f = *state;
  static ls_state s;
  static ls_outcome outcome;
  start_state(&s);
  pid_t pid = only_child();
  pthread_t thread;
  pthread_create(&thread, NULL, disturb, &pid);
  load(f, "\xeb\xfe", 2);
  run_ok(f, &(ls_run){.state = &s, .limit_ms = 200}, &outcome);
  assert_int_equal(outcome.stop.kind, LS_STOP_TIMEOUT);
  load(f, "\x48\xff\xc0", 3);
  for (unsigned i = 0; i < 2000; i++) {
    run_ok(f, &(ls_run){.state = &s}, &outcome);
    assert_int_equal(outcome.stop.kind, LS_STOP_EXIT);
    assert_int_equal(outcome.state.gpr[LS_RAX], 1);
  }
  pthread_join(thread, NULL);
  assert_int_equal(only_child(), pid);
}

static void test_killed_child(void **state) {
  fixture *f = *state;
  static ls_state s;
  static ls_outcome outcome;
  start_state(&s);
  ls_run run = {.state = &s, .limit_ms = 10000};
  pid_t pid = only_child();
  pthread_t thread;
  pthread_create(&thread, NULL, kill_soon, &pid);
  load(f, "\xeb\xfe", 2);
  assert_int_equal(ls_executor_run(f->executor, &run, &outcome, &error), LS_ERR_CHILD);
  pthread_join(thread, NULL);
  load(f, "\x90", 1);
  run_ok(f, &run, &outcome);
  assert_int_equal(outcome.stop.kind, LS_STOP_EXIT);
  pid = only_child();
  kill(pid, SIGKILL); /* between runs */
  assert_int_equal(ls_executor_run(f->executor, &run, &outcome, &error), LS_ERR_CHILD);
  run_ok(f, &run, &outcome);
  assert_int_equal(outcome.stop.kind, LS_STOP_EXIT);
  only_child();
}

/* ---- Whose it is ---- */

static void *run_elsewhere(void *context) {
  static ls_outcome outcome;
  static ls_state s;
  start_state(&s);
  fixture *f = context;
  ls_status status = ls_executor_run(f->executor, &(ls_run){.state = &s}, &outcome, &error);
  return status == LS_OK && outcome.stop.kind == LS_STOP_EXIT ? f : NULL;
}

/* Another thread gets a child of its own, and so does this one after it; none is left over. */
static void test_other_thread(void **state) {
  fixture *f = *state;
  load(f, "\x90", 1);
  pid_t first = only_child();
  pthread_t thread;
  void *result;
  pthread_create(&thread, NULL, run_elsewhere, f);
  pthread_join(thread, &result);
  assert_ptr_equal(result, f);
  assert_int_not_equal(only_child(), first);
  static ls_outcome outcome;
  static ls_state s;
  start_state(&s);
  run_ok(f, &(ls_run){.state = &s}, &outcome);
  only_child();
}

/* Stores RAX to data, in this process; exits with 0 if it works and memory is this process's own. */
static int works(fixture *f, uint64_t value) {
  static ls_outcome outcome;
  static ls_state s;
  start_state(&s);
  s.gpr[LS_RAX] = value, s.gpr[LS_RBX] = D;
  uint64_t got;
  for (int i = 0; i < 50; i++) {
    if (ls_executor_run(f->executor, &(ls_run){.state = &s}, &outcome, &error) != LS_OK ||
        outcome.stop.kind != LS_STOP_EXIT)
      return 0;
    memcpy(&got, ls_executor_memory(f->executor, DATA), sizeof got);
    if (got != value)
      return 0;
  }
  return 1;
}

static void test_fork(void **state) {
  fixture *f = *state;
  load(f, "\x48\x89\x03", 3); /* mov [rbx], rax */
  assert_true(works(f, 1));
  pid_t before = only_child();
  pid_t pid = fork();
  if (pid == 0) {
    int ok = works(f, 2);
    ls_executor_destroy(f->executor);
    pid_t left;
    _exit(ok && process_children(getpid(), &left) == 0 ? 0 : 1);
  }
  assert_true(works(f, 3));
  int status;
  assert_int_equal(waitpid(pid, &status, 0), pid);
  assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  assert_true(works(f, 4));
  assert_int_equal(only_child(), before);
  pid = fork(); /* destroys without having run: the parent's child must live */
  if (pid == 0) {
    ls_executor_destroy(f->executor);
    _exit(0);
  }
  assert_int_equal(waitpid(pid, &status, 0), pid);
  assert_true(works(f, 5));
}

static void test_destroy_leaves_nothing(void **state) {
  (void)state;
  pid_t pid = 0;
  unsigned before = process_children(getpid(), &pid);
  ls_executor *executor;
  must(ls_executor_create(LS_PTRACE, &layout, NULL, &executor, &error));
  assert_int_equal(process_children(getpid(), &pid), before + 1);
  ls_executor_destroy(executor);
  assert_int_equal(process_children(getpid(), &pid), before);
}

static _Atomic int enough_killed;

static void *kill_children(void *unused) {
  (void)unused;
  pid_t pid;
  while (!enough_killed)
    if (process_children(getpid(), &pid))
      kill(pid, SIGKILL);
  return NULL;
}

/* Whoever kills it while it starts gets what he gets later: try again. With so much memory that starting
 * takes longer than finding the child. */
static void test_killed_at_start(void **state) {
  (void)state;
  enum { ENOUGH = 10, TRIES_MAX = 5000, LARGE = 8, LARGE_SIZE = 4 << 20 };
  ls_layout slow = layout;
  for (uint32_t i = 0; i < LARGE; i++)
    slow.windows[slow.window_count++] =
        (ls_window){UINT64_C(0x500000000) + i * UINT64_C(0x1000000), LARGE_SIZE, LS_READ | LS_WRITE, 0};
  pthread_t thread;
  ls_executor *executor;
  ls_status status = LS_OK;
  int killed = 0;
  enough_killed = 0;
  pthread_create(&thread, NULL, kill_children, NULL);
  for (int i = 0; i < TRIES_MAX && killed < ENOUGH && (!status || status == LS_ERR_CHILD); i++) {
    status = ls_executor_create(LS_PTRACE, &slow, NULL, &executor, &error);
    killed += status == LS_ERR_CHILD;
    if (!status)
      ls_executor_destroy(executor);
  }
  enough_killed = 1;
  pthread_join(thread, NULL);
  if (killed < ENOUGH)
    fail_msg("%s after %d: %s", ls_status_name(status), killed, error.text);
}

/* Of a limit that the windows keep and the gate area does not. */
static void test_file_limit(void **state) {
  (void)state;
  const ls_layout small = {
      .windows = {{0x20010000, LS_PAGE, LS_READ | LS_EXEC, 0}, {0x20020000, LS_PAGE, LS_READ | LS_WRITE, 0}},
      .window_count = 2,
      .control = 0x20020000,
      .gate = layout.gate};
  const uint64_t bytes[] = {2 * LS_PAGE, LS_PAGE};
  for (int i = 0; i < 2; i++) {
    struct rlimit old, low;
    ls_executor *executor;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
    low = (struct rlimit){bytes[i], old.rlim_max};
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &low), 0);
    ls_status status = ls_executor_create(LS_PTRACE, &small, NULL, &executor, &error);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
    assert_int_equal(status, LS_ERR_MEMORY);
    assert_int_equal(error.sys_errno, EFBIG);
    assert_non_null(strstr(error.text, "RLIMIT_FSIZE"));
  }
}

int main(void) {
  ls_layout_default(&layout, SLOT);
  const struct CMUnitTest tests[] = {
      WITH_EXECUTOR(test_child_is_bare),
      WITH_EXECUTOR(test_signals_from_outside),
      WITH_EXECUTOR(test_killed_child),
      WITH_EXECUTOR(test_other_thread),
      WITH_EXECUTOR(test_fork),
      PART("mseal", test_sealed, NULL, NULL),
      cmocka_unit_test(test_destroy_leaves_nothing),
      cmocka_unit_test(test_killed_at_start),
      cmocka_unit_test(test_file_limit),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}

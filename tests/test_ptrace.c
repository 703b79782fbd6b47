/* What only the reference executor has: what it says it touched, poisoned FS and GS, visitors of steps, and
 * its child. What both executors share is in test_conformance.c. */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"
#include "flags.h"
#include "processes.h"
#include "raw.h"

enum { SLOT = 7, SKIPPED = TEST_SKIPPED, CALL_MSEAL = 462 };
enum { CODE, DATA, CONSTANTS, STACK };

#define ANYWHERE    UINT64_MAX
#define ANY_ADDRESS 0xa11a11a11u
#define ANY_CODE    (-12345)

static ls_layout layout;
static uint64_t host_address; /* of something in this process */

#define D        (layout.windows[DATA].address)
#define C        (layout.windows[CONSTANTS].address)
#define C_TF     (C + 64) /* an RFLAGS image with TF */
#define S        (layout.windows[STACK].address)
#define X        (layout.windows[CODE].address)
#define X_END    (X + layout.windows[CODE].size)
#define G        (layout.gate)
#define INNER    (G ^ 0x1000000000)
#define VSYSCALL 0xffffffffff600000
#define HOST     host_address

/* ---- Helpers ------------------------------------------------------------------------------------------ */

typedef struct fixture {
  ls_executor *executor;
  ls_image *image;
} fixture;

static ls_executor *make(ls_vectors vectors) {
  ls_options options = {.vectors = vectors};
  ls_executor *executor = NULL;
  ls_error error = {0};
  if (ls_executor_create(LS_PTRACE, &layout, &options, &executor, &error) != LS_OK)
    fail_msg("%s: %s", ls_status_name(error.status), error.text);
  uint64_t image = RFLAGS_CLEAN | RFLAGS_TF;
  memcpy((uint8_t *)ls_executor_memory(executor, CONSTANTS) + 64, &image, sizeof image);
  return executor;
}

static void load(fixture *f, const void *code, size_t size) {
  static ls_instruction pieces[RAW_PIECES];
  ls_error error = {0};
  const ls_program program = raw_program(code, size, pieces);
  if (ls_image_build(f->image, &program, &layout, &error) || ls_executor_load(f->executor, f->image, &error))
    fail_msg("%s: %s", ls_status_name(error.status), error.text);
}

static void run_ok(fixture *f, const ls_run *run, ls_outcome *outcome) {
  ls_error error = {0};
  memset(outcome, 0xa5, sizeof *outcome);
  if (ls_executor_run(f->executor, run, outcome, &error) != LS_OK)
    fail_msg("%s: %s", ls_status_name(error.status), error.text);
}

static int setup(void **state) {
  fixture *f = calloc(1, sizeof *f);
  f->executor = make(LS_VECTORS_AUTO);
  f->image = ls_image_create();
  *state = f;
  return 0;
}

static int teardown(void **state) {
  fixture *f = *state;
  ls_executor_destroy(f->executor);
  ls_image_destroy(f->image);
  free(f);
  return 0;
}

static pid_t only_child(void) {
  pid_t pid = 0;
  assert_int_equal(process_children(getpid(), &pid), 1);
  return pid;
}

/* ---- Every way to stop -------------------------------------------------------------------------------- */

typedef struct expected {
  ls_stop_kind kind;
  int signal, code;
  uint64_t address, rip;
  uint32_t touched;
} expected;

static void check_number(const char *name, const char *what, uint64_t want, uint64_t got) {
  if (want != got)
    fail_msg("%s: %s: expected %#llx, got %#llx", name, what, (unsigned long long)want,
             (unsigned long long)got);
}

static void start_state(ls_state *s) {
  ls_state_init(s);
  s->gpr[LS_RSP] = S + 0x800;
}

static void check_stop(fixture *f, const char *name, const char *code, size_t size, const ls_state *start,
                       expected want) {
  static ls_outcome outcome;
  load(f, code, size);
  ls_run run = {.state = start, .limit_ms = want.kind == LS_STOP_TIMEOUT ? 30 : 5000};
  run_ok(f, &run, &outcome);
  check_number(name, "kind", want.kind, outcome.stop.kind);
  check_number(name, "signal", (unsigned)want.signal, (unsigned)outcome.stop.signal);
  if (want.code != ANY_CODE)
    check_number(name, "code", (unsigned)want.code, (unsigned)outcome.stop.code);
  if (want.address != ANY_ADDRESS)
    check_number(name, "address", want.address, outcome.stop.address);
  if (want.rip != ANYWHERE)
    check_number(name, "rip", X + want.rip, outcome.state.rip);
  check_number(name, "touched", want.touched, outcome.touched);
  uint64_t number = want.kind == LS_STOP_SYSCALL ? (uint8_t)code[1] : 0; /* mov eax, number */
  check_number(name, "number", number, outcome.stop.number);
  if (want.kind == LS_STOP_SYSCALL)
    check_number(name, "rax", number, outcome.state.gpr[LS_RAX]);
}

static void test_stops(void **state) {
  fixture *f = *state;
  static ls_state start;
  ls_state *s = &start;
  uint64_t here = 0;
  host_address = (uint64_t)&here & ~UINT64_C(0xf);
#define CASE(name, bytes, setup, ...)                                                                        \
  start_state(s);                                                                                            \
  setup;                                                                                                     \
  check_stop(f, name, bytes, sizeof bytes - 1, s, (expected){__VA_ARGS__});
#include "test_ptrace.inc"
#undef CASE
}

/* A system call of 32-bit code is a fault where the kernel has no such calls. Neither kills the child. */
static void test_int_0x80(void **state) {
  fixture *f = *state;
  static ls_state s;
  static ls_outcome outcome;
  start_state(&s);
  load(f, "\xb8\x01\0\0\0\xcd\x80", 7); /* exit */
  run_ok(f, &(ls_run){.state = &s}, &outcome);
  if (outcome.stop.kind == LS_STOP_SYSCALL)
    assert_int_equal(outcome.stop.number, 1);
  else
    check_number("int 0x80", "signal", SIGSEGV, (unsigned)outcome.stop.signal);
}

/* IRETQ traps one instruction later than the flag says, here behind the gate's jump: it was at the gate. */
static void test_trap_behind_gate(void **state) {
  fixture *f = *state;
  static ls_state s;
  static ls_outcome outcome;
  start_state(&s);
  const uint64_t frame[5] = {G, s.cs, s.rflags | RFLAGS_TF, s.gpr[LS_RSP], s.ss};
  memcpy((uint8_t *)ls_executor_memory(f->executor, STACK) + 0x800, frame, sizeof frame);
  load(f, "\x48\xcf", 2);
  run_ok(f, &(ls_run){.state = &s}, &outcome);
  check_number("trap behind the gate", "kind", LS_STOP_FAULT, outcome.stop.kind);
  check_number("trap behind the gate", "signal", SIGTRAP, (unsigned)outcome.stop.signal);
  check_number("trap behind the gate", "address", G, outcome.stop.address);
  check_number("trap behind the gate", "rip", G, outcome.state.rip);
  check_number("trap behind the gate", "touched", 0, outcome.touched);
}

/* Does the child have its seccomp filter? */
static int is_filtered(void) {
  char path[64], line[256];
  int mode = 0;
  snprintf(path, sizeof path, "/proc/%d/status", (int)only_child());
  FILE *status = fopen(path, "r");
  while (fgets(line, sizeof line, status))
    sscanf(line, "Seccomp: %d", &mode);
  fclose(status);
  return mode == 2;
}

/* Wherever the inside of the gate is entered but at its first byte, no outcome passes for a clean one. */
static void test_inside_of_gate(void **state) {
  fixture *f = *state;
  static ls_state s;
  static ls_outcome outcome;
  load(f, "\xff\xe3", 2); /* jmp rbx */
  for (uint64_t at = 1; at < 0x400; at++)
    for (uint64_t steps = 0; steps <= 1000; steps += 1000) {
      start_state(&s);
      s.gpr[LS_RBX] = INNER + at;
      s.gpr[LS_R12] = D;
      run_ok(f, &(ls_run){.state = &s, .limit_ms = 50, .steps = steps}, &outcome);
      if (!(outcome.touched & LS_TOUCHED_FOREIGN) && outcome.stop.kind == LS_STOP_EXIT)
        fail_msg("entered at %#x: a clean exit", (unsigned)at);
    }
}

/* Calls to the vsyscall page end the run, before they write anything. Where the kernel has no such page they
 * fault there; where it has no seccomp filters they are made. */
static void test_vsyscalls(void **state) {
  fixture *f = *state;
  static ls_state s;
  static ls_outcome outcome;
  static const uint8_t zeros[64];
  static const struct {
    uint64_t address, number;
  } calls[] = {{VSYSCALL, SYS_gettimeofday}, {VSYSCALL + 0x400, SYS_time}, {VSYSCALL + 0x800, SYS_getcpu}};
  if (!is_filtered())
    skip();
  load(f, "\xff\xd0\x90", 3); /* call rax */
  for (unsigned i = 0; i < 2 * sizeof calls / sizeof *calls; i++) {
    start_state(&s);
    s.gpr[LS_RAX] = calls[i / 2].address, s.gpr[LS_RDI] = D, s.gpr[LS_RSI] = D + 32;
    run_ok(f, &(ls_run){.state = &s, .steps = i % 2 * 10}, &outcome);
    check_number("vsyscall", "touched", LS_TOUCHED_FOREIGN, outcome.touched);
    assert_memory_equal(ls_executor_memory(f->executor, DATA), zeros, sizeof zeros);
    if (outcome.stop.kind == LS_STOP_FAULT) {
      check_number("vsyscall", "rip", s.gpr[LS_RAX], outcome.state.rip);
      continue;
    }
    check_number("vsyscall", "kind", LS_STOP_SYSCALL, outcome.stop.kind);
    check_number("vsyscall", "number", calls[i / 2].number, outcome.stop.number);
    check_number("vsyscall", "rip", X + 2, outcome.state.rip);
    assert_int_equal(outcome.stop.instruction, 0);
  }
  start_state(&s);
  s.gpr[LS_RAX] = VSYSCALL + 0x10; /* none of them */
  run_ok(f, &(ls_run){.state = &s}, &outcome);
  check_number("vsyscall", "kind", LS_STOP_FAULT, outcome.stop.kind);
  check_number("vsyscall", "touched", LS_TOUCHED_FOREIGN, outcome.touched);
  load(f, "\x90", 1);
  run_ok(f, &(ls_run){.state = &s}, &outcome);
  check_number("after vsyscalls", "kind", LS_STOP_EXIT, outcome.stop.kind);
  check_number("after vsyscalls", "touched", 0, outcome.touched);
}

/* ---- Stepping ----------------------------------------------------------------------------------------- */

typedef struct trace {
  unsigned count, stop_at;
  uint64_t rip[32], rax[32];
} trace;

static int record(const ls_state *state, void *context) {
  trace *t = context;
  t->rip[t->count] = state->rip;
  t->rax[t->count++] = state->gpr[LS_RAX];
  return t->count == t->stop_at;
}

static void test_steps(void **state) {
  fixture *f = *state;
  static ls_state s;
  static ls_outcome outcome;
  start_state(&s);
  s.gpr[LS_RCX] = 5, s.gpr[LS_RSI] = D, s.gpr[LS_RDI] = D + 64;
  load(f, "\x48\xff\xc0\xf3\xa4\x48\xff\xc0\x48\xff\xc0", 11); /* inc rax; rep movsb; inc rax; inc rax */
  trace all = {0};
  run_ok(f, &(ls_run){.state = &s, .steps = 100, .visitor = record, .context = &all}, &outcome);
  assert_int_equal(outcome.stop.kind, LS_STOP_EXIT);
  static const unsigned offsets[] = {3, 5, 8, 11}, values[] = {1, 1, 2, 3};
  assert_in_range(all.count, 5, 7); /* and the exit point's own */
  for (unsigned i = 0; i < 4; i++) {
    assert_int_equal(all.rip[i], X + offsets[i]);
    assert_int_equal(all.rax[i], values[i]);
  }
  trace two = {.stop_at = 2};
  run_ok(f, &(ls_run){.state = &s, .steps = 100, .visitor = record, .context = &two}, &outcome);
  assert_int_equal(outcome.stop.kind, LS_STOP_STEPS);
  assert_int_equal(two.count, 2);
  assert_int_equal(outcome.state.rip, X + 5);
  assert_int_equal(outcome.stop.instruction, 0);
  run_ok(f, &(ls_run){.state = &s, .steps = 3}, &outcome);
  assert_int_equal(outcome.stop.kind, LS_STOP_STEPS);
  assert_int_equal(outcome.state.gpr[LS_RAX], 2);
}

/* ---- The child ---------------------------------------------------------------------------------------- */

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
  DIR *fds = opendir(path);
  unsigned open_fds = 0;
  while (readdir(fds))
    open_fds++;
  closedir(fds);
  assert_int_equal(open_fds, 2); /* . and .. */
}

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

static void *kill_soon(void *context) {
  usleep(20000);
  kill(*(pid_t *)context, SIGKILL);
  return NULL;
}

static void test_killed_child(void **state) {
  fixture *f = *state;
  static ls_state s;
  static ls_outcome outcome;
  ls_error error = {0};
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

static void *run_elsewhere(void *context) {
  static ls_outcome outcome;
  static ls_state s;
  start_state(&s);
  ls_error error = {0};
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
  ls_error error = {0};
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

/* In a process of its own: seals last. 0: as expected; 77: the kernel cannot seal. */
static int with_seals(void) {
  ls_executor *executor = NULL;
  ls_error error = {0};
  if (!seal("[vdso]") || !seal("[vvar"))
    return SKIPPED;
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
  if (WEXITSTATUS(status) == SKIPPED)
    skip(); /* before Linux 6.10 */
  assert_int_equal(WEXITSTATUS(status), 0);
}

static void test_destroy_leaves_nothing(void **state) {
  (void)state;
  pid_t pid = 0;
  unsigned before = process_children(getpid(), &pid);
  ls_executor *executor = make(LS_VECTORS_AUTO);
  assert_int_equal(process_children(getpid(), &pid), before + 1);
  ls_executor_destroy(executor);
  assert_int_equal(process_children(getpid(), &pid), before);
}

#define WITH_EXECUTOR(test) cmocka_unit_test_setup_teardown(test, setup, teardown)

int main(void) {
  ls_layout_default(&layout, SLOT);
  int failed = find_reference(&layout);
  if (failed)
    return failed;
  const struct CMUnitTest tests[] = {
      WITH_EXECUTOR(test_stops),
      WITH_EXECUTOR(test_int_0x80),
      WITH_EXECUTOR(test_inside_of_gate),
      WITH_EXECUTOR(test_trap_behind_gate),
      WITH_EXECUTOR(test_vsyscalls),
      WITH_EXECUTOR(test_steps),
      WITH_EXECUTOR(test_child_is_bare),
      WITH_EXECUTOR(test_signals_from_outside),
      WITH_EXECUTOR(test_killed_child),
      WITH_EXECUTOR(test_other_thread),
      WITH_EXECUTOR(test_fork),
      cmocka_unit_test(test_sealed),
      cmocka_unit_test(test_destroy_leaves_nothing),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}

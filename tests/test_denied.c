/* What happens where the system refuses a call that Lockstep makes, as containers do: a clear error with what
 * to do, or the same result by another way. Each case in a process of its own, behind a seccomp filter.
 * Arguments: the lockstep command and an entry, if they are built. */
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "must.h"

enum { NO_FILTER = 99, FILTERED = 100, MANY_RUNS = 200, LOOKS = 20 };

static const char *command, *entry;

/* ---- Filters ------------------------------------------------------------------------------------------ */

#define REFUSE(error) (SECCOMP_RET_ERRNO | (error))

/* Of this thread and those it makes. */
static void deny(int call, uint32_t action) {
  signal(SIGSYS, SIG_DFL); /* cmocka's handler would go on with the tests in this process */
  struct sock_filter filter[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)call, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, action),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  struct sock_fprog program = {sizeof filter / sizeof *filter, filter};
  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program))
    _exit(NO_FILTER);
}

/* ---- What is tried ------------------------------------------------------------------------------------ */

static const ls_instruction counts[] = {
    {.id = 1, .next = 1, .jump = LS_NONE, .length = 3, .bytes = {0x48, 0xff, 0xc0}}, /* inc rax */
    {.id = 2, .next = 0, .jump = LS_NONE, .length = 1, .bytes = {0x90}},
};

static const ls_program once = {.instructions = counts, .count = 1};
static const ls_program for_ever = {.instructions = counts, .count = 2};

/* Fails the case, in the process behind the filter. */
static void check(ls_status status, const char *what) {
  if (status == LS_OK)
    return;
  printf("  %s: %s: %s\n", what, ls_status_name(status), error.text);
  fflush(stdout);
  _exit(1);
}

/* An executor that counts to one, or why there is none. */
static ls_status make_and_run(ls_kind kind) {
  static ls_outcome outcome;
  static ls_state state;
  ls_layout layout;
  ls_executor *executor;
  ls_layout_default(&layout, 0);
  ls_state_init(&state);
  ls_image *image = ls_image_create();
  ls_status status = ls_executor_create(kind, &layout, NULL, &executor, &error);
  if (status)
    return status;
  ls_program leaves = once;
  ls_instruction in = counts[0];
  in.next = LS_NONE;
  leaves.instructions = &in;
  check(ls_image_build(image, &leaves, &layout, &error), "build");
  check(ls_executor_load(executor, image, &error), "load");
  check(ls_executor_run(executor, &(ls_run){.state = &state}, &outcome, &error), "run");
  if (outcome.stop.kind != LS_STOP_EXIT || outcome.state.gpr[LS_RAX] != 1)
    _exit(2);
  ls_executor_destroy(executor);
  ls_image_destroy(image);
  return LS_OK;
}

static void *executes(void *controller) {
  ls_stop stop;
  check(ls_execute(controller, 1, NULL, &stop, &error), "execute");
  if (stop.kind != LS_STOP_CANCELLED)
    _exit(3);
  return NULL;
}

/* Another thread looks at a guest, and ends it, after its thread has been given it (mailbox.h). */
static void control(ls_kind kind, int late_call, uint32_t late_action) {
  ls_controller *controller;
  ls_stop stop;
  ls_state state;
  pthread_t thread;
  ls_instruction in = counts[0];
  in.next = LS_NONE;
  check(ls_controller_create(kind, NULL, &controller, &error), "create");
  check(ls_update_code(controller, &(ls_program){.instructions = &in, .count = 1}, &error), "code");
  if (late_call)
    deny(late_call, late_action);
  for (int i = 0; i < MANY_RUNS; i++)
    check(ls_execute(controller, 1, NULL, &stop, &error), "execute");
  check(ls_get_state(controller, &state, NULL, &error), "look");
  if (state.gpr[LS_RAX] != MANY_RUNS)
    _exit(4);
  check(ls_update_code(controller, &for_ever, &error), "code");
  pthread_create(&thread, NULL, executes, controller);
  ls_position position = {.activity = LS_IDLE};
  while (position.activity == LS_IDLE)
    check(ls_get_state(controller, &state, &position, &error), "look");
  for (int i = 0; i < LOOKS; i++)
    check(ls_get_state(controller, &state, &position, &error), "look");
  check(ls_pause(controller, &error), "pause");
  check(ls_step(controller, 2, &error), "step");
  check(ls_cancel(controller, &error), "cancel");
  pthread_join(thread, NULL);
  ls_controller_destroy(controller);
}

/* ---- The table ---------------------------------------------------------------------------------------- */

static const struct denial {
  const char *name;
  int call;
  uint32_t action;
  ls_kind kind;
  ls_status status;    /* of making an executor */
  const char *says[2]; /* the error's text: what is refused, and what to do */
} denials[] = {
    {"ptrace", SYS_ptrace, REFUSE(EPERM), LS_PTRACE, LS_ERR_NO_REFERENCE, {"seccomp", "allow ptrace"}},
    {"ptrace, unknown",
     SYS_ptrace,
     REFUSE(ENOSYS),
     LS_PTRACE,
     LS_ERR_NO_REFERENCE,
     {"seccomp", "allow ptrace"}},
    {"ptrace, trap",
     SYS_ptrace,
     SECCOMP_RET_TRAP,
     LS_PTRACE,
     LS_ERR_NO_REFERENCE,
     {"seccomp", "allow ptrace"}},
    {"ptrace, kill",
     SYS_ptrace,
     SECCOMP_RET_KILL,
     LS_PTRACE,
     LS_ERR_NO_REFERENCE,
     {"seccomp", "allow ptrace"}},
#ifdef SECCOMP_RET_KILL_PROCESS
    {"ptrace, kill process",
     SYS_ptrace,
     SECCOMP_RET_KILL_PROCESS,
     LS_PTRACE,
     LS_ERR_NO_REFERENCE,
     {"seccomp", "allow ptrace"}},
#endif
    {"ptrace, in thread", SYS_ptrace, REFUSE(EPERM), LS_SIGNAL, LS_OK, {0}},
    {"setitimer", SYS_setitimer, REFUSE(EPERM), LS_PTRACE, LS_ERR_NO_REFERENCE, {"setitimer", "allow it"}},
    {"setitimer, in thread", SYS_setitimer, REFUSE(EPERM), LS_SIGNAL, LS_OK, {0}},
    {"timer_create", SYS_timer_create, REFUSE(EPERM), LS_SIGNAL, LS_ERR_SYSTEM, {"timer_create", "allow it"}},
    {"timer_settime",
     SYS_timer_settime,
     REFUSE(EPERM),
     LS_SIGNAL,
     LS_ERR_SYSTEM,
     {"timer_settime", "allow it"}},
    {"timer_create, reference", SYS_timer_create, REFUSE(EPERM), LS_PTRACE, LS_OK, {0}},
    {"prctl", SYS_prctl, REFUSE(EPERM), LS_SIGNAL, LS_OK, {0}},
    {"prctl, unknown", SYS_prctl, REFUSE(ENOSYS), LS_SIGNAL, LS_OK, {0}},
    {"prctl, another error", SYS_prctl, REFUSE(EACCES), LS_SIGNAL, LS_OK, {0}},
    {"membarrier", SYS_membarrier, REFUSE(EPERM), LS_SIGNAL, LS_OK, {0}},
    {"membarrier, reference", SYS_membarrier, REFUSE(ENOSYS), LS_PTRACE, LS_OK, {0}},
    {"seccomp", SYS_seccomp, REFUSE(EPERM), LS_PTRACE, LS_OK, {0}},
    {"sigaltstack", SYS_sigaltstack, REFUSE(EPERM), LS_SIGNAL, LS_ERR_SYSTEM, {"sigaltstack", "allow it"}},
};

static void behind_filter(const struct denial *d) {
  deny(d->call, d->action);
  ls_status status = make_and_run(d->kind);
  if (status != d->status) {
    printf("  expected %s, got %s: %s\n", ls_status_name(d->status), ls_status_name(status), error.text);
    fflush(stdout);
    _exit(5);
  }
  for (int i = 0; i < 2 && d->says[i]; i++)
    if (!strstr(error.text, d->says[i])) {
      printf("  expected '%s' in: %s\n", d->says[i], error.text);
      fflush(stdout);
      _exit(6);
    }
  if (status == LS_OK && d->call == SYS_membarrier)
    control(d->kind, 0, 0);
  _exit(0);
}

/* Its exit status (99: it could not be tried), or 100 and its signal. */
static int wait_for(pid_t pid) {
  int status = 0;
  assert_int_equal(waitpid(pid, &status, 0), pid);
  return WIFEXITED(status) ? WEXITSTATUS(status) : FILTERED + WTERMSIG(status);
}

static void executors_say_what_is_refused(void **unused) {
  (void)unused;
  int failed = 0;
  for (size_t i = 0; i < sizeof denials / sizeof *denials; i++) {
    fflush(stdout);
    pid_t pid = fork();
    if (!pid)
      behind_filter(&denials[i]);
    int got = wait_for(pid);
    if (got) {
      print_error("%s: the process ended with %d\n", denials[i].name, got);
      failed++;
    }
  }
  assert_int_equal(failed, 0);
}

/* A filter that comes when a guest has been given to its thread already. */
static void a_barrier_may_be_refused_later(void **unused) {
  (void)unused;
  for (ls_kind kind = LS_SIGNAL; kind <= LS_PTRACE; kind++) {
    fflush(stdout);
    pid_t pid = fork();
    if (!pid) {
      control(kind, SYS_membarrier, REFUSE(EPERM));
      _exit(0);
    }
    assert_int_equal(wait_for(pid), 0);
  }
}

/* ---- The command -------------------------------------------------------------------------------------- */

static void run_command(const struct denial *d, int output) {
  dup2(output, STDOUT_FILENO);
  dup2(output, STDERR_FILENO);
  deny(d->call, d->action);
  execl(command, command, "run", entry, (char *)NULL);
  _exit(NO_FILTER);
}

/* What it prints, up to `size`, and its exit status. */
static int command_behind_filter(const struct denial *d, char *text, size_t size) {
  int pipes[2];
  assert_int_equal(pipe(pipes), 0);
  fflush(stdout);
  pid_t pid = fork();
  if (!pid)
    run_command(d, pipes[1]);
  close(pipes[1]);
  size_t length = 0;
  for (ssize_t got; (got = read(pipes[0], text + length, size - 1 - length)) > 0;)
    length += (size_t)got;
  text[length] = 0;
  close(pipes[0]);
  return wait_for(pid);
}

static void the_command_exits_with_3(void **unused) {
  (void)unused;
  char text[4096];
  int failed = 0;
  for (size_t i = 0; i < sizeof denials / sizeof *denials; i++) {
    const struct denial *d = &denials[i];
    if (d->status != LS_ERR_NO_REFERENCE)
      continue;
    int got = command_behind_filter(d, text, sizeof text);
    if (got != 3 || !strstr(text, d->says[0]) || !strstr(text, d->says[1])) {
      print_error("%s: exit status %d: %s\n", d->name, got, text);
      failed++;
    }
  }
  assert_int_equal(failed, 0);
}

int main(int argc, char **argv) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(executors_say_what_is_refused),
      cmocka_unit_test(a_barrier_may_be_refused_later),
      cmocka_unit_test(the_command_exits_with_3),
  };
  if (argc == 3) {
    command = argv[1];
    entry = argv[2];
    return cmocka_run_group_tests_name("denied", tests, NULL, NULL);
  }
  return _cmocka_run_group_tests("denied", tests, 2, NULL, NULL);
}

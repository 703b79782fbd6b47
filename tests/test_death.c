/* What is left of a reference when its host dies, however it dies: nothing. */
#include <pthread.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include "faults.h"
#include "processes.h"

enum { SLOT = 12 };

typedef enum death {
  BY_EXIT,       /* exit, nothing destroyed */
  BY_QUICK_EXIT, /* _exit */
  BY_DESTROY,    /* all destroyed, then exit */
  BY_FAULT,      /* a fault of the host's own, which goes to the default action */
  BY_ABORT,
  BY_THREAD_END, /* the thread that made the reference ends; the host lives */
  BY_SIGNAL      /* sent to the host, or to its process group */
} death;

static const struct death_case {
  const char *name;
  death how;
  int signal;
  bool group; /* as Ctrl-C does */
  bool busy;  /* in the middle of an endless run of the reference */
} deaths[] = {
    {"exit", .how = BY_EXIT},
    {"_exit", .how = BY_QUICK_EXIT},
    {"destroy and exit", .how = BY_DESTROY},
    {"fault of the host", .how = BY_FAULT},
    {"abort", .how = BY_ABORT},
    {"end of the thread", .how = BY_THREAD_END},
    {"SIGKILL", .how = BY_SIGNAL, .signal = SIGKILL},
    {"SIGKILL, busy", .how = BY_SIGNAL, .signal = SIGKILL, .busy = true},
    {"SIGINT", .how = BY_SIGNAL, .signal = SIGINT, .group = true},
    {"SIGINT, busy", .how = BY_SIGNAL, .signal = SIGINT, .group = true, .busy = true},
    {"SIGTERM, busy", .how = BY_SIGNAL, .signal = SIGTERM, .busy = true},
    {"SIGHUP to the group, busy", .how = BY_SIGNAL, .signal = SIGHUP, .group = true, .busy = true},
    {"SIGQUIT to the group", .how = BY_SIGNAL, .signal = SIGQUIT, .group = true},
};

static ls_executor *volatile kept[2]; /* never destroyed, and not a leak either */

/* Says in *pid which process the reference is: the only child. */
static void *make_reference(void *pid) {
  kept[1] = create(LS_PTRACE);
  unsigned done = 0;
  run_round(kept[1], IN_REFERENCE, IN_REFERENCE, &done);
  if (process_children(getpid(), pid) != 1)
    _exit(1);
  return NULL;
}

static void run_for_ever(ls_executor *executor) {
  static ls_state state;
  static ls_outcome outcome;
  ls_instruction in = {.next = LS_NONE, .jump = LS_NONE, .length = 2, .bytes = {0xeb, 0xfe}};
  ls_state_init(&state);
  ls_image *image = ls_image_create();
  must(ls_image_build(image, &(ls_program){.instructions = &in, .count = 1}, &layout, &error));
  must(ls_executor_load(executor, image, &error));
  ls_executor_run(executor, &(ls_run){.state = &state, .limit_ms = 600000}, &outcome, &error);
}

static void die(const struct death_case *d) {
  switch (d->how) {
  case BY_DESTROY:
    ls_executor_destroy(kept[0]);
    ls_executor_destroy(kept[1]);
    exit(0);
  case BY_EXIT:
    exit(0);
  case BY_QUICK_EXIT:
    _exit(0);
  case BY_FAULT:
    __asm__ volatile("movb $1, 0x18");
    break;
  case BY_ABORT:
    abort();
  case BY_SIGNAL:
    if (d->busy)
      run_for_ever(kept[1]);
    break;
  case BY_THREAD_END:
    break;
  }
  for (;;)
    pause();
}

/* The host's life, in a process and process group of its own: makes both kinds, runs faults in them, tells
 * which process its reference is, and dies. */
static void live(const struct death_case *d, int report) {
  pthread_t thread;
  pid_t reference = 0;
  unsigned done = 0;
  setpgid(0, 0);
  for (int sig = 1; sig <= SIGTERM; sig++)
    signal(sig, SIG_DFL);
  fclose(stdout);
  build_images();
  kept[0] = create(LS_SIGNAL);
  run_round(kept[0], GUESTS, GUESTS, &done);
  if (d->how == BY_THREAD_END)
    pthread_create(&thread, NULL, make_reference, &reference);
  else
    make_reference(&reference);
  if (d->how == BY_THREAD_END)
    pthread_join(thread, NULL);
  if (write(report, &reference, sizeof reference) != sizeof reference)
    _exit(1);
  close(report);
  die(d);
}

static void check_death(const struct death_case *d) {
  enum { LET_IT_BE_BUSY_US = 30000 };
  int ends[2];
  pid_t reference = 0;
  assert_int_equal(pipe(ends), 0);
  pid_t pid = fork();
  if (pid == 0) {
    close(ends[0]);
    live(d, ends[1]);
  }
  close(ends[1]);
  ssize_t got = read(ends[0], &reference, sizeof reference);
  close(ends[0]);
  if (d->busy)
    usleep(LET_IT_BE_BUSY_US);
  if (d->how == BY_SIGNAL)
    kill(d->group ? -pid : pid, d->signal);
  bool gone_first = d->how == BY_THREAD_END && got == sizeof reference && process_is_gone(reference);
  if (d->how == BY_THREAD_END)
    kill(pid, SIGKILL);
  int status = 0;
  assert_int_equal(waitpid(pid, &status, 0), pid);
  if (got != sizeof reference || reference <= 0)
    fail_msg("%s: the host made no reference", d->name);
  if (d->how == BY_SIGNAL && (!WIFSIGNALED(status) || WTERMSIG(status) != d->signal))
    fail_msg("%s: the host ended with status %#x", d->name, (unsigned)status);
  if (d->how == BY_THREAD_END && !gone_first)
    fail_msg("%s: the reference outlived its thread", d->name);
  if (!process_is_gone(reference))
    fail_msg("%s: the reference %d is left", d->name, (int)reference);
}

static void nobody_is_left(void **unused) {
  (void)unused;
  for (size_t i = 0; i < sizeof deaths / sizeof *deaths; i++)
    check_death(&deaths[i]);
}

int main(void) {
  ls_layout_default(&layout, SLOT);
  const struct CMUnitTest tests[] = {cmocka_unit_test(nobody_is_left),
                                     PART("dispatch", nobody_is_left, NULL, NULL),
                                     PART("fsgsbase", nobody_is_left, NULL, NULL)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}

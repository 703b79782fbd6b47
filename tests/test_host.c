/* The host survives: what faulting guests leave of it, and what is left of a reference when its host dies. */
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"
#include "cpu.h"
#include "flags.h"
#include "processes.h"
#include "sanitizers.h"

enum { CODE, DATA, CONSTANTS, STACK }; /* windows of the default layout */

enum { FAULTING_RUNS = 100000, REFERENCE_RUNS = 5000, SLOT = 11, SIGNALS = 64, DESCRIPTORS = 256 };

static ls_error error;
static ls_layout layout;

static void must(ls_status status) {
  if (status)
    fail_msg("%s: %s", ls_status_name(status), error.text);
}

/* ---- All that a host can miss ------------------------------------------------------------------------- */

typedef struct kernel_handler {
  uint64_t handler, flags, restorer, mask;
} kernel_handler;

typedef struct host {
  kernel_handler handlers[SIGNALS + 1];
  uint64_t stack, stack_size, stack_flags, mask, fs, gs, mxcsr;
  uint16_t fcw, fsw, fs_selector, gs_selector, ds, es;
  uint64_t rflags;       /* all but the arithmetic ones */
  uint64_t third, minus; /* bits of 1/3 and -1/3 by SSE: the rounding mode at work */
  uint8_t third_x87[16]; /* 1/3 by x87 */
  uint64_t descriptors;  /* how many are open */
  struct {
    uint64_t device, inode, mode, flags, offset;
  } descriptor[DESCRIPTORS]; /* which */
  uint64_t timers;           /* POSIX timers of this process */
  uint64_t dispatched;       /* 1: a system call did not do what it should */
} host;

static void look_at_signals(host *h) {
  for (int sig = 1; sig <= SIGNALS; sig++)
    syscall(SYS_rt_sigaction, sig, NULL, &h->handlers[sig], 8);
  stack_t stack;
  sigaltstack(NULL, &stack);
  h->stack = (uintptr_t)stack.ss_sp;
  h->stack_size = stack.ss_size;
  h->stack_flags = (uint64_t)stack.ss_flags;
  syscall(SYS_rt_sigprocmask, SIG_BLOCK, NULL, &h->mask, 8);
  h->dispatched = syscall(SYS_getpid) != getpid();
}

static void look_at_cpu(host *h) {
  enum { GET_FS = 0x1003, GET_GS = 0x1004, ARITHMETIC = 0x8d5 }; /* asm/prctl.h; CF PF AF ZF SF OF */
  syscall(SYS_arch_prctl, GET_FS, &h->fs);
  syscall(SYS_arch_prctl, GET_GS, &h->gs);
  __asm__ volatile("fnstcw %0; fnstsw %1; stmxcsr %2" : "=m"(h->fcw), "=m"(h->fsw), "=m"(h->mxcsr));
  __asm__ volatile("mov %%fs, %0; mov %%gs, %1" : "=r"(h->fs_selector), "=r"(h->gs_selector));
  __asm__ volatile("mov %%ds, %0; mov %%es, %1" : "=r"(h->ds), "=r"(h->es));
  __asm__ volatile("pushfq; pop %0" : "=r"(h->rflags));
  h->rflags &= ~(uint64_t)ARITHMETIC;
  const double one = 1, three = 3, minus_three = -3;
  double quotient;
  __asm__ volatile("movsd %1, %%xmm0; divsd %2, %%xmm0; movsd %%xmm0, %0"
                   : "=m"(quotient)
                   : "m"(one), "m"(three)
                   : "xmm0");
  memcpy(&h->third, &quotient, sizeof quotient);
  __asm__ volatile("movsd %1, %%xmm0; divsd %2, %%xmm0; movsd %%xmm0, %0"
                   : "=m"(quotient)
                   : "m"(one), "m"(minus_three)
                   : "xmm0");
  memcpy(&h->minus, &quotient, sizeof quotient);
  __asm__ volatile("fldl %1; fdivl %2; fstpt %0" : "=m"(h->third_x87) : "m"(one), "m"(three));
}

static void look_at_descriptors(host *h) {
  struct stat file;
  for (int fd = 0; fd < DESCRIPTORS; fd++)
    if (fstat(fd, &file) == 0) {
      h->descriptors++;
      h->descriptor[fd].device = file.st_dev;
      h->descriptor[fd].inode = file.st_ino;
      h->descriptor[fd].mode = file.st_mode;
      h->descriptor[fd].flags = (uint64_t)fcntl(fd, F_GETFL) << 32 | (unsigned)fcntl(fd, F_GETFD);
    }
}

static unsigned count_lines(const char *path, const char *with) {
  char line[512];
  unsigned count = 0;
  FILE *file = fopen(path, "r");
  while (file && fgets(line, sizeof line, file))
    count += strstr(line, with) != NULL;
  if (file)
    fclose(file);
  return count;
}

/* What is open in /proc/self/fd, the folder itself left out. */
static unsigned open_descriptors(void) {
  unsigned count = 0;
  DIR *fds = opendir("/proc/self/fd");
  for (struct dirent *entry; fds && (entry = readdir(fds));)
    count += entry->d_name[0] != '.';
  if (fds)
    closedir(fds);
  return count - 1;
}

static void look(host *h) {
  memset(h, 0, sizeof *h);
  look_at_cpu(h); /* before the C library's own arithmetic */
  look_at_signals(h);
  look_at_descriptors(h);
  h->timers = count_lines("/proc/self/timers", "ID:");
  if (h->descriptors != open_descriptors())
    fail_msg("descriptors above %d are open", DESCRIPTORS);
}

/* Of two looks at what no run may change, an executor being there or not: while one is there, the handlers of
 * its signals, one timer, an alternate stack and the mask are the library's. */
static void same_host(const char *when, const host *a, const host *b, bool lent) {
  for (int sig = 1; sig <= SIGNALS; sig++)
    if (memcmp(&a->handlers[sig], &b->handlers[sig], sizeof a->handlers[sig]) && !lent)
      fail_msg("%s: the handler of signal %d changed", when, sig);
  for (int fd = 0; fd < DESCRIPTORS; fd++)
    if (memcmp(&a->descriptor[fd], &b->descriptor[fd], sizeof a->descriptor[fd]) && !lent)
      fail_msg("%s: descriptor %d changed", when, fd);
#define SAME(field)                                                                                          \
  do                                                                                                         \
    if (memcmp(&a->field, &b->field, sizeof a->field) != 0)                                                  \
      fail_msg("%s: %s changed", when, #field);                                                              \
  while (0)
  SAME(fs);
  SAME(gs);
  SAME(mxcsr);
  SAME(fcw);
  SAME(fsw);
  SAME(fs_selector);
  SAME(gs_selector);
  SAME(ds);
  SAME(es);
  SAME(rflags);
  SAME(third);
  SAME(minus);
  SAME(third_x87);
  SAME(dispatched);
  if (lent)
    return;
  SAME(stack);
  SAME(stack_size);
  SAME(stack_flags);
  SAME(mask);
  SAME(timers);
  SAME(descriptors);
#undef SAME
}

/* ---- A host with settings of its own ------------------------------------------------------------------ */

static volatile sig_atomic_t host_calls;

static void count_call(int sig) {
  (void)sig;
  host_calls = host_calls + 1;
}

static const int own_handlers[] = {SIGSEGV, SIGBUS, SIGFPE, SIGTRAP, SIGURG, SIGUSR2, SIGVTALRM, SIGCHLD};
enum { OWN_HANDLERS = sizeof own_handlers / sizeof *own_handlers };

typedef struct settings {
  struct sigaction handlers[OWN_HANDLERS];
  stack_t stack, own_stack;
  sigset_t mask;
  uint32_t mxcsr, x87[7]; /* FNSTENV */
  uint64_t gs;
} settings;

enum { SET_GS = 0x1001, GET_GS = 0x1004 };

/* Handlers, alternate stack, mask, rounding upwards with FTZ and sticky flags, a GS base. */
static void settle(settings *before) {
  static uint8_t own_stack[1 << 17], own_gs[64];
  static const uint32_t mxcsr = 0xdfa1; /* FTZ, round up, all masked, invalid and precision seen */
  static const uint16_t fcw = 0xa7f;    /* round up, 53 bits */
  struct sigaction action = {.sa_handler = count_call, .sa_flags = SA_ONSTACK | SA_NOCLDSTOP};
  sigaddset(&action.sa_mask, SIGUSR1);
  for (int i = 0; i < OWN_HANDLERS; i++)
    sigaction(own_handlers[i], &action, &before->handlers[i]);
  before->own_stack = (stack_t){.ss_sp = own_stack, .ss_size = sizeof own_stack};
  sigaltstack(&before->own_stack, &before->stack);
  sigset_t blocked;
  sigemptyset(&blocked);
  for (int sig = SIGILL; sig <= SIGFPE; sig++)
    sigaddset(&blocked, sig);
  sigaddset(&blocked, SIGURG);
  sigaddset(&blocked, SIGUSR1);
  sigprocmask(SIG_BLOCK, &blocked, &before->mask);
  syscall(SYS_arch_prctl, GET_GS, &before->gs);
  syscall(SYS_arch_prctl, SET_GS, own_gs);
  __asm__ volatile("stmxcsr %0; fnstenv %1" : "=m"(before->mxcsr), "=m"(before->x87));
  __asm__ volatile("fld1; fldpi; fdivrp; fldz; fldz; fdivrp; fcompp"); /* precision and invalid seen */
  __asm__ volatile("ldmxcsr %0; fldcw %1" : : "m"(mxcsr), "m"(fcw));
}

static void unsettle(const settings *before) {
  __asm__ volatile("ldmxcsr %0; fldenv %1" : : "m"(before->mxcsr), "m"(before->x87));
  syscall(SYS_arch_prctl, SET_GS, before->gs);
  sigprocmask(SIG_SETMASK, &before->mask, NULL);
  sigaltstack(&before->stack, NULL);
  for (int i = 0; i < OWN_HANDLERS; i++)
    sigaction(own_handlers[i], &before->handlers[i], NULL);
}

/* ---- Guests that fault -------------------------------------------------------------------------------- */

#define BYTES(code) sizeof code - 1, code
#define MISALIGNED  1 /* as RSP: within the stack, but odd */

static const struct guest {
  const char *name;
  uint8_t size;
  const char *code;
  uint64_t rax, rsp, rflags;
  ls_stop_kind kind;
  int signal;
  uint32_t mxcsr;
  uint16_t fcw;
} guests[] = {
    {"#UD", BYTES("\x0f\x0b"), .kind = LS_STOP_FAULT, .signal = SIGILL},
    {"#DE", BYTES("\xf7\xf1"), .kind = LS_STOP_FAULT, .signal = SIGFPE},
    {"#GP", BYTES("\xf4"), .kind = LS_STOP_FAULT, .signal = SIGSEGV},
    {"#GP, all flags", BYTES("\xf4"), .rflags = RFLAGS_USER & ~RFLAGS_TF, .kind = LS_STOP_FAULT,
     .signal = SIGSEGV},
    {"#PF read", BYTES("\x48\x8b\x00"), .rax = 0x10, .kind = LS_STOP_FAULT, .signal = SIGSEGV},
    {"#PF execute", BYTES("\xff\xe0"), .rax = 0x20, .kind = LS_STOP_FAULT, .signal = SIGSEGV},
    {"#PF, RSP garbage", BYTES("\x48\x8b\x00"), .rax = 0x10, .rsp = 3, .kind = LS_STOP_FAULT,
     .signal = SIGSEGV},
    {"#SS", BYTES("\x50"), .rsp = 1ull << 62, .kind = LS_STOP_FAULT, .signal = SIGBUS},
    {"#AC", BYTES("\x48\x8b\x04\x24"), .rsp = MISALIGNED, .rflags = RFLAGS_AC, .kind = LS_STOP_FAULT,
     .signal = SIGBUS},
    {"#BP", BYTES("\xcc"), .kind = LS_STOP_FAULT, .signal = SIGTRAP},
    {"#DB", BYTES("\x90\x90"), .rflags = RFLAGS_TF, .kind = LS_STOP_FAULT, .signal = SIGTRAP},
    {"#XM", BYTES("\x0f\x5e\xc1"), .mxcsr = 0x9f00, .kind = LS_STOP_FAULT, .signal = SIGFPE},
    {"#MF", BYTES("\xd9\xe8\xd9\xee\xde\xf9\x9b"), .fcw = 0x67b, .kind = LS_STOP_FAULT, .signal = SIGFPE},
    {"x87 left full", BYTES("\xd9\xeb\xd9\xeb\xd9\xeb\x0f\x0b"), .fcw = 0x3f, .kind = LS_STOP_FAULT,
     .signal = SIGILL},
    {"MXCSR left odd", BYTES("\x0f\x0b"), .mxcsr = 0x603f, .kind = LS_STOP_FAULT, .signal = SIGILL},
    {"DS, ES, DF", BYTES("\x8e\xd8\x8e\xc0\xfd\x0f\x0b"), .rax = 0x2b, .kind = LS_STOP_FAULT,
     .signal = SIGILL},
    {"system call", BYTES("\x0f\x05"), .rax = 12, .kind = LS_STOP_SYSCALL},
    {"FS and GS loaded", BYTES("\x8e\xe0\x8e\xe8\x0f\x0b"), .rax = 0x2b, .kind = LS_STOP_FAULT,
     .signal = SIGILL},
    {"FS base lost", BYTES("\xf3\x48\x0f\xae\xd0\x0f\x0b"), .kind = LS_STOP_FAULT, .signal = SIGILL},
};
enum { GUESTS = sizeof guests / sizeof *guests, IN_REFERENCE = GUESTS - 2, SYSCALL_GUEST = GUESTS - 3 };

static ls_image *images[GUESTS];

static void build_images(void) {
  for (int i = 0; i < GUESTS; i++) {
    ls_instruction in = {.next = LS_NONE, .jump = LS_NONE, .length = guests[i].size};
    memcpy(in.bytes, guests[i].code, guests[i].size);
    images[i] = ls_image_create();
    must(ls_image_build(images[i], &(ls_program){.instructions = &in, .count = 1}, &layout, &error));
  }
}

static void destroy_images(void) {
  for (int i = 0; i < GUESTS; i++)
    ls_image_destroy(images[i]);
}

static bool can_run(int i, ls_executor *executor) {
  if (i == SYSCALL_GUEST)
    return ls_executor_stops_syscalls(executor);
  return i < IN_REFERENCE || cpu()->fsgsbase;
}

static void run_guest(ls_executor *executor, int i) {
  static ls_state state;
  static ls_outcome outcome;
  const struct guest *g = &guests[i];
  ls_state_init(&state);
  state.gpr[LS_RAX] = g->rax;
  uint64_t stack = layout.windows[STACK].address + 0x800;
  state.gpr[LS_RSP] = g->rsp == MISALIGNED ? stack + 1 : g->rsp ? g->rsp : stack;
  state.rflags |= g->rflags;
  state.mxcsr = g->mxcsr ? g->mxcsr : state.mxcsr;
  state.fcw = g->fcw ? g->fcw : state.fcw;
  must(ls_executor_load(executor, images[i], &error));
  ls_run run = {.state = &state, .uses = g->fcw ? LS_USES_X87 : 0};
  must(ls_executor_run(executor, &run, &outcome, &error));
  if (outcome.stop.kind != g->kind || outcome.stop.signal != g->signal)
    fail_msg("%s: %s, signal %d", g->name, ls_stop_kind_name(outcome.stop.kind), outcome.stop.signal);
}

/* ---- What runs leave ---------------------------------------------------------------------------------- */

static unsigned mappings(void) {
  /* Sanitizers map memory for themselves as time goes by. */
  return count_lines("/proc/self/maps", ASAN || TSAN ? "lockstep" : "");
}

static ls_executor *current; /* so that a test that fails leaves nothing behind */

static ls_executor *create(ls_kind kind) {
  ls_executor *executor = NULL;
  must(ls_executor_create(kind, &layout, NULL, &executor, &error));
  return executor;
}

static int destroy_current(void **unused) {
  (void)unused;
  ls_executor_destroy(current);
  current = NULL;
  return 0;
}

static void run_round(ls_executor *executor, int count, int kinds, unsigned *done) {
  for (int i = 0, n = 0; n < count; i = (i + 1) % kinds)
    if (can_run(i, executor)) {
      run_guest(executor, i);
      n++;
      ++*done;
    }
}

/* Each kind of guest by itself: what one leaves behind the next may hide. */
static void check_each(const host *before, int kinds) {
  static host after;
  for (int i = 0; i < kinds; i++)
    if (can_run(i, current)) {
      run_guest(current, i);
      look(&after);
      same_host(guests[i].name, before, &after, true);
    }
}

/* Runs in an executor of that kind, watched. The first round pays for what is made once per process: the
 * arena of alternate stacks, buffers of the C library. */
static void check_host(ls_kind kind, int runs, int kinds) {
  static host before, warm, after;
  static settings outside;
  build_images();
  current = create(kind);
  unsigned done = 0;
  run_round(current, kinds, kinds, &done);
  destroy_current(NULL);
  host_calls = 0;
  settle(&outside);
  look(&before);
  unsigned maps_before = mappings();
  current = create(kind);
  check_each(&before, kinds);
  look(&warm);
  unsigned maps_warm = mappings();
  done = 0;
  run_round(current, runs, kinds, &done);
  look(&after);
  unsigned maps_after = mappings();
  unsigned descriptors_warm = (unsigned)warm.descriptors, descriptors_after = (unsigned)after.descriptors;
  int calls = host_calls;
  same_host("with an executor", &before, &after, true);
  assert_memory_equal(&warm.handlers, &after.handlers, sizeof warm.handlers);
  assert_memory_equal(&warm.descriptor, &after.descriptor, sizeof warm.descriptor);
  assert_int_equal(warm.mask, after.mask);
  assert_int_equal(warm.stack, after.stack);
  assert_int_equal(warm.timers, after.timers);
  destroy_current(NULL);
  look(&after);
  unsigned maps_destroyed = mappings();
  unsettle(&outside);
  same_host("after destroy", &before, &after, false);
  assert_int_equal(descriptors_warm, descriptors_after);
  assert_int_equal(maps_warm, maps_after);
  assert_int_equal(maps_before, maps_destroyed);
  assert_int_equal(calls, 0);
  destroy_images();
  print_message("%u faulting runs, %u mappings, %u descriptors\n", done, maps_after, descriptors_after);
}

static void faults_in_thread(void **unused) {
  (void)unused;
  check_host(LS_SIGNAL, FAULTING_RUNS, GUESTS);
}

static void faults_in_the_reference(void **unused) {
  (void)unused;
  pid_t pid;
  unsigned children = process_children(getpid(), &pid);
  check_host(LS_PTRACE, REFERENCE_RUNS, IN_REFERENCE);
  assert_int_equal(process_children(getpid(), &pid), children);
}

/* Executors come and go. */
static void a_hundred_executors(void **unused) {
  (void)unused;
  static host before, after;
  static settings outside;
  build_images();
  settle(&outside);
  unsigned maps_before = 0, done = 0;
  for (int round = 0; round < 100; round++) {
    current = create(LS_SIGNAL);
    run_round(current, GUESTS, GUESTS, &done);
    destroy_current(NULL);
    look(round ? &after : &before);
    maps_before = round ? maps_before : mappings();
  }
  unsigned maps_after = mappings();
  unsettle(&outside);
  same_host("after a hundred", &before, &after, false);
  assert_int_equal(maps_before, maps_after);
  destroy_images();
}

/* ---- Who is left when the host dies ------------------------------------------------------------------- */

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

/* 0 if tracing is possible here, else says why not. */
static int no_reference(void) {
  ls_executor *executor = NULL;
  ls_status status = ls_executor_create(LS_PTRACE, &layout, NULL, &executor, &error);
  ls_executor_destroy(executor);
  if (status)
    printf("SKIPPED: the half with the reference: %s\n", error.text);
  return status != LS_OK;
}

int main(void) {
  ls_layout_default(&layout, SLOT);
  const struct CMUnitTest in_thread[] = {cmocka_unit_test_teardown(faults_in_thread, destroy_current),
                                         cmocka_unit_test_teardown(a_hundred_executors, destroy_current)};
  const struct CMUnitTest with_reference[] = {
      cmocka_unit_test_teardown(faults_in_the_reference, destroy_current), cmocka_unit_test(nobody_is_left)};
  int failed = cmocka_run_group_tests(in_thread, NULL, NULL);
  if (failed)
    return failed;
  return no_reference() ? TEST_SKIPPED : cmocka_run_group_tests(with_reference, NULL, NULL);
}

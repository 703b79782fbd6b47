/* What only the in-thread executor has: interrupts, the host's own signals, threads. What both executors
 * share is in test_conformance.c, what long use leaves of the host in test_host.c. */
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <ucontext.h>
#include <unistd.h>

#include <cmocka.h>

#include "cpu.h"
#include "flags.h"
#include "lockstep.h"
#include "sanitizers.h"

/* Windows of ls_layout_default(…, 0). */
#define CODE  UINT64_C(0x20010000)
#define DATA  UINT64_C(0x20100000)
#define CONST UINT64_C(0x20180000)
#define STACK UINT64_C(0x20200000)

enum { PROGRAM_MAX = 16, DATA_WINDOW = 1 };

/* ---- Running a few bytes ---- */

typedef struct guest {
  ls_executor *executor;
  ls_image *image;
  ls_layout layout;
} guest;

static ls_error error;

static void must(ls_status status) {
  if (status)
    fail_msg("%s: %s", ls_status_name(status), error.text);
}

/* Those open, so that a test that fails leaves nothing behind for the next one. */
static guest opened[4];

static guest guest_open(unsigned slot, const ls_options *options) {
  guest g = {.image = ls_image_create()};
  ls_layout_default(&g.layout, slot);
  must(ls_executor_create(LS_SIGNAL, &g.layout, options, &g.executor, &error));
  opened[slot] = g;
  return g;
}

static void guest_close(guest *g) {
  ls_executor_destroy(g->executor);
  ls_image_destroy(g->image);
  for (size_t i = 0; i < sizeof opened / sizeof *opened; i++)
    if (opened[i].executor == g->executor)
      opened[i].executor = NULL;
}

static int close_all(void **unused) {
  (void)unused;
  for (size_t i = 0; i < sizeof opened / sizeof *opened; i++)
    if (opened[i].executor)
      guest_close(&opened[i]);
  return 0;
}

/* "90 / 0f 0b": instructions in hex, one after the other; the last one leaves the program. */
static uint32_t parse(const char *code, ls_instruction program[PROGRAM_MAX]) {
  uint32_t count = 1;
  memset(program, 0, PROGRAM_MAX * sizeof *program);
  for (const char *c = code; *c;) {
    char *end;
    if (*c == '/' || *c == ' ') {
      count += *c++ == '/';
      continue;
    }
    ls_instruction *in = &program[count - 1];
    char digits[3] = {c[0], c[1], 0};
    in->bytes[in->length++] = (uint8_t)strtoul(digits, &end, 16);
    c += 2;
  }
  for (uint32_t i = 0; i < count; i++) {
    program[i].next = i + 1 < count ? i + 1 : LS_NONE;
    program[i].jump = LS_NONE;
  }
  return count;
}

static void load(guest *g, const char *code) {
  ls_instruction program[PROGRAM_MAX];
  ls_program p = {.instructions = program, .count = parse(code, program)};
  must(ls_image_build(g->image, &p, &g->layout, &error));
  must(ls_executor_load(g->executor, g->image, &error));
}

static ls_status run(guest *g, const ls_state *state, uint32_t uses, uint64_t steps, ls_outcome *outcome) {
  ls_run r = {.state = state, .uses = uses, .steps = steps, .limit_ms = 50};
  memset(outcome, 0xa5, sizeof *outcome);
  return ls_executor_run(g->executor, &r, outcome, &error);
}

/* Distinct bytes everywhere that the CPU can load. */
static void fill(ls_state *state) {
  ls_state_init(state);
  uint8_t *bytes = (uint8_t *)state;
  for (size_t i = 0; i < offsetof(ls_state, rip); i++)
    bytes[i] = (uint8_t)(i * 37 + i / 251 + 11);
  state->gpr[LS_RSP] =
      UINT64_C(0x5a1234567); /* anything canonical: the kernel must be able to return to it */
  state->rflags = RFLAGS_CLEAN | RFLAGS_CF | RFLAGS_AF | RFLAGS_SF | RFLAGS_ID;
  state->ds = 0x2b;
  state->es = 0x33;
  state->mxcsr = 0x7fa1;
}

/* The same with the x87: eight values, control word, conditions, top of stack 5. */
static void fill_x87(ls_state *state) {
  fill(state);
  state->fcw = 0xc7f;
  state->fsw = 0x6d21;
  state->ftw = 0xb7;
  for (int i = 0; i < 8; i++) {
    for (int j = 0; j < 8; j++)
      state->st[i][j] = (uint8_t)(0x80 | (i * 8 + j));
    state->st[i][8] = (uint8_t)(0x10 + i);
    state->st[i][9] = (uint8_t)(0x40 | (i & 1) << 7);
  }
}

static void same_state(const char *name, const ls_state *expected, const ls_state *got) {
  ls_state a = *expected, b = *got;
  ls_state_canonicalise(&a);
  ls_state_canonicalise(&b);
  size_t row = 0, count;
  const ls_register *reg = ls_registers(&count);
  char x[200], y[200];
  if (!ls_state_difference(&a, &b, &row))
    return;
  ls_register_print(&reg[row], &a, x, sizeof x);
  ls_register_print(&reg[row], &b, y, sizeof y);
  fail_msg("%s: %s expected %s, got %s", name, reg[row].name, x, y);
}

static void same_stop(const char *name, const ls_outcome *got, ls_stop_kind kind, int sig, int code,
                      uint64_t address) {
  const ls_stop *s = &got->stop;
  if (s->kind != kind || s->signal != sig || s->code != code || s->address != address)
    fail_msg("%s: expected %s %d/%d/0x%lx, got %s %d/%d/0x%lx at 0x%lx", name, ls_stop_kind_name(kind), sig,
             code, (unsigned long)address, ls_stop_kind_name(s->kind), s->signal, s->code,
             (unsigned long)s->address, (unsigned long)got->state.rip);
}

/* ---- Clean runs ---- */

static void any_stack_pointer_and_flags(void **unused) {
  (void)unused;
  static const uint64_t rsp[] = {0, 1, STACK + 0x800, 0xdeadbeef1234567, INT64_MAX, UINT64_MAX};
  static const uint64_t flags[] = {0,
                                   RFLAGS_DF,
                                   RFLAGS_AC,
                                   RFLAGS_ID,
                                   RFLAGS_NT,
                                   RFLAGS_CF | RFLAGS_OF | RFLAGS_ZF,
                                   RFLAGS_USER & ~RFLAGS_TF};
  guest g = guest_open(0, NULL);
  load(&g, "90 / 90");
  ls_state state;
  ls_outcome out;
  fill(&state);
  for (size_t i = 0; i < sizeof rsp / sizeof *rsp; i++)
    for (size_t j = 0; j < sizeof flags / sizeof *flags; j++) {
      state.gpr[LS_RSP] = rsp[i];
      state.rflags = RFLAGS_CLEAN | flags[j];
      must(run(&g, &state, 0, 0, &out));
      same_stop("clean", &out, LS_STOP_EXIT, 0, 0, 0);
      assert_int_equal(out.stop.instruction, 1);
      if ((out.state.rflags ^ state.rflags) & ~(uint64_t)RFLAGS_NT)
        fail_msg("rflags 0x%lx came back as 0x%lx", (unsigned long)state.rflags,
                 (unsigned long)out.state.rflags);
      ls_state expected = state;
      expected.rip = out.state.rip;
      same_state("clean", &expected, &out.state);
      uint64_t host;
      __asm__ volatile("pushfq; pop %0" : "=r"(host));
      assert_int_equal(host & (RFLAGS_DF | RFLAGS_AC | RFLAGS_NT | RFLAGS_ID | RFLAGS_TF), 0);
    }
  guest_close(&g);
}

/* Ticks of the timer strike a guest that runs for many of them, and change nothing. */
static void interrupts_change_nothing(void **unused) {
  (void)unused;
  guest g = guest_open(0, &(ls_options){.tick_ms = 1});
  load(&g, "48 ff c9 / 75 fb"); /* dec rcx; jnz back: the branch is not a link, only bytes */
  ls_state state;
  ls_outcome out;
  fill_x87(&state);
  state.gpr[LS_RCX] = 200000000;
  state.rflags = RFLAGS_CLEAN | RFLAGS_DF | RFLAGS_AC | RFLAGS_ID;
  ls_run r = {.state = &state, .uses = LS_USES_X87, .limit_ms = 10000};
  must(ls_executor_run(g.executor, &r, &out, &error));
  same_stop("interrupted", &out, LS_STOP_EXIT, 0, 0, 0);
  state.gpr[LS_RCX] = 0;
  state.rflags |= RFLAGS_ZF | RFLAGS_PF;
  state.rip = out.state.rip;
  same_state("interrupted", &state, &out.state);
  guest_close(&g);
}

/* ---- Steps ---- */

static void steps(void **unused) {
  (void)unused;
  guest g = guest_open(0, NULL);
  ls_state state;
  ls_outcome out;
  fill(&state);
  state.gpr[LS_RSP] = STACK + 0x800;
  load(&g, "90 / 90 / 90 / 90 / 90");
  for (uint64_t n = 1; n <= 5; n++) {
    must(run(&g, &state, 0, n, &out));
    same_stop("steps", &out, LS_STOP_STEPS, 0, 0, 0);
    assert_int_equal(out.state.rip, CODE + n);
    assert_int_equal(out.state.rflags & RFLAGS_TF, 0);
  }
  must(run(&g, &state, 0, 100, &out));
  same_stop("steps to the end", &out, LS_STOP_EXIT, 0, 0, 0);
  assert_int_equal(out.stop.instruction, 4);
  assert_int_equal(out.state.rflags, state.rflags);
  load(&g, "9c / 58 / 90"); /* pushf; pop rax: our TF must not show */
  must(run(&g, &state, 0, 100, &out));
  assert_int_equal(out.state.gpr[LS_RAX], state.rflags);
  load(&g, "90 / 0f 0b / 90");
  must(run(&g, &state, 0, 100, &out));
  same_stop("fault while stepping", &out, LS_STOP_FAULT, SIGILL, ILL_ILLOPN, CODE + 1);
  assert_int_equal(out.state.rflags & ~(uint64_t)RFLAGS_RF, state.rflags);
  load(&g, "50 / 9d / 90 / 90"); /* popf of TF: the guest's own trap */
  state.gpr[LS_RAX] = RFLAGS_CLEAN | RFLAGS_TF;
  must(run(&g, &state, 0, 100, &out));
  same_stop("guest's TF while stepping", &out, LS_STOP_FAULT, SIGTRAP, TRAP_TRACE, CODE + 3);
  guest_close(&g);
}

/* ---- The host keeps what is its ---- */

static sigjmp_buf back;
static volatile int host_calls;
static volatile uintptr_t host_address;

static void jump_back(int sig, siginfo_t *info, void *context) {
  (void)sig;
  (void)context;
  host_calls = host_calls + 1;
  host_address = (uintptr_t)info->si_addr;
  siglongjmp(back, 1);
}

static void count(int sig) {
  (void)sig;
  host_calls = host_calls + 1;
}

static void strike(uintptr_t address) {
  if (!sigsetjmp(back, 1)) {
    __asm__ volatile("movb $1, (%0)" : : "r"(address) : "memory");
    fail_msg("the host's fault went by");
  }
}

static void fault_in_guest(guest *g, ls_state *state) {
  ls_outcome out;
  must(run(g, state, 0, 0, &out));
  same_stop("guest", &out, LS_STOP_FAULT, SIGILL, ILL_ILLOPN, CODE);
}

/* The host's own faults reach the host's handler, even one that jumps away, before, between and after runs.
 */
static void host_faults_reach_the_host(void **unused) {
  (void)unused;
  struct sigaction action = {.sa_sigaction = jump_back, .sa_flags = SA_SIGINFO | SA_ONSTACK}, old, now;
  sigaction(SIGSEGV, &action, &old);
  guest g = guest_open(0, NULL);
  load(&g, "0f 0b");
  ls_state state;
  fill(&state);
  host_calls = 0;
  strike(0x18);
  for (int i = 0; i < 5; i++) {
    fault_in_guest(&g, &state);
    strike(0x20);
    assert_int_equal(host_address, 0x20);
    strike(0x20);
  }
  assert_int_equal(host_calls, 11);
  guest_close(&g);
  strike(0x18);
  assert_int_equal(host_calls, 12);
  sigaction(SIGSEGV, &old, &now);
  assert_ptr_equal(now.sa_sigaction, jump_back);
}

static int die_of_a_host_fault(void) {
  pid_t child = fork();
  if (!child) {
    for (int sig = SIGSEGV, i = 0; i < 2; i++, sig = SIGTRAP)
      signal(sig, SIG_DFL);
    guest g = guest_open(0, NULL);
    load(&g, "90");
    ls_state state;
    ls_outcome out;
    fill(&state);
    if (run(&g, &state, 0, 0, &out) == LS_OK)
      __asm__ volatile("movb $1, 0x18");
    _exit(0);
  }
  int status = 0;
  waitpid(child, &status, 0);
  return status;
}

static void default_action_still_kills(void **unused) {
  (void)unused;
  int status = die_of_a_host_fault();
  assert_true(WIFSIGNALED(status));
  assert_int_equal(WTERMSIG(status), SIGSEGV);
}

/* A signal that the host sends to a thread in its guest reaches the host's handler; the guest goes on. */
typedef struct disturber {
  pthread_t thread;
  volatile uint8_t *enough; /* the guest spins until it is not 0 */
} disturber;

static void *disturb(void *context) {
  disturber *d = context;
  for (int i = 0; i < 20; i++) {
    usleep(2000);
    pthread_kill(d->thread, i & 1 ? SIGSEGV : SIGURG);
  }
  *d->enough = 1;
  return NULL;
}

static void *interrupt_once(void *context) {
  usleep(20000);
  pthread_kill(((disturber *)context)->thread, SIGURG);
  return NULL;
}

static void signals_sent_by_the_host(void **unused) {
  (void)unused;
  struct sigaction action = {.sa_handler = count, .sa_flags = SA_ONSTACK}, old[2];
  sigaction(SIGSEGV, &action, &old[0]);
  sigaction(SIGURG, &action, &old[1]);
  guest g = guest_open(0, NULL);
  load(&g, "80 3f 00 / 74 fb"); /* cmp byte [rdi], 0; je back */
  ls_state state;
  ls_outcome out;
  fill(&state);
  state.gpr[LS_RDI] = DATA;
  host_calls = 0;
  disturber d = {pthread_self(), ls_executor_memory(g.executor, DATA_WINDOW)};
  pthread_t other;
  pthread_create(&other, NULL, disturb, &d);
  ls_run r = {.state = &state, .limit_ms = 10000};
  must(ls_executor_run(g.executor, &r, &out, &error));
  pthread_join(other, NULL);
  same_stop("disturbed", &out, LS_STOP_EXIT, 0, 0, 0);
  assert_memory_equal(out.state.gpr, state.gpr, sizeof state.gpr);
  assert_memory_equal(out.state.zmm, state.zmm, sizeof state.zmm);
  assert_true(host_calls > 1);
  guest_close(&g);
  sigaction(SIGSEGV, &old[0], NULL);
  sigaction(SIGURG, &old[1], NULL);
}

/* The host's handler jumps out of the guest it struck: the run never returns, and the next one is a run as
 * any other. */
static void the_host_jumps_out_of_a_guest(void **unused) {
  (void)unused;
  struct sigaction action = {.sa_sigaction = jump_back, .sa_flags = SA_SIGINFO | SA_ONSTACK}, old;
  if (TSAN) /* it would deliver when the guest is over */
    skip();
  sigaction(SIGURG, &action, &old);
  guest g = guest_open(0, NULL);
  ls_state state;
  ls_outcome out;
  fill(&state);
  state.gpr[LS_RDI] = DATA;
  for (int i = 0; i < 3; i++) {
    disturber d = {pthread_self(), ls_executor_memory(g.executor, DATA_WINDOW)};
    pthread_t other;
    load(&g, "80 3f 00 / 74 fb");
    *d.enough = 0;
    host_calls = 0;
    if (!sigsetjmp(back, 1)) {
      pthread_create(&other, NULL, interrupt_once, &d);
      ls_run r = {.state = &state, .limit_ms = 10000};
      must(ls_executor_run(g.executor, &r, &out, &error));
      fail_msg("the handler was not called");
    }
    pthread_join(other, NULL);
    assert_int_equal(host_calls, 1);
    load(&g, "0f 0b");
    fault_in_guest(&g, &state);
  }
  guest_close(&g);
  sigaction(SIGURG, &old, NULL);
}

/* A host that installs its handler over ours, calls ours from it, and keeps it when the executors are gone.
 */
static struct sigaction under;

static void call_under(int sig, siginfo_t *info, void *context) {
  host_calls = host_calls + 1;
  under.sa_sigaction(sig, info, context);
}

static void a_handler_over_ours(void **unused) {
  (void)unused;
  struct sigaction first = {.sa_sigaction = jump_back, .sa_flags = SA_SIGINFO | SA_ONSTACK}, old;
  struct sigaction over = {.sa_sigaction = call_under, .sa_flags = SA_SIGINFO | SA_ONSTACK};
  if (TSAN) /* it calls handlers in its own way */
    skip();
  sigaction(SIGILL, &first, NULL);
  sigaction(SIGSEGV, &first, &old);
  guest g = guest_open(0, NULL);
  load(&g, "0f 0b");
  sigaction(SIGILL, &over, &under);
  sigaction(SIGSEGV, &over, NULL);
  ls_state state;
  fill(&state);
  for (int round = 0; round < 3; round++) {
    host_calls = 0;
    fault_in_guest(&g, &state);
    assert_int_equal(host_calls, round == 0); /* the second executor's handlers are on top */
    strike(0x28);
    assert_int_equal(host_calls, 2 + (round == 0));
    guest_close(&g);
    strike(0x28);
    g = guest_open(0, NULL);
    load(&g, "0f 0b");
  }
  guest_close(&g);
  sigaction(SIGSEGV, &old, NULL);
  signal(SIGILL, SIG_DFL);
}

/* The host replaces the alternate stack that it lent: guests still run, and it keeps its own. */
static void the_host_changes_its_stack(void **unused) {
  (void)unused;
  guest g = guest_open(0, NULL);
  load(&g, "0f 0b");
  ls_state state;
  fill(&state);
  fault_in_guest(&g, &state);
  stack_t stack = {.ss_sp = malloc(1 << 16), .ss_size = 1 << 16}, old, now;
  sigaltstack(&stack, &old);
  fault_in_guest(&g, &state);
  if (cpu()->fsgsbase) {
    load(&g, "31 c0 / f3 48 0f ae d0 / 0f 0b"); /* with FS lost as well */
    ls_outcome out;
    must(run(&g, &state, 0, 0, &out));
    same_stop("lost FS", &out, LS_STOP_FAULT, SIGILL, ILL_ILLOPN, CODE + 7);
  }
  guest_close(&g);
  sigaltstack(NULL, &now);
  assert_ptr_equal(now.ss_sp, stack.ss_sp);
  stack.ss_flags = SS_DISABLE;
  sigaltstack(&stack, NULL);
  free(stack.ss_sp);
}

/* A guest that overwrites FS base, and GS too: the host must not notice. */
static void a_guest_may_lose_fs(void **unused) {
  (void)unused;
  static const char *const codes[] = {"f3 48 0f ae d0 / f3 48 0f ae d8 / 90",
                                      "f3 48 0f ae d0 / 0f 0b",
                                      "f3 48 0f ae d0 / eb fe",
                                      "f3 48 0f ae d0 / 0f 05",
                                      "8e e8 / 8e e0 / 90",
                                      "8e e0 / 0f 0b"};
  static const ls_stop_kind kinds[] = {LS_STOP_EXIT,    LS_STOP_FAULT, LS_STOP_TIMEOUT,
                                       LS_STOP_SYSCALL, LS_STOP_EXIT,  LS_STOP_FAULT};
  enum { GET_FS = 0x1003 }; /* asm/prctl.h */
  if (!cpu()->fsgsbase)
    skip();
  guest g = guest_open(0, NULL);
  ls_state state;
  ls_outcome out;
  fill(&state);
  uint64_t before = 0, after = 0;
  syscall(SYS_arch_prctl, GET_FS, &before);
  for (size_t i = 0; i < sizeof codes / sizeof *codes; i++)
    for (int selector = 0; selector < 2; selector++) {
      load(&g, codes[i]);
      state.gpr[LS_RAX] = selector ? 0x2b : 0;
      must(run(&g, &state, 0, 0, &out));
      if (i != 3 || ls_executor_stops_syscalls(g.executor))
        assert_int_equal(out.stop.kind, kinds[i]);
      uint16_t fs;
      uint64_t base;
      __asm__ volatile("mov %%fs, %0; rdfsbase %1" : "=r"(fs), "=r"(base));
      assert_int_equal(fs, 0);
      assert_int_equal(base, before);
      usleep(1000);
    }
  syscall(SYS_arch_prctl, GET_FS, &after);
  assert_int_equal(before, after);
  guest_close(&g);
}

/* A handler of the host's that makes system calls on top of a guest whose own are blocked. */
static void call_kernel(int sig) {
  (void)sig;
  host_calls = host_calls + (syscall(SYS_getppid) == getppid());
}

static void host_handlers_may_call_the_kernel(void **unused) {
  (void)unused;
  if (TSAN) /* it keeps a handler's call until the guest is over */
    skip();
  struct sigaction action = {.sa_handler = call_kernel, .sa_flags = SA_ONSTACK}, old;
  sigaction(SIGVTALRM, &action, &old);
  guest g = guest_open(0, NULL);
  load(&g, "48 ff c9 / 75 fb / 0f 05");
  ls_state state;
  ls_outcome out;
  fill(&state);
  state.gpr[LS_RCX] = 100000000;
  struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGVTALRM};
  timer_t timer;
  timer_create(CLOCK_PROCESS_CPUTIME_ID, &event, &timer);
  struct itimerspec often = {{0, 5000000}, {0, 5000000}};
  timer_settime(timer, 0, &often, NULL);
  host_calls = 0;
  ls_run r = {.state = &state, .limit_ms = 10000};
  must(ls_executor_run(g.executor, &r, &out, &error));
  timer_delete(timer);
  assert_true(host_calls > 2);
  if (ls_executor_stops_syscalls(g.executor))
    same_stop("still blocked", &out, LS_STOP_SYSCALL, 0, 0, 0);
  guest_close(&g);
  sigaction(SIGVTALRM, &old, NULL);
}

/* ---- Several at once ---- */

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
    load(one, "0f 05");
    must(run(one, &state, 0, 0, &out));
    if (ls_executor_stops_syscalls(one->executor))
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
             memcmp(out.state.zmm, state.zmm, sizeof state.zmm) || out.state.gpr[LS_RSP] != state.gpr[LS_RSP];
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

static int run_in_child(guest *g, const ls_state *state) {
  static const char *const codes[] = {"90", "0f 0b", "eb fe", "0f 05", "c6 00 01"};
  static const ls_stop_kind kinds[] = {LS_STOP_EXIT, LS_STOP_FAULT, LS_STOP_TIMEOUT, LS_STOP_SYSCALL,
                                       LS_STOP_EXIT};
  ls_outcome out;
  for (int i = 0; i < 5; i++) {
    load(g, codes[i]);
    if (run(g, state, 0, 0, &out) || out.stop.kind != kinds[i])
      return 1 + i;
  }
  return 0;
}

static void fork_makes_it_the_childs(void **unused) {
  (void)unused;
  guest g = guest_open(0, NULL);
  ls_state state;
  fill(&state);
  state.gpr[LS_RAX] = DATA;
  load(&g, "90");
  ls_outcome out;
  must(run(&g, &state, 0, 0, &out));
  pid_t child = fork();
  if (!child)
    _exit(run_in_child(&g, &state));
  int status;
  waitpid(child, &status, 0);
  assert_true(WIFEXITED(status));
  assert_int_equal(WEXITSTATUS(status), 0);
  assert_int_equal(*(uint8_t *)ls_executor_memory(g.executor, DATA_WINDOW), 0);
  assert_int_equal(run_in_child(&g, &state), 0);
  guest_close(&g);
}

static void addresses(void **unused) {
  (void)unused;
  guest g = guest_open(0, NULL);
  assert_int_equal(ls_address_faults(g.executor, 0, 8), 1);
  assert_int_equal(ls_address_faults(g.executor, 0x7000000000000000, 64), 1);
  assert_int_equal(ls_address_faults(g.executor, (uintptr_t)&g, 8), 0);
  assert_int_equal(ls_address_faults(g.executor, DATA, 8), 0);
  assert_int_equal(ls_address_faults(g.executor, DATA + 0x2000, 8), 1);
  assert_int_equal(ls_address_faults(g.executor, DATA + 0x1ffc, 8), 0);
  assert_int_equal(ls_address_faults(g.executor, g.layout.gate, 1), 0);
  assert_int_equal(ls_address_faults(g.executor, g.layout.gate - 1, 1), 1);
  guest_close(&g);
}

static void a_taken_address_is_an_error(void **unused) {
  (void)unused;
  guest g = guest_open(0, NULL);
  ls_executor *second = NULL;
  ls_layout other;
  ls_layout_default(&other, 1);
  other.gate = g.layout.gate;
  assert_int_equal(ls_executor_create(LS_SIGNAL, &other, NULL, &second, &error), LS_ERR_ADDRESS);
  assert_int_equal(
      ls_executor_create(LS_SIGNAL, &other, &(ls_options){.interrupt_signal = SIGSEGV}, &second, &error),
      LS_ERR_ARGUMENT);
  guest_close(&g);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_teardown(any_stack_pointer_and_flags, close_all),
      cmocka_unit_test_teardown(interrupts_change_nothing, close_all),
      cmocka_unit_test_teardown(steps, close_all),
      cmocka_unit_test_teardown(host_faults_reach_the_host, close_all),
      cmocka_unit_test_teardown(default_action_still_kills, close_all),
      cmocka_unit_test_teardown(signals_sent_by_the_host, close_all),
      cmocka_unit_test_teardown(the_host_jumps_out_of_a_guest, close_all),
      cmocka_unit_test_teardown(a_handler_over_ours, close_all),
      cmocka_unit_test_teardown(the_host_changes_its_stack, close_all),
      cmocka_unit_test_teardown(a_guest_may_lose_fs, close_all),
      cmocka_unit_test_teardown(host_handlers_may_call_the_kernel, close_all),
      cmocka_unit_test_teardown(several_executors_in_a_thread, close_all),
      cmocka_unit_test_teardown(threads, close_all),
      cmocka_unit_test_teardown(handed_from_thread_to_thread, close_all),
      cmocka_unit_test_teardown(fork_makes_it_the_childs, close_all),
      cmocka_unit_test_teardown(addresses, close_all),
      cmocka_unit_test_teardown(a_taken_address_is_an_error, close_all),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}

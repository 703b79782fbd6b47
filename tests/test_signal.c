/* What only the in-thread executor has: interrupts, stacks and FS of the host's, addresses that it has taken.
 * What both executors share is in test_conformance.c, threads and forks in test_signal_threads.c, the host's
 * handlers in test_chain.c, what long use leaves of the host in test_host.c. */
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "executor.h"
#include "guest.h"

#define LOW_PAGE UINT64_C(0x30000) /* above what mmap_min_addr usually is */

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
  if (in_part("fsgsbase")) {
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
  guest g = guest_open(0, NULL);
  ls_state state;
  ls_outcome out;
  fill(&state);
  uint64_t before = 0, after = 0;
  syscall(SYS_arch_prctl, GET_FS, &before);
  for (size_t i = 0; i < sizeof codes / sizeof *codes; i++)
    for (int selector = 0; selector < 2; selector++) {
      if (in_part("fsgsbase_dispatch") != (kinds[i] == LS_STOP_SYSCALL))
        continue;
      load(&g, codes[i]);
      state.gpr[LS_RAX] = selector ? 0x2b : 0;
      must(run(&g, &state, 0, 0, &out));
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

/* What the guest finds there is one page that is the same everywhere, and guards. */
static void the_gate_seen_by_the_guest(void **unused) {
  (void)unused;
  guest g = guest_open(0, NULL);
  ls_state state;
  ls_outcome out;
  uint8_t page[LS_PAGE];
  gate_page_write(page, g.layout.gate);
  fill(&state);
  uint64_t *rax = &state.gpr[LS_RAX];
  *rax = g.layout.gate;
  load(&g, "48 8b 18 / 48 8b 48 08 / 48 8b 90 f8 0f 00 00 / ff e0"); /* reads of the page; jmp rax */
  must(run(&g, &state, 0, 0, &out));
  same_stop("read and left", &out, LS_STOP_EXIT, 0, 0, 0);
  assert_int_equal(out.state.rip, g.layout.gate);
  assert_int_equal(out.stop.instruction, LS_NONE);
  assert_memory_equal(&out.state.gpr[LS_RBX], page, 8);
  assert_memory_equal(&out.state.gpr[LS_RCX], page + 8, 8);
  assert_memory_equal(&out.state.gpr[LS_RDX], page + LS_PAGE - 8, 8);
  must(run(&g, &state, 0, 100, &out));
  same_stop("stepped", &out, LS_STOP_EXIT, 0, 0, 0);
  assert_int_equal(out.state.rip, g.layout.gate);
  load(&g, "c6 00 01");
  must(run(&g, &state, 0, 0, &out));
  same_stop("write", &out, LS_STOP_FAULT, SIGSEGV, SEGV_ACCERR, g.layout.gate);
  load(&g, "ff e0");
  *rax = g.layout.gate + 64;
  must(run(&g, &state, 0, 0, &out));
  same_stop("int3", &out, LS_STOP_FAULT, SIGTRAP, SI_KERNEL, 0);
  assert_int_equal(out.state.rip, g.layout.gate + 65);
  *rax = g.layout.gate + LS_PAGE;
  must(run(&g, &state, 0, 0, &out));
  same_stop("guard", &out, LS_STOP_FAULT, SIGSEGV, SEGV_ACCERR, *rax);
  *rax = gate_inner(g.layout.gate);
  must(run(&g, &state, 0, 0, &out));
  same_stop("inner", &out, LS_STOP_EXIT, 0, 0, 0);
  assert_int_equal(out.state.rip, g.layout.gate);
  must(run(&g, &state, 0, 100, &out));
  same_stop("step to inner", &out, LS_STOP_EXIT, 0, 0, 0);
  assert_int_equal(out.state.rip, g.layout.gate);
  state.rflags |= RFLAGS_TF;
  must(run(&g, &state, 0, 0, &out));
  same_stop("trap at inner", &out, LS_STOP_FAULT, SIGTRAP, TRAP_TRACE, g.layout.gate);
  assert_int_equal(out.state.rip, g.layout.gate);
  guest_close(&g);
}

/* Where handlers keep their frames is no business of a guest's RSP: a fault there is the guest's like any
 * other, in the windows and outside them. */
static void a_guest_on_the_alternate_stack(void **unused) {
  (void)unused;
  static const char *const codes[] = {"ff e0", "0f 0b", "50 / ff e0", "eb fe"};
  guest g = guest_open(0, NULL);
  ls_state state;
  ls_outcome out;
  stack_t now;
  fill(&state);
  load(&g, "90");
  must(run(&g, &state, 0, 0, &out)); /* lends the thread its stack */
  sigaltstack(NULL, &now);
  for (size_t i = 0; i < sizeof codes / sizeof *codes; i++)
    for (uint64_t offset = 0x1000; offset <= now.ss_size; offset += 0x7000) {
      load(&g, codes[i]);
      state.gpr[LS_RSP] = (uintptr_t)now.ss_sp + offset;
      state.gpr[LS_RAX] = 0x123450;
      must(run(&g, &state, 0, 0, &out));
      if (i % 2 == 0)
        same_stop("jumped away", &out, LS_STOP_FAULT, SIGSEGV, SEGV_MAPERR, 0x123450);
      else
        assert_int_equal(out.stop.kind, i == 1 ? LS_STOP_FAULT : LS_STOP_TIMEOUT);
    }
  guest_close(&g);
}

/* arch_prctl and Syscall User Dispatch are refused. */
static void refuse_calls(void) {
  enum { DISPATCH = 59 }; /* PR_SET_SYSCALL_USER_DISPATCH */
  struct sock_filter filter[] = {BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
                                 BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_arch_prctl, 3, 0),
                                 BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_prctl, 0, 3),
                                 BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args)),
                                 BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, DISPATCH, 0, 1),
                                 BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
                                 BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)};
  struct sock_fprog program = {sizeof filter / sizeof *filter, filter};
  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program))
    _exit(7);
}

static int run_behind_seccomp(void) {
  static const char *const codes[] = {"90", "0f 0b", "eb fe", "8e e0 / 8e e8", "8e e0 / 8e e8 / 0f 0b"};
  static const ls_stop_kind kinds[] = {LS_STOP_EXIT, LS_STOP_FAULT, LS_STOP_TIMEOUT, LS_STOP_EXIT,
                                       LS_STOP_FAULT};
  refuse_calls();
  guest g = guest_open(0, NULL);
  ls_state state;
  ls_outcome out;
  fill(&state);
  state.gpr[LS_RAX] = 0; /* a null selector clears the base */
  for (int i = 0; i < (in_part("fsgsbase_seccomp") ? 5 : 3); i++) {
    load(&g, codes[i]);
    if (run(&g, &state, 0, 0, &out) || out.stop.kind != kinds[i])
      return 1 + i;
  }
  return ls_executor_stops_syscalls(g.executor) ? 6 : 0;
}

static void seccomp_may_refuse_what_is_not_needed(void **unused) {
  (void)unused;
  pid_t child = fork();
  if (!child)
    _exit(run_behind_seccomp());
  int status;
  waitpid(child, &status, 0);
  assert_int_equal(status, 0);
}

/* A far return to 32-bit code, and what it can do there. */
static void a_guest_may_change_its_mode(void **unused) {
  (void)unused;
  guest g = guest_open(0, NULL);
  ls_state state;
  ls_outcome out;
  fill(&state);
  return_to_32_bit(&g, &state);
  static const char *const codes[] = {FAR_RETURN " / 0f 0b", FAR_RETURN " / eb fe", FAR_RETURN " / 90 / 90"};
  for (size_t i = 0; i < sizeof codes / sizeof *codes; i++) {
    load(&g, codes[i]);
    must(run(&g, &state, 0, i == 2 ? 2 : 0, &out));
    assert_int_equal(out.stop.kind, i == 0 ? LS_STOP_FAULT : i == 1 ? LS_STOP_TIMEOUT : LS_STOP_STEPS);
    assert_int_equal(out.state.cs, CS_32);
    load(&g, "90");
    must(run(&g, &state, 0, 0, &out));
    assert_int_equal(out.stop.kind, LS_STOP_EXIT);
  }
  guest_close(&g);
}

/* ---- Addresses ---- */

static void addresses(void **unused) {
  (void)unused;
  guest g = guest_open(0, NULL);
  assert_int_equal(ls_address_faults(g.executor, 0, 8), 1);
  assert_int_equal(ls_address_faults(g.executor, 0x7000000000000000, 64), 1);
  assert_int_equal(ls_address_faults(g.executor, (uintptr_t)&g, 8), 0);
  void *low =
      mmap((void *)LOW_PAGE, LS_PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
  assert_ptr_equal(low, LOW_PAGE);
  assert_int_equal(ls_address_faults(g.executor, LOW_PAGE, 8), 0);
  munmap(low, LS_PAGE);
  assert_int_equal(ls_address_faults(g.executor, LOW_PAGE, 8), 1);
  assert_int_equal(ls_address_faults(g.executor, DATA, 8), 0);
  assert_int_equal(ls_address_faults(g.executor, DATA + 0x2000, 8), 1);
  assert_int_equal(ls_address_faults(g.executor, DATA + 0x1ffc, 8), 0);
  assert_int_equal(ls_address_faults(g.executor, g.layout.gate, 1), 0);
  assert_int_equal(ls_address_faults(g.executor, g.layout.gate + LS_PAGE, LS_GATE_SIZE - LS_PAGE), 1);
  assert_int_equal(ls_address_faults(g.executor, gate_inner(g.layout.gate) + 0x4000, 1), 0);
  assert_int_equal(ls_address_faults(g.executor, g.layout.gate - 1, 1), 1);
  guest_close(&g);
}

/* What is unmapped now and is mapped by the very access. */
static void the_growing_stack_does_not_fault(void **unused) {
  (void)unused;
  struct rlimit limit;
  getrlimit(RLIMIT_STACK, &limit);
  guest g = guest_open(0, NULL);
  uint64_t depth = limit.rlim_cur < 4 << 20 ? limit.rlim_cur / 4 * 3 : 3 << 20;
  uint64_t top = getauxval(AT_EXECFN), low = (top - depth) & ~(uint64_t)7;
  assert_int_equal(ls_address_faults(g.executor, low, 8), 0);
  assert_int_equal(ls_address_faults(g.executor, top, 1), 0);
  load(&g, "8a 00"); /* the proof: the guest reads it */
  ls_state state;
  ls_outcome out;
  fill(&state);
  state.gpr[LS_RAX] = low;
  must(run(&g, &state, 0, 0, &out));
  same_stop("below the stack", &out, LS_STOP_EXIT, 0, 0, 0);
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
  ls_layout_default(&other, 1);
  void *inner = (void *)gate_inner(other.gate);
  assert_ptr_equal(mmap(inner, LS_PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0), inner);
  for (int i = 0; i < 2; i++) /* the first attempt leaves nothing behind */
    assert_int_equal(ls_executor_create(LS_SIGNAL, &other, NULL, &second, &error), LS_ERR_ADDRESS);
  munmap(inner, LS_PAGE);
  must(ls_executor_create(LS_SIGNAL, &other, NULL, &second, &error));
  ls_executor_destroy(second);
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
      cmocka_unit_test_teardown(the_host_changes_its_stack, close_all),
      PART("fsgsbase", the_host_changes_its_stack, NULL, close_all),
      PART("fsgsbase", a_guest_may_lose_fs, NULL, close_all),
      PART("fsgsbase_dispatch", a_guest_may_lose_fs, NULL, close_all),
      cmocka_unit_test_teardown(the_gate_seen_by_the_guest, close_all),
      cmocka_unit_test_teardown(a_guest_on_the_alternate_stack, close_all),
      PART("seccomp", seccomp_may_refuse_what_is_not_needed, NULL, close_all),
      PART("fsgsbase_seccomp", seccomp_may_refuse_what_is_not_needed, NULL, close_all),
      PART("code32", a_guest_may_change_its_mode, NULL, close_all),
      cmocka_unit_test_teardown(addresses, close_all),
      cmocka_unit_test_teardown(the_growing_stack_does_not_fault, close_all),
      cmocka_unit_test_teardown(a_taken_address_is_an_error, close_all),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}

/* What only the reference executor says: what a program touched, where it met the poison of FS and GS, and
 * what visitors of steps see. What both executors share is in test_conformance.c, its child in
 * test_ptrace_child.c. */
#include <linux/seccomp.h>
#include <stdbool.h>
#include <sys/syscall.h>

#include "cpu.h"
#include "left_out.h"
#include "ptrace_fixture.h"

#define ANYWHERE    UINT64_MAX
#define ANY_ADDRESS 0xa11a11a11u
#define ANY_CODE    (-12345)
#define VSYSCALL    0xffffffffff600000
#define HOST        host_address

static uint64_t host_address; /* of something in this process */

/* ---- Every way to stop ---- */

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

static void check_stop(fixture *f, const char *name, const char *code, size_t size, const ls_state *start,
                       expected want) {
  static ls_outcome outcome;
  if (left_out(name))
    return;
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

/* ---- FS and GS: what is seen of an instruction that is about them ---- */

typedef struct fs_gs_case {
  const char *name, *bytes;
  uint8_t size;
  bool seen_at_the_end; /* of a run that is not stepped, where the CPU has the instruction */
  bool seen_in_steps;
} fs_gs_case;

/* RAX is 0x2b, a selector of user data; RBX points to zeros. */
static const fs_gs_case fs_gs_cases[] = {
#define ROW(name, bytes, seen_at_the_end, seen_in_steps)                                                     \
  {name, bytes, sizeof bytes - 1, seen_at_the_end, seen_in_steps},
    ROW("nop", "\x90", false, false) ROW("read a selector", "\x8c\xe1", false, false)
        ROW("load DS", "\x8e\xd8", false, false) ROW("ldmxcsr", "\x0f\xae\x93\x00\x08\0\0", false,
                                                     false) ROW("lfence", "\x0f\xae\xe8", false, false)
            ROW("bytes of RDFSBASE in a constant", "\x48\xb9\xf3\x48\x0f\xae\xc0\x90\x90\x90", false,
                false) ROW("fs:[rbx]", "\x64\x48\x8b\x0b", true,
                           true) ROW("fs: that accesses nothing", "\x64\x90", false,
                                     true) ROW("gs: that accesses nothing", "\x65\x48\x8d\x0b", false, true)
                ROW("load FS", "\x8e\xe0", true, true) ROW("load GS from memory, and 0 again",
                                                           "\x8e\xe8\x66\x8e\x2b", false,
                                                           true) ROW("pop FS", "\x50\x0f\xa1", true, true)
                    ROW("lgs ecx, [rbx + 0xf00]", "\x0f\xb5\x8b\0\x0f\0\0", true, true)
#define NO_FSGSBASE 13 /* the rows from here on need a CPU that has it */
                        ROW("rdfsbase rcx", "\xf3\x48\x0f\xae\xc1", false, true)
                            ROW("rdgsbase r9d", "\xf3\x41\x0f\xae\xc9", false, true)
                                ROW("wrfsbase rbx", "\xf3\x48\x0f\xae\xd3", true, true)
                                    ROW("wrgsbase ebx", "\xf3\x0f\xae\xdb", true, true)
                                        ROW("wrfsbase rbx, and back",
                                            "\xf3\x48\x0f\xae\xc1\xf3\x48\x0f\xae\xd3\xf3\x48\x0f\xae\xd1",
                                            false, true)
#undef ROW
};

static void check_fs_gs(fixture *f, const fs_gs_case *c, bool executes) {
  static ls_state s;
  static ls_outcome outcome;
  start_state(&s);
  s.gpr[LS_RAX] = 0x2b;
  s.gpr[LS_RBX] = D;
  load(f, c->bytes, c->size);
  run_ok(f, &(ls_run){.state = &s}, &outcome);
  if (executes)
    check_number(c->name, "at the end", c->seen_at_the_end, !!(outcome.touched & LS_TOUCHED_FS_GS));
  run_ok(f, &(ls_run){.state = &s, .steps = 100}, &outcome);
  check_number(c->name, "in steps", c->seen_in_steps, !!(outcome.touched & LS_TOUCHED_FS_GS));
}

static void test_fs_gs(void **state) {
  fixture *f = *state;
  const uint64_t far_pointer = UINT64_C(0x2b) << 32, mxcsr = 0x1f80;
  memcpy((uint8_t *)ls_executor_memory(f->executor, DATA) + 0xf00, &far_pointer, sizeof far_pointer);
  memcpy((uint8_t *)ls_executor_memory(f->executor, DATA) + 0x800, &mxcsr, sizeof mxcsr);
  for (size_t i = 0; i < sizeof fs_gs_cases / sizeof *fs_gs_cases; i++)
    check_fs_gs(f, &fs_gs_cases[i], i < NO_FSGSBASE || cpu()->fsgsbase);
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
static bool is_filtered(void) {
  return process_status(only_child(), "Seccomp:") == SECCOMP_MODE_FILTER;
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
 * fault there; a kernel without seccomp filters makes them. */
static void test_vsyscalls(void **state) {
  fixture *f = *state;
  static ls_state s;
  static ls_outcome outcome;
  static const uint8_t zeros[64];
  static const struct {
    uint64_t address, number;
  } calls[] = {{VSYSCALL, SYS_gettimeofday}, {VSYSCALL + 0x400, SYS_time}, {VSYSCALL + 0x800, SYS_getcpu}};
  assert_true(is_filtered());
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

/* ---- Stepping ---- */

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

int main(void) {
  ls_layout_default(&layout, SLOT);
  const struct CMUnitTest tests[] = {
      WITH_EXECUTOR(test_stops),
      WITH_EXECUTOR(test_fs_gs),
      WITH_EXECUTOR(test_int_0x80),
      WITH_EXECUTOR(test_inside_of_gate),
      WITH_EXECUTOR(test_trap_behind_gate),
      WITH_EXECUTOR_OF("seccomp", test_vsyscalls),
      WITH_EXECUTOR(test_steps),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}

/* The reference executor by itself: known answers of all state, every way a run can stop, stepping, and what
 * becomes of the child. */
#include <dirent.h>
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "flags.h"
#include "lockstep.h"

enum { SLOT = 7, CODE_MAX = 4096, SKIPPED = 77 };
enum { CODE, DATA, CONSTANTS, STACK };

#define ANYWHERE    UINT64_MAX
#define ANY_ADDRESS 0xa11a11a11u
#define ANY_CODE    (-12345)

static ls_layout layout;
static uint64_t host_address; /* of something in this process */

#define D     (layout.windows[DATA].address)
#define C     (layout.windows[CONSTANTS].address)
#define C_TF  (C + 64) /* an RFLAGS image with TF */
#define S     (layout.windows[STACK].address)
#define X     (layout.windows[CODE].address)
#define X_END (X + layout.windows[CODE].size)
#define G     (layout.gate)
#define HOST  host_address

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

/* Loads raw machine code, in pieces of up to 15 bytes, which the image keeps together. */
static void load(fixture *f, const void *code, size_t size) {
  static ls_instruction instructions[CODE_MAX / LS_INSTRUCTION_MAX + 1];
  uint32_t count = 0;
  for (size_t at = 0; at < size; at += LS_INSTRUCTION_MAX, count++) {
    size_t length = size - at < LS_INSTRUCTION_MAX ? size - at : LS_INSTRUCTION_MAX;
    instructions[count] = (ls_instruction){.next = count + 1, .jump = LS_NONE, .length = (uint8_t)length};
    memcpy(instructions[count].bytes, (const uint8_t *)code + at, length);
  }
  instructions[count - 1].next = LS_NONE;
  ls_error error = {0};
  const ls_program program = {instructions, count, 0};
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

static long status_field(pid_t pid, const char *name) {
  char path[64], line[256];
  snprintf(path, sizeof path, "/proc/%d/status", (int)pid);
  FILE *file = fopen(path, "r");
  if (!file)
    return -1;
  long value = -1;
  while (value < 0 && fgets(line, sizeof line, file))
    if (strncmp(line, name, strlen(name)) == 0)
      value = name[0] == 'S' ? strchr(line, ':')[2] : strtol(strchr(line, ':') + 1, NULL, 10);
  fclose(file);
  return value;
}

/* The reference children of this process; returns how many, the last in *pid. */
static unsigned children(pid_t *pid) {
  unsigned count = 0;
  DIR *proc = opendir("/proc");
  for (struct dirent *entry; (entry = readdir(proc));) {
    pid_t candidate = (pid_t)strtol(entry->d_name, NULL, 10);
    if (candidate > 0 && status_field(candidate, "PPid") == getpid()) {
      *pid = candidate;
      count++;
    }
  }
  closedir(proc);
  return count;
}

static pid_t only_child(void) {
  pid_t pid = 0;
  assert_int_equal(children(&pid), 1);
  return pid;
}

/* Is it gone, or dead and only waiting for somebody's wait()? Allows it some time to die. */
static int is_gone(pid_t pid) {
  for (int i = 0; i < 200; i++) {
    long state = status_field(pid, "State");
    if (state < 0 || state == 'Z' || state == 'X')
      return 1;
    usleep(10000);
  }
  return 0;
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

/* ---- States that the CPU refuses ---------------------------------------------------------------------- */

static void test_refused_states(void **state) {
  fixture *f = *state;
  static const struct {
    const char *name;
    uint32_t mxcsr;
    uint16_t ds, es, ss;
  } cases[] = {
      {"fine", 0x1f80, 0, 0, 0x2b},
      {"reserved MXCSR bits", 0x10001f80, 0, 0, 0x2b},
      {"DS of nothing", 0x1f80, 0x1233, 0, 0x2b},
      {"ES of the kernel", 0x1f80, 0, 0x18, 0x2b},
      {"SS null", 0x1f80, 0, 0, 0},
      {"SS is code", 0x1f80, 0, 0, 0x33},
      {"SS with RPL 0", 0x1f80, 0, 0, 0x28},
  };
  static ls_state s;
  static ls_outcome outcome;
  load(f, "\x90", 1);
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
    for (uint64_t steps = 0; steps < 2; steps++) {
      start_state(&s);
      s.mxcsr = cases[i].mxcsr;
      s.ds = cases[i].ds, s.es = cases[i].es, s.ss = cases[i].ss;
      ls_run run = {.state = &s, .steps = steps};
      ls_error error = {0};
      ls_status status = ls_executor_run(f->executor, &run, &outcome, &error);
      check_number(cases[i].name, "status", i ? LS_ERR_STATE : LS_OK, status);
      s.mxcsr = 0x1f80, s.ds = 0x2b, s.es = 0, s.ss = 0x2b;
      run_ok(f, &(ls_run){.state = &s}, &outcome);
      check_number(cases[i].name, "the next run", LS_STOP_EXIT, outcome.stop.kind);
    }
}

/* ---- Known answers ------------------------------------------------------------------------------------ */

static uint64_t mix(uint64_t x) {
  x *= UINT64_C(0x9e3779b97f4a7c15);
  return x ^ (x >> 29);
}

/* A value of its own in every register, byte and bit field. */
static void fill_state(ls_state *s, uint64_t seed) {
  start_state(s);
  for (unsigned i = 0; i < sizeof s->zmm; i++)
    (&s->zmm[0][0])[i] = (uint8_t)(mix(seed + i) >> 24);
  for (unsigned i = 0; i < 8; i++)
    s->k[i] = mix(seed + 5000 + i);
  for (unsigned i = 0; i < 16; i++)
    if (i != LS_RSP)
      s->gpr[i] = mix(seed + 6000 + i);
  for (unsigned i = 0; i < 8; i++)
    for (unsigned j = 0; j < 10; j++)
      s->st[i][j] = (uint8_t)(mix(seed + 7000 + 16 * i + j) >> 24);
  s->fcw = 0x27f;
  s->fsw = (uint16_t)(0x4123 + (seed & 7) * 0x800); /* TOP and condition codes */
  s->ftw = (uint8_t)(0x5a + seed);
  s->mxcsr = 0xbfd5;
  s->rflags = RFLAGS_CLEAN | RFLAGS_CF | RFLAGS_AF | RFLAGS_SF | RFLAGS_DF | RFLAGS_OF | RFLAGS_ID;
  s->ds = 0x2b;
  s->es = 0x33;
}

/* What an executor for those vectors can hold of it. */
static void narrow(ls_state *s, ls_vectors vectors) {
  unsigned bytes = vectors == LS_VECTORS_AVX512 ? 64 : vectors == LS_VECTORS_AVX ? 32 : 16;
  for (unsigned i = 0; i < 32; i++)
    if (vectors != LS_VECTORS_AVX512 && i >= 16)
      memset(s->zmm[i], 0, 64);
    else
      memset(s->zmm[i] + bytes, 0, 64 - bytes);
  if (vectors != LS_VECTORS_AVX512)
    memset(s->k, 0, sizeof s->k);
}

static void check_state(const char *name, const ls_state *want, const ls_state *got) {
  static ls_state a, b;
  a = *want;
  b = *got;
  ls_state_canonicalise(&a);
  ls_state_canonicalise(&b);
  size_t row = 0;
  if (!ls_state_difference(&a, &b, &row))
    return;
  size_t count;
  const ls_register *r = &ls_registers(&count)[row];
  char x[256], y[256];
  ls_register_print(r, &a, x, sizeof x);
  ls_register_print(r, &b, y, sizeof y);
  fail_msg("%s: %s: expected %s, got %s", name, r->name, x, y);
}

typedef struct answer_case {
  const char *name, *code;
  uint64_t steps;
  ls_stop_kind kind;
} answer_case;

static void check_answers(fixture *f, uint64_t seed) {
  static const answer_case cases[] = {
      {"by the way out", "\x90", 0, LS_STOP_EXIT},
      {"by a fault", "\x0f\x0b", 0, LS_STOP_FAULT},
      {"by a step", "\x90", 1, LS_STOP_STEPS},
      {"by stepping out", "\x90", 100, LS_STOP_EXIT},
      {"by a stepped fault", "\x0f\x0b", 9, LS_STOP_FAULT},
  };
  static ls_state start;
  static ls_outcome outcome;
  fill_state(&start, seed);
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    load(f, cases[i].code, strlen(cases[i].code));
    ls_run run = {.state = &start, .uses = LS_USES_X87, .steps = cases[i].steps};
    run_ok(f, &run, &outcome);
    check_number(cases[i].name, "kind", cases[i].kind, outcome.stop.kind);
    check_number(cases[i].name, "touched", 0, outcome.touched);
    ls_state want = start;
    narrow(&want, ls_executor_vectors(f->executor));
    want.rip = X + (cases[i].kind != LS_STOP_FAULT);
    check_state(cases[i].name, &want, &outcome.state);
  }
}

static void test_known_answers(void **state) {
  (void)state;
  for (ls_vectors v = LS_VECTORS_SSE; v <= ls_vectors_available(); v++) {
    fixture f = {make(v), ls_image_create()};
    for (uint64_t seed = 1; seed < 20; seed++)
      check_answers(&f, seed * 100003);
    ls_executor_destroy(f.executor);
    ls_image_destroy(f.image);
  }
}

static void test_guest_sees_general_registers(void **state) {
  fixture *f = *state;
  static ls_state s;
  static ls_outcome outcome;
  uint8_t code[256];
  size_t n = 0;
  for (unsigned r = 0; r < 16; r++, n += 8) { /* mov [data + 8 r], r */
    uint8_t store[8] = {(uint8_t)(r < 8 ? 0x48 : 0x4c), 0x89, (uint8_t)(0x04 | (r & 7) << 3), 0x25};
    uint32_t to = (uint32_t)D + 8 * r;
    memcpy(store + 4, &to, 4);
    memcpy(code + n, store, 8);
  }
  for (unsigned r = 0; r < 16; r++, n += 3) { /* not r */
    uint8_t not_r[3] = {(uint8_t)(r < 8 ? 0x48 : 0x49), 0xf7, (uint8_t)(0xd0 | (r & 7))};
    memcpy(code + n, not_r, 3);
  }
  load(f, code, n);
  fill_state(&s, 77);
  run_ok(f, &(ls_run){.state = &s}, &outcome);
  assert_memory_equal(ls_executor_memory(f->executor, DATA), s.gpr, sizeof s.gpr);
  for (unsigned r = 0; r < 16; r++)
    s.gpr[r] = ~s.gpr[r];
  assert_memory_equal(outcome.state.gpr, s.gpr, sizeof s.gpr);
}

static void test_guest_sees_vectors(void **state) {
  fixture *f = *state;
  if (ls_vectors_available() != LS_VECTORS_AVX512) {
    print_message("no AVX-512 here\n");
    skip();
  }
  static ls_state s;
  static ls_outcome outcome;
  uint8_t code[11 * 32 + 10 * 8];
  size_t n = 0;
  for (unsigned r = 0; r < 32; r++, n += 11) { /* vmovdqu64 [data + 64 r], zmm r (EVEX.512.F3.0F.W1 7F) */
    uint8_t p0 = (uint8_t)(0x61 | (r & 8 ? 0 : 0x80) | (r & 16 ? 0 : 0x10));
    uint8_t store[11] = {0x62, p0, 0xfe, 0x48, 0x7f, (uint8_t)(0x04 | (r & 7) << 3), 0x25};
    uint32_t to = (uint32_t)D + 64 * r;
    memcpy(store + 7, &to, 4);
    memcpy(code + n, store, 11);
  }
  for (unsigned r = 0; r < 8; r++, n += 10) { /* kmovq [data + 2048 + 8 r], k r (VEX.L0.0F.W1 91) */
    uint32_t to = (uint32_t)D + 2048 + 8 * r;
    uint8_t store[10] = {0xc4, 0xe1, 0xf8, 0x91, (uint8_t)(0x04 | r << 3), 0x25};
    memcpy(store + 6, &to, 4);
    memcpy(code + n, store, 10);
  }
  load(f, code, n);
  fill_state(&s, 88);
  run_ok(f, &(ls_run){.state = &s}, &outcome);
  const uint8_t *data = ls_executor_memory(f->executor, DATA);
  assert_memory_equal(data, s.zmm, sizeof s.zmm);
  assert_memory_equal(data + 2048, s.k, sizeof s.k);
}

static void test_flags(void **state) {
  fixture *f = *state;
  static const uint32_t flags[] = {0,         RFLAGS_CF, RFLAGS_PF, RFLAGS_AF,
                                   RFLAGS_ZF, RFLAGS_SF, RFLAGS_DF, RFLAGS_OF,
                                   RFLAGS_AC, RFLAGS_ID, 0,         RFLAGS_USER & ~RFLAGS_TF};
  static const char *const codes[] = {"\x9c", "\x9c\x0f\x0b"}; /* pushf; pushf, ud2 */
  static ls_state s;
  static ls_outcome outcome;
  for (size_t i = 0; i < sizeof flags / sizeof flags[0]; i++)
    for (unsigned how = 0; how < 4; how++) {
      load(f, codes[how & 1], strlen(codes[how & 1]));
      start_state(&s);
      s.rflags = RFLAGS_CLEAN | flags[i];
      run_ok(f, &(ls_run){.state = &s, .steps = how & 2 ? 100 : 0}, &outcome);
      uint64_t pushed, compared = ~(uint64_t)(RFLAGS_NT | RFLAGS_RF);
      memcpy(&pushed, (uint8_t *)ls_executor_memory(f->executor, STACK) + 0x7f8, sizeof pushed);
      check_number("RFLAGS", "in the guest", s.rflags & compared, pushed & compared);
      check_number("RFLAGS", "of the outcome", s.rflags & compared, outcome.state.rflags & compared);
    }
}

static void test_x87_repeats_start(void **state) {
  fixture *f = *state;
  static ls_state s;
  static ls_outcome outcome;
  fill_state(&s, 99);
  load(f, "\xd9\xe8", 2); /* fld1 */
  run_ok(f, &(ls_run){.state = &s}, &outcome);
  assert_int_equal(outcome.touched, LS_USES_X87);
  ls_state want = s;
  narrow(&want, ls_vectors_available());
  want.rip = X + 2;
  check_state("without LS_USES_X87", &want, &outcome.state);
  start_state(&s);
  run_ok(f, &(ls_run){.state = &s, .uses = LS_USES_X87}, &outcome);
  assert_int_equal(outcome.state.ftw, 0x80);
  assert_memory_equal(outcome.state.st[0], "\0\0\0\0\0\0\0\x80\xff\x3f", 10);
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

static void test_stepped_stops(void **state) {
  fixture *f = *state;
  static const struct {
    const char *name, *code;
    size_t size;
    uint64_t flags, rip;
    ls_stop_kind kind;
    int signal;
  } cases[] = {
      {"int3", "\x90\xcc", 2, 0, 2, LS_STOP_FAULT, SIGTRAP},
      {"TF of the guest's own", "\x90\x90", 2, RFLAGS_TF, 1, LS_STOP_FAULT, SIGTRAP},
      {"fault", "\x90\xf4", 2, 0, 1, LS_STOP_FAULT, SIGSEGV},
      {"syscall", "\x31\xc0\x0f\x05", 4, 0, 4, LS_STOP_SYSCALL, 0},
      {"endless", "\xeb\xfe", 2, 0, 0, LS_STOP_TIMEOUT, 0},
  };
  static ls_state s;
  static ls_outcome outcome;
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    start_state(&s);
    s.rflags |= cases[i].flags;
    load(f, cases[i].code, cases[i].size);
    run_ok(f, &(ls_run){.state = &s, .steps = UINT64_MAX, .limit_ms = 100}, &outcome);
    check_number(cases[i].name, "kind", cases[i].kind, outcome.stop.kind);
    check_number(cases[i].name, "signal", (unsigned)cases[i].signal, (unsigned)outcome.stop.signal);
    check_number(cases[i].name, "rip", X + cases[i].rip, outcome.state.rip);
    check_number(cases[i].name, "TF", cases[i].flags, outcome.state.rflags & RFLAGS_TF);
    if (cases[i].kind == LS_STOP_SYSCALL)
      check_number(cases[i].name, "TF in r11", 0, outcome.state.gpr[LS_R11] & RFLAGS_TF);
  }
}

/* ---- The child ---------------------------------------------------------------------------------------- */

static int is_allowed(uint64_t from, uint64_t to, const char *line) {
  if (strstr(line, "[vsyscall]"))
    return 1;
  if (from >= G && to <= G + LS_GATE_SIZE)
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
  static const int signals[] = {SIGINT,  SIGWINCH,  SIGTSTP, SIGSTOP, SIGCONT, SIGSEGV,
                                SIGTRAP, SIGVTALRM, SIGCHLD, SIGTERM, SIGURG,  SIGHUP};
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
  return status == LS_ERR_ARGUMENT ? f : NULL;
}

static void test_wrong_thread(void **state) {
  fixture *f = *state;
  load(f, "\x90", 1);
  pthread_t thread;
  void *result;
  pthread_create(&thread, NULL, run_elsewhere, f);
  pthread_join(thread, &result);
  assert_ptr_equal(result, f);
  static ls_outcome outcome;
  static ls_state s;
  start_state(&s);
  run_ok(f, &(ls_run){.state = &s}, &outcome);
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
    _exit(ok && children(&left) == 0 ? 0 : 1);
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

static ls_executor *volatile kept; /* never destroyed, and not a leak either */

static void end_how(int how) {
  if (how == 0)
    exit(0);
  raise(how);
}

static void test_nothing_left(void **state) {
  (void)state;
  static const int ways[] = {0, SIGKILL, SIGINT, SIGTERM};
  for (size_t i = 0; i < sizeof ways / sizeof ways[0]; i++) {
    int ends[2];
    assert_int_equal(pipe(ends), 0);
    pid_t pid = fork(), grandchild = 0;
    if (pid == 0) {
      fclose(stdout);
      kept = make(LS_VECTORS_AUTO);
      children(&grandchild);
      if (write(ends[1], &grandchild, sizeof grandchild) == sizeof grandchild)
        end_how(ways[i]);
      _exit(1);
    }
    close(ends[1]);
    assert_int_equal(read(ends[0], &grandchild, sizeof grandchild), sizeof grandchild);
    close(ends[0]);
    assert_int_equal(waitpid(pid, NULL, 0), pid);
    assert_true(grandchild > 0);
    assert_true(is_gone(grandchild));
  }
}

static void test_destroy_leaves_nothing(void **state) {
  (void)state;
  pid_t pid = 0;
  unsigned before = children(&pid);
  ls_executor *executor = make(LS_VECTORS_AUTO);
  assert_int_equal(children(&pid), before + 1);
  ls_executor_destroy(executor);
  assert_int_equal(children(&pid), before);
}

/* 0 if tracing is possible here, else says why not. */
static int no_reference(void) {
  ls_executor *executor = NULL;
  ls_error error = {0};
  ls_status status = ls_executor_create(LS_PTRACE, &layout, NULL, &executor, &error);
  ls_executor_destroy(executor);
  if (status == LS_ERR_NO_REFERENCE)
    printf("skipped: %s\n", error.text);
  return status == LS_ERR_NO_REFERENCE;
}

#define WITH_EXECUTOR(test) cmocka_unit_test_setup_teardown(test, setup, teardown)

int main(void) {
  ls_layout_default(&layout, SLOT);
  if (no_reference())
    return SKIPPED;
  const struct CMUnitTest tests[] = {
      WITH_EXECUTOR(test_stops),
      WITH_EXECUTOR(test_int_0x80),
      WITH_EXECUTOR(test_refused_states),
      cmocka_unit_test(test_known_answers),
      WITH_EXECUTOR(test_guest_sees_general_registers),
      WITH_EXECUTOR(test_guest_sees_vectors),
      WITH_EXECUTOR(test_flags),
      WITH_EXECUTOR(test_x87_repeats_start),
      WITH_EXECUTOR(test_steps),
      WITH_EXECUTOR(test_stepped_stops),
      WITH_EXECUTOR(test_child_is_bare),
      WITH_EXECUTOR(test_signals_from_outside),
      WITH_EXECUTOR(test_killed_child),
      WITH_EXECUTOR(test_wrong_thread),
      WITH_EXECUTOR(test_fork),
      cmocka_unit_test(test_nothing_left),
      cmocka_unit_test(test_destroy_leaves_nothing),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}

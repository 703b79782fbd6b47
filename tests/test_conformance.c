/* What both executors must agree on: every case runs in each, is held against what is known of it, and then
 * the two outcomes and memories against each other. */
#include <signal.h>
#include <stdlib.h>
#include <ucontext.h>

#include "both.h"
#include "left_out.h"

static int compare_lanes(const void *a, const void *b) {
  return memcmp(a, b, 8);
}

/* The patterns can only show a mix-up if no two lanes hold the same. */
static void patterns_are_distinct(void **unused) {
  (void)unused;
  static ls_state s;
  static uint64_t lanes[32 * 8 + 8 + 16 + 8];
  for (uint64_t seed = 1; seed <= SEEDS; seed++) {
    fill_seeded(&s, seed);
    memcpy(lanes, s.zmm, sizeof s.zmm);
    memcpy(lanes + 256, s.k, sizeof s.k);
    memcpy(lanes + 264, s.gpr, sizeof s.gpr);
    for (int i = 0; i < 8; i++)
      memcpy(lanes + 280 + i, s.st[i], 8);
    size_t count = sizeof lanes / sizeof *lanes;
    qsort(lanes, count, 8, compare_lanes);
    for (size_t i = 1; i < count; i++)
      assert_true(lanes[i] != lanes[i - 1] && lanes[i]);
  }
}

/* ---- Known answers: registers go in and come out ------------------------------------------------------ */

/* Every register repeats its start's, whatever ends the run and however narrow the vectors are. */
static void check_way(const char *name, const void *code, size_t size, const ls_run *run, ls_stop_kind kind,
                      int signal, uint64_t rip) {
  static ls_outcome outcomes[KINDS];
  static ls_state want;
  load(code, size);
  run_all(name, run, false, outcomes);
  for (int k = 0; k < KINDS; k++) {
    if (!executors[k])
      continue;
    check_number(name, k, "kind", kind, outcomes[k].stop.kind);
    check_number(name, k, "signal", (unsigned)signal, (unsigned)outcomes[k].stop.signal);
    want = *run->state;
    want.rip = rip;
    ls_state_canonicalise(&want);
    check_state(name, kind_names[k], &want, &outcomes[k].state);
  }
  check_same(name, false, outcomes);
}

static void known_answers(void **unused) {
  (void)unused;
  static ls_state start;
  open_all(ls_vectors_available());
  for (uint64_t seed = 1; seed <= SEEDS; seed++) {
    fill_seeded(&start, seed);
    ls_run run = {.state = &start, .uses = seed & 2 ? 0 : LS_USES_X87, .limit_ms = 20};
#define WAY(name, bytes, count, kind, signal, rip)                                                           \
  run.steps = count;                                                                                         \
  check_way(name, bytes, sizeof bytes - 1, &run, kind, signal, rip);
#include "test_conformance.inc"
#undef WAY
  }
}

/* ---- Known answers: the guest sees what was put in, and what it puts in comes out --------------------- */

/* Machine code under construction. */
typedef struct writer {
  uint8_t bytes[RAW_BYTES_MAX];
  size_t size;
} writer;

static void put(writer *w, const void *bytes, size_t size) {
  assert_true(w->size + size <= sizeof w->bytes);
  memcpy(w->bytes + w->size, bytes, size);
  w->size += size;
}

/* An opcode's bytes, then ModRM, SIB and displacement for register field `reg` and [address]. */
static void put_access(writer *w, const uint8_t *opcode, size_t size, unsigned reg, uint64_t address) {
  const uint8_t modrm_sib[2] = {(uint8_t)(0x04 | (reg & 7) << 3), 0x25};
  uint32_t displacement = (uint32_t)address;
  put(w, opcode, size);
  put(w, modrm_sib, sizeof modrm_sib);
  put(w, &displacement, sizeof displacement);
}

/* Moves between one vector register and memory: MOVUPS, VMOVUPS, VMOVDQU64. */
static void put_vector(writer *w, ls_vectors vectors, unsigned r, bool store, uint64_t address) {
  uint8_t last = (uint8_t)(0x10 | store), rex = (uint8_t)(0x40 | (r & 8) >> 1);
  uint8_t vex = (uint8_t)(0x7c | (r & 8 ? 0 : 0x80));
  uint8_t evex = (uint8_t)(0x61 | (r & 8 ? 0 : 0x80) | (r & 16 ? 0 : 0x10));
  if (vectors == LS_VECTORS_SSE)
    put_access(w, (uint8_t[]){rex, 0x0f, last}, 3, r, address);
  else if (vectors == LS_VECTORS_AVX)
    put_access(w, (uint8_t[]){0xc5, vex, last}, 3, r, address);
  else
    put_access(w, (uint8_t[]){0x62, evex, 0xfe, 0x48, store ? 0x7f : 0x6f}, 5, r, address);
}

static void put_vectors(writer *w, ls_vectors vectors, bool store, uint64_t at) {
  bool all = vectors == LS_VECTORS_AVX512;
  for (unsigned r = 0; r < (all ? 32 : 16); r++)
    put_vector(w, vectors, r, store, at + offsetof(ls_state, zmm) + 64 * r);
  for (unsigned r = 0; all && r < 8; r++) /* KMOVQ */
    put_access(w, (uint8_t[]){0xc4, 0xe1, 0xf8, store ? 0x91 : 0x90}, 4, r,
               at + offsetof(ls_state, k) + 8 * r);
}

static void put_general(writer *w, bool store, uint64_t at) {
  for (unsigned r = 0; r < 16; r++)
    put_access(w, (uint8_t[]){r < 8 ? 0x48 : 0x4c, store ? 0x89 : 0x8b}, 2, r,
               at + offsetof(ls_state, gpr) + 8 * r);
}

/* mov rsp, address: pushes and pops of RFLAGS next. */
static void put_rsp(writer *w, uint64_t address) {
  uint32_t low = (uint32_t)address;
  put(w, "\x48\xc7\xc4", 3);
  put(w, &low, sizeof low);
}

/* Stores every register into an ls_state at data, then loads every register from the one behind it. */
static void write_exchange(writer *w, ls_vectors vectors) {
  static const uint16_t selectors[6] = {offsetof(ls_state, es), offsetof(ls_state, cs),
                                        offsetof(ls_state, ss), offsetof(ls_state, ds),
                                        offsetof(ls_state, fs), offsetof(ls_state, gs)};
  uint64_t seen = D, next = D + LS_PAGE, fx = offsetof(ls_state, fcw);
  w->size = 0;
  put_general(w, true, seen);
  put_rsp(w, seen + offsetof(ls_state, rflags) + 8);
  put(w, "\x9c", 1);                                               /* pushfq */
  put_access(w, (const uint8_t *)"\x48\x0f\xae", 3, 0, seen + fx); /* fxsave64 */
  put_vectors(w, vectors, true, seen);
  for (unsigned r = 0; r < 6; r++)
    put_access(w, (const uint8_t *)"\x8c", 1, r, seen + selectors[r]);
  put_access(w, (const uint8_t *)"\x48\x0f\xae", 3, 1, next + fx); /* fxrstor64 */
  put_vectors(w, vectors, false, next);
  put_access(w, (const uint8_t *)"\x8e", 1, 3, next + offsetof(ls_state, ds));
  put_access(w, (const uint8_t *)"\x8e", 1, 0, next + offsetof(ls_state, es));
  put_rsp(w, next + offsetof(ls_state, rflags));
  put(w, "\x9d", 1); /* popfq */
  put_general(w, false, next);
}

/* The bytes of a register that such vectors cover. */
static size_t covered(const ls_register *r, ls_vectors vectors) {
  static const size_t bytes[] = {
      [LS_VECTORS_SSE] = 16, [LS_VECTORS_AVX] = 32, [LS_VECTORS_AVX512] = sizeof(((ls_state *)0)->zmm[0])};
  bool all = vectors == LS_VECTORS_AVX512;
  if (r->group == LS_GROUP_OPMASK)
    return all ? r->size : 0;
  if (r->group == LS_GROUP_VECTOR)
    return all || r->offset < 16 * sizeof(((ls_state *)0)->zmm[0]) ? bytes[vectors] : 0;
  return r->size;
}

/* Compares what the guest stored, row by row of the table. */
static void check_seen(int kind, ls_vectors vectors, const ls_state *start, const uint8_t *memory) {
  static ls_state seen, want;
  memcpy(&seen, memory, sizeof seen);
  want = *start;
  seen.rip = want.rip;
  ls_state_canonicalise(&seen);
  ls_state_canonicalise(&want);
  size_t count;
  const ls_register *rows = ls_registers(&count);
  for (size_t i = 0; i < count; i++)
    if (memcmp((uint8_t *)&seen + rows[i].offset, (uint8_t *)&want + rows[i].offset,
               covered(&rows[i], vectors)) &&
        !left_out(rows[i].name))
      fail_msg("%s, %s: the guest saw another %s", ls_vectors_name(vectors), kind_names[kind], rows[i].name);
}

/* What the exchange leaves: all of *next that is covered, and of *start what is not. */
static void exchanged(const ls_state *start, const ls_state *next, ls_vectors vectors, ls_state *want) {
  size_t count;
  const ls_register *rows = ls_registers(&count);
  *want = *start;
  for (size_t i = 0; i < count; i++)
    memcpy((uint8_t *)want + rows[i].offset, (const uint8_t *)next + rows[i].offset,
           covered(&rows[i], vectors));
}

/* NT in what was pushed: lost if the kernel was entered before. */
static void forget_nt(ls_executor *executor) {
  ls_state *seen = ls_executor_memory(executor, DATA);
  seen->rflags &= ~(uint64_t)RFLAGS_NT;
}

static void check_exchange(ls_vectors vectors, const ls_state *start, const ls_state *next, bool fault,
                           uint64_t steps) {
  static writer w;
  static ls_outcome outcomes[KINDS];
  static ls_state want;
  const char *name = ls_vectors_name(vectors);
  write_exchange(&w, vectors);
  uint64_t end = X + w.size;
  put(&w, fault ? "\x0f\x0b" : "\x90", fault ? 2 : 1);
  memset(data, 0, sizeof data);
  memcpy(data + LS_PAGE, next, sizeof *next);
  load(w.bytes, w.size);
  run_all(name, &(ls_run){.state = start, .uses = LS_USES_X87, .steps = steps}, false, outcomes);
  for (int kind = 0; kind < KINDS; kind++) {
    if (!executors[kind])
      continue;
    check_number(name, kind, "kind", fault ? LS_STOP_FAULT : LS_STOP_EXIT, outcomes[kind].stop.kind);
    check_seen(kind, vectors, start, ls_executor_memory(executors[kind], DATA));
    forget_nt(executors[kind]);
    exchanged(start, next, vectors, &want);
    want.rip = end + !fault;
    ls_state_canonicalise(&want);
    check_state(name, kind_names[kind], &want, &outcomes[kind].state);
  }
  check_same(name, false, outcomes);
}

static void guests_see_and_change_everything(void **unused) {
  (void)unused;
  static ls_state start, next;
  ls_vectors v = ls_vectors_available();
  open_all(v);
  for (uint64_t seed = 1; seed <= SEEDS; seed++)
    for (int fault = 0; fault < 2; fault++) {
      fill_seeded(&start, seed);
      fill_seeded(&next, seed + 100);
      check_exchange(v, &start, &next, fault, 0);
    }
}

static void flags_and_selectors(void **unused) {
  (void)unused;
  static ls_state start, next;
  ls_vectors v = ls_vectors_available();
  open_all(v);
  for (int how = 0; how < 4; how++) {
    bool fault = how & 1;
    uint64_t steps = how & 2 ? UINT64_MAX : 0;
    fill_seeded(&start, 4);
    fill_seeded(&next, 104);
#define FLAG(bits)                                                                                           \
  start.rflags = RFLAGS_CLEAN | (bits);                                                                      \
  next.rflags = RFLAGS_CLEAN | (RFLAGS_USER & ~RFLAGS_TF & ~(uint64_t)(bits));                               \
  check_exchange(v, &start, &next, fault, steps);
#define SELECTORS(in, into)                                                                                  \
  start.ds = next.es = in, start.es = next.ds = into;                                                        \
  check_exchange(v, &start, &next, fault, steps);
#include "test_conformance.inc"
#undef FLAG
#undef SELECTORS
  }
}

/* ---- Every way to stop -------------------------------------------------------------------------------- */

typedef struct expected {
  ls_stop_kind kind;
  int signal, code;
  uint64_t address, rip;
} expected;

/* Zero where programs of the table want it, patterns elsewhere. */
static void start_state(ls_state *s) {
  ls_state pattern;
  fill_seeded(&pattern, 6);
  ls_state_init(s);
  memcpy(s->zmm[2], pattern.zmm[2], sizeof s->zmm - 2 * sizeof s->zmm[0]);
  memcpy(s->k, pattern.k, sizeof s->k);
  memcpy(s->gpr + LS_R8, pattern.gpr + LS_R8, 8 * sizeof s->gpr[0]);
  memcpy(s->st, pattern.st, sizeof s->st);
  s->gpr[LS_RSP] = S + 0x800;
  s->rflags = RFLAGS_CLEAN | RFLAGS_PF | RFLAGS_SF | RFLAGS_ID;
  s->ds = 0x2b;
  s->es = 0x33;
  const uint64_t trap = RFLAGS_CLEAN | RFLAGS_TF;
  memcpy(constants + 64, &trap, sizeof trap);
  memset(data, 0, sizeof data);
}

/* A fault of the first instruction: nothing has changed but, for #XM, the exception's flag. */
static void check_unchanged(const char *name, int kind, const ls_state *start, const ls_state *got) {
  static ls_state want;
  want = *start;
  want.rip = got->rip;
  if (got->mxcsr != want.mxcsr && got->mxcsr & ~(got->mxcsr >> 7) & 0x3f)
    want.mxcsr = got->mxcsr;
  ls_state_canonicalise(&want);
  check_state(name, kind_names[kind], &want, got);
}

static void check_stop(const char *name, const void *code, size_t size, const ls_state *start, expected want,
                       bool changes, uint64_t steps) {
  static ls_outcome outcomes[KINDS];
  bool call = want.kind == LS_STOP_SYSCALL;
  if (call != in_part("calls") || left_out(name))
    return;
  load(code, size);
  run_all(name, &(ls_run){.state = start, .uses = LS_USES_X87, .limit_ms = 30, .steps = steps}, call,
          outcomes);
  for (int k = 0; k < KINDS; k++) {
    if (!can_run(k, call))
      continue;
    const ls_outcome *got = &outcomes[k];
    check_number(name, k, "kind", want.kind, got->stop.kind);
    check_number(name, k, "signal", (unsigned)want.signal, (unsigned)got->stop.signal);
    check_number(name, k, "code", (unsigned)want.code, (unsigned)got->stop.code);
    check_number(name, k, "address", call ? 0 : want.address, got->stop.address);
    check_number(name, k, "number", call ? want.address : 0, got->stop.number);
    if (want.rip != ANYWHERE)
      check_number(name, k, "rip", want.rip, got->state.rip);
    if (call)
      check_number(name, k, "rax", want.address, got->state.gpr[LS_RAX]);
    if (want.kind == LS_STOP_FAULT && want.signal != SIGTRAP && want.rip == X && !changes)
      check_unchanged(name, k, start, &got->state);
  }
  check_same(name, call, outcomes);
}

static volatile uint64_t int1_moved; /* see look_at_int1 */

static void every_stop(void **unused) {
  (void)unused;
  static ls_state start;
  ls_state *s = &start;
  ls_vectors v = ls_vectors_available(), needs;
  bool changes;
  open_all(v);
#define ROW(steps, name, bytes, setup, ...)                                                                  \
  start_state(s);                                                                                            \
  needs = LS_VECTORS_SSE;                                                                                    \
  changes = false;                                                                                           \
  setup;                                                                                                     \
  if (needs <= v)                                                                                            \
    check_stop(name, bytes, sizeof bytes - 1, s, (expected){__VA_ARGS__}, changes, steps);
#define STOP(...)    ROW(0, __VA_ARGS__)
#define STEPPED(...) ROW(UINT64_MAX, __VA_ARGS__)
#include "test_conformance.inc"
#undef STOP
#undef STEPPED
#undef ROW
}

/* Without LS_USES_X87 the outcome repeats the start's x87 state, whatever the guest did with it. */
static void x87_repeats_the_start(void **unused) {
  (void)unused;
  static ls_state start;
  open_all(LS_VECTORS_AUTO);
  fill_seeded(&start, 2);
  check_way("fld1", "\xd9\xe8", 2, &(ls_run){.state = &start}, LS_STOP_EXIT, 0, X + 2);
  check_way("fld1, #UD", "\xd9\xe8\x0f\x0b", 4, &(ls_run){.state = &start}, LS_STOP_FAULT, SIGILL, X + 2);
  static ls_outcome outcomes[KINDS];
  start_state(&start);
  load("\xd9\xe8", 2);
  run_all("fld1, used", &(ls_run){.state = &start, .uses = LS_USES_X87}, false, outcomes);
  for (int k = 0; k < KINDS; k++)
    if (executors[k]) {
      check_number("fld1, used", k, "ftw", 0x80, outcomes[k].state.ftw);
      assert_memory_equal(outcomes[k].state.st[0], "\0\0\0\0\0\0\0\x80\xff\x3f", 10);
    }
  check_same("fld1, used", false, outcomes);
}

/* ---- States that the CPU refuses ---------------------------------------------------------------------- */

static void check_refused(const char *name, const ls_state *refused, uint32_t uses, uint64_t steps) {
  static ls_state fine;
  static ls_outcome outcome;
  if (left_out(name))
    return;
  fill_seeded(&fine, 2);
  for (int kind = 0; kind < KINDS; kind++) {
    if (!executors[kind])
      continue;
    ls_run run = {.state = refused, .uses = uses, .steps = steps};
    check_number(name, kind, "status", LS_ERR_STATE,
                 ls_executor_run(executors[kind], &run, &outcome, &error));
    must(ls_executor_run(executors[kind], &(ls_run){.state = &fine}, &outcome, &error));
    check_number(name, kind, "the next run", LS_STOP_EXIT, outcome.stop.kind);
  }
}

static void bad_states_are_refused(void **unused) {
  (void)unused;
  static ls_state refused;
  ls_state *s = &refused;
  open_all(LS_VECTORS_AUTO);
  load("\x90", 1);
  for (uint32_t uses = 0; uses <= LS_USES_X87; uses++)
    for (uint64_t steps = 0; steps < 2; steps++) {
#define REFUSED(name, setup)                                                                                 \
  fill_seeded(s, 2);                                                                                         \
  setup;                                                                                                     \
  check_refused(name, s, uses, steps);
#include "test_conformance.inc"
#undef REFUSED
    }
}

#define TEST(function) cmocka_unit_test_teardown(function, close_all)

/* INT1's trap is reported behind it (SDM vol. 3, 6.5.1), but some hypervisors that intercept it report the
 * instruction itself: the length by which a plain handler sees RIP moved on, 1 or 0. */
static void at_int1(int sig, siginfo_t *info, void *context) {
  greg_t *rip = &((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP];
  (void)sig;
  (void)info;
  int1_moved = *(const uint8_t *)*rip != 0xf1;
  *rip += !int1_moved;
}

static void look_at_int1(void) {
  struct sigaction action = {.sa_sigaction = at_int1, .sa_flags = SA_SIGINFO}, before, before_unknown;
  sigaction(SIGTRAP, &action, &before);
  sigaction(SIGILL, &action, &before_unknown); /* emulators that do not know it */
  __asm__ volatile(".byte 0xf1" ::: "memory");
  sigaction(SIGTRAP, &before, NULL);
  sigaction(SIGILL, &before_unknown, NULL);
}

int main(void) {
  look_at_int1();
  ls_layout_default(&layout, SLOT);
  image = ls_image_create();
  const struct CMUnitTest tests[] = {
      TEST(patterns_are_distinct),
      TEST(known_answers),
      TEST(guests_see_and_change_everything),
      TEST(flags_and_selectors),
      TEST(every_stop),
      TEST(x87_repeats_the_start),
      TEST(bad_states_are_refused),
      PART("calls", every_stop, NULL, close_all),
  };
  int failed = cmocka_run_group_tests(tests, NULL, NULL);
  ls_image_destroy(image);
  return failed;
}

/* Running a piece of machine code in both executors and comparing: for the one test program that includes it.
 * What the functions need is kept in the variables below; everything fails the running test. */
#ifndef TESTS_BOTH_H
#define TESTS_BOTH_H

#include <signal.h>
#include <stdbool.h>

#include "check.h"
#include "flags.h"
#include "raw.h"

enum { KINDS = 2, SLOT = 9, SEEDS = 12 };
enum { CODE, DATA, CONSTANTS, STACK, WINDOWS_HELD };

#define ANYWHERE UINT64_MAX

static ls_layout layout;
static ls_image *image;
static ls_executor *executors[KINDS]; /* by ls_kind; NULL: none */
static bool has_reference;
static ls_error error;

/* What each run finds in memory. */
static uint8_t data[2 * LS_PAGE], constants[LS_PAGE], stack[LS_PAGE];

#define D     (layout.windows[DATA].address)
#define D_END (D + layout.windows[DATA].size)
#define C     (layout.windows[CONSTANTS].address)
#define C_TF  (C + 64) /* an RFLAGS image with TF */
#define S     (layout.windows[STACK].address)
#define X     (layout.windows[CODE].address)
#define X_END (X + layout.windows[CODE].size)
#define G     (layout.gate)

static const char *const kind_names[KINDS] = {[LS_SIGNAL] = "in thread", [LS_PTRACE] = "reference"};

/* ---- Executors ---------------------------------------------------------------------------------------- */

static void must(ls_status status) {
  if (status)
    fail_msg("%s: %s", ls_status_name(status), error.text);
}

static int close_all(void **unused) {
  (void)unused;
  for (int kind = 0; kind < KINDS; kind++) {
    ls_executor_destroy(executors[kind]);
    executors[kind] = NULL;
  }
  return 0;
}

/* Inside a test: the test runner puts its own handlers of faults in place around each. */
static void open_all(ls_vectors vectors) {
  close_all(NULL);
  for (int kind = 0; kind < (has_reference ? KINDS : 1); kind++)
    must(ls_executor_create((ls_kind)kind, &layout, &(ls_options){.vectors = vectors}, &executors[kind],
                            &error));
}

static void load(const void *code, size_t size) {
  static ls_instruction pieces[RAW_PIECES];
  const ls_program program = raw_program(code, size, pieces);
  must(ls_image_build(image, &program, &layout, &error));
  for (int kind = 0; kind < KINDS; kind++)
    if (executors[kind])
      must(ls_executor_load(executors[kind], image, &error));
}

/* ---- Comparing ---------------------------------------------------------------------------------------- */

static void check_number(const char *name, int kind, const char *what, uint64_t want, uint64_t got) {
  if (want != got)
    fail_msg("%s, %s: %s: expected %#llx, got %#llx", name, kind_names[kind], what, (unsigned long long)want,
             (unsigned long long)got);
}

/* Two canonical states; `who` says what the second is. */
static void check_state(const char *name, const char *who, const ls_state *want, const ls_state *got) {
  size_t row = 0, count;
  if (memcmp(want, got, sizeof *want) == 0)
    return;
  if (!ls_state_difference(want, got, &row))
    fail_msg("%s, %s: states differ outside the register table", name, who);
  const ls_register *r = &ls_registers(&count)[row];
  char x[256], y[256];
  ls_register_print(r, want, x, sizeof x);
  ls_register_print(r, got, y, sizeof y);
  fail_msg("%s, %s: %s: expected %s, got %s", name, who, r->name, x, y);
}

/* Comparable by memcmp: canonical, no padding, without what only the reference reports. */
static void canonicalise(ls_outcome *outcome) {
  static ls_outcome clean;
  memset(&clean, 0, sizeof clean);
  clean.state = outcome->state;
  ls_state_canonicalise(&clean.state);
  const ls_stop *stop = &outcome->stop;
  clean.stop.kind = stop->kind;
  clean.stop.instruction = stop->instruction;
  clean.stop.part = stop->part;
  clean.stop.signal = stop->signal;
  clean.stop.code = stop->code;
  clean.stop.address = stop->address;
  clean.stop.number = stop->number;
  memcpy(outcome, &clean, sizeof clean);
}

static bool can_run(int kind, bool calls) {
  return executors[kind] && (!calls || ls_executor_stops_syscalls(executors[kind]));
}

/* Runs the loaded code in every executor, from the same memory; the outcomes are canonical. */
static void run_all(const char *name, const ls_run *run, bool calls, ls_outcome outcomes[KINDS]) {
  const void *const contents[LS_WINDOWS_MAX] = {NULL, data, constants, stack};
  for (int kind = 0; kind < KINDS; kind++) {
    if (!can_run(kind, calls))
      continue;
    must(ls_executor_reset(executors[kind], contents, &error));
    memset(&outcomes[kind], 0xa5, sizeof *outcomes);
    ls_status status = ls_executor_run(executors[kind], run, &outcomes[kind], &error);
    if (status)
      fail_msg("%s, %s: %s: %s", name, kind_names[kind], ls_status_name(status), error.text);
    canonicalise(&outcomes[kind]);
  }
}

static void check_same(const char *name, bool calls, const ls_outcome outcomes[KINDS]) {
  if (!can_run(LS_SIGNAL, calls) || !can_run(LS_PTRACE, calls))
    return;
  uint32_t window = 0;
  uint64_t offset = 0;
  check_state(name, "in thread against reference", &outcomes[LS_PTRACE].state, &outcomes[LS_SIGNAL].state);
  if (memcmp(&outcomes[0].stop, &outcomes[1].stop, sizeof outcomes->stop) != 0)
    fail_msg("%s: stops differ", name);
  if (memcmp(&outcomes[0], &outcomes[1], sizeof *outcomes) != 0)
    fail_msg("%s: outcomes differ", name);
  if (ls_memory_difference(executors[0], executors[1], &window, &offset))
    fail_msg("%s: memory differs: window %u, offset %#llx", name, window, (unsigned long long)offset);
}

/* ---- Patterns ----------------------------------------------------------------------------------------- */

static uint64_t mix(uint64_t x) {
  x *= UINT64_C(0x9e3779b97f4a7c15);
  return x ^ (x >> 29);
}

/* A value of its own in every register, lane, byte and bit field. */
static void fill_state(ls_state *s, uint64_t seed) {
  ls_state_init(s);
  for (unsigned i = 0; i < sizeof s->zmm; i += 8) {
    uint64_t lane = mix(mix(seed) + i);
    memcpy(&s->zmm[0][0] + i, &lane, sizeof lane);
  }
  for (unsigned i = 0; i < 8; i++)
    s->k[i] = mix(mix(seed) + 5000 + i);
  for (unsigned i = 0; i < 16; i++)
    s->gpr[i] = mix(mix(seed) + 6000 + i);
  s->gpr[LS_RSP] &= UINT64_C(0x7fffffffffff); /* canonical, so that the kernel can return to it at any time */
  for (unsigned i = 0; i < 8; i++)
    for (unsigned j = 0; j < 10; j++)
      s->st[i][j] = (uint8_t)(mix(mix(seed) + 7000 + 16 * i + j) >> 24);
  s->rflags = RFLAGS_CLEAN | (mix(seed + 8000) & RFLAGS_USER & ~(uint64_t)RFLAGS_TF);
  static const uint16_t selectors[] = {0x2b, 0x33, 0};
  s->ds = selectors[seed % 3];
  s->es = selectors[(seed + 1) % 3];
  s->mxcsr = 0x1f80 ^ (mix(seed + 9000) & 0xe07f); /* rounding, FTZ, DAZ, sticky flags; all masked */
  s->fcw = (uint16_t)(0x7f | (mix(seed + 9100) & 0xf00));
  s->fsw = (uint16_t)(mix(seed + 9200) & 0x7f7f & ~0x80u);
  s->ftw = (uint8_t)mix(seed + 9300);
  if (seed % 4 == 1) { /* an exception pending: FOP, FIP and FDP count */
    s->fcw = 0x27b;
    s->fsw = (uint16_t)(0x8084 | (seed & 7) << 11);
    s->fop = 0x5b7;
    s->fip =
        0x56789abc; /* below 4 GiB, where guests are: a context switch may keep no more (seen on Zen 5) */
    s->fdp = 0x6789abcd;
  }
}

#endif

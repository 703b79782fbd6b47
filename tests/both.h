/* Running a piece of machine code in both executors and comparing: for the one test program that includes it.
 * What the functions need is kept in the variables below; everything fails the running test. */
#ifndef TESTS_BOTH_H
#define TESTS_BOTH_H

#include <signal.h>
#include <stdbool.h>

#include "must.h"
#include "places.h"
#include "raw.h"
#include "states.h"

enum { KINDS = 2, SLOT = 9, SEEDS = 12 };

#define ANYWHERE UINT64_MAX

static ls_image *image;
static ls_executor *executors[KINDS]; /* by ls_kind; NULL: none */

/* What each run finds in memory. */
static uint8_t data[2 * LS_PAGE], constants[LS_PAGE], stack[LS_PAGE];

static const char *const kind_names[KINDS] = {[LS_SIGNAL] = "in thread", [LS_PTRACE] = "reference"};

/* ---- Executors ---------------------------------------------------------------------------------------- */

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
  for (int kind = 0; kind < (is_wanted(LS_PTRACE) ? KINDS : 1); kind++)
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
  char which[160];
  snprintf(which, sizeof which, "%s, %s", name, who);
  same_canonical(which, want, got);
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

#endif

/* Looks for initial values with which a block runs to its end, by running it in the reference: after a fault
 * the value that formed the address at fault is put right (import_repair.h), which takes what the registers
 * were on the way there. A block that goes straight on records that itself (import_record.h): each repair
 * costs one run. Any other is stepped through after each fault. */
#include <string.h>

#include "import/import.h"
#include "import/import_record.h"
#include "import/import_repair.h"

enum { REPAIRS_MAX = 96, SLOW_MAX = 4, FUEL = 256, LIMIT_MS = 50 };

typedef struct trial {
  ls_executor *reference;
  ls_image *image;
  testcase_contents contents;
  trace path;
  import_report *report;
} trial;

const ls_layout *import_layout(void) {
  return record_layout();
}

/* ---- Runs -------------------------------------------------------------------------------------------- */

static int trace_visit(const ls_state *state, void *context) {
  trial *t = context;
  const ls_range *range = ls_image_find(t->image, state->rip);
  if (t->path.count == TRACE_MAX) {
    t->path.overflow = true;
    return 1;
  }
  trace_step *step = &t->path.steps[t->path.count++];
  step->instruction = range != NULL && range->part == LS_PART_BODY ? range->instruction : LS_NONE;
  memcpy(step->gpr, state->gpr, sizeof step->gpr);
  return 0;
}

static bool trial_run(trial *t, const testcase *test, uint64_t steps, ls_stop *stop) {
  ls_outcome outcome;
  ls_run run = {.state = &test->state, .uses = LS_USES_X87, .fuel = FUEL, .limit_ms = LIMIT_MS};
  run.steps = steps;
  run.visitor = steps > 0 ? trace_visit : NULL;
  run.context = t;
  testcase_contents_make(test, &t->contents);
  t->report->runs++;
  if (ls_executor_reset(t->reference, t->contents.window, &t->report->error) != LS_OK ||
      ls_executor_run(t->reference, &run, &outcome, &t->report->error) != LS_OK)
    return false;
  *stop = outcome.stop;
  return true;
}

static bool trial_trace(trial *t, const testcase *test, ls_stop *stop) {
  ls_state start = test->state;
  start.rip = ls_image_address(t->image, 0);
  t->path.count = 0;
  t->path.overflow = false;
  trace_visit(&start, t);
  return trial_run(t, test, TRACE_MAX, stop);
}

/* As it is, without moves that record. A repair may have changed the program too. */
static bool trial_load(trial *t, const testcase *test) {
  ls_program program = testcase_program(test);
  return ls_image_build(t->image, &program, testcase_layout(), &t->report->error) == LS_OK &&
         ls_executor_load(t->reference, t->image, &t->report->error) == LS_OK;
}

static bool trial_plain(trial *t, const testcase *test, ls_stop *stop) {
  return trial_load(t, test) && trial_run(t, test, 0, stop);
}

static bool trial_record(trial *t, const testcase *test, ls_stop *stop) {
  if (record_build(test, t->image, &t->report->error) != LS_OK ||
      ls_executor_load(t->reference, t->image, &t->report->error) != LS_OK || !trial_run(t, test, 0, stop))
    return false;
  record_read(test, t->reference, stop, &t->path);
  return true;
}

/* ---- Attempts ---------------------------------------------------------------------------------------- */

/* Each of these leaves in *stop how the test ends when nothing helps any more: over a link, or elsewhere. */

static bool attempt_stepping(trial *t, testcase *test, unsigned attempt, ls_stop *stop) {
  for (unsigned repair = 0; repair < REPAIRS_MAX; repair++) {
    ls_stop traced;
    if (!trial_plain(t, test, stop))
      return false;
    if (stop->kind != LS_STOP_FAULT)
      return true;
    if (!trial_trace(t, test, &traced))
      return false;
    if (t->path.overflow || !repair_fault(test, &t->path, stop, attempt))
      return true;
  }
  return true;
}

static bool attempt_recording(trial *t, testcase *test, unsigned attempt, ls_stop *stop) {
  for (unsigned repair = 0; repair < REPAIRS_MAX; repair++) {
    if (!trial_record(t, test, stop))
      return false;
    if (stop->kind != LS_STOP_FAULT || !repair_fault(test, &t->path, stop, attempt))
      return true;
  }
  return true;
}

/* ---- All of them ------------------------------------------------------------------------------------- */

/* With the values found, other memory and vectors may do as well and test more. If they do, *test has them
 * and *stop says how it ends. */
static bool trial_enrich(trial *t, testcase *test, ls_stop *stop) {
  static testcase richer;
  ls_stop end;
  testcase_copy(&richer, test);
  for (unsigned window = TESTCASE_DATA; window < TESTCASE_WINDOWS; window++)
    if (richer.fill[window] == 0)
      richer.fill[window] = (uint8_t)(8 + (test->state.rflags & 0xf8)); /* a mixture of all kinds of values */
  if (richer.vectors == 0) {
    richer.vectors = 16;
    testcase_vectors(richer.vectors, &richer.state);
  }
  if (!trial_plain(t, &richer, &end))
    return false;
  if (end.kind == LS_STOP_EXIT) {
    testcase_copy(test, &richer);
    *stop = end;
  }
  return true;
}

/* How far a run got: to its end, or else to an instruction. */
static uint32_t progress(const ls_stop *stop) {
  if (stop->kind == LS_STOP_EXIT)
    return UINT32_MAX;
  return stop->instruction == LS_NONE ? 0 : stop->instruction + 1;
}

/* What ended with its moves may not end without them: code that reads code sees them. Then it is stepped. */
static bool finish_recorded(trial *t, testcase *test, bool *same) {
  ls_stop *stop = &t->report->stop, plain = {.kind = LS_STOP_STEPS};
  *same = true;
  if (stop->kind == LS_STOP_EXIT && !trial_enrich(t, test, &plain))
    return false;
  if (plain.kind != LS_STOP_EXIT && !trial_plain(t, test, &plain))
    return false;
  *same = progress(stop) == progress(&plain);
  *stop = plain;
  return true;
}

static bool finish_stepped(trial *t, testcase *test) {
  return t->report->stop.kind != LS_STOP_EXIT || trial_enrich(t, test, &t->report->stop);
}

static bool try_all(trial *t, testcase *test, const uint8_t *code, size_t size, bool recording) {
  static testcase candidate;
  import_report ignored;
  unsigned slow = 0;
  for (unsigned attempt = 0; attempt < IMPORT_ATTEMPTS && slow < SLOW_MAX; attempt++) {
    ls_stop stop;
    import_attempt(&candidate, code, size, attempt, &ignored);
    if (!(recording ? attempt_recording : attempt_stepping)(t, &candidate, attempt, &stop))
      return false;
    slow += stop.kind != LS_STOP_FAULT; /* a loop, which other values seldom end */
    if (attempt > 0 && progress(&stop) <= progress(&t->report->stop))
      continue;
    testcase_copy(test, &candidate);
    t->report->stop = stop;
    if (stop.kind == LS_STOP_EXIT)
      return true;
  }
  return true;
}

static bool trial_all(trial *t, testcase *test, const uint8_t *code, size_t size) {
  bool same = false;
  if (record_possible(test) && (!try_all(t, test, code, size, true) || !finish_recorded(t, test, &same)))
    return false;
  return same || (try_all(t, test, code, size, false) && finish_stepped(t, test));
}

import_status import_block(testcase *test, const uint8_t *code, size_t size, ls_executor *reference,
                           import_report *report) {
  static trial t;
  if (import_attempt(test, code, size, 0, report) != IMPORT_OK || reference == NULL)
    return report->status;
  t.reference = reference;
  t.report = report;
  t.image = ls_image_create();
  if (t.image == NULL || !trial_all(&t, test, code, size))
    report->status = IMPORT_SYSTEM;
  report->ran = report->status == IMPORT_OK;
  ls_image_destroy(t.image);
  return report->status;
}

/* Tries small counters. Which registers count is not looked for in the program: a run in the reference costs
 * less than 20 us, so all are tried, alone, and then at a distance from each other one, which is where a loop
 * that compares two of them begins. */
#include "import/import_counters.h"

#include "no_memory.h"

enum { REGISTERS = 16, FUEL = 256, LIMIT_MS = 50 };

typedef struct search {
  ls_executor *reference;
  testcase_contents contents;
  import_report *report;
  bool slow; /* a run used up its time: others would too */
} search;

static ls_status ends(search *s, const ls_state *state, bool *end) {
  ls_outcome outcome;
  const ls_run run = {.state = state, .uses = LS_USES_X87, .fuel = FUEL, .limit_ms = LIMIT_MS};
  ls_status status = ls_executor_reset(s->reference, s->contents.window, &s->report->error);
  if (status == LS_OK)
    status = ls_executor_run(s->reference, &run, &outcome, &s->report->error);
  if (status != LS_OK)
    return status;
  s->report->runs++;
  *end = outcome.stop.kind == LS_STOP_EXIT;
  s->slow |= outcome.stop.kind == LS_STOP_TIMEOUT;
  if (*end)
    s->report->stop = outcome.stop;
  return LS_OK;
}

/* Register `reg` becomes each of a few values, counted from `base`; the first that ends stays in `state`. */
static ls_status try_register(search *s, ls_state *state, unsigned reg, uint64_t base, bool *end) {
  static const int64_t distances[] = {4, 1, 64, -4, -64};
  uint64_t old = state->gpr[reg];
  ls_status status = LS_OK;
  for (unsigned i = 0; i < sizeof distances / sizeof distances[0]; i++) {
    state->gpr[reg] = base + (uint64_t)distances[i];
    status = ends(s, state, end);
    if (status != LS_OK || *end || s->slow)
      break;
  }
  if (!*end)
    state->gpr[reg] = old;
  return status;
}

static ls_status try_all(search *s, ls_state *state, bool *end) {
  ls_status status = LS_OK;
  for (unsigned from = 0; from <= REGISTERS; from++)
    for (unsigned reg = 0; reg < REGISTERS; reg++) {
      if (reg == LS_RSP || (from > 0 && from - 1 == reg))
        continue;
      status = try_register(s, state, reg, from == 0 ? 0 : state->gpr[from - 1], end);
      if (status != LS_OK || *end || s->slow)
        return status;
    }
  return status;
}

ls_status counters_shorten(testcase *test, ls_executor *reference, import_report *report) {
  static search s;
  ls_state state = test->state;
  ls_program program = testcase_program(test);
  ls_image *image = ls_image_create();
  bool end = false;
  s = (search){.reference = reference, .report = report};
  ls_status status = image == NULL ? no_memory(&report->error, "a code image")
                                   : ls_image_build(image, &program, testcase_layout(), &report->error);
  if (status == LS_OK)
    status = ls_executor_load(reference, image, &report->error);
  testcase_contents_make(test, &s.contents);
  if (status == LS_OK)
    status = try_all(&s, &state, &end);
  if (end)
    test->state = state;
  ls_image_destroy(image);
  return status;
}

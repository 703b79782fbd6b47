/* Which forms this CPU runs: an example of each is run in the reference executor. CPUID would have to be
 * translated form by form, and says nothing of what a hypervisor or the kernel's XCR0 takes away. */
#include "forms/probe.h"

#include <signal.h>
#include <string.h>

#include "forms/policy.h"
#include "no_memory.h"
#include "testcase/testcase.h"

enum {
  PROBE_LIMIT_MS = 100, /* a form that waits that long does run */
  PROBE_ATTEMPTS = 3,   /* a child can be lost for reasons outside */
  PROBE_CONFIRMED = 2   /* so often must an answer come: hypervisors report #UD now and then for what they
                           emulate for once, and a run can be disturbed from outside */
};

typedef struct prober {
  ls_executor *reference;
  const ls_layout *layout;
  ls_image *image;
  ls_state state; /* the same start for all */
} prober;

static uint64_t middle_of(const ls_layout *layout, unsigned window) {
  return layout->windows[window].address + layout->windows[window].size / 2;
}

/* Addresses everywhere, so that most examples reach mapped memory: not that it matters, a page fault is as
 * good a sign of life as any. The examples use RBX as base and no displacement. */
static void prepare_state(prober *p) {
  ls_state_init(&p->state);
  for (unsigned i = 0; i < 16; i++)
    p->state.gpr[i] = middle_of(p->layout, TESTCASE_DATA);
  p->state.gpr[LS_RSP] = middle_of(p->layout, TESTCASE_STACK);
}

/* The example as a program of one instruction; a branch leaves it over its jump link. */
static ls_instruction probe_instruction(form_id form, const form_example *example) {
  ls_instruction instruction = {.id = form, .next = LS_NONE, .jump = LS_NONE};
  const uint8_t *bytes = form_bytes(form, &instruction.length);
  memcpy(instruction.bytes, bytes, instruction.length);
  if (example->instruction.raw.imm[0].is_relative) {
    instruction.field = LS_FIELD_BRANCH;
    instruction.field_offset = example->instruction.raw.imm[0].offset;
    instruction.field_size = example->instruction.raw.imm[0].size / 8;
  }
  return instruction;
}

static ls_status run_patiently(const prober *p, const ls_run *run, ls_outcome *outcome, ls_error *error) {
  ls_status status = LS_ERR_CHILD;
  for (unsigned i = 0; i < PROBE_ATTEMPTS && status == LS_ERR_CHILD; i++)
    status = ls_executor_run(p->reference, run, outcome, error);
  return status;
}

static bool is_illegal(const prober *p, const ls_outcome *outcome) {
  return outcome->stop.kind == LS_STOP_FAULT && outcome->stop.signal == SIGILL &&
         outcome->state.rip == ls_image_address(p->image, 0);
}

/* The answer that comes twice first. */
static ls_status ask(const prober *p, const ls_run *run, uint8_t *support, ls_error *error) {
  unsigned seen[FORM_NOT_PROBED] = {0};
  ls_outcome outcome;
  do {
    ls_status status = run_patiently(p, run, &outcome, error);
    if (status != LS_OK)
      return status;
    *support = is_illegal(p, &outcome) ? FORM_ILLEGAL : FORM_RUNS;
  } while (++seen[*support] < PROBE_CONFIRMED);
  return LS_OK;
}

static ls_status probe_form(const prober *p, form_id form, uint8_t *support, ls_error *error) {
  form_example example;
  uint8_t length;
  const uint8_t *bytes = form_bytes(form, &length);
  harness_decode(bytes, length, &example.instruction, example.operands);
  const ls_instruction instruction = probe_instruction(form, &example);
  const ls_program program = {&instruction, 1, 0};
  ls_run run = {.state = &p->state, .limit_ms = PROBE_LIMIT_MS};
  if (policy_uses_x87(&example.instruction, example.operands))
    run.uses = LS_USES_X87;
  ls_status status = ls_image_build(p->image, &program, p->layout, error);
  if (status == LS_OK)
    status = ls_executor_load(p->reference, p->image, error);
  return status == LS_OK ? ask(p, &run, support, error) : status;
}

ls_status probe_forms(ls_executor *reference, uint8_t *support, ls_error *error) {
  return probe_forms_while(reference, support, NULL, error);
}

void support_without(uint8_t *support, feature_set lacking) {
  for (form_id form = 0; form < forms_count(); form++) {
    form_example example;
    if (support[form] != FORM_RUNS)
      continue;
    form_decode(form, &example);
    if (features_needed(&example.instruction) & lacking)
      support[form] = FORM_OTHER;
  }
}

ls_status probe_forms_while(ls_executor *reference, uint8_t *support, probe_go_on go_on, ls_error *error) {
  prober p = {.reference = reference, .layout = ls_executor_layout(reference), .image = ls_image_create()};
  if (p.image == NULL)
    return no_memory(error, "a code image");
  prepare_state(&p);
  memset(support, FORM_UNPROBED, forms_count());
  ls_status status = LS_OK;
  for (form_id form = 0; form < forms_count() && status == LS_OK; form++) {
    if (policy_of_form(form)->action == POLICY_EXCLUDE)
      support[form] = FORM_NOT_PROBED;
    else if (go_on == NULL || go_on(form))
      status = probe_form(&p, form, &support[form], error);
  }
  ls_image_destroy(p.image);
  feature_set have;
  if (!status)
    status = features_probe(reference, &have, error);
  if (!status)
    support_without(support, ~have);
  return status;
}

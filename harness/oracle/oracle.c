/* One test case, two executors, one verdict. The reference runs first: by what it shows, the program is
 * admitted to the thread or not (admission.h). */
#include "oracle/oracle.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "no_memory.h"
#include "oracle/admission.h"
#include "oracle/affinity.h"

enum {
  DEFAULT_LIMIT_MS = 200,
  PATIENCE = 10, /* a time-out is believed when it comes again at so many times the limit */
  ATTEMPTS = 4,  /* to see a verdict other than `same` twice */
  STEPS_MAX = 1 << 16
};

struct oracle {
  oracle_options options;
  ls_executor *reference, *thread;
  ls_image *image;
  affinity affinity;
  oracle_counts counts;
  testcase_contents contents;
  scan_info infos[TESTCASE_INSTRUCTIONS_MAX];
  feature_set lacking;
  host_watch host, harm; /* of the last run in the thread; of the first one of a test that did any */
  ls_error why;          /* a program was refused or skipped */
};

/* ---- Names ---- */

const char *verdict_name(verdict v) {
  static const char *const names[VERDICTS] = {"same", "different", "inconclusive", "refused", "skipped"};
  return (unsigned)v < VERDICTS ? names[v] : "unknown";
}

static const struct {
  const char *name;
  verdict verdict;
  const char *sentence;
} reasons[ORACLE_REASONS] = {
    [REASON_NONE] = {"none", VERDICTS, "both executors agree or disagree"},
    [REASON_TIMEOUT] = {"timeout", VERDICT_INCONCLUSIVE, "it did not end within ten times the time limit"},
    [REASON_STACK_POINTER] = {"stack-pointer", VERDICT_INCONCLUSIVE,
                              "its stack pointer is not canonical, which makes interruptions slow"},
    [REASON_REFERENCE_UNSTABLE] = {"reference-unstable", VERDICT_INCONCLUSIVE,
                                   "two runs of the reference ended differently"},
    [REASON_THREAD_UNSTABLE] = {"thread-unstable", VERDICT_INCONCLUSIVE,
                                "two runs in the thread ended differently"},
    [REASON_REFERENCE_LOST] = {"reference-lost", VERDICT_INCONCLUSIVE,
                               "the reference child was killed from outside"},
    [REASON_POLICY] = {"policy", VERDICT_REFUSED, "it contains an instruction that is not run in the thread"},
    [REASON_FS_GS] = {"fs-gs", VERDICT_REFUSED,
                      "it uses or changes the base of FS or GS, which are the host's"},
    [REASON_FOREIGN] = {"foreign", VERDICT_REFUSED,
                        "it reached the vsyscall page or the inside of the gate, which are not the guest's"},
    [REASON_ADDRESS] = {"address", VERDICT_REFUSED,
                        "it faults in the reference where this process has memory"},
    [REASON_SYSCALL] = {"syscall", VERDICT_REFUSED,
                        "it makes a system call, which this kernel cannot stop in the thread"},
    [REASON_PROGRAM] = {"program", VERDICT_REFUSED, "it cannot be laid out"},
    [REASON_STATE] = {"state", VERDICT_REFUSED, "the processor does not load its initial state"},
    [REASON_FEATURE] = {"feature", VERDICT_SKIPPED, "it needs what this CPU lacks"},
    [REASON_HOST] = {"host", VERDICT_DIFFERENT, "the host was harmed by its run in the thread"},
};

const char *oracle_reason_name(oracle_reason reason) {
  return (unsigned)reason < ORACLE_REASONS ? reasons[reason].name : "unknown";
}

const char *oracle_reason_sentence(oracle_reason reason) {
  return (unsigned)reason < ORACLE_REASONS ? reasons[reason].sentence : "unknown";
}

/* ---- Making and ending ---- */

/* The first run in a thread gives it an alternate stack and more, for as long as the executor lives: that is
 * no harm, and over before anybody looks. */
static ls_status run_once(oracle *o, ls_error *error) {
  ls_state state;
  ls_outcome outcome;
  const ls_instruction nop = {.next = LS_NONE, .jump = LS_NONE, .length = 1, .bytes = {0x90}};
  const ls_program program = {.instructions = &nop, .count = 1};
  ls_state_init(&state);
  ls_status status = ls_image_build(o->image, &program, testcase_layout(), error);
  if (!status)
    status = ls_executor_load(o->thread, o->image, error);
  if (!status)
    status = ls_executor_run(o->thread, &(ls_run){.state = &state}, &outcome, error);
  return status;
}

ls_status oracle_create(const oracle_options *options, oracle **out, ls_error *error) {
  oracle *o = aligned_alloc(64, (sizeof *o + 63) / 64 * 64);
  if (!o)
    return no_memory(error, "an oracle");
  memset(o, 0, sizeof *o);
  o->affinity.cpu = -1;
  if (options)
    o->options = *options;
  if (!o->options.limit_ms)
    o->options.limit_ms = DEFAULT_LIMIT_MS;
  if (o->options.pin)
    affinity_pin(&o->affinity); /* before the child is made, which inherits the mask */
  ls_options how = {.vectors = o->options.vectors};
  o->image = ls_image_create();
  ls_status status = o->image ? LS_OK : no_memory(error, "a code image");
  if (!status)
    status = ls_executor_create(LS_PTRACE, testcase_layout(), &how, &o->reference, error);
  if (!status)
    status = ls_executor_create(LS_SIGNAL, testcase_layout(), &how, &o->thread, error);
  if (!status)
    status = run_once(o, error);
  if (!status)
    status = features_probe(o->reference, &o->lacking, error);
  if (status) {
    oracle_destroy(o);
    return status;
  }
  o->lacking = features_without(~o->lacking | o->options.without);
  *out = o;
  return LS_OK;
}

void oracle_destroy(oracle *o) {
  if (!o)
    return;
  ls_executor_destroy(o->thread);
  ls_executor_destroy(o->reference);
  ls_image_destroy(o->image);
  affinity_release(&o->affinity);
  free(o);
}

const oracle_counts *oracle_counts_of(const oracle *o) {
  return &o->counts;
}

ls_executor *oracle_executor(oracle *o, ls_kind kind) {
  return kind == LS_SIGNAL ? o->thread : o->reference;
}

/* ---- Running in one executor ---- */

typedef struct thread_run {
  const oracle *o;
  const ls_run *run;
  ls_outcome *outcome;
  ls_error *error;
  ls_status status;
} thread_run;

static void run_watched(void *context) {
  thread_run *r = context;
  const oracle_options *options = &r->o->options;
  r->status = ls_executor_run(r->o->thread, r->run, r->outcome, r->error);
  if (!r->status && options->tamper)
    options->tamper(r->outcome, r->o->thread, options->tamper_context);
}

static ls_status run_in_thread(oracle *o, const ls_run *run, ls_outcome *outcome, ls_error *error) {
  thread_run r = {o, run, outcome, error, LS_OK};
  if (host_call(&o->host, run_watched, &r) && !o->harm.count)
    o->harm = o->host;
  return r.status;
}

static ls_status run_in(oracle *o, ls_executor *executor, const ls_run *run, ls_outcome *outcome,
                        ls_error *error) {
  ls_status status = ls_executor_reset(executor, o->contents.window, error);
  if (!status)
    status = executor == o->thread ? run_in_thread(o, run, outcome, error)
                                   : ls_executor_run(executor, run, outcome, error);
  if (!status)
    outcome_canonicalise(outcome);
  return status;
}

/* The reference with one more try when its child was killed from outside, and again with x87 state loaded if
 * it turns out that the program uses that although no instruction of it shows it (a jump into the middle of
 * one). */
static ls_status run_reference(oracle *o, ls_run *run, ls_outcome *outcome, ls_error *error) {
  ls_status status = run_in(o, o->reference, run, outcome, error);
  if (status == LS_ERR_CHILD)
    status = run_in(o, o->reference, run, outcome, error);
  if (!status && (outcome->touched & LS_USES_X87) && !(run->uses & LS_USES_X87)) {
    run->uses |= LS_USES_X87;
    status = run_in(o, o->reference, run, outcome, error);
  }
  return status;
}

/* ---- Verdicts ---- */

/* Both ran. */
static void conclude(oracle_result *result, verdict v) {
  result->verdict = v;
  result->reason = REASON_NONE;
}

/* For a reason that is not REASON_NONE, with its verdict. */
static void turn_down(oracle_result *result, oracle_reason reason) {
  result->verdict = reasons[reason].verdict;
  result->reason = reason;
}

/* An executor's refusal that is the test's own doing, or LS_OK turned into a verdict; others are errors. */
static ls_status conclude_error(oracle_result *result, ls_status status) {
  oracle_reason reason = admission_of_error(status);
  if (reason == REASON_NONE)
    return status;
  turn_down(result, reason);
  return LS_OK;
}

/* Decides by the reference's outcome whether the thread may run it. True: it may. */
static bool admit(oracle *o, oracle_result *result) {
  oracle_reason reason = admission_of_outcome(&result->reference, o->image, o->thread);
  if (reason != REASON_NONE)
    turn_down(result, reason);
  return reason == REASON_NONE;
}

/* ---- What a program does that its instructions do not show ---- */

/* Every instruction that the reference executes, in the order in which it does. */
typedef struct step_scan {
  uint64_t base;
  const uint8_t *bytes;
  size_t size;
  const policy_row *excluded;
  bool uses_x87;
} step_scan;

static int scan_step(const ls_state *state, void *context) {
  step_scan *s = context;
  uint64_t offset = state->rip - s->base;
  if (offset >= s->size)
    return 0;
  scan_info info = scan(s->bytes + offset, s->size - offset);
  s->uses_x87 |= info.uses_x87;
  if (info.row->action != POLICY_EXCLUDE)
    return 0;
  s->excluded = info.row;
  return 1;
}

/* Steps the program in the reference: an indirect branch or a return may have led into the middle of an
 * instruction. */
static ls_status scan_steps(oracle *o, const ls_run *run, step_scan *s, ls_error *error) {
  static ls_outcome unused;
  ls_run stepped = *run;
  stepped.steps = STEPS_MAX;
  stepped.visitor = scan_step;
  stepped.context = s;
  *s = (step_scan){.base = testcase_layout()->windows[TESTCASE_CODE].address};
  s->bytes = ls_image_bytes(o->image, &s->size);
  return run_in(o, o->reference, &stepped, &unused, error);
}

static bool digest_equal(outcome_digest a, outcome_digest b) {
  return a.state == b.state && a.memory == b.memory && a.stop == b.stop;
}

static ls_status judge(oracle *o, ls_run *run, oracle_result *result, ls_error *error);
static ls_status explain(oracle *o, ls_run *run, oracle_result *result, ls_error *error);

/* A difference counts only if it repeats: both run again and must agree with themselves. */
static ls_status confirm(oracle *o, ls_run *run, oracle_result *result, ls_error *error) {
  outcome_digest reference = outcome_digest_of(&result->reference, o->reference);
  outcome_digest thread = outcome_digest_of(&result->thread, o->thread);
  ls_status status = run_reference(o, run, &result->reference, error);
  if (!status && !digest_equal(reference, outcome_digest_of(&result->reference, o->reference))) {
    turn_down(result, REASON_REFERENCE_UNSTABLE);
    return LS_OK;
  }
  if (status)
    return conclude_error(result, status);
  status = run_in(o, o->thread, run, &result->thread, error);
  if (status)
    return status;
  if (!digest_equal(thread, outcome_digest_of(&result->thread, o->thread))) {
    turn_down(result, REASON_THREAD_UNSTABLE);
    return LS_OK;
  }
  return explain(o, run, result, error);
}

/* Both repeat: a difference, unless the program is none that may be compared. */
static ls_status explain(oracle *o, ls_run *run, oracle_result *result, ls_error *error) {
  step_scan hidden;
  ls_status status = scan_steps(o, run, &hidden, error);
  if (status)
    return conclude_error(result, status);
  if (hidden.excluded) {
    turn_down(result, REASON_POLICY);
    result->detail = hidden.excluded->name;
    return LS_OK;
  }
  if (hidden.uses_x87 && !(run->uses & LS_USES_X87)) {
    run->uses |= LS_USES_X87;
    return judge(o, run, result, error);
  }
  status = run_reference(o, run, &result->reference, error); /* its memory is that of the stepped run now */
  if (status)
    return conclude_error(result, status);
  conclude(result, VERDICT_DIFFERENT);
  outcome_compare(&result->reference, &result->thread, o->reference, o->thread, &result->differences);
  return LS_OK;
}

/* ---- What this processor lacks ---- */

static void skip(oracle *o, oracle_result *result, feature_set lacking) {
  char names[200];
  features_print(lacking, names, sizeof names);
  snprintf(o->why.text, sizeof o->why.text, "needs %s, which this CPU lacks", names);
  turn_down(result, REASON_FEATURE);
  result->detail = o->why.text;
}

/* True: an instruction in the test's list cannot run here. */
static bool skip_lacking(oracle *o, const testcase *test, oracle_result *result) {
  feature_set needs = 0;
  for (uint32_t i = 0; i < test->count; i++)
    needs |= o->infos[i].needs;
  if (!(needs & o->lacking) || test->cpu & TESTCASE_ANYWHERE)
    return false;
  skip(o, result, needs & o->lacking);
  return true;
}

/* The same for what the list does not show (bytes that are several instructions, a jump into the middle of
 * one), once it has run into SIGILL. */
static void skip_hidden(oracle *o, const testcase *test, oracle_result *result) {
  const ls_stop *stop = &result->reference.stop;
  size_t size;
  const uint8_t *bytes = ls_image_bytes(o->image, &size);
  uint64_t at = result->reference.state.rip - testcase_layout()->windows[TESTCASE_CODE].address;
  if (result->verdict != VERDICT_SAME || stop->kind != LS_STOP_FAULT || stop->signal != SIGILL ||
      at >= size || test->cpu & TESTCASE_ANYWHERE)
    return;
  feature_set lacking = scan(bytes + at, size - at).needs & o->lacking;
  if (lacking)
    skip(o, result, lacking);
}

/* ---- One test ---- */

/* Lays the program out and looks through it. *may_run: it may be tried; else the result says why not. */
static ls_status prepare(oracle *o, const ls_program *program, ls_run *run, oracle_result *result,
                         bool *may_run, ls_error *error) {
  bool uses_x87;
  oracle_reason reason;
  ls_status status = admission_of_program(program, o->image, o->infos, &uses_x87, &reason, &o->why);
  *may_run = !status && reason == REASON_NONE;
  if (status && error)
    *error = o->why;
  if (*may_run)
    run->uses = uses_x87 ? LS_USES_X87 : 0;
  else if (!status)
    turn_down(result, reason);
  result->detail = *may_run ? NULL : o->why.text;
  return status;
}

/* A program that ends in the reference and not in the thread differs, if it had time enough. */
static bool lacked_time(const oracle *o, const ls_run *run, const oracle_result *result) {
  return result->thread.stop.kind == LS_STOP_TIMEOUT && run->limit_ms == o->options.limit_ms;
}

static ls_status judge(oracle *o, ls_run *run, oracle_result *result, ls_error *error) {
  ls_status status = ls_executor_load(o->reference, o->image, error);
  if (!status)
    status = run_reference(o, run, &result->reference, error);
  if (status)
    return conclude_error(result, status);
  if (!admit(o, result))
    return LS_OK;
  status = ls_executor_load(o->thread, o->image, error);
  if (!status)
    status = run_in(o, o->thread, run, &result->thread, error);
  if (status) /* the reference could run it: not the test's doing */
    return status;
  if (outcome_equal(&result->reference, &result->thread, o->reference, o->thread)) {
    conclude(result, VERDICT_SAME);
    return LS_OK;
  }
  if (lacked_time(o, run, result)) {
    turn_down(result, REASON_TIMEOUT);
    return LS_OK;
  }
  return confirm(o, run, result, error);
}

/* What is not a comparison counts only if it comes twice: the first time may have been something from
 * outside, such as a signal or time that a hypervisor took. What does not come again is counted as such. */
static ls_status judge_surely(oracle *o, ls_run *run, oracle_result *result, ls_error *error) {
  ls_status status = judge(o, run, result, error);
  for (int i = 1; i < ATTEMPTS && !status && result->reason != REASON_NONE; i++) {
    oracle_reason before = result->reason;
    if (before == REASON_TIMEOUT)
      run->limit_ms = PATIENCE * o->options.limit_ms;
    result->detail = NULL;
    status = judge(o, run, result, error);
    if (!status && result->reason == before)
      break;
    o->counts.once[before]++;
    result->once |= 1u << before;
  }
  return status;
}

/* Whatever else there is to say of it. */
static void conclude_harm(oracle *o, oracle_result *result) {
  turn_down(result, REASON_HOST);
  comparison_add_host(&result->differences, &o->harm);
}

ls_status oracle_run(oracle *o, const testcase *test, oracle_result *result, ls_error *error) {
  ls_program program = testcase_program(test);
  ls_run run = {.state = &test->state, .fuel = test->fuel, .limit_ms = o->options.limit_ms};
  bool may_run;
  result->once = 0;
  result->image = o->image;
  result->infos = o->infos;
  result->differences.count = 0;
  result->differences.kept = 0;
  ls_status status = prepare(o, &program, &run, result, &may_run, error);
  if (may_run && !skip_lacking(o, test, result)) {
    testcase_contents_make(test, &o->contents);
    o->harm.count = 0;
    status = judge_surely(o, &run, result, error);
    if (!status)
      skip_hidden(o, test, result);
    if (!status && o->harm.count)
      conclude_harm(o, result);
  }
  if (status)
    return status;
  o->counts.verdicts[result->verdict]++;
  o->counts.reasons[result->reason]++;
  if (result->verdict == VERDICT_SAME || result->verdict == VERDICT_DIFFERENT)
    o->counts.stops[result->reference.stop.kind]++;
  return LS_OK;
}

/* A test that oracle_run would not let into the thread. */
static ls_status error_of_refusal(const oracle_result *result, ls_error *error) {
  if (error) {
    *error = (ls_error){.status = LS_ERR_ARGUMENT, .index = LS_NONE};
    snprintf(error->text, sizeof error->text, "it may not run in the thread: %s",
             oracle_reason_sentence(result->reason));
  }
  return LS_ERR_ARGUMENT;
}

ls_status oracle_step(oracle *o, const testcase *test, uint64_t steps, ls_outcome *reference,
                      ls_outcome *thread, bool *equal, ls_error *error) {
  ls_program program = testcase_program(test);
  ls_run run = {.state = &test->state, .fuel = test->fuel, .limit_ms = o->options.limit_ms, .steps = steps};
  static oracle_result unused;
  bool may_run;
  *equal = false;
  ls_status status = prepare(o, &program, &run, &unused, &may_run, error);
  if (!may_run)
    return status ? status : error_of_refusal(&unused, error);
  testcase_contents_make(test, &o->contents);
  status = ls_executor_load(o->reference, o->image, error);
  if (!status)
    status = ls_executor_load(o->thread, o->image, error);
  run.steps = 0;
  if (!status) /* is it still one that may run in the thread? */
    status = run_reference(o, &run, &unused.reference, error);
  if (!status && !admit(o, &unused))
    return error_of_refusal(&unused, error);
  run.steps = steps;
  if (!status)
    status = run_reference(o, &run, reference, error);
  if (!status)
    status = run_in(o, o->thread, &run, thread, error);
  *equal = !status && !o->host.count && outcome_equal(reference, thread, o->reference, o->thread);
  return status;
}

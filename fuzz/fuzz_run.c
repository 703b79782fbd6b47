/* The main fuzz target: a test case runs in both executors, which must agree. Engine-neutral: libFuzzer,
 * AFL++ and standalone.c call the same LLVMFuzzer functions. A difference is printed and aborts, so that the
 * engine keeps the input. LOCKSTEP_STATS=FILE keeps a running account (harness/stats.h). */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "engine.h"
#include "feedback/behaviour.h"
#include "feedback/stats.h"
#include "forms/probe.h"
#include "generate/generate.h"
#include "oracle/oracle.h"
#include "oracle/report.h"

/* libFuzzer calls the mutator and the crossover equally often. Mutated programs fault about every other time,
 * since an operand that pointed somewhere meets a register that no longer does, and a fault costs as much as
 * two clean runs: most inputs are made fresh. */
enum { FRESH_PERCENT = 60, SPLICE_PERCENT = 20, STATS_EVERY = 16384 };

__attribute__((section("__libfuzzer_extra_counters"))) static uint8_t counters[BEHAVIOUR_SIZE];

static oracle *the_oracle;
static generator *the_generator;
static stats account;
static const char *account_path;

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* ---- The account ---- */

static void write_account(void) {
  if (!account_path)
    return;
  account.ended = now();
  account.counts = *oracle_counts_of(the_oracle);
  int trouble = stats_write(&account, account_path);
  if (trouble)
    fprintf(stderr, "lockstep: cannot write %s: %s\n", account_path, strerror(trouble));
}

static void see_form(form_id form, void *context) {
  (void)context;
  stats_see(&account, form);
}

/* ---- Start ---- */

/* An engine's own handlers (libFuzzer's SIGALRM among them) run on the stack that is current, which may be
 * the guest's, with any RSP at all. */
static void move_handlers_to_alternate_stack(void) {
  for (int signal_number = 1; signal_number < SIGRTMIN; signal_number++) {
    struct sigaction action;
    if (sigaction(signal_number, NULL, &action) != 0 || action.sa_handler == SIG_DFL ||
        action.sa_handler == SIG_IGN || (action.sa_flags & SA_ONSTACK))
      continue;
    action.sa_flags |= SA_ONSTACK;
    sigaction(signal_number, &action, NULL);
  }
}

/* Handlers are put in place with the first input, not in LLVMFuzzerInitialize: libFuzzer wraps those that
 * stood before its own. */
static void start(void) {
  ls_error error;
  oracle_options options = {.pin = true};
  move_handlers_to_alternate_stack();
  ls_status status = oracle_create(&options, &the_oracle, &error);
  if (status == LS_ERR_NO_REFERENCE) {
    fprintf(stderr, "lockstep: NO REFERENCE HERE, NOTHING IS COMPARED: %s\n", error.text);
    return;
  }
  if (status) {
    fprintf(stderr, "lockstep: %s: %s\n", ls_status_name(status), error.text);
    exit(3);
  }
  account_path = getenv("LOCKSTEP_STATS");
  stats_init(&account);
  account.begun = now();
  atexit(write_account);
}

static bool started_up(void) {
  static bool tried;
  if (!tried) {
    tried = true;
    start();
  }
  return the_oracle != NULL;
}

static generator *get_generator(void) {
  if (the_generator || !started_up())
    return the_generator;
  uint8_t *support = calloc(forms_count(), 1);
  ls_error error;
  ls_status status =
      support ? probe_forms(oracle_executor(the_oracle, LS_PTRACE), support, &error) : LS_ERR_MEMORY;
  generator_options options = {.fault_percent = UINT32_MAX,
                               .syscalls =
                                   ls_executor_stops_syscalls(oracle_executor(the_oracle, LS_SIGNAL))};
  the_generator = status ? NULL : generator_create(support, &options);
  free(support);
  if (!the_generator) {
    fprintf(stderr, "lockstep: cannot find out which instructions run here: %s\n", ls_status_name(status));
    exit(3);
  }
  for (form_id form = 0; form < forms_count(); form++)
    if (generator_allows(the_generator, form))
      stats_allow(&account, form);
  return the_generator;
}

/* ---- One input ---- */

static testcase *decode(testcase *test, const uint8_t *data, size_t size) {
  testcase_decode(test, data, size);
  return test;
}

static void report_and_abort(const testcase *test, oracle_result *result) {
  report_difference(stderr, test, result, the_oracle);
  write_account();
  abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  static testcase test;
  static oracle_result result;
  ls_error error;
  if (!started_up())
    return 0;
  ls_status status = oracle_run(the_oracle, decode(&test, data, size), &result, &error);
  if (status) {
    fprintf(stderr, "lockstep: %s: %s\n", ls_status_name(status), error.text);
    exit(3);
  }
  account.programs++;
  if (result.verdict == VERDICT_DIFFERENT)
    report_and_abort(&test, &result);
  if (result.verdict == VERDICT_SAME) {
    behaviour_note(&test, &result, counters);
    behaviour_forms(&test, &result, see_form, NULL);
  }
  if (account.programs % STATS_EVERY == 0)
    write_account();
  return 0;
}

/* ---- Making inputs ---- */

static size_t encode_within(testcase *test, uint8_t *data, size_t max_size) {
  return shrink_program(test, max_size) ? testcase_encode(test, data, max_size) : 0;
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned int seed) {
  static testcase test;
  rng r = {seed};
  generator *gen = get_generator();
  if (!gen)
    return LLVMFuzzerMutate(data, size, max_size);
  if (size == 0 || rng_percent(&r, FRESH_PERCENT))
    generate_program(gen, &r, &test);
  else
    mutate_program(gen, &r, decode(&test, data, size));
  return encode_within(&test, data, max_size);
}

size_t LLVMFuzzerCustomCrossOver(const uint8_t *data1, size_t size1, const uint8_t *data2, size_t size2,
                                 uint8_t *out, size_t max_out_size, unsigned int seed) {
  static testcase a, b, both;
  rng r = {seed};
  generator *gen = get_generator();
  if (gen && !rng_percent(&r, SPLICE_PERCENT))
    generate_program(gen, &r, &both);
  else
    splice_programs(&r, decode(&a, data1, size1), decode(&b, data2, size2), &both);
  return encode_within(&both, out, max_out_size);
}

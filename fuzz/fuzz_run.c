/* The main fuzz target: a test case runs in both executors, which must agree. Engine-neutral: libFuzzer,
 * AFL++ and standalone.c call the same LLVMFuzzer functions. A difference is printed and aborts, so that the
 * engine keeps the input. LOCKSTEP_STATS=FILE keeps a running account (harness/stats.h). */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <xxhash.h>

#include "engine.h"
#include "feedback/behaviour.h"
#include "feedback/stats.h"
#include "forms/probe.h"
#include "generate/generate.h"
#include "oracle/oracle.h"
#include "oracle/report.h"

/* Making a program takes half as long as running it; running the same one on other values costs next to
 * nothing and finds bugs that depend on values. The rest are structural mutations. */
enum {
  FRESH_PERCENT = 15,
  VALUE_PERCENT = 65,
  SPLICE_PERCENT = 4,
  FAULT_KEPT_PERCENT = 10,
  GOOD_EVERY = 8,
  CLOCK_EVERY = 64
};

__attribute__((section("__libfuzzer_extra_counters"))) static uint8_t counters[BEHAVIOUR_SIZE];

static oracle *the_oracle;
static generator *the_generator;
static stats *account;

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* ---- The account ---- */

static void open_account(void) {
  const char *path = getenv("LOCKSTEP_STATS");
  account = stats_open(path);
  if (!account) {
    fprintf(stderr, "lockstep: cannot keep the account in %s: %s\n", path, strerror(errno));
    exit(4);
  }
  account->begun = now();
}

static void count(void) {
  account->programs++;
  account->counts = *oracle_counts_of(the_oracle);
  if (account->programs % CLOCK_EVERY == 1)
    account->ended = now();
}

static void see_form(form_id form, void *context) {
  (void)context;
  stats_see(account, form);
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
  open_account();
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
      stats_allow(account, form);
  return the_generator;
}

/* ---- One input ---- */

/* Hashes of inputs that ended in a fault. Half of what an engine keeps does, since faults are of many kinds;
 * what is made from them faults again, at the cost of two clean runs, before it gets anywhere. So most of the
 * time the last program that ran to its end takes their place. */
static uint32_t faulted[1 << 20];
static testcase good;

static bool has_faulted(uint64_t hash) {
  return faulted[hash % (sizeof faulted / sizeof *faulted)] == (uint32_t)(hash >> 32);
}

static void remember(const uint8_t *data, size_t size, const testcase *test, const oracle_result *result) {
  ls_stop_kind kind = result->reference.stop.kind;
  uint64_t hash = XXH3_64bits(data, size);
  if (kind == LS_STOP_FAULT)
    faulted[hash % (sizeof faulted / sizeof *faulted)] = (uint32_t)(hash >> 32);
  if (result->verdict == VERDICT_SAME && kind == LS_STOP_EXIT && account->programs % GOOD_EVERY == 0)
    testcase_copy(&good, test);
}

static void report_and_abort(const testcase *test, oracle_result *result) {
  report_difference(stderr, test, result, the_oracle);
  abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  static testcase test;
  static oracle_result result;
  ls_error error;
  if (!started_up())
    return 0;
  testcase_decode(&test, data, size);
  ls_status status = oracle_run(the_oracle, &test, &result, &error);
  if (status) {
    fprintf(stderr, "lockstep: %s: %s\n", ls_status_name(status), error.text);
    exit(3);
  }
  count();
  remember(data, size, &test, &result);
  if (result.verdict == VERDICT_DIFFERENT)
    report_and_abort(&test, &result);
  if (result.verdict == VERDICT_SAME) {
    behaviour_note(&test, &result, counters);
    behaviour_forms(&test, &result, see_form, NULL);
  }
  return 0;
}

/* ---- Making inputs ---- */

static size_t encode_within(testcase *test, uint8_t *data, size_t max_size) {
  size_t size = testcase_encode(test, data, max_size);
  if (size == 0 && shrink_program(test, max_size))
    size = testcase_encode(test, data, max_size);
  return size;
}

/* A fresh program, or the one in `data` changed. */
static void make_input(generator *gen, rng *r, testcase *test, const uint8_t *data, size_t size) {
  uint32_t draw = rng_below(r, 100);
  if (size == 0 || good.count == 0 || draw < FRESH_PERCENT) {
    generate_program(gen, r, test);
    return;
  }
  if (has_faulted(XXH3_64bits(data, size)) && !rng_percent(r, FAULT_KEPT_PERCENT))
    testcase_copy(test, &good);
  else
    testcase_decode(test, data, size);
  if (draw >= FRESH_PERCENT + VALUE_PERCENT || !mutate_once(gen, r, test, MUTATE_VALUE))
    mutate_program(gen, r, test);
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned int seed) {
  static testcase test;
  rng r = {seed};
  generator *gen = get_generator();
  if (!gen)
    return LLVMFuzzerMutate(data, size, max_size);
  make_input(gen, &r, &test, data, size);
  return encode_within(&test, data, max_size);
}

/* libFuzzer asks for a crossover as often as for a mutation. Most programs that are spliced fault, since
 * addresses of one meet registers of the other. */
size_t LLVMFuzzerCustomCrossOver(const uint8_t *data1, size_t size1, const uint8_t *data2, size_t size2,
                                 uint8_t *out, size_t max_out_size, unsigned int seed) {
  static testcase first, second, made;
  rng r = {seed};
  generator *gen = get_generator();
  if (gen && !rng_percent(&r, SPLICE_PERCENT)) {
    make_input(gen, &r, &made, data1, size1);
  } else {
    testcase_decode(&first, data1, size1);
    testcase_decode(&second, data2, size2);
    splice_programs(&r, &first, &second, &made);
  }
  return encode_within(&made, out, max_out_size);
}

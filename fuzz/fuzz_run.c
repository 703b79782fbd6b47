/* The main fuzz target: a test case runs in both executors, which must agree. Engine-neutral: libFuzzer,
 * AFL++ and standalone.c call the same LLVMFuzzer functions. A difference is printed and aborts, so that the
 * engine keeps the input; with LOCKSTEP_FINDINGS=DIR it is kept as DIR/NAME and fuzzing goes on.
 * LOCKSTEP_STATS=FILE keeps a running account (harness/feedback/stats.h),
 * LOCKSTEP_KEEP=DIR each test case that is inconclusive or refused as DIR/REASON/NAME
 * (harness/feedback/keep.h). */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <xxhash.h>

#include "alive.h"
#include "engine.h"
#include "environment.h"
#include "feedback/behaviour.h"
#include "feedback/drill.h"
#include "feedback/keep.h"
#include "feedback/stats.h"
#include "forms/probe.h"
#include "generate/generate.h"
#include "handlers.h"
#include "no_memory.h"
#include "oracle/oracle.h"
#include "oracle/report.h"
#include "words.h"

/* Making a program takes half as long as running it; running the same one on other values costs next to
 * nothing and finds bugs that depend on values. The rest are structural mutations. */
enum {
  FRESH_PERCENT = 8,
  VALUE_PERCENT = 78,
  SPLICE_PERCENT = 3,
  STOPPED_KEPT_PERCENT = 10,
  GOOD_EVERY = 8,
  CLOCK_EVERY = 64,
  FINDINGS_MAX = 16 /* of a process are reported: one fault shows in many programs */
};

/* By _exit: an engine takes a target's exit for a finding. */
enum { EXIT_HOST = 3, EXIT_ACCOUNT = 4 };

__attribute__((section("__libfuzzer_extra_counters"))) static uint8_t counters[BEHAVIOUR_SIZE];

static oracle *the_oracle;
static generator *the_generator;
static stats *account;

/* The test case that was decoded or made last, and the hash of its bytes: an engine mutates what it has just
 * run, and runs what it has just mutated. */
static testcase current;
static uint64_t current_hash;

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
    fprintf(stderr, "lockstep: cannot keep the account in %s: %s\n", printable(path), strerror(errno));
    _exit(EXIT_ACCOUNT);
  }
  account->begun = now();
}

/* What ran once more to be reported, which is not another program. */
static uint64_t repeated[VERDICTS];

static void count(void) {
  account->programs++;
  account->counts = *oracle_counts_of(the_oracle);
  for (int v = 0; v < VERDICTS; v++)
    account->counts.verdicts[v] -= repeated[v];
  if (account->programs % CLOCK_EVERY == 1)
    account->ended = now();
}

/* Once something could not be kept no more is tried: a full disk does not stop a fuzzer. */
static void keep(const oracle_result *result) {
  static bool failed;
  if (failed || result->verdict == VERDICT_SAME)
    return;
  const char *folder = keep_folder();
  if (keep_open(folder, &current, result))
    return;
  failed = true;
  fprintf(stderr, "lockstep: nothing more is kept in %s: %s\n", printable(folder), strerror(errno));
}

static void see_form(form_id form, void *context) {
  (void)context;
  stats_see(account, form);
}

/* ---- Start ---- */

/* Not every failure has a text: out of memory has none. */
static void fail(ls_status status, const ls_error *error) {
  fprintf(stderr, "lockstep: %s%s%s\n", ls_status_name(status), error->text[0] ? ": " : "", error->text);
  _exit(EXIT_HOST);
}

/* Handlers are put in place with the first input, not in LLVMFuzzerInitialize: libFuzzer wraps those that
 * stood before its own. */
static void start(void) {
  ls_error error = {.text = ""};
  oracle_options options = {.pin = true, .without = features_hidden(EXIT_HOST)};
  if (!drill_prepare(&options, &current)) {
    fprintf(stderr, "lockstep: LOCKSTEP_DRILL: '%s' is no mnemonic\n", printable(getenv("LOCKSTEP_DRILL")));
    _exit(EXIT_HOST);
  }
  prove_alive(EXIT_HOST);
  move_handlers_to_alternate_stack();
  ls_status status = oracle_create(&options, &the_oracle, &error);
  if (status == LS_ERR_NO_REFERENCE) {
    fprintf(stderr, "lockstep: NO REFERENCE HERE, NOTHING IS COMPARED: %s\n", error.text);
    return;
  }
  if (status)
    fail(status, &error);
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
  ls_error error = {.text = ""};
  ls_status status = support ? probe_forms(oracle_executor(the_oracle, LS_PTRACE), support, &error)
                             : no_memory(&error, "a table of forms");
  if (!status)
    support_without(support, features_without(features_hidden(EXIT_HOST)));
  generator_options options = {.fault_percent = UINT32_MAX,
                               .syscalls =
                                   ls_executor_stops_syscalls(oracle_executor(the_oracle, LS_SIGNAL))};
  the_generator = status ? NULL : generator_create(support, &options);
  if (!status && !the_generator)
    status = no_memory(&error, "a generator");
  free(support);
  if (status)
    fail(status, &error);
  for (form_id form = 0; form < forms_count(); form++)
    if (generator_allows(the_generator, form))
      stats_allow(account, form);
  return the_generator;
}

/* ---- One input ---- */

/* Hashes of inputs that did not run to their end, or not at all. Half of what an engine keeps does not, since
 * faults are of many kinds; what is made from them stops again, at the cost of two clean runs, before it gets
 * anywhere. So most of the time the last program that ran to its end takes their place. */
static uint32_t stopped[1 << 20];
static testcase good;

static uint32_t *stopped_slot(uint64_t hash) {
  return &stopped[hash % (sizeof stopped / sizeof *stopped)];
}

static void load(const uint8_t *data, size_t size) {
  uint64_t hash = XXH3_64bits(data, size);
  if (hash == current_hash)
    return;
  testcase_decode(&current, data, size);
  current_hash = hash;
}

static void judge(oracle_result *result) {
  ls_error error = {.text = ""};
  ls_status status = oracle_run(the_oracle, &current, result, &error);
  if (status)
    fail(status, &error);
}

static void remember(const oracle_result *result) {
  ls_stop_kind kind = result->reference.stop.kind;
  if (kind != LS_STOP_EXIT || result->verdict == VERDICT_SKIPPED)
    *stopped_slot(current_hash) = (uint32_t)(current_hash >> 32);
  if (result->verdict == VERDICT_SAME && kind == LS_STOP_EXIT && account->programs % GOOD_EVERY == 0)
    testcase_copy(&good, &current);
}

/* The input before this one: a finding may depend on what it left. */
static uint8_t before[TESTCASE_SIZE_MAX];
static size_t before_size;

static void keep_before(const char *folder, const char *name) {
  char path[64];
  snprintf(path, sizeof path, "%s.before", name);
  if (before_size)
    keep_bytes(folder, NULL, path, before, before_size);
}

static void remember_before(const uint8_t *data, size_t size) {
  before_size = size <= sizeof before ? size : 0;
  memcpy(before, data, before_size);
}

/* What is reported is what the bytes say, not what was made before they were written. */
static unsigned found;

static void report(const uint8_t *data, size_t size, oracle_result *result) {
  static unsigned reported;
  const char *folder = keep_findings();
  if (folder && reported == FINDINGS_MAX)
    return; /* it is counted */
  reported++;
  testcase_decode(&current, data, size);
  judge(result);
  repeated[result->verdict]++;
  report_difference(stderr, &current, result, the_oracle);
  if (!folder)
    abort();
  char name[33];
  testcase_name(&current, name);
  keep_before(folder, name);
  if (!keep_finding(folder, &current)) { /* then the engine shall */
    fprintf(stderr, "FINDING %s could not be kept in %s: %s\n", name, printable(folder), strerror(errno));
    abort();
  }
  fprintf(stderr, "FINDING %s%s%s\n", folder, separator_after(folder), name);
  if (reported == FINDINGS_MAX)
    fputs("lockstep: further differences are counted and not reported by this process\n", stderr);
}

unsigned fuzz_target_found(void) {
  return found;
}

bool fuzz_target_compares(void) {
  return started_up();
}

static oracle_result result;

const char *fuzz_target_skipped(void) {
  return result.verdict == VERDICT_SKIPPED ? result.detail : NULL;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  if (!started_up())
    return 0; /* some engines trace their targets: they are told once, and go on */
  load(data, size);
  judge(&result);
  count();
  keep(&result);
  remember(&result);
  if (result.verdict == VERDICT_DIFFERENT) {
    found++;
    report(data, size, &result);
  }
  if (result.verdict == VERDICT_SAME) {
    behaviour_note(&current, &result, counters);
    behaviour_forms(&current, &result, see_form, NULL);
  }
  remember_before(data, size);
  return 0;
}

/* ---- Making inputs ---- */

static size_t encode_current(uint8_t *data, size_t max_size) {
  size_t size = testcase_encode(&current, data, max_size);
  if (size == 0 && shrink_program(&current, max_size))
    size = testcase_encode(&current, data, max_size);
  current_hash = XXH3_64bits(data, size);
  return size;
}

/* A fresh program, or the one in `data` changed. */
static void make_input(generator *gen, rng *r, const uint8_t *data, size_t size) {
  uint32_t draw = rng_below(r, 100);
  if (size == 0 || good.count == 0 || draw < FRESH_PERCENT) {
    generate_program(gen, r, &current);
    return;
  }
  load(data, size);
  if (*stopped_slot(current_hash) == (uint32_t)(current_hash >> 32) && !rng_percent(r, STOPPED_KEPT_PERCENT))
    testcase_copy(&current, &good);
  if (draw >= FRESH_PERCENT + VALUE_PERCENT || !mutate_once(gen, r, &current, MUTATE_VALUE))
    mutate_program(gen, r, &current);
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned int seed) {
  rng r = {seed};
  generator *gen = get_generator();
  if (!gen)
    return LLVMFuzzerMutate(data, size, max_size);
  make_input(gen, &r, data, size);
  return encode_current(data, max_size);
}

/* libFuzzer asks for a crossover as often as for a mutation. Most programs that are spliced fault, since
 * addresses of one meet registers of the other. */
size_t LLVMFuzzerCustomCrossOver(const uint8_t *data1, size_t size1, const uint8_t *data2, size_t size2,
                                 uint8_t *out, size_t max_out_size, unsigned int seed) {
  static testcase first, second;
  rng r = {seed};
  generator *gen = get_generator();
  if (gen && !rng_percent(&r, SPLICE_PERCENT)) {
    make_input(gen, &r, data1, size1);
  } else {
    testcase_decode(&first, data1, size1);
    testcase_decode(&second, data2, size2);
    splice_programs(&r, &first, &second, &current);
  }
  return encode_current(out, max_out_size);
}

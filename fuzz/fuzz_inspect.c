/* Random programs that other threads look at, pause, step, reload, sample and cancel while they run
 * (harness/inspect/inspect.h); harness/inspect/subject.h says how bytes become a program and a schedule. A
 * finding is printed and aborts. Threads make every run another one: LOCKSTEP_REPEAT=N runs each input N
 * times. What was done is printed at exit; LOCKSTEP_KEEP=DIR keeps each input that was left out as
 * DIR/REASON/HASH (harness/feedback/keep.h). */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>

#include "engine.h"
#include "environment.h"
#include "feedback/keep.h"
#include "forms/probe.h"
#include "generate/generate.h"
#include "graph/make.h"
#include "handlers.h"
#include "inspect/inspect.h"
#include "no_memory.h"
#include "words.h"

enum {
  EXIT_HOST = 3,
  COUNTERS = 1 << 13,
  PATIENCE_S = 40, /* less than the engine's own time-out, which cannot say who waits for whom */
  SCHEDULE_PERCENT = 35,
  FRESH_PERCENT = 15,
  GRAPH_PERCENT = 30, /* of the fresh ones */
  RECORDS_FRESH = 40
};

__attribute__((section("__libfuzzer_extra_counters"))) static uint8_t counters[COUNTERS];

static inspector *the_inspector;
static generator *the_generator;
static unsigned long repeat = 1;

static void fail(ls_status status, const ls_error *error) {
  fprintf(stderr, "lockstep: %s%s%s\n", ls_status_name(status), error->text[0] ? ": " : "", error->text);
  _exit(EXIT_HOST);
}

/* ---- Start ---- */

static void print_counts(void) {
  inspector_print_counts(stderr, the_inspector);
}

/* With the first input, not before: libFuzzer's handlers must stand. */
static void start(void) {
  ls_error error = {.text = ""};
  const char *wanted = getenv("LOCKSTEP_REPEAT");
  char *end;
  if (wanted && *wanted) {
    repeat = strtoul(wanted, &end, 10);
    if (!repeat || *end) {
      fprintf(stderr, "lockstep: LOCKSTEP_REPEAT takes a number from 1 on, not '%s'\n", printable(wanted));
      _exit(EXIT_HOST);
    }
  }
  const crew_options options = {.patience_s = PATIENCE_S};
  move_handlers_to_alternate_stack();
  ls_status status = inspector_create(&the_inspector, &options, &error);
  if (status == LS_ERR_NO_REFERENCE)
    fprintf(stderr, "lockstep: NO REFERENCE HERE, NOTHING IS COMPARED: %s\n", error.text);
  else if (status)
    fail(status, &error);
  else {
    inspector_hide(the_inspector, features_hidden(EXIT_HOST));
    atexit(print_counts);
  }
}

static bool started_up(void) {
  static bool tried;
  if (!tried) {
    tried = true;
    start();
  }
  return the_inspector != NULL;
}

static generator *get_generator(void) {
  if (the_generator || !started_up())
    return the_generator;
  ls_error error = {.text = ""};
  uint8_t *support = calloc(forms_count(), 1);
  ls_status status = support ? probe_forms(inspector_reference(the_inspector), support, &error)
                             : no_memory(&error, "a table of forms");
  if (!status)
    support_without(support, features_without(features_hidden(EXIT_HOST)));
  const generator_options options = {.fault_percent = 2};
  the_generator = status ? NULL : generator_create(support, &options);
  if (!status && !the_generator)
    status = no_memory(&error, "a generator");
  free(support);
  if (status)
    fail(status, &error);
  return the_generator;
}

/* Each aborts. */
unsigned fuzz_target_found(void) {
  return 0;
}

bool fuzz_target_compares(void) {
  return started_up();
}

const char *fuzz_target_skipped(void) {
  return inspector_reason(the_inspector) == REASON_FEATURE ? "it needs what this CPU lacks" : NULL;
}

/* LOCKSTEP_KEEP=DIR: what was left out is kept as DIR/REASON/NAME, NAME being a hash of the input. Once
 * something could not be kept no more is tried. */
static void keep(const uint8_t *data, size_t size) {
  static bool failed;
  oracle_reason reason = inspector_reason(the_inspector);
  const char *folder = keep_folder();
  char name[33];
  if (failed || !folder || reason == REASON_NONE || reason == REASON_FEATURE)
    return;
  XXH128_hash_t hash = XXH3_128bits(data, size);
  snprintf(name, sizeof name, "%016" PRIx64 "%016" PRIx64, hash.high64, hash.low64);
  failed = !keep_bytes(folder, oracle_reason_name(reason), name, data, size);
  if (failed)
    fprintf(stderr, "lockstep: nothing more is kept in %s: %s\n", printable(folder), strerror(errno));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  if (!started_up())
    return 0;
  for (unsigned long n = 0; n < repeat; n++) {
    ls_error error = {.text = ""};
    inspect_verdict what;
    ls_status status = inspector_run(the_inspector, data, size, &what, &error);
    if (status)
      fail(status, &error);
    if (what == INSPECT_DIFFERENT) {
      inspector_report(stderr, the_inspector);
      abort();
    }
    keep(data, size);
    if (what == INSPECT_SAME)
      inspector_note(the_inspector, counters, COUNTERS);
  }
  return 0;
}

/* ---- Making inputs ---- */

static uint8_t draw_flags(rng *r) {
  uint64_t flags = rng_next(r) & (SUBJECT_REQUESTERS | SUBJECT_KIND);
  if (rng_one_in(r, 4))
    flags |= SUBJECT_TIGHT;
  if (rng_one_in(r, 4))
    flags |= SUBJECT_WILD;
  return (uint8_t)flags;
}

static void change_schedule(rng *r, uint8_t *header) {
  uint64_t seed = rng_next(r);
  if (rng_one_in(r, 3))
    header[0] = (uint8_t)((header[0] & SUBJECT_GRAPH) | draw_flags(r));
  if (rng_one_in(r, 3)) /* mostly so many iterations that requests meet the guest running */
    header[1] = (uint8_t)(rng_next(r) | (rng_one_in(r, 4) ? 0 : 0xa0));
  if (rng_one_in(r, 3))
    header[2] = (uint8_t)rng_next(r);
  if (rng_one_in(r, 3))
    header[3] = (uint8_t)rng_next(r);
  memcpy(header + 4, &seed, 4);
}

static size_t write_testcase(testcase *test, uint8_t *body, size_t room) {
  size_t size = testcase_encode(test, body, room);
  if (size == 0 && shrink_program(test, room))
    size = testcase_encode(test, body, room);
  return size;
}

static size_t fresh(rng *r, uint8_t *data, size_t max_size) {
  static testcase test;
  change_schedule(r, data);
  bool of_graph = rng_percent(r, GRAPH_PERCENT);
  data[0] = (uint8_t)((data[0] & ~SUBJECT_GRAPH) | (of_graph ? SUBJECT_GRAPH : 0));
  size_t room = max_size - SUBJECT_HEADER;
  if (!of_graph) {
    generate_program(get_generator(), r, &test);
    return write_testcase(&test, data + SUBJECT_HEADER, room);
  }
  size_t size = GRAPH_HEADER + (1 + rng_below(r, RECORDS_FRESH)) * GRAPH_RECORD;
  size = size < room ? size : room;
  for (size_t i = 0; i < size; i++)
    data[SUBJECT_HEADER + i] =
        i >= GRAPH_HEADER && i % GRAPH_RECORD >= 2 && rng_percent(r, 60) ? 0 : (uint8_t)rng_next(r);
  return size;
}

static size_t change_body(rng *r, uint8_t *data, size_t size, size_t max_size) {
  static testcase test;
  uint8_t *body = data + SUBJECT_HEADER;
  if (data[0] & SUBJECT_GRAPH)
    return LLVMFuzzerMutate(body, size - SUBJECT_HEADER, max_size - SUBJECT_HEADER);
  testcase_decode(&test, body, size - SUBJECT_HEADER);
  mutate_program(get_generator(), r, &test);
  return write_testcase(&test, body, max_size - SUBJECT_HEADER);
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned int seed) {
  rng r = {seed};
  if (!get_generator() || max_size < 2 * SUBJECT_HEADER)
    return LLVMFuzzerMutate(data, size, max_size);
  if (size <= SUBJECT_HEADER || rng_percent(&r, FRESH_PERCENT)) {
    memset(data, 0, SUBJECT_HEADER);
    return SUBJECT_HEADER + fresh(&r, data, max_size);
  }
  change_schedule(&r, data);
  if (rng_percent(&r, SCHEDULE_PERCENT))
    return size;
  return SUBJECT_HEADER + change_body(&r, data, size, max_size);
}

/* The schedule of one with the program of the other. */
size_t LLVMFuzzerCustomCrossOver(const uint8_t *data1, size_t size1, const uint8_t *data2, size_t size2,
                                 uint8_t *out, size_t max_out_size, unsigned int seed) {
  if (size1 < SUBJECT_HEADER || size2 < SUBJECT_HEADER || max_out_size < size2)
    return 0;
  memcpy(out, data2, size2);
  memcpy(out, data1, SUBJECT_HEADER);
  out[0] = (uint8_t)((data1[0] & ~SUBJECT_GRAPH) | (data2[0] & SUBJECT_GRAPH));
  (void)seed;
  return size2;
}

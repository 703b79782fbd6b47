/* The judge of inspected programs can fail: it is shown wrong states, a wrong order, wrong counts, and must
 * object to each. What it judges by, the trace, is what stepping from end to end shows. And the whole
 * inspector notices a controller that does not tell the truth. */
#include "check.h"

#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "graph/make.h"
#include "inspect/check.h"
#include "inspect/inspect.h"
#include "processes.h"
#include "rng.h"
#include "sanitizers.h"

/* ---- A trace made by hand ---- */

/* Three segments: straight; a loop that changes nothing; one with a repeated instruction, in which the
 * program ends. Numbers stand for hashes. */
static const trace_entry straight[] = {
    {10, 0x100, 0, false}, {11, 0x101, 1, false}, {12, 0x102, 2, false}, {13, 0x103, 3, false}};
static const trace_entry idle[] = {{20, 0x102, 2, false}, {21, 0x103, 3, false}, {20, 0x102, 2, false},
                                   {21, 0x103, 3, false}, {20, 0x102, 2, false}, {24, 0x104, 4, false}};
static const trace_entry last[] = {
    {30, 0x100, 0, false}, {31, 0x105, 5, true}, {32, 0x106, 6, false}, {33, 0x107, LS_NONE, false}};

enum { STRAIGHT, IDLE, LAST, SEGMENTS };

static trace_segment by_hand(void *context, uint64_t number) {
  static const trace_segment segments[SEGMENTS] = {
      {straight, 4, TRACE_GOES_ON}, {idle, 6, TRACE_GOES_ON}, {last, 4, TRACE_ENDS}};
  const trace_segment cut = {segments[LAST].entries, 2, TRACE_CUT}, nothing = {NULL, 0, TRACE_ENDS};
  if (number == LAST && context)
    return cut;
  return number < SEGMENTS ? segments[number] : nothing;
}

/* What is seen at an entry. */
static sight seen(uint64_t segment, uint64_t offset, uint64_t begin) {
  const trace_entry *e = &by_hand(NULL, segment).entries[offset];
  return (sight){.begin = begin,
                 .end = begin + 1,
                 .segment = segment,
                 .hash = e->hash,
                 .rip = e->rip,
                 .instruction = e->instruction,
                 .target = LS_NONE};
}

static sight later(const sight *from, sight_relation relation, uint64_t count, uint32_t target, sight what) {
  what.relation = relation;
  what.from = from;
  what.count = count;
  what.target = target;
  return what;
}

static void expect(const char *name, bool cut, bool exact, sight *a, sight *b, const char *complaint) {
  const trace t = {by_hand, cut ? &cut : NULL};
  sight *both[] = {a, b};
  check_result result;
  bool good = check_sights(&t, both, b ? 2 : 1, exact, &result);
  if (good != !complaint)
    fail_msg("%s: %s", name, good ? "not seen" : result.trouble);
  if (complaint && !strstr(result.trouble, complaint))
    fail_msg("%s: expected \"%s\", got \"%s\"", name, complaint, result.trouble);
  if (complaint && both[result.at] != (b ? b : a))
    fail_msg("%s: another sight is blamed", name);
}

enum { WHOLE = false, CUT = true, EXACT = true, LOOSE = false };

static void states_of_the_trace_are_known(void **unused) {
  (void)unused;
  for (uint64_t segment = 0; segment < SEGMENTS; segment++)
    for (uint64_t offset = 0; offset < by_hand(NULL, segment).count; offset++) {
      sight s = seen(segment, offset, 1);
      expect("a state of the trace", WHOLE, EXACT, &s, NULL, NULL);
      assert_true(s.known && !s.between);
    }
}

static void wrong_states_are_seen(void **unused) {
  (void)unused;
  const char *no_state = "no state of the reference";
  sight s = seen(STRAIGHT, 1, 1);
  s.hash ^= 1;
  expect("another state", WHOLE, EXACT, &s, NULL, no_state);
  expect("another state, without order", WHOLE, LOOSE, &s, NULL, no_state);
  s = seen(STRAIGHT, 1, 1);
  s.instruction = 2;
  expect("another instruction", WHOLE, EXACT, &s, NULL, no_state);
  s = seen(STRAIGHT, 1, 1);
  s.instruction = LS_NONE;
  expect("no instruction", WHOLE, EXACT, &s, NULL, no_state);
  s = seen(STRAIGHT, 1, 1);
  s.rip++;
  expect("another address", WHOLE, EXACT, &s, NULL, no_state);
  s.rip = 0;
  expect("an address that does not matter", WHOLE, EXACT, &s, NULL, NULL);
  s = seen(STRAIGHT, 1, 1);
  s.segment = IDLE;
  expect("another iteration", WHOLE, EXACT, &s, NULL, no_state);
  s.segment = SEGMENTS;
  expect("an iteration that there is not", WHOLE, EXACT, &s, NULL, no_state);
  s.segment = UINT64_MAX;
  expect("no iteration", WHOLE, EXACT, &s, NULL, no_state);
}

static void states_between_repetitions_pass(void **unused) {
  (void)unused;
  sight s = seen(LAST, 1, 1);
  s.hash = 99;
  expect("between repetitions", WHOLE, EXACT, &s, NULL, NULL);
  assert_true(s.known && s.between);
  s = seen(LAST, 2, 1);
  s.hash = 99;
  expect("of an instruction that is not repeated", WHOLE, EXACT, &s, NULL, "no state");
  expect("where the trace is cut", CUT, EXACT, &s, NULL, NULL);
  assert_false(s.known);
}

static void going_back_is_seen(void **unused) {
  (void)unused;
  const char *back = "before what had been seen";
  sight a = seen(STRAIGHT, 2, 1), b = seen(STRAIGHT, 1, 3);
  expect("back by one", WHOLE, EXACT, &a, &b, back);
  expect("back by one, without order", WHOLE, LOOSE, &a, &b, back);
  expect("back by one, the other way round in the list", WHOLE, EXACT, &(sight){0}, NULL, "no state");
  b.begin = 2; /* at the same time as a */
  expect("at the same time", WHOLE, EXACT, &a, &b, NULL);
  a = seen(IDLE, 0, 1);
  b = seen(STRAIGHT, 3, 3);
  expect("back to another iteration", WHOLE, EXACT, &a, &b, back);
  a = seen(IDLE, 5, 1);
  b = seen(IDLE, 4, 3);
  expect("back into a loop", WHOLE, EXACT, &a, &b, back);
  a = seen(IDLE, 4, 1);
  b = seen(IDLE, 1, 3);
  expect("around in a loop", WHOLE, EXACT, &a, &b, NULL);
  assert_int_equal(b.offset, 1);
}

static void sights_come_in_any_order(void **unused) {
  (void)unused;
  sight a = seen(STRAIGHT, 2, 1), b = seen(STRAIGHT, 1, 3), *wrong[] = {&b, &a};
  const trace t = {by_hand, NULL};
  check_result result;
  assert_false(check_sights(&t, wrong, 2, true, &result));
  assert_int_equal(result.at, 0);
}

static void pauses_are_kept(void **unused) {
  (void)unused;
  const char *went_on = "while it was paused";
  sight a = seen(STRAIGHT, 1, 1), b = later(&a, SIGHT_SAME, 0, LS_NONE, seen(STRAIGHT, 1, 3));
  expect("the same", WHOLE, EXACT, &a, &b, NULL);
  b = later(&a, SIGHT_SAME, 0, LS_NONE, seen(STRAIGHT, 2, 3));
  expect("the next", WHOLE, EXACT, &a, &b, went_on);
  expect("the next, without order", WHOLE, LOOSE, &a, &b, NULL);
  a = seen(STRAIGHT, 2, 1);
  b = later(&a, SIGHT_SAME, 0, LS_NONE, seen(IDLE, 0, 3));
  expect("the same instruction in the next iteration", WHOLE, EXACT, &a, &b, went_on);
}

static void steps_are_counted(void **unused) {
  (void)unused;
  const char *miscounted = "as many instructions";
  sight a = seen(STRAIGHT, 0, 1);
  for (uint64_t n = 1; n <= 5; n++) {
    sight there = n < 4 ? seen(STRAIGHT, n, 3) : seen(IDLE, n - 4, 3);
    for (uint64_t asked = 1; asked <= 6; asked++) {
      sight b = later(&a, SIGHT_STEPS, asked, LS_NONE, there);
      /* Entries 0 and 2 of the loop are one state. */
      expect("steps", WHOLE, EXACT, &a, &b, asked == n || (n == 4 && asked == 6) ? NULL : miscounted);
      expect("steps, without order", WHOLE, LOOSE, &a, &b, NULL);
    }
  }
}

/* Where a loop changes nothing, any of its rounds will do, and nothing else. */
static void steps_in_loops_are_counted(void **unused) {
  (void)unused;
  sight a = seen(IDLE, 0, 1);
  for (uint64_t asked = 1; asked <= 3; asked++) {
    sight b = later(&a, SIGHT_STEPS, asked, LS_NONE, seen(IDLE, 1, 3));
    expect("around", WHOLE, EXACT, &a, &b, asked % 2 ? NULL : "as many instructions");
    b = later(&a, SIGHT_STEPS, asked, LS_NONE, seen(IDLE, 5, 3));
    expect("out of it", WHOLE, EXACT, &a, &b, asked % 2 ? NULL : "as many instructions");
  }
}

static void runs_to_an_instruction_are_followed(void **unused) {
  (void)unused;
  const char *elsewhere = "not where it was to run to";
  sight a = seen(STRAIGHT, 2, 1), b = later(&a, SIGHT_UNTIL, 0, 3, seen(STRAIGHT, 3, 3));
  expect("the next", WHOLE, EXACT, &a, &b, NULL);
  b = later(&a, SIGHT_UNTIL, 0, 2, seen(IDLE, 0, 3));
  expect("the same instruction again", WHOLE, EXACT, &a, &b, NULL);
  b = later(&a, SIGHT_UNTIL, 0, 2, seen(STRAIGHT, 2, 3));
  expect("no instruction executed", WHOLE, EXACT, &a, &b, elsewhere);
  b = later(&a, SIGHT_UNTIL, 0, 3, seen(IDLE, 1, 3));
  expect("the second time it gets there", WHOLE, EXACT, &a, &b, elsewhere);
  b = later(&a, SIGHT_UNTIL, 0, 4, seen(STRAIGHT, 3, 3));
  expect("another instruction", WHOLE, EXACT, &a, &b, elsewhere);
}

static void ends_are_where_they_are_said_to_be(void **unused) {
  (void)unused;
  sight a = seen(LAST, 2, 1), b = later(&a, SIGHT_NO_STEPS, 2, LS_NONE, (sight){.begin = 3, .end = 3});
  expect("the end is near", WHOLE, EXACT, &a, &b, NULL);
  b.count = 1;
  expect("there was one more", WHOLE, EXACT, &a, &b, "which it is not near");
  a = seen(LAST, 0, 1);
  b = later(&a, SIGHT_NO_UNTIL, 0, 4, (sight){.begin = 3, .end = 3});
  expect("it does not come there", WHOLE, EXACT, &a, &b, NULL);
  b.target = 6;
  expect("it does come there", WHOLE, EXACT, &a, &b, "comes to that instruction before");
  expect("it is not known", CUT, EXACT, &a, &b, NULL);
}

/* ---- The trace ---- */

enum { STEPS_MAX = 1500, BYTES = SUBJECT_HEADER + 8 + 4 * 24, PROGRAMS = TSAN || ASAN ? 20 : 40 };

typedef struct whole_trace {
  const subject *s;
  const ls_image *image;
  trace_entry entries[STEPS_MAX];
  uint64_t segments[STEPS_MAX];
  uint32_t count;
} whole_trace;

static void keep(whole_trace *t, const ls_state *state) {
  const ls_range *range = ls_image_find(t->image, state->rip);
  ls_state clean = *state;
  ls_state_canonicalise(&clean);
  if (t->count == STEPS_MAX || (range && range->part != LS_PART_BODY) ||
      state->rip == testcase_layout()->gate)
    return;
  t->segments[t->count] = reference_segment(t->s, &clean);
  t->entries[t->count++] = (trace_entry){
      .hash = reference_hash(&clean), .rip = state->rip, .instruction = range ? range->instruction : LS_NONE};
}

static int keep_step(const ls_state *state, void *context) {
  whole_trace *t = context;
  keep(t, state);
  return t->count == STEPS_MAX;
}

/* In one go from the start, by other means than the reference of the inspector has. */
static void step_whole(whole_trace *t, ls_executor *executor, const subject *s, const ls_image *image) {
  static ls_outcome outcome;
  ls_error error;
  t->s = s;
  t->image = image;
  t->count = 0;
  ls_state from = s->state;
  from.rip = ls_image_address(image, s->entry);
  keep(t, &from);
  const ls_run run = {.state = &s->state,
                      .entry = s->entry,
                      .uses = LS_USES_X87,
                      .fuel = UINT32_MAX,
                      .steps = UINT64_MAX,
                      .visitor = keep_step,
                      .context = t};
  if (ls_executor_load(executor, image, &error) || ls_executor_reset(executor, s->contents.window, &error) ||
      ls_executor_run(executor, &run, &outcome, &error))
    fail_msg("%s", error.text);
}

static void random_bytes(rng *r, uint8_t *bytes, size_t size) {
  for (size_t i = 0; i < size; i++)
    bytes[i] = i > SUBJECT_HEADER + 8 && i % 4 >= 2 && rng_percent(r, 70) ? 0 : (uint8_t)rng_next(r);
  bytes[0] = SUBJECT_GRAPH;
  bytes[1] = (uint8_t)(bytes[1] & 0x7f);
}

/* Segments are asked for in a random order, so that each way to get to one is taken. */
static uint32_t compare_traces(const whole_trace *whole, const trace *t, rng *r) {
  uint32_t compared = 0;
  for (int n = 0; n < 12; n++) {
    uint32_t at = rng_below(r, whole->count);
    uint64_t segment = whole->segments[at];
    while (at > 0 && whole->segments[at - 1] == segment)
      at--;
    const trace_segment got = t->segment(t->context, segment);
    for (uint32_t i = 0; i < got.count && at + i < whole->count; i++, compared++)
      if (got.entries[i].hash != whole->entries[at + i].hash ||
          got.entries[i].rip != whole->entries[at + i].rip ||
          got.entries[i].instruction != whole->entries[at + i].instruction)
        fail_msg("segment %llu, entry %u differs", (unsigned long long)segment, i);
    if (got.end == TRACE_GOES_ON && at + got.count < whole->count)
      assert_int_equal(whole->segments[at + got.count], segment + 1);
  }
  return compared;
}

static void traces_are_what_stepping_shows(void **unused) {
  (void)unused;
  static subject s;
  static inspect_ending ending;
  static whole_trace whole;
  uint8_t bytes[BYTES];
  ls_error error;
  reference *ref;
  oracle_reason reason;
  uint32_t programs = 0, looped = 0, compared = 0;
  rng r = {7};
  assert_int_equal(reference_create(&ref, &error), LS_OK);
  for (uint32_t n = 0; n < PROGRAMS; n++) {
    random_bytes(&r, bytes, sizeof bytes);
    subject_decode(&s, bytes, sizeof bytes);
    if (reference_run(ref, &s, &reason, &ending, &error) != LS_OK)
      fail_msg("%s", error.text);
    if (reason != REASON_NONE)
      continue;
    const trace t = reference_trace(ref);
    step_whole(&whole, reference_child(ref), &s, reference_image(ref));
    compared += compare_traces(&whole, &t, &r);
    programs++;
    looped += whole.segments[whole.count - 1] > 2;
  }
  reference_destroy(ref);
  print_message("%u programs, %u of them with some iterations, %u states\n", programs, looped, compared);
  assert_true(programs > PROGRAMS / 4 && looped >= PROGRAMS / 10 && compared > programs * 10);
}

/* One instruction on RAX, in a loop. */
static void access_subject(subject *s, const char *code, uint64_t rax) {
  static testcase test;
  static uint8_t bytes[SUBJECT_HEADER + TESTCASE_SIZE_MAX];
  testcase_init(&test);
  test.instructions[0].length = 2;
  memcpy(test.instructions[0].bytes, code, 2);
  test.state.gpr[LS_RAX] = rax;
  testcase_normalise(&test);
  size_t size = testcase_encode(&test, bytes + SUBJECT_HEADER, TESTCASE_SIZE_MAX);
  subject_decode(s, bytes, SUBJECT_HEADER + size);
}

/* With a larger window the code moves away, and what was there faults in another way or not at all. */
static void what_looks_at_its_code_stays_where_it_is(void **unused) {
  (void)unused;
  static const char *const accesses[] = {"\x8a\x00", "\x88\x00"}; /* mov al, [rax]; mov [rax], al */
  static subject s;
  static inspect_ending ending;
  const ls_window *code = &testcase_layout()->windows[TESTCASE_CODE];
  const uint64_t data = testcase_layout()->windows[TESTCASE_DATA].address;
  const struct {
    uint64_t address;
    bool movable;
  } places[] = {{data, true},
                {data - 1, true},
                {0x10, true},
                {code->address, false},
                {code->address + code->size - 1, false},
                {code->address - 1, false},
                {code->address + code->size, false}};
  ls_error error;
  reference *ref;
  oracle_reason reason;
  assert_int_equal(reference_create(&ref, &error), LS_OK);
  for (size_t i = 0; i < 2 * sizeof places / sizeof *places; i++) {
    access_subject(&s, accesses[i % 2], places[i / 2].address);
    assert_int_equal(reference_run(ref, &s, &reason, &ending, &error), LS_OK);
    if (reason != REASON_NONE || s.movable != places[i / 2].movable)
      fail_msg("%s 0x%llx: %s, %s", i % 2 ? "write" : "read", (unsigned long long)places[i / 2].address,
               oracle_reason_name(reason), s.movable ? "movable" : "fixed");
  }
  reference_destroy(ref);
}

/* ---- The whole ---- */

enum { ROUNDS = 24 };

/* Lies told about some of what a controller shows. */
typedef struct lie {
  const char *name;
  void (*tell)(ls_state *state, ls_position *position);
  const char *complaint; /* or NULL: it is none */
  bool may_pass;         /* not everybody who hears it can know better */
} lie;

static void change_register(ls_state *state, ls_position *position) {
  (void)position;
  state->gpr[LS_RSI] ^= 1;
}

static void change_vector(ls_state *state, ls_position *position) {
  (void)position;
  state->zmm[3][5] ^= 1;
}

static void change_flag(ls_state *state, ls_position *position) {
  (void)position;
  state->rflags ^= 1;
}

static void change_place(ls_state *state, ls_position *position) {
  (void)state;
  position->id++;
}

static void change_activity(ls_state *state, ls_position *position) {
  (void)state;
  position->activity = LS_RUNNING;
}

static void say_nothing(ls_state *state, ls_position *position) {
  (void)state;
  (void)position;
}

static _Atomic uint32_t told;

static void tamper(ls_state *state, ls_position *position, void *context) {
  const lie *what = context;
  if (position->activity == LS_PAUSED && atomic_fetch_add(&told, 1) % 7 == 5)
    what->tell(state, position);
}

/* Of the rounds in which something was changed all must be found different, but for lies that may pass or are
 * told where the trace is cut, and of the others none. */
static void inspect_with(const lie *what) {
  static uint8_t bytes[BYTES];
  const crew_options options = {.patience_s = 120, .tamper = tamper, .tamper_context = (void *)what};
  ls_error error;
  inspector *i;
  uint32_t different = 0;
  rng r = {11};
  if (inspector_create(&i, &options, &error) != LS_OK)
    fail_msg("%s", error.text);
  for (uint32_t n = 0; n < ROUNDS; n++) {
    inspect_verdict verdict_now;
    const uint64_t cut = inspector_counts(i)->cut;
    random_bytes(&r, bytes, sizeof bytes);
    told = 0;
    if (inspector_run(i, bytes, sizeof bytes, &verdict_now, &error) != LS_OK)
      fail_msg("%s", error.text);
    bool lied = told > 5 && what->complaint;
    bool sure = lied && !what->may_pass && inspector_counts(i)->cut == cut;
    if (verdict_now == INSPECT_DIFFERENT && (!lied || !strstr(inspector_trouble(i), what->complaint))) {
      inspector_report(stdout, i);
      fail_msg("%s: %s", what->name, inspector_trouble(i));
    }
    if (verdict_now == INSPECT_SAME && sure)
      fail_msg("%s: not seen", what->name);
    different += verdict_now == INSPECT_DIFFERENT;
  }
  const inspect_counts *counts = inspector_counts(i);
  print_message("%s: %u of %u rounds different, %u programs caught, %u states found\n", what->name, different,
                ROUNDS, (unsigned)counts->struck, (unsigned)counts->checked);
  assert_true(counts->struck > ROUNDS / 10 && counts->checked > ROUNDS / 10);
  assert_true(!what->complaint || different > 0);
  inspector_destroy(i);
}

/* ---- What the host does is no fault of a controller's ---- */

static pid_t last_reference; /* the inspector's own children were made before any controller's */

static void kill_its_child(ls_state *state, ls_position *position, void *context) {
  (void)state;
  (void)context;
  pid_t pid = last_reference;
  if (position->activity != LS_IDLE && atomic_fetch_add(&told, 1) % 7 == 5 &&
      process_children(getpid(), &pid) && pid != last_reference)
    kill(pid, SIGKILL);
}

static void a_child_that_is_lost_is_no_difference(void **unused) {
  (void)unused;
  static uint8_t bytes[BYTES];
  const crew_options options = {.patience_s = 120, .tamper = kill_its_child};
  ls_error error;
  inspector *i;
  inspect_verdict verdict_now;
  rng r = {11};
  if (inspector_create(&i, &options, &error) != LS_OK)
    fail_msg("%s", error.text);
  assert_int_equal(process_children(getpid(), &last_reference), 2);
  for (uint32_t n = 0; n < ROUNDS; n++) {
    random_bytes(&r, bytes, sizeof bytes);
    bytes[0] |= SUBJECT_KIND; /* in the reference */
    told = 0;
    ls_status status = inspector_run(i, bytes, sizeof bytes, &verdict_now, &error);
    if (status)
      fail_msg("%s", error.text);
    if (!status && verdict_now == INSPECT_DIFFERENT)
      fail_msg("%s", inspector_trouble(i));
  }
  assert_true(inspector_counts(i)->left_out[REASON_REFERENCE_LOST] > 0);
  inspector_destroy(i);
}

static void a_controller_that_lies_is_found_out(void **unused) {
  (void)unused;
  static const lie lies[] = {
      {"nothing", say_nothing, NULL, false},  {"a register", change_register, "", false},
      {"a vector", change_vector, "", false}, {"a flag", change_flag, "", false},
      {"an id", change_place, "", false},     {"what it does", change_activity, "the guest", true},
  };
  for (size_t n = 0; n < sizeof lies / sizeof *lies; n++)
    inspect_with(&lies[n]);
}

/* Programs that would go on for ever, with counters of fuel and without, end by it and are inspected. */
static void endless_programs_are_bounded(void **unused) {
  (void)unused;
  enum { JUMP32 = 19, TO_ITSELF = 0x7f, SEEDS = 16 };
  uint8_t bytes[SUBJECT_HEADER + GRAPH_HEADER + GRAPH_RECORD] = {SUBJECT_GRAPH};
  uint8_t *record = bytes + SUBJECT_HEADER + GRAPH_HEADER;
  const crew_options options = {.patience_s = 60};
  ls_error error = {.text = ""};
  inspector *i;
  inspect_verdict verdict_now;
  record[0] = JUMP32;
  record[3] = TO_ITSELF;
  if (inspector_create(&i, &options, &error) != LS_OK)
    fail_msg("%s", error.text);
  for (uint32_t n = 0; n < SEEDS; n++) {
    bytes[4] = (uint8_t)n; /* the seed */
    bytes[2] = 5;
    if (inspector_run(i, bytes, sizeof bytes, &verdict_now, &error) != LS_OK)
      fail_msg("%s", error.text);
    if (verdict_now != INSPECT_SAME)
      fail_msg("%u: %s", n, inspector_trouble(i) ? inspector_trouble(i) : "left out");
  }
  assert_int_equal(inspector_counts(i)->stops[LS_STOP_FUEL], SEEDS);
  inspector_destroy(i);
}

/* ---- The list ---- */

static void lists_in_another_order_are_the_same_program(void **unused) {
  (void)unused;
  static subject s;
  static ls_instruction order[SUBJECT_MAX];
  uint8_t bytes[BYTES];
  rng r = {8};
  for (int n = 0; n < 50; n++) {
    random_bytes(&r, bytes, sizeof bytes);
    subject_decode(&s, bytes, sizeof bytes);
    subject_shuffle(&s, order);
    for (uint32_t i = 0; i < s.count; i++) {
      const ls_instruction *a = &order[i], *b = &s.list[subject_index(&s, a->id)];
      assert_memory_equal(a->bytes, b->bytes, sizeof a->bytes);
      assert_int_equal(a->next == LS_NONE ? 0 : order[a->next].id,
                       b->next == LS_NONE ? 0 : s.list[b->next].id);
      assert_int_equal(a->jump == LS_NONE ? 0 : order[a->jump].id,
                       b->jump == LS_NONE ? 0 : s.list[b->jump].id);
    }
  }
}

static void one_instruction_can_be_left_out(void **unused) {
  (void)unused;
  static subject s;
  static ls_instruction rest[SUBJECT_MAX];
  uint8_t bytes[BYTES];
  rng r = {9};
  random_bytes(&r, bytes, sizeof bytes);
  subject_decode(&s, bytes, sizeof bytes);
  for (uint32_t out = 0; out < s.count; out++) {
    assert_int_equal(subject_without(&s, out, rest), s.count - 1);
    for (uint32_t i = 0; i + 1 < s.count; i++) {
      const ls_instruction *a = &rest[i], *b = &s.list[subject_index(&s, a->id)];
      assert_int_not_equal(a->id, s.list[out].id);
      uint64_t to = b->next == LS_NONE || b->next == out ? 0 : s.list[b->next].id;
      assert_int_equal(a->next == LS_NONE ? 0 : rest[a->next].id, to);
    }
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(states_of_the_trace_are_known),
      cmocka_unit_test(wrong_states_are_seen),
      cmocka_unit_test(states_between_repetitions_pass),
      cmocka_unit_test(going_back_is_seen),
      cmocka_unit_test(sights_come_in_any_order),
      cmocka_unit_test(pauses_are_kept),
      cmocka_unit_test(steps_are_counted),
      cmocka_unit_test(steps_in_loops_are_counted),
      cmocka_unit_test(runs_to_an_instruction_are_followed),
      cmocka_unit_test(ends_are_where_they_are_said_to_be),
      cmocka_unit_test(lists_in_another_order_are_the_same_program),
      cmocka_unit_test(one_instruction_can_be_left_out),
  };
  const struct CMUnitTest with_reference[] = {
      cmocka_unit_test(traces_are_what_stepping_shows),
      cmocka_unit_test(what_looks_at_its_code_stays_where_it_is),
      cmocka_unit_test(a_child_that_is_lost_is_no_difference),
      cmocka_unit_test(endless_programs_are_bounded),
      cmocka_unit_test(a_controller_that_lies_is_found_out),
  };
  int failed = is_wanted(LS_SIGNAL) ? cmocka_run_group_tests(tests, NULL, NULL) : 0;
  return failed + (is_wanted(LS_PTRACE) ? cmocka_run_group_tests(with_reference, NULL, NULL) : 0);
}

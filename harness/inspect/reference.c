#include "inspect/reference.h"

#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "no_memory.h"
#include "oracle/admission.h"

enum {
  LIMIT_MS = 60,
  PATIENCE = 10,    /* times the limit for what has not ended within it */
  PROBE_SLOT = 201, /* of an executor that is asked about addresses: no guest of ours is there */
  ENTRIES_MAX = 16384,
  SEGMENT_MAX = 4096,
  SEGMENTS = 512,     /* places to keep them, by number */
  ELSEWHERE = 0x30000 /* from where the code window is: beyond its end, and before any other */
};

#define PLENTY (UINT64_C(1) << 40) /* of fuel, while states are collected */

typedef struct kept_segment {
  uint64_t number; /* plus one; 0: an empty place */
  trace_segment segment;
} kept_segment;

struct reference {
  ls_layout moved_layout;
  ls_executor *child, *moved_child, *probe;
  ls_image *image, *moved_image;
  ls_instruction order[SUBJECT_MAX];
  scan_info infos[SUBJECT_MAX];
  feature_set lacking;
  const subject *s;
  uint32_t limit_ms;
  ls_outcome outcome;
  /* The child's memory and `at` are those with which segment `at_segment` begins, or none's: UINT64_MAX. */
  ls_state at __attribute__((aligned(64)));
  uint64_t at_segment;
  kept_segment kept[SEGMENTS];
  trace_entry entries[ENTRIES_MAX];
  uint32_t used;
  ls_status trouble;
};

/* ---- Making and ending ---- */

static ls_status create_executors(reference *r, ls_error *error) {
  ls_layout layout;
  ls_layout_default(&layout, PROBE_SLOT);
  r->moved_layout = *testcase_layout();
  r->moved_layout.windows[TESTCASE_CODE].address += ELSEWHERE;
  ls_status status = ls_executor_create(LS_PTRACE, testcase_layout(), NULL, &r->child, error);
  if (!status)
    status = ls_executor_create(LS_PTRACE, &r->moved_layout, NULL, &r->moved_child, error);
  return status ? status : ls_executor_create(LS_SIGNAL, &layout, NULL, &r->probe, error);
}

ls_status reference_create(reference **out, ls_error *error) {
  reference *r = aligned_alloc(64, (sizeof *r + 63) / 64 * 64);
  if (!r)
    return no_memory(error, "a reference");
  memset(r, 0, sizeof *r);
  r->image = ls_image_create();
  r->moved_image = ls_image_create();
  ls_status status = r->image && r->moved_image ? LS_OK : no_memory(error, "a code image");
  if (!status)
    status = create_executors(r, error);
  if (!status)
    status = features_probe(r->child, &r->lacking, error);
  r->lacking = features_without(~r->lacking); /* it held what there is */
  if (status) {
    reference_destroy(r);
    return status;
  }
  *out = r;
  return LS_OK;
}

void reference_hide(reference *r, feature_set without) {
  r->lacking |= features_without(without);
}

void reference_destroy(reference *r) {
  if (!r)
    return;
  ls_executor_destroy(r->probe);
  ls_executor_destroy(r->moved_child);
  ls_executor_destroy(r->child);
  ls_image_destroy(r->moved_image);
  ls_image_destroy(r->image);
  free(r);
}

const ls_image *reference_image(const reference *r) {
  return r->image;
}

ls_executor *reference_child(const reference *r) {
  return r->child;
}

ls_status reference_trouble(const reference *r) {
  return r->trouble;
}

/* ---- Running ---- */

static ls_status load_memory(reference *r, ls_executor *child, ls_error *error) {
  return ls_executor_reset(child, r->s->contents.window, error);
}

static ls_status run_once(reference *r, ls_executor *child, const ls_state *from, uint32_t entry,
                          uint64_t fuel, ls_error *error) {
  const ls_run run = {
      .state = from, .entry = entry, .uses = LS_USES_X87, .fuel = fuel, .limit_ms = r->limit_ms};
  return ls_executor_run(child, &run, &r->outcome, error);
}

/* From the start; with one more try if the child was killed from outside. */
static ls_status run_image(reference *r, ls_executor *child, const ls_image *image, uint32_t entry,
                           ls_error *error) {
  ls_status status = LS_OK;
  for (int tries = 0; tries < 2; tries++) {
    status = ls_executor_load(child, image, error);
    if (!status)
      status = load_memory(r, child, error);
    if (!status)
      status = run_once(r, child, &r->s->state, entry, r->s->fuel, error);
    if (status != LS_ERR_CHILD)
      break;
  }
  return status;
}

static void take_ending(const reference *r, inspect_ending *ending) {
  ending->stop = r->outcome.stop;
  ending->state = r->outcome.state;
  ending->code = testcase_layout()->windows[TESTCASE_CODE];
  subject_canonicalise(&ending->state);
  for (uint32_t i = TESTCASE_DATA; i < TESTCASE_WINDOWS; i++)
    memcpy(ending->memory[i], ls_executor_memory(r->child, i), testcase_layout()->windows[i].size);
}

/* ---- Does it matter where the code is? ---- */

static bool same_words(const ls_outcome *a, const inspect_ending *b) {
  ls_state one = a->state, other = b->state;
  const ls_stop *s = &a->stop, *t = &b->stop;
  subject_canonicalise(&one);
  one.rip = other.rip = 0;
  return s->kind == t->kind && s->id == t->id && s->part == t->part && s->signal == t->signal &&
         s->code == t->code && memcmp(&one, &other, sizeof one) == 0;
}

static bool same_memory(const reference *r, const inspect_ending *ending) {
  for (uint32_t i = TESTCASE_DATA; i < TESTCASE_WINDOWS; i++) {
    size_t size = testcase_layout()->windows[i].size - (i == TESTCASE_STACK ? LS_CONTROL_SIZE : 0);
    if (memcmp(ending->memory[i], ls_executor_memory(r->moved_child, i), size) != 0)
      return false;
  }
  return true;
}

/* In another order and in another window: does it end in the same way? What looks at its code, or at where
 * that was, does not. */
static ls_status try_elsewhere(reference *r, subject *s, const inspect_ending *ending, ls_error *error) {
  subject_shuffle(s, r->order);
  const ls_program program = {r->order, s->count, s->flags};
  uint32_t entry = 0;
  while (r->order[entry].id != s->list[s->entry].id)
    entry++;
  s->movable = ls_image_build(r->moved_image, &program, &r->moved_layout, NULL) == LS_OK;
  ls_status status = s->movable ? run_image(r, r->moved_child, r->moved_image, entry, error) : LS_OK;
  if (!status)
    s->movable = s->movable && same_words(&r->outcome, ending) && same_memory(r, ending);
  return status;
}

/* ---- All of it ---- */

static void forget(reference *r, const subject *s) {
  r->s = s;
  r->limit_ms = LIMIT_MS;
  r->used = 0;
  r->at_segment = UINT64_MAX;
  r->trouble = LS_OK;
  memset(r->kept, 0, sizeof r->kept);
}

/* Does an instruction of it need what this processor lacks? */
static bool lacks_feature(const reference *r) {
  feature_set needs = 0;
  for (uint32_t i = 0; i < r->s->count; i++)
    needs |= r->infos[i].needs;
  return needs & r->lacking && !r->s->anywhere;
}

/* Runs it as it is laid out. *reason as reference_run says. */
static ls_status try_program(reference *r, oracle_reason *reason, ls_error *error) {
  const ls_program program = subject_program(r->s);
  bool uses_x87; /* or not: runs of controllers load it anyway */
  ls_status status = admission_of_program(&program, r->image, r->infos, &uses_x87, reason, error);
  if (!status && *reason == REASON_NONE && lacks_feature(r))
    *reason = REASON_FEATURE;
  if (status || *reason != REASON_NONE)
    return status;
  status = run_image(r, r->child, r->image, r->s->entry, error);
  *reason = admission_of_error(status);
  if (status)
    return *reason == REASON_NONE ? status : LS_OK;
  *reason = admission_of_outcome(&r->outcome, r->image, r->probe);
  if (*reason == REASON_NONE && !admission_bears_interrupts(&r->outcome.state))
    *reason = REASON_STACK_POINTER;
  return LS_OK;
}

/* The same once more if it was out of time: a clock ends nothing the first time. */
static ls_status try_patiently(reference *r, oracle_reason *reason, ls_error *error) {
  r->limit_ms = LIMIT_MS;
  ls_status status = try_program(r, reason, error);
  if (status || *reason != REASON_TIMEOUT)
    return status;
  r->limit_ms = PATIENCE * LIMIT_MS;
  status = try_program(r, reason, error);
  r->limit_ms = LIMIT_MS;
  return status;
}

/* For programs that would go on for ever: some for each iteration of the loop that counts, and for others. */
static uint64_t loop_fuel(const subject *s) {
  enum { FOR_EACH = 4, FOR_OTHERS = 1 << 16 };
  return FOR_EACH * s->iterations + FOR_OTHERS;
}

/* Gives a program that goes on for ever the fuel that ends it. Others stay as they are. */
static ls_status bound_loops(reference *r, subject *s, oracle_reason *reason, ls_error *error) {
  const uint64_t fuel = s->fuel;
  const uint32_t flags = s->flags;
  *reason = REASON_NONE;
  if (fuel <= loop_fuel(s))
    return LS_OK;
  s->fuel = loop_fuel(s);
  s->flags |= LS_PROGRAM_FUEL;
  ls_status status = try_patiently(r, reason, error);
  if (!status && *reason == REASON_NONE && r->outcome.stop.kind == LS_STOP_FUEL)
    return LS_OK;
  s->fuel = fuel;
  s->flags = flags;
  return status;
}

ls_status reference_run(reference *r, subject *s, oracle_reason *reason, inspect_ending *ending,
                        ls_error *error) {
  forget(r, s);
  ls_status status = bound_loops(r, s, reason, error);
  if (!status && *reason != REASON_TIMEOUT)
    status = try_patiently(r, reason, error);
  if (status || *reason != REASON_NONE)
    return status;
  take_ending(r, ending);
  if (r->outcome.stop.kind == LS_STOP_FUEL)
    s->movable = false; /* what costs fuel depends on the order */
  return s->movable ? try_elsewhere(r, s, ending, error) : LS_OK;
}

/* ---- States ---- */

uint64_t reference_hash(const ls_state *canonical_state) {
  ls_state state = *canonical_state;
  state.rip = 0;
  return XXH3_64bits(&state, sizeof state);
}

uint64_t reference_segment(const subject *s, const ls_state *state) {
  if (s->counter == LS_NONE)
    return 0;
  uint64_t left = state->gpr[s->counter];
  return left <= s->iterations ? s->iterations - left : UINT64_MAX;
}

/* ---- Stepping through a segment ---- */

typedef struct stepper {
  reference *r;
  uint64_t number;
  trace_entry *entries;
  uint32_t count, room;
  bool over;       /* the next segment has begun */
  bool astray;     /* RSP is not canonical: no program for threads that interrupt; or no step stops next */
  uint64_t wanted; /* this entry's state is copied to */
  ls_state *state; /* or NULL */
} stepper;

/* Inserted code and the gate, where it has left, are no places to be seen at. */
static void add(stepper *t, const ls_state *state) {
  const ls_range *range = ls_image_find(t->r->image, state->rip);
  if ((range && range->part != LS_PART_BODY) || state->rip == testcase_layout()->gate)
    return;
  ls_state clean = *state;
  subject_canonicalise(&clean);
  bool at = range && ls_image_address(t->r->image, range->instruction) == state->rip;
  if (t->state && t->count == t->wanted)
    *t->state = clean;
  t->entries[t->count++] = (trace_entry){.hash = reference_hash(&clean),
                                         .rip = state->rip,
                                         .instruction = at ? range->instruction : LS_NONE,
                                         .repeats = at && t->r->s->repeats[range->instruction]};
  t->astray |= at && t->r->s->loads_ss[range->instruction];
}

static int note_step(const ls_state *state, void *context) {
  stepper *t = context;
  t->astray |= !admission_bears_interrupts(state);
  t->over = reference_segment(t->r->s, state) != t->number;
  if (t->over || t->astray)
    return 1;
  add(t, state);
  return t->count == t->room;
}

static trace_end step_through(reference *r, stepper *t) {
  ls_state from __attribute__((aligned(64))) = r->at;
  uint32_t entry = t->number == 0 ? r->s->entry : subject_turn(r->s);
  from.rip = ls_image_address(r->image, entry);
  from.fs = from.gs = 0;
  r->at_segment = UINT64_MAX;
  add(t, &from);
  const ls_run run = {.state = &from,
                      .entry = entry,
                      .uses = LS_USES_X87,
                      .fuel = PLENTY,
                      .limit_ms = LIMIT_MS,
                      .steps = UINT64_MAX,
                      .visitor = note_step,
                      .context = t};
  r->trouble = ls_executor_run(r->child, &run, &r->outcome, NULL);
  if (r->trouble || t->astray)
    return TRACE_CUT;
  if (t->over) {
    r->at = r->outcome.state;
    r->at_segment = t->number + 1;
    return TRACE_GOES_ON;
  }
  return r->outcome.stop.kind == LS_STOP_STEPS || r->outcome.stop.kind == LS_STOP_TIMEOUT ? TRACE_CUT
                                                                                          : TRACE_ENDS;
}

/* ---- Getting to a segment ---- */

static bool begin_again(reference *r) {
  r->trouble = load_memory(r, r->child, NULL);
  r->at = r->s->state;
  r->at_segment = r->trouble ? UINT64_MAX : 0;
  return !r->trouble;
}

static uint64_t saved_rcx(const reference *r) {
  const uint8_t *stack = ls_executor_memory(r->child, TESTCASE_STACK);
  uint64_t value;
  memcpy(&value, stack + (subject_saved() - testcase_layout()->windows[TESTCASE_STACK].address),
         sizeof value);
  return value;
}

/* Runs to where segment `number` begins: with so small a counter that the loop ends there, which nothing but
 * the loop itself can see. False if the program ends before. */
static bool run_to(reference *r, uint64_t number) {
  const subject *s = r->s;
  ls_state from __attribute__((aligned(64))) = r->at;
  uint32_t entry = r->at_segment == 0 ? s->entry : subject_turn(s);
  from.gpr[s->counter] = number - r->at_segment;
  from.fs = from.gs = 0;
  r->at_segment = UINT64_MAX;
  r->trouble = run_once(r, r->child, &from, entry, PLENTY, NULL);
  const ls_stop *stop = &r->outcome.stop;
  if (r->trouble || stop->kind != LS_STOP_EXIT || stop->instruction != subject_exit(s))
    return false;
  r->at = r->outcome.state;
  r->at.gpr[s->counter] = s->iterations - number;
  r->at.gpr[LS_RCX] = saved_rcx(r);
  r->at_segment = number;
  return true;
}

/* Goes there from the nearest known state before it. */
static bool get_to(reference *r, uint64_t number) {
  if (r->at_segment > number && !begin_again(r))
    return false;
  return r->at_segment == number || run_to(r, number);
}

static trace_segment collect(reference *r, uint64_t number) {
  stepper t = {.r = r, .number = number, .entries = r->entries + r->used, .room = ENTRIES_MAX - r->used};
  t.room = t.room < SEGMENT_MAX ? t.room : SEGMENT_MAX;
  if (r->trouble || t.room < 2)
    return (trace_segment){NULL, 0, TRACE_CUT};
  if (!get_to(r, number))
    return (trace_segment){NULL, 0,
                           r->trouble || r->outcome.stop.kind == LS_STOP_TIMEOUT ? TRACE_CUT : TRACE_ENDS};
  trace_end end = step_through(r, &t);
  r->used += t.count;
  return (trace_segment){t.entries, t.count, end};
}

static trace_segment segment_of(void *context, uint64_t number) {
  reference *r = context;
  if (number > r->s->iterations)
    return (trace_segment){NULL, 0, TRACE_ENDS};
  kept_segment *place = &r->kept[number % SEGMENTS];
  if (place->number != number + 1) {
    place->segment = collect(r, number);
    place->number = number + 1;
  }
  return place->segment;
}

trace reference_trace(reference *r) {
  return (trace){segment_of, r};
}

bool reference_state(reference *r, uint64_t segment, uint64_t offset, ls_state *state) {
  static trace_entry room[SEGMENT_MAX];
  r->trouble = LS_OK;
  if (segment > r->s->iterations || !get_to(r, segment))
    return false;
  stepper t = {
      .r = r, .number = segment, .entries = room, .room = SEGMENT_MAX, .wanted = offset, .state = state};
  step_through(r, &t);
  return offset < t.count;
}

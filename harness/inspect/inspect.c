#include "inspect/inspect_inner.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "forms/scan.h"
#include "inspect/strikes.h"
#include "no_memory.h"
#include "oracle/admission.h"

/* ---- Making and ending ---- */

ls_status inspector_create(inspector **out, const crew_options *options, ls_error *error) {
  inspector *i = aligned_alloc(64, (sizeof *i + 63) / 64 * 64);
  if (!i)
    return no_memory(error, "an inspector");
  memset(i, 0, sizeof *i);
  ls_status status = reference_create(&i->reference, error);
  if (!status)
    status = crew_create(&i->crew, options, error);
  if (status) {
    inspector_destroy(i);
    return status;
  }
  *out = i;
  return LS_OK;
}

void inspector_destroy(inspector *i) {
  if (!i)
    return;
  crew_destroy(i->crew);
  reference_destroy(i->reference);
  free(i);
}

void inspector_hide(inspector *i, feature_set without) {
  reference_hide(i->reference, without);
}

ls_executor *inspector_reference(const inspector *i) {
  return reference_child(i->reference);
}

/* ---- How it ended ---- */

static bool in_window(uint64_t address, const ls_window *w) {
  return address - w->address < w->size;
}

/* In the code window, or in the one before it: it may have moved after the guest had stopped. */
static bool in_code(const inspect_ending *e) {
  return in_window(e->stop.address, &e->code) ||
         in_window(e->stop.address, &testcase_layout()->windows[TESTCASE_CODE]);
}

static const char *stop_difference(const inspect_ending *one, const inspect_ending *other, bool moves) {
  const ls_stop *a = &one->stop, *b = &other->stop;
  if (a->kind != b->kind)
    return "it did not end in the same way";
  if (a->id != b->id || a->part != b->part || (!moves && a->instruction != b->instruction))
    return "it did not end at the same instruction";
  bool same_address = a->address == b->address || (moves && in_code(one) && in_code(other));
  if (a->signal != b->signal || a->code != b->code || !same_address)
    return "it did not end with the same fault";
  return a->number != b->number ? "it did not end with the same system call" : NULL;
}

/* The control cells hold what depends on the order of the instructions, and on how often it was begun. */
static bool memory_differs(const inspector *i, const inspect_ending *a, const inspect_ending *b) {
  bool whole = !i->plan.moves && i->got.stop.kind == LS_STOP_FUEL;
  for (uint32_t w = TESTCASE_DATA; w < TESTCASE_WINDOWS; w++) {
    size_t size = testcase_layout()->windows[w].size - (w == TESTCASE_STACK && !whole ? LS_CONTROL_SIZE : 0);
    if (memcmp(a->memory[w], b->memory[w], size) != 0)
      return true;
  }
  return false;
}

static const char *ending_difference(const inspector *i, const inspect_ending *a, const inspect_ending *b) {
  ls_state one = a->state, other = b->state;
  const char *what = stop_difference(a, b, i->plan.moves);
  if (what)
    return what;
  if (i->plan.moves)
    one.rip = other.rip = 0;
  if (memcmp(&one, &other, sizeof one) != 0)
    return "it ended with another state";
  return memory_differs(i, a, b) ? "it ended with other memory" : NULL;
}

/* ---- What was seen ---- */

static const char *position_trouble(const inspector *i, const ls_position *p) {
  const subject *s = &i->subject;
  uint32_t index = subject_index(s, p->id);
  if (p->part != LS_PART_BODY)
    return "a guest that is not idle was seen in inserted code";
  if (p->instruction == LS_NONE)
    return p->id ? "a guest at no instruction has an id" : NULL;
  if (index == LS_NONE)
    return "a guest was seen at an id that no instruction has";
  return !i->plan.moves && index != p->instruction ? "an id and an index belong to different instructions"
                                                   : NULL;
}

/* What an idle guest can look like: as it was given, as it ended, or as a cancelled run left it. */
static bool idle_is_known(const inspector *i, const ls_state *canonical) {
  ls_state given = i->subject.state;
  subject_canonicalise(&given);
  uint64_t hash = reference_hash(canonical);
  if (hash == reference_hash(&given) || hash == reference_hash(&i->got.state))
    return true;
  const journal *j = crew_journal(i->crew, GUEST_JOURNAL);
  for (uint32_t n = 0; n < j->count; n++) {
    ls_state state = j->looks[n].state;
    subject_canonicalise(&state);
    if (j->looks[n].stopped && reference_hash(&state) == hash)
      return true;
  }
  return false;
}

static bool is_sight(const look *l) {
  return l->stopped || l->relation == SIGHT_NO_STEPS || l->relation == SIGHT_NO_UNTIL ||
         l->position.activity != LS_IDLE;
}

static void blame(inspector *i, const char *trouble, const look *at) {
  if (i->trouble)
    return;
  i->trouble = trouble;
  i->at = at;
}

static void judge_alone(inspector *i, const look *l, const ls_state *canonical) {
  if (l->stopped)
    return;
  if (l->position.activity != LS_IDLE)
    blame(i, position_trouble(i, &l->position), l);
  else if (!idle_is_known(i, canonical))
    blame(i, "an idle guest is neither as it was before it ran nor as it was after", l);
}

static void make_sight(inspector *i, const look *l, uint32_t first, const ls_state *canonical,
                       uint32_t number) {
  sight *s = &i->sights[i->count];
  *s = (sight){.begin = l->begin,
               .end = l->end,
               .segment = reference_segment(&i->subject, canonical),
               .hash = reference_hash(canonical),
               .rip = i->plan.moves || l->stopped ? 0 : l->state.rip,
               .instruction = subject_index(&i->subject, l->position.id),
               .relation = l->relation,
               .from = l->from == LS_NONE ? NULL : i->order[first + l->from],
               .count = l->count,
               .target = l->target};
  i->looks[i->count] = l;

  i->order[first + (uint32_t)(l - crew_journal(i->crew, number)->looks)] = s;
  i->count++;
}

/* The order of the sights of a journal is that of its looks until all are there, so that relations are found.
 */
static void take_journal(inspector *i, uint32_t number) {
  const journal *j = crew_journal(i->crew, number);
  uint32_t first = number * LOOKS_MAX;
  for (uint32_t n = 0; n < j->count; n++) {
    const look *l = &j->looks[n];
    ls_state state = l->state;
    subject_canonicalise(&state);
    if (l->relation == SIGHT_NO_STEPS || l->relation == SIGHT_NO_UNTIL) {
      if (i->got.stop.kind != LS_STOP_FUEL) /* which the trace knows nothing of */
        make_sight(i, l, first, &state, number);
      continue;
    }
    i->counts.sights[l->position.activity]++;
    i->struck |= l->position.activity != LS_IDLE;
    judge_alone(i, l, &state);
    if (is_sight(l))
      make_sight(i, l, first, &state, number);
  }
}

static void take_sights(inspector *i) {
  i->count = 0;
  i->struck = false;
  for (uint32_t n = 0; n < JOURNALS; n++)
    take_journal(i, n);
  for (uint32_t n = 0; n < i->count; n++)
    i->order[n] = &i->sights[n];
}

static void check_seen(inspector *i) {
  const trace t = reference_trace(i->reference);
  take_sights(i);
  if (!check_sights(&t, i->order, i->count, !i->subject.wild, &i->check))
    blame(i, i->check.trouble, i->looks[i->check.at]);
  i->counts.checked += i->check.checked;
  i->counts.unknown += i->check.unknown;
  i->counts.relations += i->check.counted;
  i->counts.struck += i->struck;
  i->counts.proved += i->check.checked && !i->check.unknown;
  i->counts.cut += i->check.unknown != 0;
  i->counts.unseen += !i->check.checked && !i->check.unknown;
}

/* ---- One input ---- */

static void count_strike(inspector *i, uint64_t address) {
  enum { GATE_ROOM = LS_GATE_SIZE };
  const uint64_t inner = testcase_layout()->gate ^ UINT64_C(0x1000000000); /* what LS_GATE_SIZE reserves */
  const ls_range *range = ls_image_find(reference_image(i->reference), address);
  if (range && range->part != LS_PART_BODY)
    i->counts.in_inserted++;
  else if (range)
    i->counts.in_body++;
  else if (address - inner < GATE_ROOM || address - testcase_layout()->gate < GATE_ROOM)
    i->counts.in_gate++;
  else
    i->counts.in_host++;
}

static void count_strikes(inspector *i) {
  uint32_t last = strikes_count(), first = crew_strikes(i->crew);
  for (uint32_t n = last - first > STRIKES_ROOM ? last - STRIKES_ROOM : first; n != last; n++)
    count_strike(i, strikes_address(n));
}

static void count_program(inspector *i) {
  if (!i->plan.moves && i->subject.kind == LS_SIGNAL)
    count_strikes(i);
  i->counts.programs++;
  i->counts.looped += i->subject.counter != LS_NONE;
  i->counts.moved += i->plan.moves;
  i->counts.wild += i->subject.wild;
  i->counts.by_reference += i->subject.kind == LS_PTRACE;
  i->counts.stops[i->got.stop.kind]++;
}

/* *reason: the child was lost, which says nothing. */
static ls_status inspect(inspector *i, oracle_reason *reason, ls_error *error) {
  bool ended = false;
  plan_make(&i->plan, &i->subject);
  ls_status status = crew_run(i->crew, &i->subject, &i->plan, &i->got, &ended, error);
  blame(i, crew_trouble(i->crew), NULL);
  if (status == LS_ERR_CHILD)
    *reason = admission_of_error(status);
  if (status)
    return i->trouble || status == LS_ERR_CHILD ? LS_OK : status;
  count_program(i);
  check_seen(i);
  if (ended)
    blame(i, ending_difference(i, &i->expected, &i->got), NULL);
  return LS_OK;
}

/* A reference that does not agree with itself says nothing. */
static ls_status confirm(inspector *i, oracle_reason *reason, ls_error *error) {
  static subject copy;
  memcpy(&copy, &i->subject, sizeof copy);
  ls_status status = reference_run(i->reference, &copy, reason, &i->again, error);
  if (!status && *reason == REASON_NONE &&
      (memcmp(&i->again.state, &i->expected.state, sizeof i->again.state) != 0 ||
       stop_difference(&i->again, &i->expected, false)))
    *reason = REASON_REFERENCE_UNSTABLE;
  if (!status)
    status = reference_run(i->reference, &i->subject, &(oracle_reason){REASON_NONE}, &i->again, error);
  return status;
}

ls_status inspector_run(inspector *i, const uint8_t *data, size_t size, inspect_verdict *what,
                        ls_error *error) {
  oracle_reason reason;
  i->trouble = NULL;
  i->at = NULL;
  i->count = 0;
  subject_decode(&i->subject, data, size);
  ls_status status = reference_run(i->reference, &i->subject, &reason, &i->expected, error);
  if (!status && reason == REASON_NONE)
    status = inspect(i, &reason, error);
  if (!status && i->trouble)
    status = confirm(i, &reason, error);
  if (status)
    return status;
  i->counts.left_out[reason]++;
  i->reason = reason;
  i->verdict = reason ? INSPECT_LEFT_OUT : i->trouble ? INSPECT_DIFFERENT : INSPECT_SAME;
  *what = i->verdict;
  return LS_OK;
}

const char *inspector_trouble(const inspector *i) {
  return i->trouble;
}

oracle_reason inspector_reason(const inspector *i) {
  return i->reason;
}

/* ---- What it did ---- */

static void set(uint8_t *counters, size_t size, const uint64_t key[3]) {
  counters[XXH3_64bits(key, 3 * sizeof *key) & (size - 1)] = 1;
}

void inspector_note(const inspector *i, uint8_t *counters, size_t size) {
  const subject *s = &i->subject;
  for (uint32_t n = 0; n < i->count; n++) {
    const look *l = i->looks[n];
    uint32_t index = subject_index(s, l->position.id);
    uint64_t form = index == LS_NONE ? FORM_NONE : scan_instruction(&s->list[index]).form;
    set(counters, size, (const uint64_t[]){1, form, l->position.activity});
    set(counters, size, (const uint64_t[]){2, l->relation, i->sights[n].between});
  }
  for (uint32_t t = 0; t < i->plan.requesters; t++)
    for (uint32_t n = 0; n < i->plan.count; n++)
      set(counters, size,
          (const uint64_t[]){3, i->plan.requests[t][n].kind, crew_journal(i->crew, t)->answers[n].status});
  set(counters, size, (const uint64_t[]){4, i->got.stop.kind, i->got.stop.part});
}

const inspect_counts *inspector_counts(const inspector *i) {
  return &i->counts;
}

static unsigned long long in_percent(uint64_t part, uint64_t whole) {
  return whole ? 100 * (unsigned long long)part / whole : 0;
}

void inspector_print_counts(FILE *to, const inspector *i) {
  const inspect_counts *c = &i->counts;
  const crew_counts *done = crew_counts_of(i->crew);
  uint64_t sights = c->sights[LS_IDLE] + c->sights[LS_RUNNING] + c->sights[LS_PAUSED];
  fprintf(to, "%" PRIu64 " programs inspected, %" PRIu64 " (%llu %%) caught while they ran or were paused\n",
          c->programs, c->struck, in_percent(c->struck, c->programs));
  fprintf(to,
          "  %" PRIu64 " with a loop, %" PRIu64 " with code that moves, %" PRIu64 " wild, %" PRIu64
          " in the reference's kind\n",
          c->looped, c->moved, c->wild, c->by_reference);
  fprintf(to,
          "  all sights found in the trace: %" PRIu64 "; some where it is cut: %" PRIu64
          "; nothing to check but the end: %" PRIu64 "\n",
          c->proved, c->cut, c->unseen);
  fprintf(to, "%" PRIu64 " looks: %" PRIu64 " idle, %" PRIu64 " running, %" PRIu64 " paused\n", sights,
          c->sights[LS_IDLE], c->sights[LS_RUNNING], c->sights[LS_PAUSED]);
  fprintf(to, "  %" PRIu64 " found in the trace, %" PRIu64 " where it is cut; %" PRIu64 " relations proved\n",
          c->checked, c->unknown, c->relations);
  fprintf(to,
          "  %" PRIu64 " samples, %" PRIu64 " runs cancelled, %" PRIu64 " lost their instruction, %" PRIu64
          " windows grown\n",
          done->samples, done->cancelled, done->gone, done->grown);
  fprintf(to,
          "interrupts that struck code which stays: %" PRIu64 " instructions, %" PRIu64
          " inserted ones, %" PRIu64 " in the gate, %" PRIu64 " in the host\n",
          c->in_body, c->in_inserted, c->in_gate, c->in_host);
  fprintf(to, "requests (done, answered: OK, idle, superseded):\n");
  for (int k = 0; k < REQUEST_KINDS; k++)
    fprintf(to, "  %-12s %8" PRIu64 "  %8" PRIu64 " %8" PRIu64 " %8" PRIu64 "\n", request_name(k),
            done->requests[k], done->answers[k][0], done->answers[k][1], done->answers[k][2]);
  fprintf(to, "ended:");
  for (int k = 0; k < LS_STOP_KINDS; k++)
    fprintf(to, " %s %" PRIu64, ls_stop_kind_name(k), c->stops[k]);
  fprintf(to, "\nleft out:");
  for (int k = REASON_NONE + 1; k < ORACLE_REASONS; k++)
    if (c->left_out[k])
      fprintf(to, " %s %" PRIu64, oracle_reason_name(k), c->left_out[k]);
  fputc('\n', to);
}

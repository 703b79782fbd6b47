#include "inspect/check.h"

#include <stdlib.h>

enum { TRIES = 256, SEGMENTS_AHEAD = 6 };

typedef struct place {
  uint64_t segment, offset;
} place;

static bool before(place a, place b) {
  return a.segment != b.segment ? a.segment < b.segment : a.offset < b.offset;
}

/* ---- Where in the trace ---- */

static bool is_at(const sight *s, const trace_entry *e) {
  return s->instruction == e->instruction && (!s->rip || s->rip == e->rip);
}

typedef enum found { FOUND_NOT, FOUND, FOUND_BETWEEN, FOUND_UNKNOWN } found;

/* The first entry at or after *offset of the sight's segment that it can be. */
static found find(const trace *t, const sight *s, uint64_t *offset) {
  const trace_segment segment = t->segment(t->context, s->segment);
  uint64_t repeated = segment.count;
  for (uint64_t i = *offset; i < segment.count; i++) {
    const trace_entry *e = &segment.entries[i];
    if (!is_at(s, e))
      continue;
    if (s->hash == e->hash) {
      *offset = i;
      return FOUND;
    }
    if (e->repeats && repeated == segment.count)
      repeated = i;
  }
  *offset = repeated;
  if (repeated < segment.count)
    return FOUND_BETWEEN;
  return segment.end == TRACE_CUT ? FOUND_UNKNOWN : FOUND_NOT;
}

/* ---- Walking on ---- */

typedef enum walked { WALKED, WALKED_TO_END, WALKED_TO_CUT } walked;

/* `repeated` becomes true if a repeated instruction was on the way. */
typedef struct walk {
  const trace *t;
  trace_segment segment;
  place at;
  bool repeated;
} walk_on;

static const trace_entry *entry_at(const walk_on *w) {
  return &w->segment.entries[w->at.offset];
}

static walked step_on(walk_on *w) {
  w->repeated |= entry_at(w)->repeats;
  if (++w->at.offset < w->segment.count)
    return WALKED;
  if (w->segment.end != TRACE_GOES_ON)
    return w->segment.end == TRACE_ENDS ? WALKED_TO_END : WALKED_TO_CUT;
  w->at = (place){w->at.segment + 1, 0};
  w->segment = w->t->segment(w->t->context, w->at.segment);
  if (w->segment.count)
    return WALKED;
  return w->segment.end == TRACE_ENDS ? WALKED_TO_END : WALKED_TO_CUT;
}

static walk_on walk_from(const trace *t, const sight *s, uint64_t offset) {
  return (walk_on){.t = t, .segment = t->segment(t->context, s->segment), .at = {s->segment, offset}};
}

/* Goes on to where the relation of `s` says. The segments on the way are few, or it is not known. */
static walked walk_relation(walk_on *w, const sight *s) {
  bool until = s->relation == SIGHT_UNTIL || s->relation == SIGHT_NO_UNTIL;
  uint64_t last = w->at.segment + SEGMENTS_AHEAD;
  for (uint64_t done = 0; until || done < s->count; done++) {
    walked how = step_on(w);
    if (how != WALKED)
      return how;
    if (until && entry_at(w)->instruction == s->target)
      return WALKED;
    if (until && w->at.segment > last)
      return WALKED_TO_CUT;
  }
  return WALKED;
}

/* ---- Relations ---- */

typedef enum proof { PROVED, REFUTED, OPEN } proof;

/* Does it hold if `from` was seen at that entry? */
static proof holds_from(const trace *t, const sight *s, uint64_t offset) {
  walk_on w = walk_from(t, s->from, offset);
  walked how = walk_relation(&w, s);
  if (how == WALKED_TO_CUT)
    return OPEN;
  if (s->relation == SIGHT_NO_STEPS || s->relation == SIGHT_NO_UNTIL)
    return how == WALKED_TO_END ? PROVED : w.repeated && s->relation == SIGHT_NO_STEPS ? OPEN : REFUTED;
  if (how == WALKED && w.at.segment == s->segment && is_at(s, entry_at(&w)) && s->hash == entry_at(&w)->hash)
    return PROVED;
  /* Steps and pauses may count repetitions one by one. */
  return w.repeated || (how == WALKED && entry_at(&w)->repeats) ? OPEN : REFUTED;
}

/* A loop that changes nothing has many entries that `from` can be: one must do. */
static proof prove(const trace *t, const sight *s) {
  const sight *from = s->from;
  if (s->relation == SIGHT_SAME)
    return from->segment == s->segment && from->hash == s->hash && from->instruction == s->instruction
               ? PROVED
               : REFUTED;
  if (!from->known || from->between)
    return OPEN;
  uint64_t offset = from->offset;
  for (int tries = 0; tries < TRIES; tries++, offset++) {
    found f = find(t, from, &offset);
    if (f != FOUND)
      return f == FOUND_UNKNOWN ? OPEN : REFUTED;
    proof p = holds_from(t, s, offset);
    if (p != REFUTED)
      return p;
  }
  return OPEN;
}

static const char *complaint(const sight *s) {
  switch (s->relation) {
  case SIGHT_SAME:
    return "the guest went on while it was paused";
  case SIGHT_STEPS:
    return "it did not execute as many instructions as were asked for";
  case SIGHT_UNTIL:
    return "it is not where it was to run to, the first time it gets there";
  case SIGHT_NO_STEPS:
    return "a step found the guest at its end, which it is not near";
  case SIGHT_NO_UNTIL:
    return "running to an instruction found the guest at its end, but it comes to that instruction before";
  default:
    return "";
  }
}

/* ---- All together ---- */

/* In the order of their beginnings. */
typedef struct ordered {
  sight *seen;
  uint32_t given; /* index among those that were given */
} ordered;

static int by_begin(const void *a, const void *b) {
  const sight *x = ((const ordered *)a)->seen, *y = ((const ordered *)b)->seen;
  return x->begin < y->begin ? -1 : x->begin > y->begin;
}

static bool has_state(const sight *s) {
  return s->relation != SIGHT_NO_STEPS && s->relation != SIGHT_NO_UNTIL;
}

/* The latest place that somebody had seen before this sight began. */
static place seen_before(const ordered *sights, uint32_t index) {
  place latest = {0, 0};
  for (uint32_t i = 0; i < index; i++) {
    const sight *s = sights[i].seen;
    place p = {s->segment, s->offset};
    if (s->known && s->end < sights[index].seen->begin && before(latest, p))
      latest = p;
  }
  return latest;
}

static bool went_back(const sight *s, place earliest) {
  return s->segment < earliest.segment;
}

/* Finds the sight its place. */
static const char *locate(const trace *t, const ordered *sights, uint32_t index, check_result *result) {
  sight *s = sights[index].seen;
  place earliest = seen_before(sights, index);
  s->offset = s->segment == earliest.segment ? earliest.offset : 0;
  uint64_t anywhere = 0;
  found f = went_back(s, earliest) ? FOUND_NOT : find(t, s, &s->offset);
  if (f == FOUND_UNKNOWN) {
    result->unknown++;
    return NULL;
  }
  if (f == FOUND_NOT && find(t, s, &anywhere) == FOUND)
    return "what was seen lies before what had been seen already";
  if (f == FOUND_NOT)
    return "this is no state of the reference";
  s->known = true;
  s->between = f == FOUND_BETWEEN;
  result->checked++;
  return NULL;
}

static ordered *put_in_order(sight *const *given, uint32_t count) {
  ordered *sights = malloc((count + 1) * sizeof *sights);
  if (!sights)
    return NULL;
  for (uint32_t i = 0; i < count; i++) {
    sights[i] = (ordered){given[i], i};
    given[i]->known = given[i]->between = false;
  }
  qsort(sights, count, sizeof *sights, by_begin);
  return sights;
}

static const char *judge(const trace *t, const ordered *sights, uint32_t index, bool exact,
                         check_result *result) {
  const sight *s = sights[index].seen;
  const char *trouble = has_state(s) ? locate(t, sights, index, result) : NULL;
  if (trouble || !exact || s->relation == SIGHT_FREE)
    return trouble;
  proof p = prove(t, s);
  result->counted += p == PROVED;
  return p == REFUTED ? complaint(s) : NULL;
}

bool check_sights(const trace *t, sight *const *given, uint32_t count, bool exact, check_result *result) {
  *result = (check_result){.at = LS_NONE};
  ordered *sights = put_in_order(given, count);
  if (!sights) {
    result->unknown = count;
    return true;
  }
  for (uint32_t i = 0; i < count && !result->trouble; i++) {
    result->trouble = judge(t, sights, i, exact, result);
    if (result->trouble)
      result->at = sights[i].given;
  }
  free(sights);
  return !result->trouble;
}

#include "inspect/plan.h"

#include "words.h"

enum { STEPS_MAX = 60, STEPS_MANY = 400, SPIN_BITS = 16 };

const char *request_name(request_kind kind) {
  static const char *const names[REQUEST_KINDS] = {
      [REQUEST_LOOK] = "look",
      [REQUEST_VISIT] = "visit",
      [REQUEST_HOLD] = "hold",
      [REQUEST_STEP] = "step",
      [REQUEST_UNTIL] = "until",
      [REQUEST_CHANGE] = "change",
      [REQUEST_MOVE] = "move",
      [REQUEST_RELOAD] = "reload",
      [REQUEST_CANCEL] = "cancel",
      [REQUEST_GONE] = "gone",
      [REQUEST_SAMPLE] = "sample",
      [REQUEST_SAMPLES_READ] = "samples-read",
      [REQUEST_SAMPLE_STOP] = "sample-stop",
      [REQUEST_PAUSE] = "pause",
      [REQUEST_RESUME] = "resume",
      [REQUEST_BARE_STEP] = "bare-step",
      [REQUEST_BARE_UNTIL] = "bare-until",
  };
  return (unsigned)kind < REQUEST_KINDS ? names[kind] : "unknown";
}

/* How often each is drawn, in orderly and in wild schedules. */
static const uint8_t weights[2][REQUEST_KINDS] = {
    {[REQUEST_LOOK] = 8,
     [REQUEST_VISIT] = 5,
     [REQUEST_HOLD] = 3,
     [REQUEST_STEP] = 5,
     [REQUEST_UNTIL] = 4,
     [REQUEST_CHANGE] = 2,
     [REQUEST_MOVE] = 2,
     [REQUEST_RELOAD] = 4,
     [REQUEST_CANCEL] = 1,
     [REQUEST_GONE] = 1,
     [REQUEST_SAMPLE] = 1,
     [REQUEST_SAMPLES_READ] = 1,
     [REQUEST_SAMPLE_STOP] = 1},
    {[REQUEST_LOOK] = 6,
     [REQUEST_VISIT] = 4,
     [REQUEST_RELOAD] = 4,
     [REQUEST_CANCEL] = 1,
     [REQUEST_SAMPLE] = 1,
     [REQUEST_SAMPLES_READ] = 1,
     [REQUEST_SAMPLE_STOP] = 1,
     [REQUEST_PAUSE] = 3,
     [REQUEST_RESUME] = 3,
     [REQUEST_BARE_STEP] = 4,
     [REQUEST_BARE_UNTIL] = 3},
};

/* Fuel is counted from the start of each execution. What is left when an instruction is taken away lies
 * elsewhere. */
static bool bearable(const subject *s, request_kind kind) {
  if (kind == REQUEST_GONE && !s->movable)
    return false;
  return s->fuel >= UINT32_MAX || (kind != REQUEST_CANCEL && kind != REQUEST_GONE);
}

/* Half of the schedules do without some kinds, each its own, so that what is left stands closer together. */
static uint32_t weight_of(const subject *s, request_kind kind) {
  bool left_out = s->mix & 1 && (s->mix * 0x9e37u >> (kind % 13)) & 1;
  return bearable(s, kind) && (!left_out || kind == REQUEST_LOOK) ? weights[s->wild][kind] : 0;
}

static request_kind draw_kind(const subject *s, rng *r) {
  uint32_t total = 0;
  for (int k = 0; k < REQUEST_KINDS; k++)
    total += weight_of(s, (request_kind)k);
  uint32_t draw = rng_below(r, total), kind = 0;
  while (draw >= weight_of(s, (request_kind)kind))
    draw -= weight_of(s, (request_kind)kind++);
  return (request_kind)kind;
}

/* Any order of magnitude up to that of a run. */
static uint32_t draw_delay(rng *r) {
  return rng_one_in(r, 3) ? 0 : rng_below(r, 1u << rng_below(r, SPIN_BITS));
}

static request draw(const subject *s, rng *r) {
  request q = {.kind = draw_kind(s, r), .delay = draw_delay(r)};
  q.count = 1 + (rng_one_in(r, 3) ? 0 : rng_below(r, rng_one_in(r, 16) ? STEPS_MANY : STEPS_MAX));
  q.target = rng_below(r, s->count);
  q.other = rng_one_in(r, 2);
  q.stay = !rng_one_in(r, 3);
  q.grow = q.kind == REQUEST_RELOAD && s->movable && rng_one_in(r, 16);
  return q;
}

void plan_make(plan *p, const subject *s) {
  rng r = {s->seed ^ UINT64_C(0x5c4ed)};
  p->requesters = s->requesters;
  p->count = s->requests;
  p->begins_paused = !rng_one_in(&r, 3);
  p->moves = p->grows = false;
  for (uint32_t i = 0; i < p->requesters; i++)
    for (uint32_t j = 0; j < p->count; j++) {
      request *q = &p->requests[i][j];
      *q = draw(s, &r);
      p->moves |= q->kind == REQUEST_GONE || (q->kind == REQUEST_RELOAD && q->other && s->movable) || q->grow;
      p->grows |= q->grow;
    }
}

void plan_print_request(FILE *to, const request *r) {
  fprintf(to, "%s after %u", request_name(r->kind), r->delay);
  switch (r->kind) {
  case REQUEST_STEP:
  case REQUEST_BARE_STEP:
    fprintf(to, ", %u %s", r->count, word_for(r->count, "step", "steps"));
    break;
  case REQUEST_UNTIL:
  case REQUEST_BARE_UNTIL:
  case REQUEST_MOVE:
    fprintf(to, ", #%u", r->target);
    break;
  default:
    break;
  }
  fprintf(to, "%s%s%s", r->other ? ", other way" : "", r->stay ? ", stays paused" : "",
          r->grow ? ", grows" : "");
}

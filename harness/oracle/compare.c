/* Two outcomes side by side. */
#include "oracle/compare.h"

#include <signal.h>
#include <string.h>
#include <xxhash.h>

enum { MEMORY_RUN = 16 };

const char *piece_name(piece p) {
  static const char *const names[] = {"stop kind", "place",    "signal", "code", "address",
                                      "number",    "register", "memory", "host"};
  return (unsigned)p < sizeof names / sizeof *names ? names[p] : "unknown";
}

void outcome_canonicalise(ls_outcome *outcome) {
  ls_state_canonicalise(&outcome->state);
}

static int stop_equal(const ls_stop *a, const ls_stop *b) {
  return a->kind == b->kind && a->instruction == b->instruction && a->part == b->part &&
         a->signal == b->signal && a->code == b->code && a->address == b->address && a->number == b->number;
}

int outcome_equal(const ls_outcome *a, const ls_outcome *b, ls_executor *memory_a, ls_executor *memory_b) {
  uint32_t window = 0;
  uint64_t offset = 0;
  return stop_equal(&a->stop, &b->stop) && memcmp(&a->state, &b->state, sizeof a->state) == 0 &&
         (!memory_a || !memory_b || !ls_memory_difference(memory_a, memory_b, &window, &offset));
}

static difference *add(comparison *result, piece p) {
  static difference overflow; /* counted, not kept */
  difference *d = result->kept < DIFFERENCES_MAX ? &result->list[result->kept++] : &overflow;
  result->count++;
  memset(d, 0, sizeof *d);
  d->piece = p;
  return d;
}

static void compare_number(comparison *result, piece p, uint64_t a, uint64_t b) {
  if (a == b)
    return;
  difference *d = add(result, p);
  memcpy(d->a, &a, sizeof a);
  memcpy(d->b, &b, sizeof b);
}

/* One number for instruction and part: they are one piece. */
static uint64_t place(const ls_stop *stop) {
  return (uint64_t)stop->part << 32 | stop->instruction;
}

static void compare_stops(comparison *result, const ls_stop *a, const ls_stop *b) {
  compare_number(result, PIECE_STOP_KIND, a->kind, b->kind);
  compare_number(result, PIECE_STOP_PLACE, place(a), place(b));
  compare_number(result, PIECE_SIGNAL, (uint64_t)a->signal, (uint64_t)b->signal);
  compare_number(result, PIECE_CODE, (uint64_t)a->code, (uint64_t)b->code);
  compare_number(result, PIECE_ADDRESS, a->address, b->address);
  compare_number(result, PIECE_NUMBER, a->number, b->number);
}

static void compare_registers(comparison *result, const ls_state *a, const ls_state *b) {
  size_t count;
  const ls_register *table = ls_registers(&count);
  for (size_t row = 0; ls_state_difference(a, b, &row); row++) {
    difference *d = add(result, PIECE_REGISTER);
    d->row = (uint32_t)row;
    d->length = table[row].size;
    memcpy(d->a, (const char *)a + table[row].offset, table[row].size);
    memcpy(d->b, (const char *)b + table[row].offset, table[row].size);
  }
}

/* Bytes from the first differing one to the last differing one within MEMORY_RUN. */
static uint32_t run_length(const uint8_t *a, const uint8_t *b, uint64_t rest) {
  uint32_t length = 1;
  for (uint32_t i = 1; i < MEMORY_RUN && i < rest; i++)
    if (a[i] != b[i])
      length = i + 1;
  return length;
}

static void compare_memory(comparison *result, ls_executor *a, ls_executor *b) {
  const ls_layout *layout = ls_executor_layout(a);
  uint32_t window = 0;
  uint64_t offset = 0;
  while (ls_memory_difference(a, b, &window, &offset)) {
    const uint8_t *bytes_a = (const uint8_t *)ls_executor_memory(a, window) + offset;
    const uint8_t *bytes_b = (const uint8_t *)ls_executor_memory(b, window) + offset;
    difference *d = add(result, PIECE_MEMORY);
    d->window = window;
    d->offset = offset;
    d->length = run_length(bytes_a, bytes_b, layout->windows[window].size - offset);
    memcpy(d->a, bytes_a, d->length);
    memcpy(d->b, bytes_b, d->length);
    offset += d->length;
  }
}

void outcome_compare(const ls_outcome *a, const ls_outcome *b, ls_executor *memory_a, ls_executor *memory_b,
                     comparison *result) {
  result->count = 0;
  result->kept = 0;
  compare_stops(result, &a->stop, &b->stop);
  compare_registers(result, &a->state, &b->state);
  if (memory_a && memory_b)
    compare_memory(result, memory_a, memory_b);
}

void comparison_add_host(comparison *result, const host_watch *harm) {
  for (uint32_t i = 0; i < harm->count && i < HOST_CHANGES_MAX; i++) {
    const host_change *c = &harm->changes[i];
    difference *d = add(result, PIECE_HOST);
    d->name = c->name;
    memcpy(d->a, &c->before, sizeof c->before);
    memcpy(d->b, &c->after, sizeof c->after);
  }
}

outcome_digest outcome_digest_of(const ls_outcome *canonical, ls_executor *memory) {
  const ls_stop *s = &canonical->stop;
  if (s->kind == LS_STOP_TIMEOUT)
    return (outcome_digest){.stop = LS_STOP_TIMEOUT};
  const uint64_t stop[] = {(uint64_t)s->kind, place(s),   (uint64_t)s->signal,
                           (uint64_t)s->code, s->address, s->number};
  outcome_digest digest = {.state = XXH3_64bits(&canonical->state, sizeof canonical->state),
                           .stop = XXH3_64bits(stop, sizeof stop)};
  const ls_layout *layout = ls_executor_layout(memory);
  for (uint32_t i = LS_CODE_WINDOW + 1; i < layout->window_count; i++)
    digest.memory =
        XXH3_64bits_withSeed(ls_executor_memory(memory, i), layout->windows[i].size, digest.memory);
  return digest;
}

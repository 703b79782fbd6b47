#include "oracle/report.h"

#include <inttypes.h>
#include <signal.h>
#include <string.h>

#include "oracle/listing.h"
#include "oracle/trace.h"
#include "words.h"

enum { LANE = 8, TEXT = 2 + 2 * 64 + 8 };

static void print_place(FILE *to, const ls_stop *stop) {
  static const char *const parts[] = {[LS_PART_BODY] = "in",
                                      [LS_PART_NEXT] = "behind",
                                      [LS_PART_JUMP] = "on the jump of",
                                      [LS_PART_BEFORE] = "before"};
  if (stop->instruction == LS_NONE)
    fputs(", outside the program", to);
  else
    fprintf(to, ", %s instruction #%" PRIu32, parts[stop->part], stop->instruction);
}

void report_stop(FILE *to, const ls_stop *stop) {
  fputs(ls_stop_kind_name(stop->kind), to);
  if (stop->kind == LS_STOP_FAULT)
    fprintf(to, " %s, %s, address 0x%" PRIx64, word_of_signal(stop->signal),
            text_of_code(stop->signal, stop->code), stop->address);
  if (stop->kind == LS_STOP_SYSCALL)
    fprintf(to, " %" PRIu64, stop->number);
  print_place(to, stop);
}

static void print_stops(FILE *to, const oracle_result *result) {
  fputs("reference: ", to);
  report_stop(to, &result->reference.stop);
  fputs("\nthread:    ", to);
  report_stop(to, &result->thread.stop);
  fputc('\n', to);
}

static uint64_t lane_of(const uint8_t *value, uint32_t lane, uint32_t size) {
  uint64_t number = 0;
  memcpy(&number, value + lane * LANE, size < LANE ? size : LANE);
  return number;
}

/* Only the lanes of eight bytes that differ, and what was there at the start. */
static void print_register(FILE *to, const difference *d, const ls_state *start) {
  size_t count;
  const ls_register *reg = &ls_registers(&count)[d->row];
  const uint8_t *before = (const uint8_t *)start + reg->offset;
  for (uint32_t lane = 0; lane * LANE < d->length; lane++) {
    uint32_t size = d->length - lane * LANE;
    uint64_t a = lane_of(d->a, lane, size), b = lane_of(d->b, lane, size);
    if (a == b)
      continue;
    char name[32];
    if (d->length > LANE)
      snprintf(name, sizeof name, "%s[%u:%u]", reg->name, lane * 64 + (size < LANE ? size : LANE) * 8 - 1,
               lane * 64);
    else
      snprintf(name, sizeof name, "%s", reg->name);
    fprintf(to, "  %-24s 0x%016" PRIx64 "   0x%016" PRIx64 "   0x%016" PRIx64 "\n", name, a, b,
            lane_of(before, lane, size));
  }
}

static void print_bytes(FILE *to, const uint8_t *bytes, uint32_t length) {
  for (uint32_t i = 0; i < length; i++)
    fprintf(to, "%02x", bytes[i]);
}

static void print_memory(FILE *to, const difference *d, const testcase_contents *start) {
  char name[32];
  snprintf(name, sizeof name, "[0x%08" PRIx64 "]", testcase_layout()->windows[d->window].address + d->offset);
  fprintf(to, "  %-24s ", name);
  print_bytes(to, d->a, d->length);
  fputs("   ", to);
  print_bytes(to, d->b, d->length);
  fputs("   ", to);
  print_bytes(to, (const uint8_t *)start->window[d->window] + d->offset, d->length);
  fputc('\n', to);
}

static void print_difference(FILE *to, const difference *d, const oracle_result *result, const testcase *test,
                             const testcase_contents *start) {
  const ls_stop *a = &result->reference.stop, *b = &result->thread.stop;
  if (d->piece == PIECE_REGISTER)
    print_register(to, d, &test->state);
  else if (d->piece == PIECE_MEMORY)
    print_memory(to, d, start);
  else if (d->piece == PIECE_HOST)
    fprintf(to, "  host: %-18s 0x%016" PRIx64 "   0x%016" PRIx64 "\n", d->name, lane_of(d->a, 0, LANE),
            lane_of(d->b, 0, LANE));
  else if (d->piece == PIECE_SIGNAL)
    fprintf(to, "  %-24s %-20s %s\n", piece_name(d->piece), word_of_signal(a->signal),
            word_of_signal(b->signal));
  else if (d->piece == PIECE_CODE)
    fprintf(to, "  %-24s %-20s %s\n", piece_name(d->piece), text_of_code(a->signal, a->code),
            text_of_code(b->signal, b->code));
  else
    fprintf(to, "  %-24s 0x%016" PRIx64 "   0x%016" PRIx64 "\n", piece_name(d->piece), lane_of(d->a, 0, LANE),
            lane_of(d->b, 0, LANE));
}

static void print_differences(FILE *to, const oracle_result *result, const testcase *test) {
  static testcase_contents start;
  const comparison *c = &result->differences;
  testcase_contents_make(test, &start);
  if (result->reason == REASON_HOST)
    fputs("THE HOST WAS HARMED: what is marked \"host\" was so before the run in the thread, and after it\n",
          to);
  fprintf(to, "  %-24s %-20s %-20s %s\n", "what differs", "reference", "thread", "at the start");
  for (uint32_t i = 0; i < c->kept; i++)
    print_difference(to, &c->list[i], result, test, &start);
  if (c->count > c->kept)
    fprintf(to, "  … and %u more\n", c->count - c->kept);
}

static bool same_end(const ls_outcome *a, const ls_outcome *b) {
  return outcome_equal(a, b, NULL, NULL);
}

/* Of the four runs (each executor, free and stepped) three may agree. */
static void print_who_is_alone(FILE *to, const oracle_result *result, const trace_point *point) {
  bool reference = point->ended && same_end(&result->reference, &point->end);
  bool thread = point->ended && same_end(&result->thread, &point->end);
  if (reference == thread)
    fputs("no difference when stepped: it needs the program to run freely\n", to);
  else
    fprintf(
        to,
        "no difference when stepped: of the four runs (each executor, free and stepped) %s alone ended so.\n"
        "Stepping enters by IRET and leaves by a signal: look at the fast way in and out\n",
        reference ? "the free one in the thread" : "the free one of the reference");
}

static uint64_t print_trace(FILE *to, const testcase *test, const oracle_result *result, oracle *o) {
  trace_point point;
  ls_error error;
  if (trace_first_difference(o, test, &point, &error) != LS_OK) {
    fprintf(to, "stepping through it failed: %s\n", error.text);
    return 0;
  }
  if (point.step)
    fprintf(to, "first difference after step %" PRIu64 ", the instruction at 0x%" PRIx64 " (marked =>)\n",
            point.step, point.address);
  else
    print_who_is_alone(to, result, &point);
  return point.address;
}

void report_difference(FILE *to, const testcase *test, const oracle_result *result, oracle *o) {
  char name[33];
  ls_program program = testcase_program(test);
  testcase_name(test, name);
  fprintf(to, "DIFFERENT: test case %s\n", name);
  print_stops(to, result);
  print_differences(to, result, test);
  uint64_t mark = print_trace(to, test, result, o);
  listing_print(to, result->image, &program, mark);
  fflush(to);
}

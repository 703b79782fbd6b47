/* Random graphs through the emitter (harness/graph/make.h says how bytes become a graph). Each is laid out in
 * two orders of its list, with and without fuel. Each image is proved to be the graph by decoding its bytes;
 * then all run in this thread and must end alike; then one instruction is made impossible, which must be
 * refused by its index and leave the image as it was. A finding is printed and aborts. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "engine.h"
#include "graph/check.h"
#include "graph/run.h"
#include "handlers.h"
#include "words.h"

enum { PROBE_FUEL = 300, LISTED_MAX = 64, SHAPES = 1 << 13, ENDS = 1 << 10, SIZES = 64 };

enum { LIST_FUEL, LIST, SHUFFLED, SHUFFLED_FUEL, VERSIONS };

/* What leads the engine: shapes of instructions with their links, ways to end, sizes. Only the engine reads
 * them. */
__attribute__((
    section("__libfuzzer_extra_counters"))) static volatile uint8_t counters[SHAPES + ENDS + SIZES];

static ls_executor *executor;
static graph list, shuffled, spoiled;
static graph_version versions[VERSIONS] = {{&list, NULL, "list, fuel"},
                                           {&list, NULL, "list"},
                                           {&shuffled, NULL, "shuffled"},
                                           {&shuffled, NULL, "shuffled, fuel"}};
static ls_image *images[VERSIONS];

static void print_graph(const graph *g) {
  fprintf(stderr, "%u %s, entry %u, seed %u\n", g->count, word_for(g->count, "instruction", "instructions"),
          g->entry, g->seed);
  for (uint32_t i = 0; i < g->count && i < LISTED_MAX; i++) {
    const ls_instruction *in = &g->instructions[i];
    fprintf(stderr, "%5u:", i);
    for (unsigned j = 0; j < in->length && j < LS_INSTRUCTION_MAX; j++)
      fprintf(stderr, " %02x", in->bytes[j]);
    fprintf(stderr,
            "  next %" PRId32 " jump %" PRId32 " flags %u field %u at %u size %u data 0x%" PRIx64 "\n",
            (int32_t)in->next, (int32_t)in->jump, in->flags, in->field, in->field_offset, in->field_size,
            in->data);
  }
}

static void finding(const graph *g, const char *where, const char *what) {
  fprintf(stderr, "lockstep: %s: %s\n", where, what);
  print_graph(g);
  abort();
}

static void must(ls_status status, const ls_error *error) {
  if (status == LS_OK)
    return;
  fprintf(stderr, "lockstep: %s%s%s\n", ls_status_name(status), error->text[0] ? ": " : "", error->text);
  exit(3);
}

/* With the first input, not before: libFuzzer's handlers must stand. */
static void start(void) {
  ls_error error = {.text = ""};
  if (executor)
    return;
  move_handlers_to_alternate_stack();
  must(ls_executor_create(LS_SIGNAL, graph_layout(), NULL, &executor, &error), &error);
  for (int i = 0; i < VERSIONS; i++) {
    images[i] = ls_image_create();
    if (!images[i])
      exit(3);
    versions[i].image = images[i];
  }
}

/* ---- Building ---- */

static ls_program program_of(int version) {
  bool fuel = version == LIST_FUEL || version == SHUFFLED_FUEL;
  return graph_program(versions[version].graph, fuel ? LS_PROGRAM_FUEL : 0);
}

static void check(int version) {
  char why[200];
  const ls_program program = program_of(version);
  const graph_view view = graph_view_of(images[version], &program, graph_layout());
  if (!graph_check(&view, why, sizeof why))
    finding(versions[version].graph, versions[version].name, why);
}

static void build(int version) {
  ls_error error = {.text = ""};
  const ls_program program = program_of(version);
  ls_status status = ls_image_build(images[version], &program, graph_layout(), &error);
  if (status == LS_ERR_PROGRAM)
    finding(versions[version].graph, "a possible program is refused", error.text);
  must(status, &error);
  check(version);
}

static void check_refusal(void) {
  ls_error error = {0};
  spoiled = list;
  uint32_t index = graph_spoil(&spoiled);
  if (index == LS_NONE)
    return;
  const ls_program program = graph_program(&spoiled, 0);
  ls_status status = ls_image_build(images[LIST], &program, graph_layout(), &error);
  if (!status)
    finding(&spoiled, "an impossible program", "is not refused");
  if (status != LS_ERR_PROGRAM)
    must(status, &error);
  if (error.index != index || !error.text[0])
    finding(&spoiled, "an impossible program is refused for another instruction", error.text);
  check(LIST);
}

/* ---- Running ---- */

static void run(int version, uint64_t fuel, graph_ending *ending) {
  ls_error error = {.text = ""};
  must(graph_run(executor, &versions[version], fuel, ending, &error), &error);
  const char *trouble = graph_ending_trouble(versions[version].graph, ending);
  if (trouble)
    finding(versions[version].graph, versions[version].name, trouble);
}

static void note_ending(const graph_ending *e) {
  const uint64_t key[] = {e->kind, e->part, (uint64_t)e->signal, e->state.rflags & 0x8d5,
                          e->id < list.count ? list.instructions[e->id].bytes[0] : 256};
  counters[SHAPES + XXH3_64bits(key, sizeof key) % ENDS] = 1;
}

/* The first run is bounded by fuel. A graph that ends before its fuel does ends in every layout, and without
 * fuel too. One that times out all the same (calls multiply) says nothing. */
static void run_all(void) {
  static graph_ending first, other;
  run(LIST_FUEL, PROBE_FUEL, &first);
  note_ending(&first);
  if (first.kind == LS_STOP_FUEL || first.kind == LS_STOP_TIMEOUT)
    return;
  for (int version = LIST; version < VERSIONS; version++) {
    run(version, UINT32_MAX, &other);
    const char *difference = graph_ending_difference(&first, &other);
    if (difference && other.kind != LS_STOP_TIMEOUT)
      finding(&list, versions[version].name, difference);
  }
}

/* ---- What was seen ---- */

/* How a link lies: it leaves, to itself, to what lies behind, backwards or forwards; near or far. */
static uint64_t shape_of_link(const ls_image *image, uint32_t from, uint32_t length, uint32_t to) {
  if (to == LS_NONE || to == from)
    return to == from;
  uint64_t a = ls_image_address(image, from), b = ls_image_address(image, to);
  if (b == a + length)
    return 2;
  uint64_t distance = b < a ? a - b : b - a;
  return 3 + (b < a) + 2 * (uint64_t)(distance > 110) + 2 * (uint64_t)(distance > 130);
}

static void note_shapes(const uint8_t *data, size_t size) {
  size_t image_size, ranges;
  for (uint32_t i = 0; i < list.count && GRAPH_HEADER + (size_t)(i + 1) * GRAPH_RECORD <= size; i++) {
    const ls_instruction *in = &list.instructions[i];
    uint32_t row = graph_palette_row(data[GRAPH_HEADER + (size_t)i * GRAPH_RECORD]);
    uint64_t next = shape_of_link(images[LIST_FUEL], i, in->length, in->next);
    uint64_t jump = shape_of_link(images[LIST_FUEL], i, in->length, in->jump);
    counters[((row * 9 + next) * 9 + jump) % SHAPES] = 1;
  }
  ls_image_bytes(images[LIST_FUEL], &image_size);
  ls_image_map(images[LIST_FUEL], &ranges);
  counters[SHAPES + ENDS + (unsigned)(63 - __builtin_clzll(image_size))] = 1;
  counters[SHAPES + ENDS + 32 + (unsigned)(63 - __builtin_clzll(ranges))] = 1;
}

/* Each aborts. */
unsigned fuzz_target_found(void) {
  return 0;
}

bool fuzz_target_compares(void) {
  return true; /* it needs no reference */
}

const char *fuzz_target_skipped(void) {
  return NULL; /* its instructions are those of every processor */
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  start();
  graph_decode(&list, data, size);
  graph_shuffle(&list, &shuffled);
  for (int version = 0; version < VERSIONS; version++)
    build(version);
  note_shapes(data, size);
  run_all();
  check_refusal();
  return 0;
}

#include "graph/run.h"

#include <string.h>

enum { DATA = 1, CONSTANTS, STACK, LIMIT_MS = 20, CALL = 0xe8 };

/* ---- Code addresses in words of the graph ---- */

static uint64_t id_of(const graph_version *v, uint32_t index) {
  return v->graph->instructions[index].id;
}

/* No canonical address has these bits. */
static uint64_t word(uint64_t id, ls_part part, uint64_t offset) {
  return UINT64_C(0xc0de) << 48 | id << 16 | (uint64_t)part << 8 | offset;
}

/* What is behind a call is what its next link leads to, whether that lies there or must be jumped to. */
static uint64_t behind_call(const graph_version *v, uint32_t call) {
  uint32_t next = v->graph->instructions[call].next;
  return next == LS_NONE ? word(id_of(v, call), LS_PART_NEXT, 0) : word(id_of(v, next), LS_PART_BODY, 0);
}

static uint64_t portable(const graph_version *v, uint64_t address) {
  const ls_range *at = ls_image_find(v->image, address), *before = ls_image_find(v->image, address - 1);
  if (at && at->part == LS_PART_BEFORE && at != before) /* where links lead */
    return word(id_of(v, at->instruction), LS_PART_BODY, 0);
  if (at && at->part == LS_PART_BODY)
    return word(id_of(v, at->instruction), LS_PART_BODY,
                address - ls_image_address(v->image, at->instruction));
  if (before && before->part == LS_PART_BODY && v->graph->instructions[before->instruction].bytes[0] == CALL)
    return behind_call(v, before->instruction);
  return at ? word(id_of(v, at->instruction), at->part, 0) : address;
}

/* ---- Running ---- */

static uint32_t index_of(const graph *g, uint32_t id) {
  uint32_t i = 0;
  while (g->instructions[i].id != id)
    i++;
  return i;
}

static void fill_memory(const graph_version *v, graph_ending *room) {
  uint32_t ids[GRAPH_STACK_WORDS];
  graph_stack(v->graph, ids);
  memset(room->stack, 0, sizeof room->stack);
  for (unsigned i = 0; i < GRAPH_STACK_WORDS; i++)
    if (ids[i] != LS_NONE)
      room->stack[LS_PAGE / 16 + i] = ls_image_address(v->image, index_of(v->graph, ids[i]));
  for (unsigned i = 0; i < sizeof room->data; i++)
    room->data[i] = i % 8 ? 0 : (uint8_t)((v->graph->seed + i / 8) % 11);
}

static void take_outcome(const graph_version *v, const ls_outcome *outcome, graph_ending *ending) {
  const ls_stop *stop = &outcome->stop;
  ending->state = outcome->state;
  ls_state_canonicalise(&ending->state);
  ending->state.rip = portable(v, outcome->state.rip);
  ending->kind = stop->kind;
  ending->part = stop->part;
  ending->id = stop->instruction == LS_NONE ? LS_NONE : id_of(v, stop->instruction);
  ending->signal = stop->signal;
  ending->code = stop->code;
  ending->address = portable(v, stop->address);
}

static void take_memory(const graph_version *v, ls_executor *executor, graph_ending *ending) {
  memcpy(ending->data, ls_executor_memory(executor, DATA), sizeof ending->data);
  memcpy(ending->stack, ls_executor_memory(executor, STACK), sizeof ending->stack);
  for (unsigned i = 0; i < LS_PAGE / 8; i++)
    ending->stack[i] = portable(v, ending->stack[i]);
}

ls_status graph_run(ls_executor *executor, const graph_version *version, uint64_t fuel, graph_ending *ending,
                    ls_error *error) {
  ls_state state;
  ls_outcome outcome;
  memset(ending, 0, sizeof *ending);
  graph_state(version->graph, &state);
  fill_memory(version, ending);
  const void *const contents[LS_WINDOWS_MAX] = {[DATA] = ending->data, [STACK] = ending->stack};
  const ls_run run = {.state = &state, .entry = version->graph->entry, .fuel = fuel, .limit_ms = LIMIT_MS};
  ls_status status = ls_executor_load(executor, version->image, error);
  if (!status)
    status = ls_executor_reset(executor, contents, error);
  if (!status)
    status = ls_executor_run(executor, &run, &outcome, error);
  if (status)
    return status;
  take_outcome(version, &outcome, ending);
  take_memory(version, executor, ending);
  return LS_OK;
}

/* ---- Judging ---- */

static uint32_t link_at(const graph *g, const graph_ending *e) {
  const ls_instruction *in = &g->instructions[index_of(g, (uint32_t)e->id)];
  return e->part == LS_PART_JUMP ? in->jump : in->next;
}

const char *graph_ending_trouble(const graph *g, const graph_ending *e) {
  switch ((ls_stop_kind)e->kind) {
  case LS_STOP_EXIT:
    if (e->id == LS_NONE || e->part == LS_PART_BODY || link_at(g, e) != LS_NONE)
      return "it left where no link leaves the program";
    return NULL;
  case LS_STOP_FUEL:
    if (e->part == LS_PART_BEFORE)
      return NULL;
    if (e->id == LS_NONE || e->part == LS_PART_BODY || link_at(g, e) == LS_NONE)
      return "it ran out of fuel where no link is followed";
    return NULL;
  case LS_STOP_FAULT:
    return e->id != LS_NONE && e->part != LS_PART_BODY ? "a fault in inserted code" : NULL;
  case LS_STOP_TIMEOUT:
    return NULL;
  default:
    return "a kind of stop that was not asked for";
  }
}

const char *graph_ending_difference(const graph_ending *a, const graph_ending *b) {
  size_t row = 0, count;
  if (a->kind != b->kind)
    return "kind of stop";
  if (a->id != b->id || a->part != b->part)
    return "instruction or part where they stopped";
  if (a->signal != b->signal || a->code != b->code || a->address != b->address)
    return "fault";
  if (memcmp(&a->state, &b->state, sizeof a->state) != 0)
    return ls_state_difference(&a->state, &b->state, &row) ? ls_registers(&count)[row].name : "state";
  if (memcmp(a->stack, b->stack, sizeof a->stack) != 0)
    return "stack";
  return memcmp(a->data, b->data, sizeof a->data) != 0 ? "data" : NULL;
}

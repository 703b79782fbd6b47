#include "graph/check.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "forms/forms.h"
#include "graph/walk.h"

enum { SLOT_MAX = 15 }; /* bytes behind the code: the slot that holds the gate, and what aligns it to 8 */

typedef struct checker {
  const graph_view *view;
  walk_code code;
  uint64_t base;
  uint32_t *body;  /* per byte of code: the instruction whose body, or counter before it, this is; LS_NONE */
  uint32_t *start; /* per instruction: where links to it lead, an offset */
  uint32_t *range; /* per byte of code: its range in the map */
  uint8_t *walked; /* per byte of code: 1 if an instruction of a walk, or of the program, is there */
  uint64_t *exits; /* numbers that exit points leave */
  uint32_t exit_count;
  int exit_cell, fuel_cell; /* or -1: none seen yet */
  char *why;
  size_t why_size;
} checker;

/* The link that is being walked. */
typedef struct link {
  checker *c;
  uint32_t from, to;
  ls_part part;
} graph_link;

graph_view graph_view_of(const ls_image *image, const ls_program *program, const ls_layout *layout) {
  graph_view view = {.program = program, .layout = layout, .image = image};
  view.bytes = ls_image_bytes(image, &view.size);
  view.map = ls_image_map(image, &view.range_count);
  return view;
}

static bool complain(checker *c, uint32_t instruction, const char *what) {
  snprintf(c->why, c->why_size, "instruction %" PRIu32 ": %s", instruction, what);
  return false;
}

static bool complain_at(checker *c, uint64_t address, const char *what) {
  snprintf(c->why, c->why_size, "address 0x%" PRIx64 ": %s", address, what);
  return false;
}

static const ls_instruction *instruction_of(const checker *c, uint32_t index) {
  return &c->view->program->instructions[index];
}

static uint64_t address_of(const checker *c, uint32_t index) {
  return ls_image_address(c->view->image, index);
}

/* ---- The map ---- */

static bool check_ranges(checker *c) {
  const graph_view *v = c->view;
  uint64_t at = 0;
  for (size_t i = 0; i < v->range_count; i++) {
    const ls_range *r = &v->map[i];
    if (r->offset != at || r->length == 0 || r->length > v->size - at)
      return complain_at(c, c->base + at, "the map has a gap, an overlap or an empty range");
    if (r->instruction >= v->program->count || (unsigned)r->part > LS_PART_BEFORE)
      return complain_at(c, c->base + at, "the map names an instruction or part that does not exist");
    at += r->length;
  }
  if (at == 0 || v->size - at < 8 || v->size - at > SLOT_MAX)
    return complain_at(c, c->base + at, "the map does not end where the code ends");
  c->code.end = at;
  return true;
}

static bool check_find(checker *c) {
  const ls_image *image = c->view->image;
  size_t count, size, r = 0;
  const ls_range *map = ls_image_map(image, &count);
  ls_image_bytes(image, &size);
  for (uint64_t offset = 0; offset <= size; offset++) {
    while (r < count && offset - map[r].offset >= map[r].length)
      r++;
    if (ls_image_find(image, c->base + offset) != (r < count ? &map[r] : NULL))
      return complain_at(c, c->base + offset, "ls_image_find and the map disagree");
  }
  return ls_image_find(image, c->base - 1) == NULL || complain_at(c, c->base - 1, "found before the image");
}

static bool make_tables(checker *c) {
  c->body = malloc(c->code.end * sizeof *c->body);
  c->range = malloc(c->code.end * sizeof *c->range);
  c->walked = calloc(c->code.end, 1);
  c->exits = malloc(2 * (size_t)c->view->program->count * sizeof *c->exits);
  c->start = malloc(c->view->program->count * sizeof *c->start);
  if (!c->body || !c->start || !c->range || !c->walked || !c->exits)
    return complain_at(c, 0, "no memory to check with");
  memset(c->body, 0xff, c->code.end * sizeof *c->body); /* LS_NONE */
  for (uint32_t i = 0; i < c->view->range_count; i++)
    for (uint32_t j = 0; j < c->view->map[i].length; j++)
      c->range[c->view->map[i].offset + j] = i;
  c->code.body = c->body;
  return true;
}

/* ---- Bodies ---- */

static bool place_body(checker *c, uint32_t i) {
  const ls_instruction *in = instruction_of(c, i);
  uint64_t offset = address_of(c, i) - c->base;
  if (offset >= c->code.end || in->length > c->code.end - offset)
    return complain(c, i, "it does not lie in the code");
  const ls_range *r = &c->view->map[c->range[offset]];
  if (r->offset != offset || r->length != in->length || r->instruction != i || r->part != LS_PART_BODY)
    return complain(c, i, "the map does not name its body");
  for (uint32_t j = 0; j < in->length; j++) {
    if (c->body[offset + j] != LS_NONE)
      return complain(c, i, "it overlaps another");
    c->body[offset + j] = i;
    c->walked[offset + j] = 1;
  }
  return true;
}

/* A counter before an instruction is where links to it lead: a walk ends there, and another begins. */
static void own_counter(checker *c, const ls_range *r, uint32_t owner) {
  for (uint32_t j = 0; j < r->length; j++)
    c->body[r->offset + j] = owner;
}

static bool place_starts(checker *c) {
  for (uint32_t i = 0; i < c->view->program->count; i++)
    c->start[i] = (uint32_t)(address_of(c, i) - c->base);
  for (size_t n = 0; n < c->view->range_count; n++) {
    const ls_range *r = &c->view->map[n];
    if (r->part != LS_PART_BEFORE)
      continue;
    if (c->start[r->instruction] != address_of(c, r->instruction) - c->base)
      return complain(c, r->instruction, "it has two counters before it");
    c->start[r->instruction] = r->offset;
    own_counter(c, r, r->instruction);
  }
  return true;
}

static bool same_bytes(const ls_instruction *in, const uint8_t *bytes) {
  for (uint32_t j = 0; j < in->length; j++) {
    bool in_field = in->field != LS_FIELD_NONE && j >= in->field_offset &&
                    j < (uint32_t)in->field_offset + in->field_size;
    if (!in_field && bytes[j] != in->bytes[j])
      return false;
  }
  return true;
}

/* Where the field leads, as the decoder sees it. */
static bool field_target(const ls_instruction *in, const uint8_t *bytes, uint64_t address, uint64_t *target) {
  ZydisDecodedInstruction d;
  ZydisDecodedOperand operands[ZYDIS_MAX_OPERAND_COUNT];
  if (!harness_decode(bytes, in->length, &d, operands) || d.length != in->length)
    return false;
  if (in->field == LS_FIELD_NONE)
    return true;
  uint8_t offset = in->field == LS_FIELD_BRANCH ? d.raw.imm[0].offset : d.raw.disp.offset;
  uint8_t bits = in->field == LS_FIELD_BRANCH ? d.raw.imm[0].size : d.raw.disp.size;
  if (offset != in->field_offset || bits != 8 * in->field_size)
    return false;
  for (uint32_t i = 0; i < d.operand_count; i++) {
    const ZydisDecodedOperand *o = &operands[i];
    bool here = in->field == LS_FIELD_BRANCH
                    ? o->type == ZYDIS_OPERAND_TYPE_IMMEDIATE && o->imm.is_relative
                    : o->type == ZYDIS_OPERAND_TYPE_MEMORY && o->mem.base == ZYDIS_REGISTER_RIP;
    if (here)
      return ZYAN_SUCCESS(ZydisCalcAbsoluteAddress(&d, o, address, target));
  }
  return false;
}

/* ---- Links ---- */

/* Inserted code belongs to the link that uses it. What follows a body may be the way around the island of its
 * branch, which the map counts to the branch. */
static const char *visit(void *context, uint32_t offset, uint32_t length, uint32_t steps) {
  const graph_link *l = context;
  checker *c = l->c;
  for (uint32_t j = 0; j < length; j++) {
    const ls_range *r = &c->view->map[c->range[offset + j]];
    bool around = l->part == LS_PART_NEXT && r->part == LS_PART_JUMP && steps == 0 && length == 2;
    if (r->instruction != l->from || (r->part != l->part && !around))
      return "the map counts inserted code to another link than the one that uses it";
    c->walked[offset + j] = 1;
  }
  return NULL;
}

static bool unchanged(const walk_value *value, walk_origin origin, uint32_t index) {
  return value->origin == origin && value->index == index && value->number == 0;
}

static bool registers_unchanged(const walk_state *s) {
  for (uint32_t i = 0; i < WALK_REGISTERS; i++)
    if (!unchanged(&s->registers[i], WALK_REGISTER, i))
      return false;
  return true;
}

/* Only a path that counts fuel may leave a register's content in a cell of its own. */
static bool cells_unchanged(const checker *c, const walk_state *s, int except) {
  for (uint32_t i = 0; i < WALK_CELLS; i++) {
    const walk_value *v = &s->cells[i];
    bool scratch = s->tested && (int)i != c->fuel_cell && v->origin == WALK_REGISTER;
    if ((int)i != except && !unchanged(v, WALK_CELL, i) && !scratch)
      return false;
  }
  return true;
}

/* Where a link should arrive: the counter before an instruction leads to the instruction itself. */
static uint64_t target_of(const graph_link *l) {
  return l->part == LS_PART_BEFORE ? address_of(l->c, l->to) : l->c->base + l->c->start[l->to];
}

static bool check_arrival(const graph_link *l, const walk_state *s) {
  checker *c = l->c;
  if (s->address != target_of(l))
    return complain(c, l->from, "a link reaches another place than the body it should");
  if (!s->tested)
    return cells_unchanged(c, s, -1) || complain(c, l->from, "a link changes a control cell");
  const walk_value *fuel = &s->cells[s->tested_cell];
  if (fuel->origin != WALK_CELL || fuel->index != s->tested_cell || fuel->number != UINT64_MAX)
    return complain(c, l->from, "a link that costs fuel does not take one unit");
  return cells_unchanged(c, s, c->fuel_cell) || complain(c, l->from, "a link changes a control cell");
}

static bool check_exit(const graph_link *l, const walk_state *s) {
  checker *c = l->c;
  int cell = -1;
  if (s->address != c->view->layout->gate)
    return complain(c, l->from, "a link that leaves the program, or runs out of fuel, reaches a body");
  for (int i = 0; i < WALK_CELLS; i++)
    if (s->cells[i].origin == WALK_CONSTANT)
      cell = i;
  if (cell < 0 || cell == c->fuel_cell || (c->exit_cell >= 0 && cell != c->exit_cell))
    return complain(c, l->from, "an exit point does not leave its number where the others do");
  c->exit_cell = cell;
  c->exits[c->exit_count++] = s->cells[cell].number;
  return cells_unchanged(c, s, cell) || complain(c, l->from, "an exit point changes a control cell");
}

static bool check_end(const graph_link *l, const walk_state *s, bool leaves) {
  if (!registers_unchanged(s))
    return complain(l->c, l->from, "inserted code changes a register");
  return leaves ? check_exit(l, s) : check_arrival(l, s);
}

static bool check_fuel(const graph_link *l, const walk_result *r) {
  checker *c = l->c;
  if (r->count != 2 || !r->paths[0].tested)
    return complain(c, l->from, "a link that should cost fuel does not");
  if (c->fuel_cell >= 0 && c->fuel_cell != (int)r->paths[0].tested_cell)
    return complain(c, l->from, "fuel is taken from two cells");
  c->fuel_cell = (int)r->paths[0].tested_cell;
  return check_end(l, &r->paths[0], r->paths[0].zero) && check_end(l, &r->paths[1], r->paths[1].zero);
}

/* A link to the same or a lower address, or the way to an indirect branch. */
static bool costs_fuel(const graph_link *l) {
  const checker *c = l->c;
  if (!(c->view->program->flags & LS_PROGRAM_FUEL) || l->to == LS_NONE)
    return false;
  return l->part == LS_PART_BEFORE || address_of(c, l->to) <= address_of(c, l->from);
}

static bool check_link(const graph_link *l, uint64_t address) {
  checker *c = l->c;
  walk_result r;
  if (!walk(&c->code, address, visit, (void *)l, &r))
    return complain_at(c, r.address, r.trouble ? r.trouble : "inserted code cannot be followed");
  if (costs_fuel(l))
    return check_fuel(l, &r);
  if (r.count != 1 || r.paths[0].tested)
    return complain(c, l->from, "a link costs fuel that should not");
  return check_end(l, &r.paths[0], l->to == LS_NONE);
}

/* Does it go to where its bytes do not say? */
static bool is_indirect(const ls_instruction *in) {
  ZydisDecodedInstruction d;
  ZydisDecodedOperand operands[ZYDIS_MAX_OPERAND_COUNT];
  if (!harness_decode(in->bytes, in->length, &d, operands) || d.length != in->length)
    return false;
  switch (d.mnemonic) {
  case ZYDIS_MNEMONIC_CALL:
  case ZYDIS_MNEMONIC_JMP:
    return !d.raw.imm[0].is_relative;
  case ZYDIS_MNEMONIC_RET:
  case ZYDIS_MNEMONIC_IRET:
  case ZYDIS_MNEMONIC_IRETD:
  case ZYDIS_MNEMONIC_IRETQ:
    return true;
  default:
    return false;
  }
}

/* What lies before it: a counter, or nothing. */
static bool check_before(checker *c, uint32_t i) {
  const ls_range *r = &c->view->map[c->range[c->start[i]]];
  bool counts = r->part == LS_PART_BEFORE;
  if (counts != ((c->view->program->flags & LS_PROGRAM_FUEL) && is_indirect(instruction_of(c, i))))
    return complain(c, i, counts ? "a counter before it has no business there" : "no counter is before it");
  if (!counts)
    return true;
  own_counter(c, r, LS_NONE);
  bool right = check_link(&(graph_link){c, i, i, LS_PART_BEFORE}, c->base + r->offset);
  own_counter(c, r, i);
  return right;
}

static bool check_instruction(checker *c, uint32_t i) {
  const ls_instruction *in = instruction_of(c, i);
  uint64_t address = address_of(c, i), target = 0;
  const uint8_t *bytes = c->view->bytes + (address - c->base);
  if (!same_bytes(in, bytes))
    return complain(c, i, "its bytes were changed");
  if (!field_target(in, bytes, address, &target))
    return complain(c, i, "it does not decode to one instruction with that field");
  if (in->field == LS_FIELD_DATA && target != in->data)
    return complain(c, i, "its data field leads to another address");
  if (!check_before(c, i))
    return false;
  if (in->field == LS_FIELD_BRANCH && !check_link(&(graph_link){c, i, in->jump, LS_PART_JUMP}, target))
    return false;
  return in->flags & LS_NEVER_FALLS_THROUGH ||
         check_link(&(graph_link){c, i, in->next, LS_PART_NEXT}, address + in->length);
}

/* ---- The whole ---- */

static int by_number(const void *a, const void *b) {
  uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
  return (x > y) - (x < y);
}

static bool check_exits_differ(checker *c) {
  qsort(c->exits, c->exit_count, sizeof *c->exits, by_number);
  for (uint32_t i = 1; i < c->exit_count; i++)
    if (c->exits[i] == c->exits[i - 1])
      return complain_at(c, 0, "two exit points leave the same number");
  return c->exit_cell < 0 || c->exit_cell != c->fuel_cell || complain_at(c, 0, "exits write the fuel cell");
}

/* Nothing is inserted in vain, but for the way around an island behind an instruction that never falls
 * through. */
static bool check_all_walked(checker *c) {
  for (size_t offset = 0; offset < c->code.end; offset++) {
    const ls_range *r = &c->view->map[c->range[offset]];
    const ls_instruction *in = instruction_of(c, r->instruction);
    bool around = in->flags & LS_NEVER_FALLS_THROUGH && in->field_size == 1 && r->part == LS_PART_JUMP &&
                  offset - r->offset < 2;
    if (!c->walked[offset] && !around)
      return complain_at(c, c->base + offset, "no link uses this code");
  }
  return true;
}

static bool check_all(checker *c) {
  if (!check_ranges(c) || !make_tables(c))
    return false;
  for (uint32_t i = 0; i < c->view->program->count; i++)
    if (!place_body(c, i))
      return false;
  if (!place_starts(c))
    return false;
  for (uint32_t i = 0; i < c->view->program->count; i++)
    if (!check_instruction(c, i))
      return false;
  if (ls_image_address(c->view->image, c->view->program->count) != 0)
    return complain(c, c->view->program->count, "it has an address but does not exist");
  return check_exits_differ(c) && check_all_walked(c) && check_find(c);
}

bool graph_check(const graph_view *view, char *why, size_t why_size) {
  checker c = {.view = view,
               .base = view->layout->windows[LS_CODE_WINDOW].address,
               .exit_cell = -1,
               .fuel_cell = -1,
               .why = why,
               .why_size = why_size};
  c.code = (walk_code){.layout = view->layout, .bytes = view->bytes, .size = view->size};
  bool right = check_all(&c);
  free(c.body);
  free(c.start);
  free(c.range);
  free(c.walked);
  free(c.exits);
  return right;
}

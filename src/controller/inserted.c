/* The instructions that emit.c inserts, and what they do. They are recognised by their bytes alone, in the
 * image, which no guest can write: a change of emit.c needs its counterpart here. */
#include "inserted.h"

#include <stddef.h>
#include <string.h>

#include "../flags.h"
#include "../image.h"

/* The longest way through: the short jump of an island, and behind it two counters with fuel left, of a link
 * and of the indirect branch to which that leads. */
enum { WAY_MAX = 1 + 7 + 7 };

typedef struct guest {
  const code_layout *code;
  control_cells *control;
  ls_state *state; /* RIP: behind the instruction that is being carried out */
} guest;

typedef struct operands {
  int64_t displacement;
  int32_t immediate;
} operands;

/* ---- What they do ---- */

/* False, with nothing changed, if it is not what the emitter inserts after all. */
typedef bool effect(const guest *g, const operands *o);

static uint64_t relative(const guest *g, const operands *o) {
  return g->state->rip + (uint64_t)o->displacement;
}

/* The cell an instruction addresses, or NULL. */
static uint64_t *addressed_cell(const guest *g, const operands *o) {
  switch (relative(g, o) - g->code->control) {
  case offsetof(control_cells, exit):
    return &g->control->exit;
  case offsetof(control_cells, fuel):
    return &g->control->fuel;
  case offsetof(control_cells, save):
    return &g->control->save;
  default:
    return NULL;
  }
}

static bool jump(const guest *g, const operands *o) {
  g->state->rip = relative(g, o);
  return true;
}

static bool jump_if_rcx_is_zero(const guest *g, const operands *o) {
  return g->state->gpr[LS_RCX] || jump(g, o);
}

static bool add_to_rcx(const guest *g, const operands *o) {
  g->state->gpr[LS_RCX] += (uint64_t)o->displacement;
  return true;
}

static bool store_rcx(const guest *g, const operands *o) {
  uint64_t *cell = addressed_cell(g, o);
  if (cell)
    *cell = g->state->gpr[LS_RCX];
  return cell;
}

static bool load_rcx(const guest *g, const operands *o) {
  const uint64_t *cell = addressed_cell(g, o);
  if (cell)
    g->state->gpr[LS_RCX] = *cell;
  return cell;
}

static bool store_immediate(const guest *g, const operands *o) {
  uint64_t *cell = addressed_cell(g, o);
  if (cell)
    *cell = (uint64_t)(int64_t)o->immediate;
  return cell;
}

static bool leave(const guest *g, const operands *o) {
  if (relative(g, o) != g->code->base + g->code->size - SLOT_SIZE)
    return false;
  g->state->rip = g->code->gate;
  return true;
}

/* ---- What they look like ---- */

/* Bytes that are always the same; then, if that is not all, a 32-bit displacement and perhaps a 32-bit
 * immediate. If it is, the last of them is the displacement. */
typedef struct pattern {
  char bytes[5];
  uint8_t same, size;
  effect *carry_out;
} pattern;

static const pattern patterns[] = {
    {"\xe9", 1, 5, jump},                     /* jmp rel32 */
    {"\xeb\x05", 2, 2, jump},                 /* jmp over an island */
    {"\xe3\x17", 2, 2, jump_if_rcx_is_zero},  /* jrcxz empty */
    {"\x48\x8d\x49\xff", 4, 4, add_to_rcx},   /* lea rcx, [rcx-1] */
    {"\x48\x89\x0d", 3, 7, store_rcx},        /* mov [cell], rcx */
    {"\x48\x8b\x0d", 3, 7, load_rcx},         /* mov rcx, [cell] */
    {"\x48\xc7\x05", 3, 11, store_immediate}, /* mov qword [cell], imm32 */
    {"\xff\x25", 2, 6, leave},                /* jmp [slot] */
};

static const pattern *find_pattern(const uint8_t *bytes, uint32_t room) {
  for (size_t i = 0; i < sizeof patterns / sizeof *patterns; i++)
    if (patterns[i].size <= room && memcmp(bytes, patterns[i].bytes, patterns[i].same) == 0)
      return &patterns[i];
  return NULL;
}

static int32_t read32(const uint8_t *bytes) {
  int32_t value;
  memcpy(&value, bytes, sizeof value);
  return value;
}

static operands read_operands(const pattern *p, const uint8_t *bytes) {
  if (p->same == p->size)
    return (operands){.displacement = (int8_t)bytes[p->same - 1]};
  return (operands){.displacement = read32(bytes + p->same), .immediate = read32(bytes + p->size - 4)};
}

/* The instruction at RIP; false if none of ours is there. */
static bool carry_out(const guest *g, const ls_range *range) {
  uint64_t rip = g->state->rip;
  uint32_t offset = (uint32_t)(rip - g->code->base);
  const uint8_t *bytes = g->code->bytes + offset;
  const pattern *p = find_pattern(bytes, range->offset + range->length - offset);
  if (!p)
    return false;
  const operands o = read_operands(p, bytes);
  g->state->rip += p->size;
  if (p->carry_out(g, &o))
    return true;
  g->state->rip = rip;
  return false;
}

inserted_end inserted_carry_out(const ls_image *image, control_cells *control, ls_state *state) {
  const guest g = {&image->now, control, state};
  if (state->rflags & RFLAGS_TF)
    return INSERTED_BODY;
  for (int way = 0; way < WAY_MAX; way++) {
    const ls_range *range = ls_image_find(image, state->rip);
    if (!range || range->part == LS_PART_BODY || !carry_out(&g, range))
      return INSERTED_BODY;
    if (state->rip == image->now.gate)
      return INSERTED_LEFT;
  }
  return INSERTED_BODY;
}

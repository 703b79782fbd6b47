#include "graph/make.h"

#include <string.h>

/* ---- The palette ---- */

typedef enum merge {
  MERGE_NOTHING,
  MERGE_RM,        /* one register, in bits 0 to 2 of a byte */
  MERGE_REG,       /* one register, in bits 3 to 5 */
  MERGE_BOTH,      /* two */
  MERGE_CONDITION, /* a condition in bits 0 to 3 */
  MERGE_NUMBER,    /* a small number */
  MERGE_LENGTH     /* a nop of any length */
} merge;

typedef struct pattern {
  uint8_t length;
  char bytes[LS_INSTRUCTION_MAX + 1];
  uint8_t merge, merge_at;
  uint8_t field, field_offset, field_size;
  uint8_t ends; /* never falls through */
} pattern;

enum { B = LS_FIELD_BRANCH, D = LS_FIELD_DATA };

/* No row writes RSP but call, ret and their like, and none reads the stack or code: what a return address is
 * depends on the layout. */
static const pattern palette[] = {
    {3, "\x48\xff\xc0", MERGE_RM, 2, 0, 0, 0, 0},                      /* inc r */
    {3, "\x48\xff\xc8", MERGE_RM, 2, 0, 0, 0, 0},                      /* dec r */
    {3, "\x48\x01\xc0", MERGE_BOTH, 2, 0, 0, 0, 0},                    /* add r, r */
    {3, "\x48\x31\xc0", MERGE_BOTH, 2, 0, 0, 0, 0},                    /* xor r, r */
    {4, "\x48\x8d\x40\xff", MERGE_BOTH, 2, 0, 0, 0, 0},                /* lea r, [r - 1] */
    {3, "\x48\x39\xc0", MERGE_BOTH, 2, 0, 0, 0, 0},                    /* cmp r, r */
    {3, "\x48\x85\xc0", MERGE_BOTH, 2, 0, 0, 0, 0},                    /* test r, r */
    {2, "\x3c\x00", MERGE_NUMBER, 1, 0, 0, 0, 0},                      /* cmp al, n */
    {7, "\x48\xc7\xc1\0\0\0\0", MERGE_NUMBER, 3, 0, 0, 0, 0},          /* mov rcx, n */
    {2, "\x70\0", MERGE_CONDITION, 0, B, 1, 1, 0},                     /* jcc */
    {2, "\x70\0", MERGE_CONDITION, 0, B, 1, 1, 0},                     /* jcc, twice as often */
    {3, "\x3e\x70\0", MERGE_CONDITION, 1, B, 2, 1, 0},                 /* jcc with a hint */
    {6, "\x0f\x80\0\0\0\0", MERGE_CONDITION, 1, B, 2, 4, 0},           /* jcc rel32 */
    {2, "\xe2\0", MERGE_NOTHING, 0, B, 1, 1, 0},                       /* loop */
    {2, "\xe1\0", MERGE_NOTHING, 0, B, 1, 1, 0},                       /* loope */
    {2, "\xe0\0", MERGE_NOTHING, 0, B, 1, 1, 0},                       /* loopne */
    {2, "\xe3\0", MERGE_NOTHING, 0, B, 1, 1, 0},                       /* jrcxz */
    {3, "\x67\xe3\0", MERGE_NOTHING, 0, B, 2, 1, 0},                   /* jecxz */
    {2, "\xeb\0", MERGE_NOTHING, 0, B, 1, 1, 1},                       /* jmp */
    {5, "\xe9\0\0\0\0", MERGE_NOTHING, 0, B, 1, 4, 1},                 /* jmp rel32 */
    {5, "\xe8\0\0\0\0", MERGE_NOTHING, 0, B, 1, 4, 0},                 /* call */
    {1, "\xc3", MERGE_NOTHING, 0, 0, 0, 0, 1},                         /* ret */
    {3, "\xc2\x08\0", MERGE_NOTHING, 0, 0, 0, 0, 1},                   /* ret 8 */
    {7, "\x48\x8b\x05\0\0\0\0", MERGE_REG, 2, D, 3, 4, 0},             /* mov r, [data] */
    {7, "\x48\x89\x05\0\0\0\0", MERGE_REG, 2, D, 3, 4, 0},             /* mov [data], r */
    {7, "\x48\x01\x05\0\0\0\0", MERGE_REG, 2, D, 3, 4, 0},             /* add [data], r */
    {7, "\x48\x8d\x05\0\0\0\0", MERGE_REG, 2, D, 3, 4, 0},             /* lea r, [data] */
    {8, "\x48\x83\x3d\0\0\0\0\0", MERGE_NUMBER, 7, D, 3, 4, 0},        /* cmp qword [data], n */
    {11, "\x48\xc7\x05\0\0\0\0\0\0\0\0", MERGE_NUMBER, 7, D, 3, 4, 0}, /* mov qword [data], n */
    {1, "\x90", MERGE_LENGTH, 0, 0, 0, 0, 0},                          /* nop */
    {2, "\x0f\x0b", MERGE_NOTHING, 0, 0, 0, 0, 1},                     /* ud2 */
};

enum {
  ROWS = sizeof palette / sizeof palette[0],
  ROW_INC = 0,
  ROW_JCC = 9,
  ROW_JUMP32 = 19,
  ROW_CALL = 20,
  ROW_LOAD = 23,
  ROW_NOP = 29,
  FAR = 0x80,
  REPEATS_FROM = 200, /* most graphs are small: those are fast, and shown whole */
  KEEP_FLAG = 0x80    /* of the operand byte of what never falls through: it does not say so */
};

uint32_t graph_palette_row(uint8_t kind) {
  return (kind & ~(unsigned)FAR) % ROWS;
}

/* ---- Layout ---- */

const ls_layout *graph_layout(void) {
  static ls_layout layout;
  if (layout.window_count == 0) {
    ls_layout_default(&layout, 0);
    layout.windows[LS_CODE_WINDOW].size = 0x80000; /* 3,000 instructions of 174 bytes, all inserted */
  }
  return &layout;
}

/* ---- Operands ---- */

/* All that can be named in three bits but RSP. */
static uint8_t register_of(uint32_t draw) {
  static const uint8_t names[8] = {LS_RAX, LS_RCX, LS_RDX, LS_RBX, LS_RCX, LS_RBP, LS_RSI, LS_RDI};
  return names[draw & 7];
}

/* SDM vol. 2B, "NOP": the recommended forms of up to 9 bytes; longer ones by prefixes. */
static void make_nop(ls_instruction *in, uint8_t length) {
  static const char forms[9][9] = {{"\x90"},
                                   {"\x66\x90"},
                                   {"\x0f\x1f\x00"},
                                   {"\x0f\x1f\x40\x00"},
                                   {"\x0f\x1f\x44\x00\x00"},
                                   {"\x66\x0f\x1f\x44\x00\x00"},
                                   {"\x0f\x1f\x80\0\0\0\0"},
                                   {"\x0f\x1f\x84\0\0\0\0\0"},
                                   {"\x66\x0f\x1f\x84\0\0\0\0\0"}};
  uint8_t kept = length < 9 ? length : 9, prefixes = (uint8_t)(length - kept);
  memset(in->bytes, 0x66, prefixes);
  memcpy(in->bytes + prefixes, forms[kept - 1], kept);
  in->length = length;
}

/* Mostly words of the data window; some read only, at and across the ends of pages and windows. */
static uint64_t data_address(uint8_t draw) {
  const ls_window *data = &graph_layout()->windows[1], *constants = &graph_layout()->windows[2];
  uint32_t place = draw >> 3;
  switch (place) {
  case 0:
    return constants->address + 8 * (draw & 7u);
  case 1:
    return data->address + LS_PAGE - 4;
  case 2:
    return data->address + data->size - 8;
  case 3:
    return data->address + data->size - 4;
  case 4:
    return data->address + data->size;
  case 5:
    return data->address - 1;
  default:
    return data->address + 8 * (place & 7);
  }
}

static void merge_operands(ls_instruction *in, const pattern *p, uint8_t draw) {
  uint8_t *at = &in->bytes[p->merge_at];
  switch ((merge)p->merge) {
  case MERGE_RM:
    *at |= register_of(draw);
    break;
  case MERGE_REG:
    *at |= (uint8_t)(register_of(draw) << 3);
    break;
  case MERGE_BOTH:
    *at |= (uint8_t)(register_of(draw) | register_of(draw >> 3) << 3);
    break;
  case MERGE_CONDITION:
    *at |= draw & 15;
    break;
  case MERGE_NUMBER:
    *at = draw & 15;
    break;
  case MERGE_LENGTH:
    make_nop(in, (uint8_t)(1 + draw % LS_INSTRUCTION_MAX));
    break;
  case MERGE_NOTHING:
    break;
  }
}

static ls_instruction make_instruction(uint32_t row, uint8_t draw) {
  const pattern *p = &palette[row];
  ls_instruction in = {.next = LS_NONE, .jump = LS_NONE, .length = p->length};
  memcpy(in.bytes, p->bytes, p->length);
  in.field = p->field;
  in.field_offset = p->field_offset;
  in.field_size = p->field_size;
  if (p->ends && !(draw & KEEP_FLAG))
    in.flags = LS_NEVER_FALLS_THROUGH;
  merge_operands(&in, p, draw);
  if (in.field == LS_FIELD_DATA)
    in.data = data_address(draw);
  return in;
}

/* ---- Decoding ---- */

static uint32_t link_of(uint32_t from, uint32_t count, uint8_t draw, uint32_t stride) {
  if (draw == 0x80)
    return LS_NONE;
  if (draw == 0)
    return from + 1 < count ? from + 1 : LS_NONE;
  if (draw == 0x7f)
    return from;
  int64_t to = (int64_t)from + (int64_t)(int8_t)draw * stride;
  int64_t wrapped = to % (int64_t)count;
  return (uint32_t)(wrapped < 0 ? wrapped + count : wrapped);
}

static void decode_instruction(graph *g, uint32_t i, const uint8_t *record, uint32_t records,
                               uint32_t *calls) {
  uint32_t row = graph_palette_row(record[0]), stride = record[0] & FAR ? records / 4 + 1 : 1;
  if (row == ROW_CALL && ++*calls > GRAPH_CALLS_MAX)
    row = ROW_JUMP32;
  ls_instruction *in = &g->instructions[i];
  *in = make_instruction(row, record[1]);
  in->id = i;
  in->next = link_of(i, g->count, record[2], stride);
  if (in->field == LS_FIELD_BRANCH)
    in->jump = link_of(i, g->count, record[3], stride);
}

void graph_decode(graph *g, const uint8_t *data, size_t size) {
  static const uint8_t nothing[GRAPH_RECORD] = {ROW_NOP};
  uint8_t header[GRAPH_HEADER] = {0};
  if (data)
    memcpy(header, data, size < GRAPH_HEADER ? size : GRAPH_HEADER);
  size_t records = !data || size < GRAPH_HEADER ? 0 : (size - GRAPH_HEADER) / GRAPH_RECORD;
  if (records > GRAPH_RECORDS_MAX)
    records = GRAPH_RECORDS_MAX;
  uint32_t length = records ? (uint32_t)records : 1, calls = 0;
  uint32_t times = header[4] < REPEATS_FROM ? 1 : 1u << (header[4] - REPEATS_FROM) / 5;
  g->count = length * times < GRAPH_MAX ? length * times : GRAPH_MAX / length * length;
  g->entry = header[5] % length;
  memcpy(&g->seed, header, sizeof g->seed);
  g->spoil = header[6];
  g->spoil_place = header[7];
  for (uint32_t i = 0; i < g->count; i++) {
    const uint8_t *record =
        records && data ? data + GRAPH_HEADER + (size_t)(i % length) * GRAPH_RECORD : nothing;
    decode_instruction(g, i, record, length, &calls);
  }
}

ls_program graph_program(const graph *g, uint32_t flags) {
  return (ls_program){.instructions = g->instructions, .count = g->count, .flags = flags};
}

/* ---- Another order ---- */

static uint32_t moved(const uint32_t *to, uint32_t link) {
  return link == LS_NONE ? LS_NONE : to[link];
}

void graph_shuffle(const graph *from, graph *to) {
  uint32_t place[GRAPH_MAX];
  rng r = {from->seed};
  for (uint32_t i = 0; i < from->count; i++) {
    uint32_t j = rng_below(&r, i + 1);
    place[i] = i;
    place[i] = place[j];
    place[j] = i;
  }
  to->count = from->count;
  to->entry = place[from->entry];
  to->seed = from->seed;
  to->spoil = from->spoil;
  to->spoil_place = from->spoil_place;
  for (uint32_t i = 0; i < from->count; i++) {
    ls_instruction *in = &to->instructions[place[i]];
    *in = from->instructions[i];
    in->next = moved(place, in->next);
    in->jump = moved(place, in->jump);
  }
}

/* ---- What cannot be laid out ---- */

static void spoil_data_field(ls_instruction *in, uint8_t size, uint64_t target) {
  *in = make_instruction(ROW_LOAD, 0);
  in->field_size = size;
  in->data = target;
}

static void spoil_branch_field(ls_instruction *in, uint8_t offset, uint8_t size) {
  *in = make_instruction(ROW_JCC, 0);
  in->field_offset = offset;
  in->field_size = size;
}

uint32_t graph_spoil(graph *g) {
  uint32_t index = (uint32_t)((uint64_t)g->spoil_place * g->count / 256);
  ls_instruction *in = &g->instructions[index];
  switch (g->spoil % 16) {
  case 1:
    in->length = 0;
    return index;
  case 2:
    in->length = (uint8_t)(16 + g->spoil_place % 240);
    return index;
  case 3:
    in->next = g->count;
    return index;
  case 4:
    in->next = LS_NONE - 1;
    return index;
  case 5:
    spoil_branch_field(in, 1, 1);
    in->jump = g->count;
    return index;
  case 6: /* a link without a branch */
    *in = make_instruction(ROW_INC, 0);
    in->jump = 1;
    return index;
  case 7:
    spoil_data_field(in, 4, graph_layout()->windows[1].address);
    in->jump = 1;
    return index;
  case 8: /* of no known width */
    spoil_branch_field(in, 0, 2);
    return index;
  case 9:
    spoil_branch_field(in, 0, 0);
    return index;
  case 10: /* not inside the bytes */
    spoil_branch_field(in, 2, 1);
    return index;
  case 11:
    spoil_branch_field(in, 0, 4);
    return index;
  case 12:
    spoil_branch_field(in, 255, 1);
    return index;
  case 13:
    in->field = 3;
    return index;
  case 14:
    spoil_data_field(in, 1, graph_layout()->windows[1].address);
    return index;
  case 15:
    spoil_data_field(in, 4, UINT64_C(0x700000000000));
    return index;
  default:
    return LS_NONE;
  }
}

/* ---- Where a run starts ---- */

void graph_state(const graph *g, ls_state *state) {
  enum { STATUS_FLAGS = 0x8d5 }; /* SDM vol. 1, 3.4.3.1 */
  const ls_window *stack = &graph_layout()->windows[3];
  rng r = {g->seed ^ UINT64_C(0x57a7e)};
  ls_state_init(state);
  for (unsigned i = 0; i < 16; i++)
    state->gpr[i] = rng_one_in(&r, 4) ? rng_next(&r) : rng_below(&r, 12);
  state->gpr[LS_RSP] = stack->address + stack->size / 2;
  state->rflags |= rng_next(&r) & STATUS_FLAGS;
}

void graph_stack(const graph *g, uint32_t ids[GRAPH_STACK_WORDS]) {
  rng r = {g->seed ^ UINT64_C(0x57ac4)};
  for (unsigned i = 0; i < GRAPH_STACK_WORDS; i++)
    ids[i] = rng_one_in(&r, 4) ? LS_NONE : rng_below(&r, g->count);
}

#include "inspect/subject.h"

#include <string.h>

#include "flags.h"
#include "forms/forms.h"
#include "forms/policy.h"
#include "forms/registers.h"
#include "graph/make.h"

enum { ALL_REGISTERS = 0xffff, RSP_BIT = 1 << LS_RSP, RCX_BIT = 1 << LS_RCX, SAVED_SIZE = 8 };

#define PLENTY (UINT64_C(1) << 40) /* of fuel */

/* Odd, so that no two indices have the same id: ids are any 64 bits. */
#define ID_STEP UINT64_C(0x9e3779b97f4a7c15)

/* What a whole body does. */
typedef struct body_facts {
  uint16_t used, written, addresses; /* masks of general registers */
  bool fixed;                        /* code must stay where it is */
} body_facts;

uint64_t subject_saved(void) {
  const ls_window *stack = &testcase_layout()->windows[TESTCASE_STACK];
  return stack->address + stack->size - LS_CONTROL_SIZE - SAVED_SIZE;
}

/* ---- Looking through a body ---- */

static uint16_t used_gprs(const ZydisDecodedInstruction *in, const ZydisDecodedOperand *operands) {
  uint16_t mask = address_gprs(in, operands);
  for (unsigned i = 0; i < in->operand_count; i++) {
    uint32_t gpr =
        operands[i].type == ZYDIS_OPERAND_TYPE_REGISTER ? gpr_number(operands[i].reg.value) : LS_NONE;
    if (gpr != LS_NONE)
      mask |= (uint16_t)(1 << gpr);
  }
  return mask;
}

static bool refers_to_rip(const ZydisDecodedInstruction *in, const ZydisDecodedOperand *operands) {
  for (unsigned i = 0; i < in->operand_count; i++)
    if (operands[i].type == ZYDIS_OPERAND_TYPE_MEMORY && operands[i].mem.base == ZYDIS_REGISTER_RIP)
      return true;
  return false;
}

/* Does an address of code get into registers or memory, or is one taken from there? x87 instructions leave
 * theirs in FIP. */
static bool is_fixed(const ls_instruction *from, const ZydisDecodedInstruction *in,
                     const ZydisDecodedOperand *operands) {
  switch (in->meta.category) {
  case ZYDIS_CATEGORY_CALL:
  case ZYDIS_CATEGORY_RET:
  case ZYDIS_CATEGORY_SYSCALL:
    return true;
  case ZYDIS_CATEGORY_UNCOND_BR:
    return from->field != LS_FIELD_BRANCH;
  default:
    return (refers_to_rip(in, operands) && from->field != LS_FIELD_DATA) || policy_uses_x87(in, operands);
  }
}

static bool is_repeated(const ZydisDecodedInstruction *in) {
  return (in->attributes & (ZYDIS_ATTRIB_HAS_REP | ZYDIS_ATTRIB_HAS_REPE | ZYDIS_ATTRIB_HAS_REPNE)) != 0;
}

static void look_at(subject *s, uint32_t index, body_facts *facts) {
  ZydisDecodedInstruction in;
  ZydisDecodedOperand operands[ZYDIS_MAX_OPERAND_COUNT];
  const ls_instruction *from = &s->list[index];
  if (!harness_decode(from->bytes, from->length, &in, operands) || in.length != from->length) {
    facts->used = ALL_REGISTERS;
    facts->fixed = true;
    return;
  }
  facts->used |= used_gprs(&in, operands);
  facts->written |= written_gprs(&in, operands);
  facts->addresses |= address_gprs(&in, operands);
  facts->fixed |= is_fixed(from, &in, operands);
  s->repeats[index] = is_repeated(&in);
  s->loads_ss[index] = in.mnemonic == ZYDIS_MNEMONIC_MOV && operands[0].type == ZYDIS_OPERAND_TYPE_REGISTER &&
                       operands[0].reg.value == ZYDIS_REGISTER_SS;
}

/* ---- The loop ---- */

static ls_instruction *append(subject *s, const char *bytes, uint8_t length) {
  ls_instruction *in = &s->list[s->count];
  *in = (ls_instruction){.next = s->count + 1, .jump = LS_NONE, .length = length};
  memcpy(in->bytes, bytes, length);
  s->count++;
  return in;
}

static void append_saved(subject *s, char opcode) {
  const char bytes[] = {0x48, opcode, 0x0d, 0, 0, 0, 0}; /* RCX to or from [rip+…] */
  ls_instruction *in = append(s, bytes, sizeof bytes);
  in->field = LS_FIELD_DATA;
  in->field_offset = 3;
  in->field_size = 4;
  in->data = subject_saved();
}

/* mov r64, imm64 */
static void append_load(subject *s, uint32_t gpr) {
  char bytes[10] = {(char)(gpr >= 8 ? 0x49 : 0x48), (char)(0xb8 | (gpr & 7))};
  memcpy(bytes + 2, &s->state.gpr[gpr], 8);
  append(s, bytes, sizeof bytes);
}

static void append_loop(subject *s, uint16_t restored) {
  uint8_t c = (uint8_t)s->counter, low = c & 7, high = c >= 8;
  const char down[] = {(char)(high ? 0x4d : 0x48), (char)0x8d, (char)(0x40 | low << 3 | low),
                       (char)0xff};                                   /* lea c, [c-1] */
  const char down_r12[] = {0x4d, (char)0x8d, 0x64, 0x24, (char)0xff}; /* needs a SIB byte */
  const char copy[] = {(char)(high ? 0x4c : 0x48), (char)0x89, (char)(0xc1 | low << 3)}; /* mov rcx, c */
  s->loop = s->count;
  append_saved(s, (char)0x89);
  if (c == LS_R12)
    append(s, down_r12, sizeof down_r12);
  else
    append(s, down, sizeof down);
  append(s, copy, sizeof copy);
  ls_instruction *leave = append(s, "\xe3", 2); /* jrcxz */
  leave->field = LS_FIELD_BRANCH;
  leave->field_offset = 1;
  leave->field_size = 1;
  append_saved(s, (char)0x8b);
  for (uint32_t gpr = 0; gpr < 16; gpr++)
    if (restored >> gpr & 1)
      append_load(s, gpr);
  s->list[s->count - 1].next = s->entry;
}

/* What left the program now goes round. */
static void close_loop(subject *s, const body_facts *facts) {
  uint32_t body = s->count;
  for (uint32_t i = 0; i < body; i++) {
    ls_instruction *in = &s->list[i];
    if (in->next == LS_NONE && !(in->flags & LS_NEVER_FALLS_THROUGH))
      in->next = body;
    if (in->jump == LS_NONE && in->field == LS_FIELD_BRANCH)
      in->jump = body;
  }
  append_loop(s, (uint16_t)(facts->written & (facts->addresses | RSP_BIT)));
  s->state.gpr[s->counter] = s->iterations;
}

static uint32_t spare_register(uint16_t used, uint32_t seed) {
  uint16_t spare = (uint16_t) ~(used | RSP_BIT | RCX_BIT);
  for (uint32_t i = 0; i < 16; i++)
    if (spare >> ((seed + i) & 15) & 1)
      return (seed + i) & 15;
  return LS_NONE;
}

/* ---- Decoding ---- */

static void take_graph(subject *s, const uint8_t *data, size_t size) {
  static graph g;
  static testcase base;
  uint8_t bytes[GRAPH_HEADER + SUBJECT_BODY_MAX * GRAPH_RECORD] = {0};
  size_t used = size < sizeof bytes ? size : sizeof bytes;
  if (used)
    memcpy(bytes, data, used);
  bytes[4] = 0; /* no repetitions: it must stay small */
  graph_decode(&g, bytes, used);
  testcase_init(&base);
  base.fill[TESTCASE_DATA] = (uint8_t)g.seed;
  base.vectors = (uint8_t)(g.seed >> 8);
  graph_state(&g, &s->state);
  testcase_vectors(base.vectors, &s->state);
  testcase_contents_make(&base, &s->contents);
  memcpy(s->list, g.instructions, g.count * sizeof *s->list);
  s->count = g.count;
  s->entry = g.entry;
  s->anywhere = false;
}

static void take_testcase(subject *s, const uint8_t *data, size_t size) {
  static testcase test;
  testcase_decode(&test, data, size);
  s->state = test.state;
  s->state.rflags &=
      ~(uint64_t)RFLAGS_NT; /* lost when the kernel is entered (regs.def): PUSHF would show it */
  testcase_contents_make(&test, &s->contents);
  memcpy(s->list, test.instructions, test.count * sizeof *s->list);
  s->count = test.count;
  s->entry = 0;
  s->anywhere = test.cpu & TESTCASE_ANYWHERE;
}

/* The contents of windows without patches are borrowed from tables that stay. */
static void take_header(subject *s, const uint8_t header[SUBJECT_HEADER]) {
  uint8_t flags = header[0];
  s->iterations = (uint64_t)(16 + (header[1] & 15)) << (header[1] >> 4) >> 1;
  s->requests = (uint8_t)(1 + header[2] % 24);
  s->mix = header[3];
  memcpy(&s->seed, header + 4, sizeof s->seed);
  s->wild = flags & SUBJECT_WILD;
  s->kind = (flags & SUBJECT_KIND) == SUBJECT_KIND ? LS_PTRACE : LS_SIGNAL;
  s->requesters = (uint8_t)(1 + (flags >> 3 & 3) % 3);
  rng r = {s->seed ^ UINT64_C(0xf0e1)};
  s->fuel = flags & SUBJECT_TIGHT ? 1 + rng_next(&r) % (2 * s->iterations) : PLENTY;
  s->flags = flags & SUBJECT_TIGHT || rng_one_in(&r, 2) ? LS_PROGRAM_FUEL : 0;
}

void subject_decode(subject *s, const uint8_t *data, size_t size) {
  uint8_t header[SUBJECT_HEADER] = {0};
  size_t used = size < SUBJECT_HEADER ? size : SUBJECT_HEADER;
  if (used)
    memcpy(header, data, used);
  memset(s->repeats, 0, sizeof s->repeats);
  memset(s->loads_ss, 0, sizeof s->loads_ss);
  take_header(s, header);
  const uint8_t *body = size > used ? data + used : header;
  (header[0] & SUBJECT_GRAPH ? take_graph : take_testcase)(s, body, size - used);
  s->state.ds = s->state.es = 0; /* what a controller begins with: no visitor can change selectors */
  body_facts facts = {0};
  for (uint32_t i = 0; i < s->count; i++)
    look_at(s, i, &facts);
  s->movable = !facts.fixed && !(header[0] & SUBJECT_TIGHT);
  s->counter = spare_register(facts.used, s->seed);
  s->loop = LS_NONE;
  if (s->counter == LS_NONE)
    s->iterations = 1;
  else
    close_loop(s, &facts);
  for (uint32_t i = 0; i < s->count; i++)
    s->list[i].id = (i + 1) * ID_STEP;
}

ls_program subject_program(const subject *s) {
  return (ls_program){.instructions = s->list, .count = s->count, .flags = s->flags};
}

uint32_t subject_index(const subject *s, uint64_t id) {
  for (uint32_t i = 0; i < s->count; i++)
    if (s->list[i].id == id)
      return i;
  return LS_NONE;
}

/* ---- Other lists ---- */

static uint32_t moved(const uint32_t *to, uint32_t link) {
  return link == LS_NONE ? LS_NONE : to[link];
}

static void copy_list(const subject *s, const uint32_t *to, ls_instruction *list) {
  for (uint32_t i = 0; i < s->count; i++) {
    if (to[i] == LS_NONE)
      continue;
    ls_instruction *in = &list[to[i]];
    *in = s->list[i];
    in->next = moved(to, in->next);
    in->jump = moved(to, in->jump);
  }
}

void subject_shuffle(const subject *s, ls_instruction *order) {
  uint32_t to[SUBJECT_MAX];
  rng r = {s->seed ^ UINT64_C(0x0de1)};
  for (uint32_t i = 0; i < s->count; i++) {
    uint32_t j = rng_below(&r, i + 1);
    to[i] = i;
    to[i] = to[j];
    to[j] = i;
  }
  copy_list(s, to, order);
}

void subject_fill(const subject *s, ls_instruction *list) {
  for (uint32_t i = s->count; i < s->count + SUBJECT_FILLER; i++)
    list[i] = (ls_instruction){.id = (i + 1) * ID_STEP,
                               .next = LS_NONE,
                               .jump = LS_NONE,
                               .length = 15,
                               .bytes = "\x66\x66\x66\x66\x66\x66\x66\x0f\x1f\x84"}; /* nop */
}

uint32_t subject_without(const subject *s, uint32_t index, ls_instruction *rest) {
  uint32_t to[SUBJECT_MAX];
  for (uint32_t i = 0; i < s->count; i++)
    to[i] = i == index ? LS_NONE : i - (i > index);
  copy_list(s, to, rest);
  return s->count - 1;
}

void subject_canonicalise(ls_state *state) {
  ls_state_canonicalise(state);
  state->fop = 0;
  state->fip = 0;
  state->fdp = 0;
}

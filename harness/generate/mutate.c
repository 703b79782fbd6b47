/* Changes to test cases that keep them valid. */
#include <string.h>

#include "forms/scan.h"
#include "generate/generator.h"
#include "generate/operands.h"
#include "generate/values.h"

static const char *const names[MUTATE_KINDS] = {"insert", "replace", "delete", "duplicate",
                                                "swap",   "operand", "value"};

const char *mutation_name(mutation kind) {
  return (unsigned)kind < MUTATE_KINDS ? names[kind] : "unknown";
}

/* ---- What is known of a program that came from elsewhere --------------------------------------------- */

/* Registers that no instruction writes are known by the initial state. An instruction that does not decode
 * counts as writing nothing. */
static void frame_read(frame *f, rng *r, testcase *test) {
  uint16_t gprs = 1 << LS_RSP;
  uint32_t vectors = 1;
  memset(f, 0, sizeof *f);
  for (uint32_t i = 0; i < test->count; i++) {
    scan_info info = scan_instruction(&test->instructions[i]);
    f->fpu |= info.uses_x87;
    gprs |= info.written_gprs;
    vectors |= info.written_vectors;
  }
  f->r = r;
  f->test = test;
  memcpy(f->value, test->state.gpr, sizeof f->value);
  f->known = (uint16_t)~gprs;
  f->index = NO_VECTOR;
  uint32_t first = rng_below(r, 16);
  for (uint32_t i = 0; i < 16 && f->index == NO_VECTOR; i++) {
    uint32_t vector = (first + i) % 16;
    if (!(vectors >> vector & 1))
      f->index = (uint8_t)vector;
  }
  /* Leave something to write to: half of what points nowhere is free. */
  const ls_window *data = &testcase_layout()->windows[TESTCASE_DATA];
  for (unsigned i = 0; i < 16; i++) {
    bool pointer = f->value[i] >= data->address && f->value[i] - data->address < 0x200000;
    if (!pointer && f->known >> i & 1 && (i & 1) == (test->count & 1))
      f->known &= (uint16_t) ~(1 << i);
  }
  f->balanced = true;
  f->fpu |= rng_one_in(r, 16);
  frame_warm(f);
}

/* ---- Links ------------------------------------------------------------------------------------------- */

static void shift_links(testcase *test, uint32_t from, uint32_t by, bool up) {
  for (uint32_t i = 0; i < test->count; i++) {
    ls_instruction *in = &test->instructions[i];
    if (in->next != LS_NONE && in->next >= from)
      in->next = up ? in->next + by : in->next - by;
    if (in->jump != LS_NONE && in->jump >= from)
      in->jump = up ? in->jump + by : in->jump - by;
  }
}

/* Opens a gap of `size` before instruction `at`. Links to `at` stay, and so lead to what is put there. */
static void open_gap(testcase *test, uint32_t at, uint32_t size) {
  shift_links(test, at + 1, size, true);
  memmove(&test->instructions[at + size], &test->instructions[at],
          (test->count - at) * sizeof test->instructions[0]);
  test->count += size;
}

static void close_gap(testcase *test, uint32_t at) {
  test->count--;
  memmove(&test->instructions[at], &test->instructions[at + 1],
          (test->count - at) * sizeof test->instructions[0]);
  shift_links(test, at + 1, 1, false);
}

static uint32_t random_link(rng *r, const testcase *test) {
  uint32_t target = rng_below(r, test->count + 1);
  return target == test->count ? LS_NONE : target;
}

/* Copies a group into the gap [at, at+count); what follows the group is `after`. An open branch goes
 * forward, by a little. */
static void write_group(testcase *test, rng *r, uint32_t at, const group *g, uint32_t after) {
  for (uint32_t i = 0; i < g->count; i++) {
    ls_instruction *in = &test->instructions[at + i];
    *in = g->list[i];
    if (in->next != LS_NONE)
      in->next = in->next == g->count ? after : at + in->next;
    if (in->field == LS_FIELD_BRANCH) {
      uint32_t target = at + g->count + rng_below(r, 3);
      in->jump = rng_one_in(r, 20) ? random_link(r, test) : target < test->count ? target : LS_NONE;
    }
  }
}

/* ---- One mutation each ------------------------------------------------------------------------------- */

/* What others rely on: MOV r, imm before strings, divisions and the like, LEA RSP behind what leaves the
 * stack shifted, and the end of a loop. */
static bool supports_others(const testcase *test, uint32_t at) {
  const ls_instruction *in = &test->instructions[at];
  unsigned rex = in->bytes[0] >> 4 == 4;
  uint8_t opcode = in->bytes[rex];
  if (in->field == LS_FIELD_BRANCH)
    return in->jump <= at;
  return (opcode & 0xf8) == 0xb8 || (rex && opcode == 0x8d && (in->bytes[2] & 0x38) == 0x20) ||
         (rex && in->length <= 4 && (opcode == 0xff || opcode == 0x83));
}

/* An instruction to take away or to move: seldom one that supports others. */
static uint32_t pick_movable(rng *r, const testcase *test) {
  uint32_t at = rng_below(r, test->count);
  for (int tries = 0; tries < 4 && supports_others(test, at) && !rng_one_in(r, 8); tries++)
    at = rng_below(r, test->count);
  return at;
}

static bool room_for(const generator *gen, const testcase *test, uint32_t count) {
  uint32_t limit = gen->options.instructions_max;
  return test->count + count <= (limit > test->count ? limit : test->count) &&
         test->count + count <= TESTCASE_INSTRUCTIONS_MAX;
}

static bool make_random_group(generator *gen, rng *r, testcase *test, group *g) {
  frame f;
  frame_read(&f, r, test);
  bool faults = rng_below(r, 300) < gen->options.fault_percent;
  form_id form = faults ? generator_pick(gen, r, LIST_FAULT) : FORM_NONE;
  if (form != FORM_NONE && group_make(&f, form, &gen->traits[form], g))
    return true;
  if (faults)
    f.intent = INTENT_BAD_ADDRESS;
  form = generator_group(gen, &f, true, false, g);
  generator_used(gen, form);
  return form != FORM_NONE;
}

/* Before a random instruction; or at the end, where instructions that left the program then lead to it. */
static bool mutate_insert(generator *gen, rng *r, testcase *test) {
  group g;
  if (!make_random_group(gen, r, test, &g) || !room_for(gen, test, g.count))
    return false;
  uint32_t at = rng_below(r, test->count + 1);
  if (at == test->count) {
    bool linked = false;
    for (uint32_t i = 0; i < at; i++) {
      ls_instruction *in = &test->instructions[i];
      if (in->next == LS_NONE && !(in->flags & LS_NEVER_FALLS_THROUGH)) {
        in->next = at;
        linked = true;
      }
    }
    if (!linked)
      return false;
    test->count += g.count;
    write_group(test, r, at, &g, LS_NONE);
    return true;
  }
  open_gap(test, at, g.count);
  write_group(test, r, at, &g, at + g.count);
  return true;
}

static bool place_over(generator *gen, rng *r, testcase *test, uint32_t at, const group *g) {
  if (g->count > 1 && !room_for(gen, test, g->count - 1))
    return false;
  uint32_t old = test->instructions[at].next, jump = test->instructions[at].jump;
  bool branch = test->instructions[at].field == LS_FIELD_BRANCH;
  uint32_t extra = g->count - 1;
  if (extra > 0)
    open_gap(test, at, extra);
  if (old != LS_NONE && old > at)
    old += extra;
  if (jump != LS_NONE && jump > at)
    jump += extra;
  write_group(test, r, at, g, old);
  if (branch && test->instructions[at + g->main].field == LS_FIELD_BRANCH)
    test->instructions[at + g->main].jump = jump;
  return true;
}

static bool mutate_replace(generator *gen, rng *r, testcase *test) {
  group g;
  return make_random_group(gen, r, test, &g) && place_over(gen, r, test, pick_movable(r, test), &g);
}

static bool mutate_operand(generator *gen, rng *r, testcase *test) {
  uint32_t at = pick_movable(r, test);
  form_id form = scan_instruction(&test->instructions[at]).form;
  if (form == FORM_NONE || policy_of_form(form)->action == POLICY_EXCLUDE)
    return false;
  const form_traits *traits = &gen->traits[form];
  if (traits->role != ROLE_PLAIN && traits->role != ROLE_BRANCH && traits->role != ROLE_FAULT)
    return false;
  frame f;
  group g;
  frame_read(&f, r, test);
  return group_make(&f, form, traits, &g) && place_over(gen, r, test, at, &g);
}

static bool mutate_delete(rng *r, testcase *test) {
  if (test->count < 2)
    return false;
  uint32_t at = pick_movable(r, test), next = test->instructions[at].next;
  if (next == at)
    next = LS_NONE;
  for (uint32_t i = 0; i < test->count; i++) {
    ls_instruction *in = &test->instructions[i];
    if (in->next == at)
      in->next = next;
    if (in->jump == at)
      in->jump = next;
  }
  close_gap(test, at);
  return true;
}

/* The copy stands before the original, which is what it leads to. */
static bool mutate_duplicate(const generator *gen, rng *r, testcase *test) {
  if (!room_for(gen, test, 1))
    return false;
  uint32_t at = pick_movable(r, test);
  open_gap(test, at, 1);
  test->instructions[at] = test->instructions[at + 1];
  if (!(test->instructions[at].flags & LS_NEVER_FALLS_THROUGH))
    test->instructions[at].next = at + 1;
  return true;
}

/* Bytes change places, and with them jump links; what follows what stays. */
static bool mutate_swap(rng *r, testcase *test) {
  if (test->count < 2)
    return false;
  uint32_t a = pick_movable(r, test), b = pick_movable(r, test);
  if (a == b)
    return false;
  ls_instruction *left = &test->instructions[a], *right = &test->instructions[b], saved = *left;
  uint32_t left_next = left->next, right_next = right->next;
  *left = *right;
  *right = saved;
  left->next = left_next;
  right->next = right_next;
  return true;
}

/* ---- Values ------------------------------------------------------------------------------------------ */

/* Registers that addresses are made of. */
static uint16_t address_registers(const testcase *test) {
  uint16_t mask = 1 << LS_RSP;
  for (uint32_t i = 0; i < test->count; i++)
    mask |= scan_instruction(&test->instructions[i]).address_gprs;
  return mask;
}

/* One that makes addresses moves a little, by what keeps accesses aligned: locked ones must never cross a
 * cache line. Rarely it becomes anything, its place in the line kept. */
static void mutate_gpr(rng *r, testcase *test) {
  uint32_t gpr = rng_below(r, 16);
  uint64_t *value = &test->state.gpr[gpr];
  if (!(address_registers(test) >> gpr & 1))
    *value = rng_next(r) & 1 ? value_integer(r) : *value ^ 1ull << rng_below(r, 64);
  else if (rng_one_in(r, 16))
    *value = (value_integer(r) & ~63ull) | (*value & 63);
  else if (gpr == LS_RSP)
    *value += 8ull * (rng_below(r, 17) - 8ull);
  else
    *value += 64ull * (rng_below(r, 5) - 2ull);
}

static void mutate_vector(rng *r, testcase *test) {
  uint32_t draw = rng_below(r, 8), number = rng_below(r, draw & 1 ? 32 : 16);
  uint8_t *vector = test->state.zmm[number];
  if (draw < 2)
    test->state.k[number % 8] = value_integer(r);
  else if (draw < 5)
    value_lanes(r, vector, 64);
  else
    value_lanes(r, vector + 8 * rng_below(r, 8), 8);
}

static void mutate_patch(rng *r, testcase *test) {
  uint32_t count = test->patch_count;
  testcase_patch *patch = &test->patches[count < TESTCASE_PATCHES_MAX ? count : rng_below(r, count)];
  if (count > 0 && rng_next(r) & 1)
    patch = &test->patches[rng_below(r, count)];
  else if (count < TESTCASE_PATCHES_MAX)
    test->patch_count++;
  bool fresh = patch == &test->patches[count];
  if (fresh) {
    patch->window = (uint8_t)(TESTCASE_DATA + rng_below(r, TESTCASE_WINDOWS - TESTCASE_DATA));
    patch->length = (uint8_t)(8 << rng_below(r, 4));
    patch->offset = (uint16_t)(8 * rng_below(r, 512));
    memset(patch->bytes, 0, sizeof patch->bytes);
  }
  value_lanes(r, patch->bytes, patch->length & ~7u);
}

static bool mutate_value(rng *r, testcase *test) {
  ls_state *state = &test->state;
  unsigned window;
  switch (rng_below(r, 12)) {
  case 0:
  case 1:
  case 2:
  case 3:
    mutate_gpr(r, test);
    break;
  case 4:
  case 5:
  case 6:
    mutate_vector(r, test);
    break;
  case 7:
    state->rflags = value_rflags(r);
    break;
  case 8:
    state->mxcsr = value_mxcsr(r);
    break;
  case 9:
    state->fcw = value_fcw(r);
    state->ftw = (uint8_t)rng_next(r);
    value_extended(r, state->st[rng_below(r, 8)]);
    break;
  case 10:
    window = TESTCASE_DATA + rng_below(r, TESTCASE_WINDOWS - TESTCASE_DATA);
    test->fill[window] = (uint8_t)rng_next(r);
    break;
  default:
    mutate_patch(r, test);
  }
  return true;
}

/* ---- All --------------------------------------------------------------------------------------------- */

static bool apply(generator *gen, rng *r, testcase *test, mutation kind) {
  switch (kind) {
  case MUTATE_INSERT:
    return mutate_insert(gen, r, test);
  case MUTATE_REPLACE:
    return mutate_replace(gen, r, test);
  case MUTATE_DELETE:
    return mutate_delete(r, test);
  case MUTATE_DUPLICATE:
    return mutate_duplicate(gen, r, test);
  case MUTATE_SWAP:
    return mutate_swap(r, test);
  case MUTATE_OPERAND:
    return mutate_operand(gen, r, test);
  case MUTATE_VALUE:
    return mutate_value(r, test);
  case MUTATE_KINDS:
    break;
  }
  return false;
}

bool mutate_once(generator *gen, rng *r, testcase *test, mutation kind) {
  if (!apply(gen, r, test, kind))
    return false;
  testcase_normalise(test);
  return true;
}

void mutate_program(generator *gen, rng *r, testcase *test) {
  static const uint8_t weighted[16] = {MUTATE_INSERT,  MUTATE_INSERT,    MUTATE_INSERT, MUTATE_REPLACE,
                                       MUTATE_REPLACE, MUTATE_REPLACE,   MUTATE_DELETE, MUTATE_DELETE,
                                       MUTATE_DELETE,  MUTATE_DUPLICATE, MUTATE_SWAP,   MUTATE_OPERAND,
                                       MUTATE_VALUE,   MUTATE_OPERAND,   MUTATE_VALUE,  MUTATE_OPERAND};
  uint32_t mutations = rng_next(r) & 1 ? 1 : 1 + rng_below(r, 3);
  for (uint32_t tries = 0; mutations > 0 && tries < 8; tries++)
    mutations -= apply(gen, r, test, weighted[rng_below(r, 16)]);
  testcase_normalise(test);
}

/* ---- Two test cases ---------------------------------------------------------------------------------- */

/* Appends instructions [from, from+count) of `source`. Links inside move along; others go to `outside`. */
static void append_part(testcase *out, const testcase *source, uint32_t from, uint32_t count,
                        uint32_t outside) {
  for (uint32_t i = 0; i < count; i++) {
    ls_instruction *in = &out->instructions[out->count + i];
    *in = source->instructions[from + i];
    in->next = in->next - from < count ? in->next - from + out->count : outside;
    in->jump = in->jump - from < count ? in->jump - from + out->count : outside;
    if (in->flags & LS_NEVER_FALLS_THROUGH)
      in->next = LS_NONE;
  }
  out->count += count;
}

void splice_programs(rng *r, const testcase *a, const testcase *b, testcase *out) {
  uint32_t first = 1 + rng_below(r, a->count), from = rng_below(r, a->count - first + 1);
  uint32_t second = 1 + rng_below(r, b->count), start = rng_below(r, b->count - second + 1);
  if (first > TESTCASE_INSTRUCTIONS_MAX - 1)
    first = TESTCASE_INSTRUCTIONS_MAX - 1;
  if (second > TESTCASE_INSTRUCTIONS_MAX - first)
    second = TESTCASE_INSTRUCTIONS_MAX - first;
  testcase_copy(out, rng_next(r) & 1 ? a : b);
  out->fuel = a->fuel > b->fuel ? a->fuel : b->fuel;
  out->count = 0;
  append_part(out, a, from, first, first);
  append_part(out, b, start, second, LS_NONE);
  testcase_normalise(out);
}

bool shrink_program(testcase *test, size_t size) {
  uint8_t bytes[TESTCASE_SIZE_MAX];
  if (size > sizeof bytes)
    size = sizeof bytes;
  while (testcase_encode(test, bytes, size) == 0) {
    if (test->patch_count > 0 && test->patch_count >= test->count - 1)
      test->patch_count--;
    else if (test->count > 1)
      test->count--;
    else
      return false;
    testcase_normalise(test); /* links to what was cut leave the program */
  }
  return true;
}

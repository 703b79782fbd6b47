/* The shape of programs: straight, with branches, loops, and subroutines. */
#include "generate/generator.h"
#include "generate/operands.h"
#include "generate/values.h"

enum {
  PICKS = 12,        /* forms tried for one place */
  CALLS_MAX = 3,     /* in a program */
  CALL_RESERVE = 10, /* instructions that a subroutine may take */
  LOOP_RESERVE = 6,
  FUEL = 255 /* more than the loops of most programs take */
};

/* ---- Groups ------------------------------------------------------------------------------------------ */

/* Where to look: control flow and x87, where it is wanted, are more frequent than their share of the forms.
 */
static form_list body_list(const frame *f, bool branches, bool calls) {
  uint32_t draw = rng_below(f->r, 100);
  if (draw < 6 && branches)
    return LIST_BRANCH;
  if (draw >= 6 && draw < 8 && calls)
    return LIST_CALL;
  return draw >= 67 && f->fpu ? LIST_FPU : LIST_BODY;
}

form_id generator_group(generator *gen, frame *f, bool branches, bool calls, group *g) {
  for (int pick = 0; pick < PICKS; pick++) {
    form_id form = generator_pick(gen, f->r, body_list(f, branches, calls));
    if (form == FORM_NONE)
      continue;
    const form_traits *traits = &gen->traits[form];
    if (traits->flags & TRAIT_FPU && !f->fpu)
      continue;
    if ((traits->role == ROLE_BRANCH && !branches) || (traits->role == ROLE_CALL && !calls))
      continue;
    if (group_make(f, form, traits, g))
      return form;
    generator_failed(gen, form);
  }
  return FORM_NONE;
}

/* ---- Shape ------------------------------------------------------------------------------------------- */

/* Groups that may branch to each other: the main line, or the body of a loop. */
typedef struct level {
  uint32_t starts[INSTRUCTIONS_MAX + 1];
  uint32_t start_count;
  uint32_t open[INSTRUCTIONS_MAX]; /* branches whose target is still to be chosen */
  uint32_t open_count;
} level;

typedef struct builder {
  generator *gen;
  testcase *test;
  frame f;
  uint32_t limit;   /* of instructions in all */
  uint32_t reserve; /* of them for subroutines to come */
  level main_line;
  struct {
    uint32_t at;
    group ending;
  } calls[CALLS_MAX];
  uint32_t call_count;
} builder;

static bool has_room(const builder *b, uint32_t count) {
  return b->test->count + b->reserve + count <= b->limit;
}

static uint32_t append(builder *b, const group *g) {
  uint32_t base = b->test->count;
  for (uint32_t i = 0; i < g->count; i++) {
    ls_instruction *in = &b->test->instructions[base + i];
    *in = g->list[i];
    in->id = base + i;
    if (in->next != LS_NONE)
      in->next += base;
  }
  b->test->count += g->count;
  return base + g->main;
}

static bool append_at(builder *b, level *l, const group *g, uint32_t *main) {
  if (!has_room(b, g->count))
    return false;
  if (l)
    l->starts[l->start_count++] = b->test->count;
  *main = append(b, g);
  return true;
}

/* A call, and the end of the subroutine that it will go to. */
static bool append_call(builder *b, level *l, const group *call) {
  if (b->call_count == CALLS_MAX)
    return false;
  form_id form = generator_pick(b->gen, b->f.r, LIST_ENDING);
  group *ending = &b->calls[b->call_count].ending;
  if (form == FORM_NONE || !has_room(b, call->count + 1 + CALL_RESERVE) ||
      !group_ending(&b->f, form, &b->gen->traits[form], ending))
    return false;
  uint32_t main;
  group g = *call;
  if (ending->drift)
    group_adjust_stack(&g, -ending->drift);
  if (!append_at(b, l, &g, &main))
    return false;
  b->calls[b->call_count++].at = main;
  b->reserve += CALL_RESERVE;
  generator_used(b->gen, form);
  return true;
}

/* One group from the body list; false if nothing was placed. */
static bool append_random(builder *b, level *l) {
  group g;
  uint32_t main;
  form_id form = generator_group(b->gen, &b->f, l != NULL, l != NULL && b->call_count < CALLS_MAX, &g);
  if (form == FORM_NONE)
    return false;
  form_role role = b->gen->traits[form].role;
  bool placed = role == ROLE_CALL ? append_call(b, l, &g) : append_at(b, l, &g, &main);
  if (!placed)
    return false;
  if (role == ROLE_BRANCH && l)
    l->open[l->open_count++] = main;
  generator_used(b->gen, form);
  return true;
}

/* Chooses targets: mostly the group that follows or one soon after it. */
static void close_level(builder *b, level *l) {
  l->starts[l->start_count] = b->test->count;
  for (uint32_t i = 0; i < l->open_count; i++) {
    uint32_t after = 0;
    while (after < l->start_count && l->starts[after] <= l->open[i])
      after++;
    uint32_t skip = rng_percent(b->f.r, 50) ? 0 : rng_below(b->f.r, 3);
    uint32_t target = after + skip < l->start_count ? after + skip : l->start_count;
    b->test->instructions[l->open[i]].jump = l->starts[target];
  }
}

/* A counter, a body of a few groups, and a conditional branch back. */
static bool append_loop(builder *b, level *outer) {
  rng *r = b->f.r;
  uint32_t main, counter = rng_one_in(r, 3) ? LS_RCX : frame_scratch(&b->f, 0);
  if (counter == LS_NONE || b->f.known >> counter & 1 || !has_room(b, LOOP_RESERVE))
    return false;
  group g;
  level inner = {.start_count = 0};
  group_clear(&g);
  group_load(&g, counter, 1 + rng_below(r, rng_one_in(r, 10) ? 40 : 6));
  append_at(b, outer, &g, &main);
  uint32_t head = b->test->count;
  frame saved = b->f;
  b->f.kept |= (uint16_t)(1 << counter);
  b->f.balanced = true;
  b->reserve += 2;
  for (uint32_t groups = 1 + rng_below(r, 4); groups > 0; groups--)
    append_random(b, &inner);
  b->reserve -= 2;
  b->f.kept = saved.kept;
  b->f.balanced = saved.balanced;
  close_level(b, &inner);
  group_loop_end(b->f.r, counter, &g);
  append(b, &g);
  b->test->instructions[b->test->count - 1].jump = head;
  return true;
}

/* What leaves the main line leaves the program; behind it come the subroutines. */
static void end_main_line(builder *b) {
  close_level(b, &b->main_line);
  for (uint32_t i = 0; i < b->test->count; i++) {
    ls_instruction *in = &b->test->instructions[i];
    if (in->next == b->test->count)
      in->next = LS_NONE;
    if (in->jump == b->test->count)
      in->jump = LS_NONE;
  }
}

static void append_subroutines(builder *b) {
  b->f.balanced = true;
  b->f.intent = INTENT_RUN;
  for (uint32_t i = 0; i < b->call_count; i++) {
    b->test->instructions[b->calls[i].at].jump = b->test->count;
    b->reserve = (b->call_count - i - 1) * CALL_RESERVE + b->calls[i].ending.count;
    for (uint32_t groups = rng_below(b->f.r, 3); groups > 0; groups--)
      append_random(b, NULL);
    append(b, &b->calls[i].ending);
  }
}

/* ---- Faults on purpose ------------------------------------------------------------------------------- */

static void append_execute_data(builder *b) {
  rng *r = b->f.r;
  group g;
  uint32_t main, scratch = frame_scratch(&b->f, 0);
  unsigned window = TESTCASE_DATA + rng_below(r, TESTCASE_WINDOWS - TESTCASE_DATA);
  uint64_t target = rng_one_in(r, 4) ? value_integer(r) | 1ull << 63 : address_in(r, window, 16, 1);
  group_clear(&g);
  group_load(&g, scratch == LS_NONE ? LS_RAX : scratch, target);
  scratch = scratch == LS_NONE ? LS_RAX : scratch;
  uint8_t rex = scratch >= 8 ? 0x41 : 0x40;
  if (rng_next(r) & 1) {
    group_add(&g, (const uint8_t[]){rex, 0xff, (uint8_t)(0xe0 | (scratch & 7))}, 3); /* jmp */
  } else {
    group_add(&g, (const uint8_t[]){rex, (uint8_t)(0x50 | (scratch & 7))}, 2); /* push, ret */
    group_add(&g, (const uint8_t[]){0xc3}, 1);
  }
  g.list[g.count - 1].flags = LS_NEVER_FALLS_THROUGH;
  g.list[g.count - 1].next = LS_NONE;
  append_at(b, &b->main_line, &g, &main);
}

static void append_fault(builder *b, form_list list, intent why) {
  group g;
  uint32_t main;
  frame f = b->f;
  f.intent = why;
  for (int pick = 0; pick < 4 * PICKS; pick++) {
    form_id form = generator_pick(b->gen, f.r, list);
    if (form == FORM_NONE)
      break;
    const form_traits *traits = &b->gen->traits[form];
    if (traits->role == ROLE_BRANCH || traits->role == ROLE_CALL || !group_make(&f, form, traits, &g)) {
      generator_failed(b->gen, form);
      continue;
    }
    if (append_at(b, &b->main_line, &g, &main)) {
      generator_used(b->gen, form);
      b->f.index_filled = f.index_filled;
      return;
    }
  }
}

/* Unmasked exceptions, AC and TF are in the state; the instructions that meet them are ordinary ones. */
static void fault_in_state(builder *b, uint32_t kind) {
  rng *r = b->f.r;
  ls_state *state = &b->test->state;
  switch (kind) {
  case 0:
    state->rflags |= 0x40000; /* AC */
    append_fault(b, LIST_MEMORY, INTENT_MISALIGNED);
    break;
  case 1:
    state->mxcsr &= ~(uint32_t)(rng_next(r) & 1 ? 0x1f80 : rng_next(r) & 0x1f80);
    for (int i = 0; i < 3; i++)
      append_fault(b, LIST_FLOAT, INTENT_RUN);
    break;
  case 2:
    state->fcw &= (uint16_t) ~(rng_next(r) & 1 ? 0x3f : rng_next(r) & 0x3f);
    for (int i = 0; i < 3; i++)
      append_fault(b, LIST_X87, INTENT_RUN);
    break;
  default:
    state->rflags |= 0x100; /* TF */
  }
}

static void append_purposeful_fault(builder *b) {
  rng *r = b->f.r;
  switch (rng_below(r, 16)) {
  case 0:
  case 1:
  case 2:
    append_fault(b, LIST_MEMORY, INTENT_BAD_ADDRESS);
    break;
  case 3:
    append_fault(b, LIST_STORE, INTENT_CONST_WRITE);
    break;
  case 4:
    append_execute_data(b);
    break;
  case 5:
    append_fault(b, LIST_DIVIDE, INTENT_DIVIDE);
    break;
  case 6:
    append_fault(b, LIST_ILLEGAL, INTENT_RUN);
    break;
  case 7:
    append_fault(b, LIST_STRICT, INTENT_MISALIGNED);
    break;
  case 8:
  case 9:
  case 10:
  case 11:
    fault_in_state(b, rng_below(r, 4));
    break;
  default:
    append_fault(b, LIST_FAULT, INTENT_RUN);
  }
}

/* ---- Programs ---------------------------------------------------------------------------------------- */

/* Short ones are common, since they run sooner and say more about each of their instructions. */
static uint32_t draw_length(rng *r, uint32_t limit) {
  uint32_t draw = rng_below(r, 10);
  uint32_t bound = draw < 5 ? 8 : draw < 9 ? 16 : INSTRUCTIONS_MAX;
  return 1 + rng_below(r, bound < limit ? bound : limit);
}

/* What can stand anywhere and is sure to encode: for the case that nothing else could be placed. */
static void append_simple(builder *b) {
  group g;
  uint32_t main, scratch = frame_scratch(&b->f, 0);
  group_clear(&g);
  group_load(&g, scratch == LS_NONE ? LS_RAX : scratch, value_integer(b->f.r));
  append_at(b, &b->main_line, &g, &main);
}

void generate_program(generator *gen, rng *r, testcase *test) {
  builder b = {.gen = gen, .test = test, .limit = gen->options.instructions_max};
  frame_new(&b.f, r, test);
  test->count = 0;
  test->fuel = FUEL;
  bool faults = rng_percent(r, gen->options.fault_percent);
  uint32_t length = draw_length(r, b.limit), fault_at = rng_below(r, length), misses = 0;
  uint32_t whole = b.limit;
  b.limit = whole < length + CALL_RESERVE ? whole : length + CALL_RESERVE;
  while (test->count < length && misses < PICKS) {
    if (faults && test->count >= fault_at) {
      append_purposeful_fault(&b);
      faults = false;
    } else if (rng_one_in(r, 14) ? !append_loop(&b, &b.main_line) : !append_random(&b, &b.main_line)) {
      misses++;
    }
  }
  if (faults)
    append_purposeful_fault(&b);
  if (test->count == 0)
    append_simple(&b);
  end_main_line(&b);
  append_subroutines(&b);
  testcase_normalise(test);
}

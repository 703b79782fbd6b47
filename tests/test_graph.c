/* The checker of code images can fail: images are broken on purpose, and each break must be seen. And it
 * passes what the emitter makes of random graphs and of the largest program. */
#include "check.h"

#include <stdlib.h>

#include "forms/forms.h"
#include "graph/check.h"
#include "graph/make.h"
#include "indirect.h"

enum { NO_FUEL = 0, FUEL = LS_PROGRAM_FUEL };

/* ---- A program with one of everything ---- */

enum { LOAD, FAR_LOOP, BACK, OUT, OUT_TOO, PAD, PAD_LAST = PAD + 7, ENDS, JOIN, INDIRECT, SKIP, COUNT };

static ls_instruction plain(uint32_t next, uint8_t length, const char *bytes) {
  ls_instruction in = {.next = next, .jump = LS_NONE, .length = length};
  memcpy(in.bytes, bytes, length);
  return in;
}

static ls_instruction with_field(ls_instruction in, uint32_t jump, ls_field field, uint8_t size) {
  in.jump = jump;
  in.field = (uint8_t)field;
  in.field_size = size;
  in.field_offset = (uint8_t)(in.length - size);
  in.data = field == LS_FIELD_DATA ? graph_layout()->windows[1].address : 0;
  return in;
}

static const ls_instruction *sample(void) {
  static ls_instruction in[COUNT];
  in[LOAD] = with_field(plain(FAR_LOOP, 7, "\x48\x8b\x05\0\0\0"), LS_NONE, LS_FIELD_DATA, 4);
  in[FAR_LOOP] = with_field(plain(BACK, 2, "\xe2"), LOAD, LS_FIELD_BRANCH, 1);
  in[BACK] = with_field(plain(OUT, 6, "\x0f\x85\0\0\0"), BACK, LS_FIELD_BRANCH, 4);
  in[OUT] = with_field(plain(OUT_TOO, 6, "\x0f\x84\0\0\0"), LS_NONE, LS_FIELD_BRANCH, 4);
  in[OUT_TOO] = with_field(plain(PAD, 6, "\x0f\x82\0\0\0"), LS_NONE, LS_FIELD_BRANCH, 4);
  for (uint32_t i = PAD; i <= PAD_LAST; i++) /* so that what stands behind is out of reach */
    in[i] = plain(i + 1, 15, "\x66\x66\x66\x66\x66\x66\x66\x0f\x1f\x84\0\0\0\0");
  in[ENDS] = plain(LS_NONE, 3, "\x48\xff\xc0");
  in[JOIN] = plain(PAD, 1, "\x90");
  in[SKIP] = with_field(plain(LS_NONE, 5, "\xe9\0\0\0"), INDIRECT, LS_FIELD_BRANCH, 4);
  in[INDIRECT] = plain(LS_NONE, 3, "\xff\x24\x24"); /* jmp [rsp] */
  return in;
}

/* ---- Breaking it ---- */

typedef struct broken {
  graph_view view;
  uint8_t *bytes;
  ls_range *map;
} broken;

static ls_range *range_of(const broken *b, uint32_t instruction, ls_part part) {
  for (size_t i = 0; i < b->view.range_count; i++)
    if (b->map[i].instruction == instruction && b->map[i].part == part)
      return &b->map[i];
  fail_msg("instruction %u has no part %d", instruction, (int)part);
  return NULL;
}

static uint8_t *bytes_of(const broken *b, uint32_t instruction, ls_part part) {
  return b->bytes + range_of(b, instruction, part)->offset;
}

/* The bytes `what` inside a range, replaced. */
static void replace(const broken *b, uint32_t instruction, ls_part part, const char *what, const char *with,
                    size_t size) {
  const ls_range *r = range_of(b, instruction, part);
  uint8_t *at = memmem(b->bytes + r->offset, r->length, what, size);
  assert_non_null(at);
  memcpy(at, with, size);
}

/* Jumps from the displacement at `field`, four bytes long, to image offset `to`. */
static void redirect(const broken *b, uint8_t *field, uint32_t to) {
  int32_t distance = (int32_t)to - (int32_t)(field + 4 - b->bytes);
  memcpy(field, &distance, sizeof distance);
}

static void branch_one_byte_off(const broken *b) {
  bytes_of(b, BACK, LS_PART_BODY)[2]++;
}

static void branch_into_body(const broken *b) {
  redirect(b, bytes_of(b, OUT, LS_PART_BODY) + 2, range_of(b, PAD, LS_PART_BODY)->offset);
}

static void exits_swapped(const broken *b) {
  redirect(b, bytes_of(b, OUT, LS_PART_BODY) + 2, range_of(b, OUT_TOO, LS_PART_JUMP)->offset);
  redirect(b, bytes_of(b, OUT_TOO, LS_PART_BODY) + 2, range_of(b, OUT, LS_PART_JUMP)->offset);
}

static void exits_of_one_number(const broken *b) {
  memcpy(bytes_of(b, OUT, LS_PART_JUMP) + 7, bytes_of(b, OUT_TOO, LS_PART_JUMP) + 7, 4);
}

static void exit_leaves_no_number(const broken *b) {
  memcpy(bytes_of(b, OUT, LS_PART_JUMP), "\x66\x66\x66\x0f\x1f\x84\0\0\0\0", 11);
}

static void jump_to_another(const broken *b) {
  redirect(b, bytes_of(b, JOIN, LS_PART_NEXT) + 1, range_of(b, ENDS, LS_PART_BODY)->offset);
}

static void jump_to_itself(const broken *b) {
  redirect(b, bytes_of(b, JOIN, LS_PART_NEXT) + 1, range_of(b, JOIN, LS_PART_NEXT)->offset);
}

static void island_into_another(const broken *b) {
  redirect(b, bytes_of(b, FAR_LOOP, LS_PART_JUMP) + 3, range_of(b, BACK, LS_PART_JUMP)->offset);
}

static void way_around_the_island_misses(const broken *b) {
  bytes_of(b, FAR_LOOP, LS_PART_JUMP)[1] = 0;
}

static void fuel_counter_left_out(const broken *b) {
  redirect(b, bytes_of(b, BACK, LS_PART_BODY) + 2, range_of(b, BACK, LS_PART_BODY)->offset);
}

static void next_counter_left_out(const broken *b) {
  uint8_t *at = bytes_of(b, JOIN, LS_PART_NEXT);
  at[0] = 0xe9;
  redirect(b, at + 1, range_of(b, PAD, LS_PART_BODY)->offset);
}

static void two_units(const broken *b) {
  replace(b, BACK, LS_PART_JUMP, "\x48\x8d\x49\xff", "\x48\x8d\x49\xfe", 4);
}

static void no_unit(const broken *b) {
  replace(b, BACK, LS_PART_JUMP, "\x48\x8d\x49\xff", "\x48\x8d\x49\x00", 4);
}

static void flag_clobbered(const broken *b) {
  replace(b, BACK, LS_PART_JUMP, "\x48\x8d\x49\xff", "\x48\xff\xc9\x90", 4);
}

static void fuel_from_another_cell(const broken *b) {
  uint8_t *at = bytes_of(b, BACK, LS_PART_JUMP);
  at[10] = (uint8_t)(at[10] + 16); /* mov rcx, [fuel] reads, */
  at[23] = (uint8_t)(at[23] + 16); /* and mov [fuel], rcx writes, two cells further on */
}

static void rcx_not_restored(const broken *b) {
  memcpy(bytes_of(b, BACK, LS_PART_JUMP) + 27, "\x0f\x1f\x80\0\0\0", 7); /* mov rcx, [save] */
}

static void another_register_restored(const broken *b) {
  bytes_of(b, BACK, LS_PART_JUMP)[29] = 0x15; /* mov rdx, [save] */
}

static void test_left_out(const broken *b) {
  memcpy(bytes_of(b, BACK, LS_PART_JUMP) + 14, "\x66\x90", 2); /* jrcxz */
}

static void memory_of_the_guest_written(const broken *b) {
  redirect(b, bytes_of(b, BACK, LS_PART_JUMP) + 3, 0x10000); /* mov [save], rcx */
}

static void indirect_counter_passed_by(const broken *b) {
  redirect(b, bytes_of(b, SKIP, LS_PART_JUMP) + 35, range_of(b, INDIRECT, LS_PART_BODY)->offset);
}

static void indirect_counter_leads_elsewhere(const broken *b) {
  redirect(b, bytes_of(b, INDIRECT, LS_PART_BEFORE) + 35, range_of(b, SKIP, LS_PART_BODY)->offset);
}

static void two_units_for_an_indirect_branch(const broken *b) {
  replace(b, INDIRECT, LS_PART_BEFORE, "\x48\x8d\x49\xff", "\x48\x8d\x49\xfe", 4);
}

static void no_indirect_counter(const broken *b) {
  range_of(b, INDIRECT, LS_PART_BEFORE)->part = LS_PART_JUMP;
}

static void counter_before_another(const broken *b) {
  range_of(b, JOIN, LS_PART_NEXT)->part = LS_PART_BEFORE;
}

static void body_changed(const broken *b) {
  bytes_of(b, ENDS, LS_PART_BODY)[2] ^= 1;
}

static void data_field_off(const broken *b) {
  bytes_of(b, LOAD, LS_PART_BODY)[3] ^= 8;
}

static void gate_changed(const broken *b) {
  b->bytes[b->view.size - 1] ^= 0x10;
}

static void map_names_another_part(const broken *b) {
  range_of(b, OUT, LS_PART_JUMP)->part = LS_PART_NEXT;
}

static void map_names_another_instruction(const broken *b) {
  range_of(b, OUT, LS_PART_JUMP)->instruction = OUT_TOO;
}

static void map_swaps_bodies(const broken *b) {
  ls_range *one = range_of(b, BACK, LS_PART_BODY), *other = range_of(b, OUT, LS_PART_BODY);
  one->instruction = OUT;
  other->instruction = BACK;
}

static void map_has_a_gap(const broken *b) {
  range_of(b, PAD, LS_PART_BODY)->length--;
}

static void map_splits_a_body(const broken *b) {
  ls_range *r = range_of(b, ENDS, LS_PART_BODY);
  r[0].length++;
  r[1].offset++;
  r[1].length--;
}

typedef struct breakage {
  const char *name;
  uint32_t flags;
  void (*change)(const broken *b);
  const char *complaint;
} breakage;

static const breakage breakages[] = {
#include "test_graph.inc"
};

static void break_image(const ls_image *image, const ls_program *program, const breakage *how) {
  char why[200] = "";
  broken b = {graph_view_of(image, program, graph_layout()), NULL, NULL};
  if (!graph_check(&b.view, why, sizeof why))
    fail_msg("%s: a good image: %s", how->name, why);
  b.bytes = malloc(b.view.size);
  b.map = malloc(b.view.range_count * sizeof *b.map);
  assert_true(b.bytes && b.map);
  memcpy(b.bytes, b.view.bytes, b.view.size);
  memcpy(b.map, b.view.map, b.view.range_count * sizeof *b.map);
  b.view.bytes = b.bytes;
  b.view.map = b.map;
  assert_true(graph_check(&b.view, why, sizeof why));
  how->change(&b);
  if (graph_check(&b.view, why, sizeof why))
    fail_msg("%s: not seen", how->name);
  if (!strstr(why, how->complaint))
    fail_msg("%s: expected \"%s\", got \"%s\"", how->name, how->complaint, why);
  free(b.bytes);
  free(b.map);
}

static void broken_images_are_seen(void **unused) {
  (void)unused;
  for (size_t i = 0; i < sizeof breakages / sizeof *breakages; i++) {
    ls_error error;
    const ls_program program = {sample(), COUNT, breakages[i].flags};
    ls_image *image = ls_image_create();
    assert_non_null(image);
    if (ls_image_build(image, &program, graph_layout(), &error) != LS_OK)
      fail_msg("%s", error.text);
    break_image(image, &program, &breakages[i]);
    ls_image_destroy(image);
  }
}

/* Every byte of the code counts: whichever is changed, the checker sees it, but for what has no effect. */
static void every_byte_counts(void **unused) {
  (void)unused;
  ls_error error;
  char why[200];
  const ls_program program = {sample(), COUNT, FUEL};
  ls_image *image = ls_image_create();
  assert_int_equal(ls_image_build(image, &program, graph_layout(), &error), LS_OK);
  graph_view view = graph_view_of(image, &program, graph_layout());
  uint8_t *bytes = malloc(view.size);
  assert_non_null(bytes);
  memcpy(bytes, view.bytes, view.size);
  view.bytes = bytes;
  const ls_range *last = &view.map[view.range_count - 1];
  uint32_t unseen = 0;
  for (uint32_t at = 0; at < last->offset + last->length; at++) {
    const ls_range *r = ls_image_find(image, view.layout->windows[LS_CODE_WINDOW].address + at);
    bytes[at] ^= 0x80;
    bool seen = !graph_check(&view, why, sizeof why);
    bytes[at] ^= 0x80;
    if (r->part == LS_PART_BODY && !seen)
      fail_msg("a change of byte %u of instruction %u is not seen", at - r->offset, r->instruction);
    unseen += !seen;
  }
  free(bytes);
  ls_image_destroy(image);
  assert_int_equal(unseen, 10 * 4); /* numbers of exit points: any that are not used twice will do */
}

/* ---- Random graphs ---- */

static void random_bytes(rng *r, uint8_t *bytes, size_t size) {
  for (size_t i = 0; i < size; i++)
    bytes[i] = (uint8_t)rng_next(r);
  for (size_t i = GRAPH_HEADER; i < size; i++)
    if (i % GRAPH_RECORD >= 2 && rng_percent(r, 60))
      bytes[i] = 0;
}

static void check_graph(const ls_image *image, const graph *g, uint32_t flags) {
  char why[200];
  const ls_program program = graph_program(g, flags);
  const graph_view view = graph_view_of(image, &program, graph_layout());
  if (!graph_check(&view, why, sizeof why))
    fail_msg("seed %u, %u instructions, flags %u: %s", g->seed, g->count, flags, why);
}

static void random_graphs_are_laid_out_right(void **unused) {
  (void)unused;
  static graph one, two;
  static uint8_t bytes[GRAPH_HEADER + 64 * GRAPH_RECORD];
  rng r = {1};
  ls_image *image = ls_image_create();
  assert_non_null(image);
  for (int n = 0; n < 400; n++) {
    random_bytes(&r, bytes, sizeof bytes);
    bytes[4] = n % 16 ? 0 : (uint8_t)(200 + bytes[4] % 56);
    graph_decode(&one, bytes, GRAPH_HEADER + (1 + rng_below(&r, 64)) * GRAPH_RECORD);
    graph_shuffle(&one, &two);
    for (uint32_t flags = 0; flags <= LS_PROGRAM_FUEL; flags++)
      for (int shuffled = 0; shuffled < 2; shuffled++) {
        ls_error error;
        const ls_program program = graph_program(shuffled ? &two : &one, flags);
        if (ls_image_build(image, &program, graph_layout(), &error) != LS_OK)
          fail_msg("%s", error.text);
        check_graph(image, shuffled ? &two : &one, flags);
      }
  }
  ls_image_destroy(image);
}

/* A test that the refused instruction is the right one: each way to spoil, at many places. */
static void impossible_graphs_are_refused(void **unused) {
  (void)unused;
  static graph g;
  static uint8_t bytes[GRAPH_HEADER + 40 * GRAPH_RECORD];
  rng r = {2};
  ls_image *image = ls_image_create();
  assert_non_null(image);
  for (int n = 0; n < 320; n++) {
    random_bytes(&r, bytes, sizeof bytes);
    bytes[4] = 0;
    bytes[6] = (uint8_t)n;
    graph_decode(&g, bytes, sizeof bytes);
    uint32_t index = graph_spoil(&g);
    ls_error error = {.index = LS_NONE};
    const ls_program program = graph_program(&g, n & 1);
    ls_status want = index == LS_NONE ? LS_OK : LS_ERR_PROGRAM;
    if (ls_image_build(image, &program, graph_layout(), &error) != want || error.index != index)
      fail_msg("spoilt in way %d: expected index %d, got %d: %s", n % 16, (int)index, (int)error.index,
               error.text);
  }
  ls_image_destroy(image);
}

/* ---- What is an indirect branch? ---- */

static bool decodes_as_indirect(const ZydisDecodedInstruction *d) {
  switch (d->mnemonic) {
  case ZYDIS_MNEMONIC_CALL:
  case ZYDIS_MNEMONIC_JMP:
    return !d->raw.imm[0].is_relative;
  case ZYDIS_MNEMONIC_RET:
  case ZYDIS_MNEMONIC_IRET:
  case ZYDIS_MNEMONIC_IRETD:
  case ZYDIS_MNEMONIC_IRETQ:
    return true;
  default:
    return false;
  }
}

/* Counts what is one in *seen. */
static void check_indirect(const uint8_t *bytes, uint8_t size, unsigned *seen) {
  ZydisDecodedInstruction d;
  ZydisDecodedOperand operands[ZYDIS_MAX_OPERAND_COUNT];
  ls_instruction in = {.next = LS_NONE, .jump = LS_NONE};
  if (!harness_decode(bytes, size, &d, operands))
    return;
  in.length = d.length;
  memcpy(in.bytes, bytes, d.length);
  bool indirect = decodes_as_indirect(&d);
  if (is_indirect_branch(&in) != indirect)
    fail_msg("%s, of %u bytes from %02x %02x %02x: expected %d", ZydisMnemonicGetString(d.mnemonic), d.length,
             bytes[0], bytes[1], bytes[2], indirect);
  *seen += indirect;
  in.length--; /* half of one, which is nothing of the kind */
  if (in.length && is_indirect_branch(&in))
    fail_msg("%s: without its last byte", ZydisMnemonicGetString(d.mnemonic));
}

static void indirect_branches_are_known_by_their_bytes(void **unused) {
  (void)unused;
  static const uint8_t opcodes[] = {0xc2, 0xc3, 0xca, 0xcb, 0xcf, 0xff, 0xe8, 0xe9, 0xeb, 0x75, 0x0f, 0xfe};
  static const uint8_t prefixes[] = {0x66, 0x67, 0x2e, 0x3e, 0x26, 0x36, 0x64,
                                     0x65, 0xf2, 0xf3, 0xf0, 0x41, 0x48};
  unsigned seen = 0;
  rng r = {4};
  for (form_id form = 0; form < forms_count(); form++) {
    uint8_t length;
    const uint8_t *bytes = form_bytes(form, &length);
    check_indirect(bytes, length, &seen);
  }
  assert_true(seen >= 10);
  for (int n = 0; n < 300000; n++) {
    uint8_t bytes[LS_INSTRUCTION_MAX];
    uint32_t at = 0, before = rng_below(&r, 4);
    for (unsigned i = 0; i < sizeof bytes; i++)
      bytes[i] = (uint8_t)rng_next(&r);
    while (at < before)
      bytes[at++] = prefixes[rng_below(&r, sizeof prefixes)];
    bytes[at] = opcodes[rng_below(&r, sizeof opcodes)];
    check_indirect(bytes, sizeof bytes, &seen);
  }
  assert_true(seen > 50000);
}

/* ---- The largest program ---- */

/* Every link goes somewhere at random, a third of them to what follows. */
static ls_instruction *largest(void) {
  ls_instruction *in = calloc(LS_PROGRAM_MAX, sizeof *in);
  assert_non_null(in);
  rng r = {3};
  for (uint32_t i = 0; i < LS_PROGRAM_MAX; i++) {
    uint32_t next = rng_one_in(&r, 3) ? i + 1 : rng_below(&r, LS_PROGRAM_MAX);
    in[i] = plain(next < LS_PROGRAM_MAX ? next : LS_NONE, 3, "\x48\xff\xc0");
    if (rng_one_in(&r, 4))
      in[i] = with_field(plain(in[i].next, 2, "\x75"), rng_below(&r, LS_PROGRAM_MAX), LS_FIELD_BRANCH, 1);
    in[i].id = i;
  }
  return in;
}

static void the_largest_program_is_right(void **unused) {
  (void)unused;
  ls_instruction *in = largest();
  ls_layout layout = *graph_layout();
  layout.windows[LS_CODE_WINDOW] = (ls_window){0x40000000, 0x1000000, LS_READ | LS_EXEC, 0};
  ls_image *image = ls_image_create();
  assert_non_null(image);
  for (uint32_t flags = 0; flags <= LS_PROGRAM_FUEL; flags++) {
    ls_error error;
    char why[200];
    const ls_program program = {in, LS_PROGRAM_MAX, flags};
    if (ls_image_build(image, &program, &layout, &error) != LS_OK)
      fail_msg("%s", error.text);
    const graph_view view = graph_view_of(image, &program, &layout);
    if (!graph_check(&view, why, sizeof why))
      fail_msg("%s", why);
    for (uint32_t i = 0; i < LS_PROGRAM_MAX; i++)
      assert_int_equal(ls_image_find(image, ls_image_address(image, i))->instruction, i);
  }
  ls_image_destroy(image);
  free(in);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(broken_images_are_seen),
      cmocka_unit_test(every_byte_counts),
      cmocka_unit_test(random_graphs_are_laid_out_right),
      cmocka_unit_test(impossible_graphs_are_refused),
      cmocka_unit_test(the_largest_program_is_right),
      cmocka_unit_test(indirect_branches_are_known_by_their_bytes),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}

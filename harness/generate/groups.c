/* Instructions made by hand: those that prepare for others, put registers right, and end subroutines. */
#include <string.h>

#include "forms/registers.h"
#include "generate/filling.h"
#include "generate/values.h"

void group_clear(group *g) {
  g->count = g->main = 0;
  g->drift = 0;
  g->dirty = 0;
}

ls_instruction *group_add(group *g, const uint8_t *bytes, unsigned length) {
  ls_instruction *in = &g->list[g->count < GROUP_MAX ? g->count++ : GROUP_MAX - 1];
  memset(in, 0, sizeof *in);
  in->next = g->count;
  in->jump = LS_NONE;
  in->length = (uint8_t)length;
  memcpy(in->bytes, bytes, length);
  return in;
}

/* MOV r32, imm32 or MOV r64, imm64. */
void group_load(group *g, unsigned gpr, uint64_t value) {
  uint8_t bytes[10];
  unsigned length = 0;
  bool wide = value > UINT32_MAX;
  if (wide || gpr >= 8)
    bytes[length++] = (uint8_t)(0x40 | (wide ? 8 : 0) | gpr >> 3);
  bytes[length++] = (uint8_t)(0xb8 | (gpr & 7));
  memcpy(bytes + length, &value, wide ? 8 : 4);
  group_add(g, bytes, length + (wide ? 8 : 4));
}

/* LEA, since it leaves the flags alone. */
void group_adjust_stack(group *g, int32_t by) {
  uint8_t bytes[8] = {0x48, 0x8d, 0xa4, 0x24};
  memcpy(bytes + 4, &by, 4);
  if (by == (int8_t)by) {
    bytes[2] = 0x64;
    group_add(g, bytes, 5);
  } else {
    group_add(g, bytes, 8);
  }
}

void group_branch(group *g, const uint8_t *opcode, unsigned length, unsigned field_size) {
  uint8_t bytes[LS_INSTRUCTION_MAX] = {0};
  memcpy(bytes, opcode, length);
  ls_instruction *in = group_add(g, bytes, length + field_size);
  in->field = LS_FIELD_BRANCH;
  in->field_offset = (uint8_t)length;
  in->field_size = (uint8_t)field_size;
}

void group_loop_end(rng *r, unsigned counter, group *g) {
  uint8_t rex = (uint8_t)(0x48 | counter >> 3), low = counter & 7;
  group_clear(g);
  if (counter == LS_RCX && rng_next(r) & 1) {
    group_branch(g, (const uint8_t[]){0xe2}, 1, 1); /* loop */
    return;
  }
  if (rng_next(r) & 1)
    group_add(g, (const uint8_t[]){rex, 0xff, 0xc8 | low}, 3); /* dec */
  else
    group_add(g, (const uint8_t[]){rex, 0x83, 0xe8 | low, 1}, 4); /* sub */
  if (rng_next(r) & 1)
    group_branch(g, (const uint8_t[]){0x75}, 1, 1);
  else
    group_branch(g, (const uint8_t[]){0x0f, 0x85}, 2, 4);
}

/* ---- Subroutines ------------------------------------------------------------------------------------- */

static void push_pop(group *g, unsigned gpr, bool pop) {
  uint8_t bytes[2];
  unsigned length = 0;
  if (gpr >= 8)
    bytes[length++] = 0x41;
  bytes[length++] = (uint8_t)((pop ? 0x58 : 0x50) | (gpr & 7));
  group_add(g, bytes, length);
}

static void last_falls_nowhere(group *g) {
  g->main = g->count - 1;
  g->list[g->main].flags = LS_NEVER_FALLS_THROUGH;
  g->list[g->main].next = LS_NONE;
}

/* FF /2 (call) or /4 (jump) through a register that holds the popped return address, or through [rsp]. The
 * return address that such a call pushes is never used: control is back behind the first call. */
static bool indirect_ending(frame *f, bool call, bool memory, group *g) {
  uint8_t extension = call ? 0x10 : 0x20;
  g->drift = call ? -8 : 0;
  if (memory) {
    group_add(g, (const uint8_t[]){0xff, (uint8_t)(0x04 | extension), 0x24}, 3);
    g->drift -= 8;
    return true;
  }
  uint32_t gpr = frame_scratch(f, 0);
  if (gpr == LS_NONE)
    return false;
  push_pop(g, gpr, true);
  uint8_t bytes[3] = {0x41, 0xff, (uint8_t)(0xc0 | extension | (gpr & 7))};
  group_add(g, gpr >= 8 ? bytes : bytes + 1, gpr >= 8 ? 3 : 2);
  return true;
}

bool group_ending(frame *f, form_id form, const form_traits *traits, group *g) {
  form_example example;
  form_decode(form, &example);
  const ZydisDecodedInstruction *in = &example.instruction;
  group_clear(g);
  bool indirect = traits->role == ROLE_JUMP_INDIRECT || traits->role == ROLE_CALL_INDIRECT;
  if (indirect && !indirect_ending(f, traits->role == ROLE_CALL_INDIRECT, traits->flags & TRAIT_MEMORY, g))
    return false;
  if (!indirect) {
    uint8_t length, bytes[LS_INSTRUCTION_MAX] = {0};
    memcpy(bytes, form_bytes(form, &length), in->length);
    if (in->raw.imm[0].size == 16) {
      uint16_t extra = (uint16_t)(8 * rng_below(f->r, 5));
      memcpy(bytes + in->raw.imm[0].offset, &extra, 2);
      g->drift = extra;
    }
    group_add(g, bytes, in->length);
  }
  last_falls_nowhere(g);
  return true;
}

/* ---- Needs ------------------------------------------------------------------------------------------- */

/* Sets a register before main and, if it is a known one, right again after it (see put_right). */
static bool prepare(filling *x, unsigned gpr, uint64_t value) {
  if (x->f->kept >> gpr & 1)
    return false;
  group_load(x->g, gpr, value);
  x->g->dirty |= (uint16_t)(1 << gpr);
  return true;
}

/* Puts bytes into the read-only window behind those of earlier patches, `room` bytes free behind them too.
 * Returns their address, or 0 if the window or the list of patches is full. */
static uint64_t place_constant(frame *f, const void *bytes, unsigned length, uint32_t align, uint32_t room) {
  testcase *test = f->test;
  const ls_window *w = &testcase_layout()->windows[TESTCASE_CONST];
  uint32_t end = 0;
  for (unsigned i = 0; i < test->patch_count; i++) {
    const testcase_patch *patch = &test->patches[i];
    if (patch->window == TESTCASE_CONST && patch->offset + patch->length > end)
      end = patch->offset + patch->length;
  }
  end = (end + align - 1) & ~(align - 1);
  if (test->patch_count == TESTCASE_PATCHES_MAX || end + room > w->size)
    return 0;
  testcase_patch *patch = &test->patches[test->patch_count++];
  memset(patch, 0, sizeof *patch);
  patch->window = TESTCASE_CONST;
  patch->length = (uint8_t)length;
  patch->offset = (uint16_t)end;
  memcpy(patch->bytes, bytes, length);
  return w->address + end;
}

/* Dividend zero-extended or small, divisor not zero: no quotient is too large. On purpose: the opposite. */
static bool need_dividend(filling *x) {
  rng *r = x->f->r;
  const ZydisDecodedOperand *op = &x->example->operands[0];
  bool fault = x->f->intent == INTENT_DIVIDE, overflow = fault && rng_next(r) & 1;
  uint32_t limit = op->size == 8 ? 0x7f : op->size == 16 ? 0x7fff : 0x7fffffff;
  uint64_t divisor = fault && !overflow ? 0 : 1 + (value_integer(r) & (overflow ? 0 : limit - 1));
  uint64_t high = overflow ? 2 + rng_below(r, 100) : 0;
  uint64_t low = value_integer(r) & limit;
  if (op->size == 8)
    low |= high << 8;
  if (!prepare(x, LS_RAX, low) || (op->size > 8 && !prepare(x, LS_RDX, high)))
    return false;
  if (op->type == ZYDIS_OPERAND_TYPE_MEMORY) {
    x->target = place_constant(x->f, &divisor, 8, 8, 8);
    return x->target != 0;
  }
  x->divisor = frame_scratch(x->f, (uint16_t)(x->g->dirty | 1 << LS_RAX | 1 << LS_RDX));
  return x->divisor != LS_NONE && prepare(x, x->divisor, divisor);
}

/* SDM vol. 2, table 3-1: the offset in a register counts from the operand's address in either direction. */
static bool need_bit_offset(filling *x) {
  x->bits = frame_scratch(x->f, x->g->dirty);
  x->extent = 64;
  return x->bits != LS_NONE && prepare(x, x->bits, rng_below(x->f->r, 512));
}

static bool need_flags_image(filling *x) {
  uint8_t push[5] = {0x68};
  uint32_t flags = (uint32_t)value_rflags(x->f->r);
  memcpy(push + 1, &flags, 4);
  group_add(x->g, push, 5);
  x->g->drift -= 8;
  return true;
}

static bool need_constant(filling *x, const void *bytes, unsigned length, uint32_t align, uint32_t room) {
  x->target = place_constant(x->f, bytes, length, align, room);
  return x->target != 0;
}

/* 0x2b is Linux's data and stack selector, 0x33 its 64-bit code selector; SS takes only the former. */
static bool need_selector(filling *x) {
  static const uint16_t selectors[] = {0x2b, 0, 0x33, 0x2b};
  static const ZydisRegister segments[] = {ZYDIS_REGISTER_SS, ZYDIS_REGISTER_DS, ZYDIS_REGISTER_ES};
  uint32_t segment = rng_below(x->f->r, 3);
  uint16_t selector = segment == 0 ? 0x2b : selectors[rng_below(x->f->r, 4)];
  x->request.operands[0].reg.value = segments[segment];
  if (x->example->operands[1].type == ZYDIS_OPERAND_TYPE_MEMORY)
    return need_constant(x, &selector, 2, 2, 2);
  x->bits = frame_scratch(x->f, x->g->dirty);
  return x->bits != LS_NONE && prepare(x, x->bits, selector);
}

static bool need_far_pointer(filling *x) {
  uint8_t pointer[16] = {0};
  const uint16_t stack = 0x2b;
  unsigned offset = x->example->instruction.operand_width / 8;
  uint64_t value = value_integer(x->f->r);
  memcpy(pointer, &value, 4);
  if (offset == 8)
    memcpy(pointer + 4, &stack, 2); /* AMD ignores REX.W here and takes an offset of 32 bits */
  memcpy(pointer + offset, &stack, 2);
  return need_constant(x, pointer, offset + 2, 16, 16);
}

/* An address in a register that is not a memory operand: of 64 bytes that are written. */
static bool need_direct_store(filling *x) {
  x->bits = frame_scratch(x->f, x->g->dirty);
  return x->bits != LS_NONE && prepare(x, x->bits, address_in(x->f->r, TESTCASE_DATA, 64, 64));
}

static bool need_enter(filling *x) {
  rng *r = x->f->r;
  uint32_t level = rng_one_in(r, 3) ? rng_below(r, 32) : rng_below(r, 2), size = 8 * rng_below(r, 16);
  uint32_t width = x->example->instruction.operand_width == 16 ? 2 : 8;
  const ls_window *stack = &testcase_layout()->windows[TESTCASE_STACK];
  x->request.operands[0].imm.u = size;
  x->request.operands[1].imm.u = level;
  x->g->drift -= (int32_t)(width + level * width + size);
  /* From level 2 on it copies the frame pointers below RBP. */
  return level < 2 || prepare(x, LS_RBP, stack->address + stack->size - 512);
}

static bool need_leave(filling *x) {
  if (x->f->kept >> LS_RBP & 1)
    return false;
  group_add(x->g, (const uint8_t[]){0x48, 0x89, 0xe5}, 3); /* mov rbp, rsp */
  x->g->dirty |= 1 << LS_RBP;
  return true;
}

bool meet_need(filling *x) {
  uint32_t mxcsr;
  uint16_t fcw;
  switch ((form_need)x->traits->need) {
  case NEED_NOTHING:
    return true;
  case NEED_DIVIDEND:
    return need_dividend(x);
  case NEED_BIT_OFFSET:
    return need_bit_offset(x);
  case NEED_ENTER:
    return need_enter(x);
  case NEED_LEAVE:
    return need_leave(x);
  case NEED_FLAGS_IMAGE:
    return need_flags_image(x);
  case NEED_MXCSR:
    mxcsr = value_mxcsr(x->f->r);
    return need_constant(x, &mxcsr, 4, 4, 4);
  case NEED_FCW:
    fcw = value_fcw(x->f->r);
    return need_constant(x, &fcw, 2, 2, 2);
  case NEED_SELECTOR:
    return need_selector(x);
  case NEED_FAR_POINTER:
    return need_far_pointer(x);
  case NEED_DIRECT_STORE:
    return need_direct_store(x);
  case NEED_CLZERO:
    return prepare(x, LS_RAX, address_in(x->f->r, TESTCASE_DATA, 64, 1));
  }
  return false;
}

/* Addresses that are registers by the instruction's nature (strings, XLAT, MASKMOV), and counts. */
bool meet_implicit(filling *x) {
  const ZydisDecodedInstruction *in = &x->example->instruction;
  frame *f = x->f;
  for (unsigned i = 0; i < in->operand_count; i++) {
    const ZydisDecodedOperand *op = &x->example->operands[i];
    if (op->type != ZYDIS_OPERAND_TYPE_MEMORY || op->encoding != ZYDIS_OPERAND_ENCODING_NONE)
      continue;
    uint32_t gpr = gpr_number(op->mem.base);
    if (gpr == LS_NONE || gpr == LS_RSP || (gpr == LS_RBP && x->traits->need == NEED_ENTER) ||
        (gpr == LS_RBP && x->traits->need == NEED_LEAVE))
      continue;
    bool written = (op->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE) != 0;
    unsigned window = !written && rng_one_in(f->r, 3) ? TESTCASE_CONST : TESTCASE_DATA;
    const ls_window *w = &testcase_layout()->windows[window];
    uint64_t address = w->address + 512 + rng_below(f->r, (uint32_t)w->size - 1024);
    if (f->intent == INTENT_BAD_ADDRESS)
      address = bad_address(f->r);
    if (f->intent == INTENT_CONST_WRITE && written)
      address = testcase_layout()->windows[TESTCASE_CONST].address + 512;
    if (!prepare(x, gpr, address))
      return false;
  }
  bool repeated =
      (in->attributes & (ZYDIS_ATTRIB_HAS_REP | ZYDIS_ATTRIB_HAS_REPE | ZYDIS_ATTRIB_HAS_REPNE)) != 0;
  if (repeated && in->meta.category == ZYDIS_CATEGORY_STRINGOP)
    return prepare(x, LS_RCX, rng_one_in(f->r, 8) ? rng_below(f->r, 64) : rng_below(f->r, 9));
  return true;
}

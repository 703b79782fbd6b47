#include <string.h>

#include "forms/registers.h"
#include "forms/scan.h"
#include "generate/filling.h"
#include "generate/values.h"

enum { TRIES = 5 };

/* ---- Registers --------------------------------------------------------------------------------------- */

static uint32_t pick_bit(rng *r, uint32_t mask) {
  uint32_t count = (uint32_t)__builtin_popcount(mask);
  if (count == 0)
    return LS_NONE;
  for (uint32_t skip = rng_below(r, count); skip > 0; skip--)
    mask &= mask - 1;
  return (uint32_t)__builtin_ctz(mask);
}

uint32_t frame_scratch(const frame *f, uint16_t dirty) {
  return pick_bit(f->r, 0xffffu & ~(uint32_t)(f->known | f->kept | dirty | RSP_BIT));
}

static uint32_t choose_gpr(filling *x, bool written) {
  frame *f = x->f;
  uint32_t free = 0xffff;
  if (written)
    free &= ~(uint32_t)(f->known | f->kept | RSP_BIT);
  uint32_t hot = f->hot[rng_below(f->r, 4)];
  if (rng_percent(f->r, 60) && free >> hot & 1)
    return hot;
  return pick_bit(f->r, free);
}

/* AL to BL, SPL to DIL and R8B to R15B, or now and then AH to BH. */
static ZydisRegister byte_register(rng *r, uint32_t gpr) {
  bool high = gpr < 4 && rng_one_in(r, 6);
  return ZydisRegisterEncode(ZYDIS_REGCLASS_GPR8, (ZyanU8)(gpr < 4 && !high ? gpr : gpr + 4));
}

static ZydisRegister choose_vector(filling *x, ZydisRegisterClass class, bool written) {
  frame *f = x->f;
  uint32_t limit = x->example->instruction.encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX ? 32 : 16;
  uint32_t id = rng_percent(f->r, 60) ? f->hot_vectors[rng_below(f->r, 4)] : rng_below(f->r, limit);
  if (written && id == f->index)
    id = (id + 1) % limit;
  return ZydisRegisterEncode(class, (ZyanU8)id);
}

/* A register for an operand, or NONE if there is none. */
static ZydisRegister choose_register(filling *x, const ZydisDecodedOperand *op) {
  rng *r = x->f->r;
  bool written = (op->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE) != 0;
  ZydisRegisterClass class = ZydisRegisterGetClass(op->reg.value);
  switch (class) {
  case ZYDIS_REGCLASS_GPR8:
  case ZYDIS_REGCLASS_GPR16:
  case ZYDIS_REGCLASS_GPR32:
  case ZYDIS_REGCLASS_GPR64: {
    uint32_t gpr = x->divisor != LS_NONE ? x->divisor : x->bits != LS_NONE ? x->bits : choose_gpr(x, written);
    if (gpr == LS_NONE)
      return ZYDIS_REGISTER_NONE;
    if (class != ZYDIS_REGCLASS_GPR8)
      return ZydisRegisterEncode(class, (ZyanU8)gpr);
    return x->divisor != LS_NONE ? ZydisRegisterEncode(class, (ZyanU8)(gpr < 4 ? gpr : gpr + 4))
                                 : byte_register(r, gpr);
  }
  case ZYDIS_REGCLASS_XMM:
  case ZYDIS_REGCLASS_YMM:
  case ZYDIS_REGCLASS_ZMM:
    return choose_vector(x, class, written);
  case ZYDIS_REGCLASS_X87:
  case ZYDIS_REGCLASS_MMX:
    return ZydisRegisterEncode(class, (ZyanU8)rng_below(r, 8));
  case ZYDIS_REGCLASS_MASK:
    if (op->encoding == ZYDIS_OPERAND_ENCODING_MASK) {
      bool none = op->reg.value == ZYDIS_REGISTER_K0;
      return none ? op->reg.value : ZydisRegisterEncode(class, (ZyanU8)(1 + rng_below(r, 7)));
    }
    return ZydisRegisterEncode(class, (ZyanU8)rng_below(r, 8));
  case ZYDIS_REGCLASS_SEGMENT: {
    static const ZydisRegister segments[] = {ZYDIS_REGISTER_ES, ZYDIS_REGISTER_DS, ZYDIS_REGISTER_SS,
                                             ZYDIS_REGISTER_CS};
    if (op->reg.value == ZYDIS_REGISTER_FS || op->reg.value == ZYDIS_REGISTER_GS ||
        x->traits->need == NEED_SELECTOR)
      return op->reg.value; /* a need has chosen it already */
    return segments[rng_below(r, 4)];
  }
  default:
    return op->reg.value;
  }
}

/* ---- Addresses --------------------------------------------------------------------------------------- */

static uint32_t power_below(uint32_t size) {
  return size == 0 ? 1 : size >= 64 ? 64 : 1u << (31 - __builtin_clz(size));
}

static bool is_written(const ZydisDecodedOperand *op) {
  return (op->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE) != 0;
}

/* Does the operand's access at `target` stay in the data window or, if it is only read, the constant one? */
static bool is_inside(const filling *x, const ZydisDecodedOperand *op, uint64_t target) {
  uint32_t size = op->size / 8 + x->extent;
  for (unsigned w = TESTCASE_DATA; w <= (is_written(op) ? TESTCASE_DATA : TESTCASE_CONST); w++) {
    const ls_window *window = &testcase_layout()->windows[w];
    if (target >= window->address && target - window->address + size <= window->size)
      return true;
  }
  return false;
}

/* Locked, and not of the instructions that fault if misaligned: must not cross a cache line whatever the
 * intent, since that locks the bus, and kernels may punish it. */
static bool is_locked(const filling *x) {
  return (x->traits->flags & (TRAIT_ALIGNED | TRAIT_STRICT)) == TRAIT_ALIGNED;
}

static uint32_t alignment(filling *x, const ZydisDecodedOperand *op) {
  if (x->traits->flags & TRAIT_STRICT && op->size > 512)
    return 64;
  bool aligned = x->traits->flags & TRAIT_ALIGNED || rng_next(x->f->r) & 1;
  return aligned ? power_below(op->size / 8) : 1;
}

/* At or near an address used before in this program, so that accesses overlap. 0 if that is no good. */
static uint64_t recent_target(filling *x, const ZydisDecodedOperand *op, uint32_t align) {
  rng *r = x->f->r;
  uint64_t target = x->f->recent[rng_below(r, 4)];
  if (rng_next(r) & 1)
    target += rng_below(r, 32) - 16ull;
  target &= ~(uint64_t)(align - 1);
  return is_inside(x, op, target) ? target : 0;
}

static uint64_t wrong_target(filling *x, const ZydisDecodedOperand *op, uint32_t align) {
  rng *r = x->f->r;
  uint32_t size = op->size / 8 + x->extent, natural = power_below(op->size / 8);
  if (x->f->intent == INTENT_BAD_ADDRESS)
    return bad_address(r) & ~(uint64_t)(is_locked(x) ? natural - 1 : 0);
  if (x->f->intent == INTENT_CONST_WRITE)
    return address_in(r, TESTCASE_CONST, size, align);
  uint32_t line = is_locked(x) ? 64 : natural;
  uint64_t aligned = address_in(r, TESTCASE_DATA, size + line, line);
  return aligned + 1 + rng_below(r, natural - 1);
}

static uint64_t choose_target(filling *x, const ZydisDecodedOperand *op) {
  frame *f = x->f;
  rng *r = f->r;
  uint32_t align = alignment(x, op), size = op->size / 8 + x->extent;
  if (x->target)
    return x->target;
  bool misaligned = f->intent == INTENT_MISALIGNED && op->size > 8;
  if (f->intent == INTENT_BAD_ADDRESS || f->intent == INTENT_CONST_WRITE || misaligned)
    return wrong_target(x, op, align);
  uint64_t target = rng_percent(r, 30) ? recent_target(x, op, align) : 0;
  if (target)
    return target;
  uint32_t draw = rng_below(r, 100);
  if (draw < 12)
    return quiet_stack_address(r, size, align);
  target = address_in(r, !is_written(op) && draw < 35 ? TESTCASE_CONST : TESTCASE_DATA, size, align);
  f->recent[rng_below(r, 4)] = target;
  return target;
}

static bool fits32(int64_t value) {
  return value == (int32_t)value;
}

static uint16_t usable(const filling *x) {
  return (uint16_t)(x->f->known & ~x->g->dirty & ~RSP_BIT);
}

/* What a 32-bit displacement reaches by itself. */
static void address_absolute(ZydisEncoderOperand *op, uint64_t target) {
  op->mem.base = op->mem.index = ZYDIS_REGISTER_NONE;
  op->mem.scale = 0;
  op->mem.displacement = (int64_t)target;
}

/* A register loaded for the purpose. */
static bool address_loaded(filling *x, ZydisEncoderOperand *op, uint64_t target) {
  uint32_t gpr = frame_scratch(x->f, x->g->dirty);
  if (gpr == LS_NONE)
    return false;
  int32_t displacement = rng_next(x->f->r) & 1 ? 0 : (int32_t)rng_below(x->f->r, 256) - 128;
  group_load(x->g, gpr, target - (uint64_t)(int64_t)displacement);
  x->g->dirty |= (uint16_t)(1 << gpr);
  op->mem.base = ZydisRegisterEncode(ZYDIS_REGCLASS_GPR64, (ZyanU8)gpr);
  op->mem.index = ZYDIS_REGISTER_NONE;
  op->mem.scale = 0;
  op->mem.displacement = displacement;
  return true;
}

/* base, or base and index, known to reach the target with some displacement; all of 64 or of 32 bits. */
static bool address_known(filling *x, ZydisEncoderOperand *op, uint64_t target, bool with_base,
                          bool with_index) {
  rng *r = x->f->r;
  ZydisRegisterClass class = rng_one_in(r, 25) ? ZYDIS_REGCLASS_GPR32 : ZYDIS_REGCLASS_GPR64;
  uint32_t base = with_base ? pick_bit(r, usable(x)) : LS_NONE;
  uint32_t index = with_index ? pick_bit(r, usable(x)) : LS_NONE;
  uint32_t scale = index == LS_NONE ? 0 : 1u << rng_below(r, 4);
  uint64_t sum = base == LS_NONE ? 0 : x->f->value[base];
  if ((with_base && base == LS_NONE) || (with_index && index == LS_NONE))
    return false;
  if (index != LS_NONE)
    sum += x->f->value[index] * scale;
  int64_t displacement = (int64_t)(target - sum);
  if (class == ZYDIS_REGCLASS_GPR32 && target <= UINT32_MAX)
    displacement = (int32_t)displacement;
  if (!fits32(displacement) || (class == ZYDIS_REGCLASS_GPR32 && target > UINT32_MAX))
    return false;
  op->mem.base = base == LS_NONE ? ZYDIS_REGISTER_NONE : ZydisRegisterEncode(class, (ZyanU8)base);
  op->mem.index = index == LS_NONE ? ZYDIS_REGISTER_NONE : ZydisRegisterEncode(class, (ZyanU8)index);
  op->mem.scale = (ZyanU8)scale;
  op->mem.displacement = displacement;
  return true;
}

/* Makes the address of `op` come to `target`, in one of the shapes that can. */
static bool shape_address(filling *x, ZydisEncoderOperand *op, uint64_t target) {
  uint32_t shape = rng_below(x->f->r, 100);
  if (shape < 35 && address_known(x, op, target, true, false))
    return true;
  if (shape < 65 && address_known(x, op, target, true, true))
    return true;
  if (shape < 72 && address_known(x, op, target, false, true))
    return true;
  if (shape >= 92 && address_loaded(x, op, target))
    return true;
  if (!fits32((int64_t)target))
    return address_loaded(x, op, target);
  address_absolute(op, target);
  if (shape >= 75 && x->f->intent != INTENT_BAD_ADDRESS) {
    op->mem.base = ZYDIS_REGISTER_RIP;
    op->mem.displacement = 0x10000000;
    x->relative = target;
  }
  return true;
}

/* Near a known base, so that short displacements and none at all occur. Returns 0 if that is no good. */
static uint64_t near_target(filling *x, const ZydisDecodedOperand *op, uint32_t base) {
  frame *f = x->f;
  uint64_t target = f->value[base];
  if (rng_next(f->r) & 1)
    target += rng_below(f->r, 256) - 128ull;
  if (x->traits->flags & TRAIT_ALIGNED)
    target &= ~(uint64_t)(alignment(x, op) - 1);
  return is_inside(x, op, target) ? target : 0;
}

static bool address_near(filling *x, const ZydisDecodedOperand *decoded, ZydisEncoderOperand *op) {
  uint32_t base = pick_bit(x->f->r, usable(x));
  uint64_t target = base == LS_NONE ? 0 : near_target(x, decoded, base);
  if (target == 0)
    return false;
  op->mem.base = ZydisRegisterEncode(ZYDIS_REGCLASS_GPR64, (ZyanU8)base);
  op->mem.index = ZYDIS_REGISTER_NONE;
  op->mem.scale = 0;
  op->mem.displacement = (int64_t)(target - x->f->value[base]);
  return true;
}

/* [rsp+d]: RSP is near the middle of the stack, but where exactly is not known, so only for what needs no
 * alignment; and not for writes where a return address lies there. */
static bool address_stack(filling *x, const ZydisDecodedOperand *decoded, ZydisEncoderOperand *op) {
  if (x->traits->flags & TRAIT_ALIGNED || decoded->size > 512 || (is_written(decoded) && x->f->balanced))
    return false;
  op->mem.base = ZYDIS_REGISTER_RSP;
  op->mem.index = ZYDIS_REGISTER_NONE;
  op->mem.scale = 0;
  op->mem.displacement = (int64_t)rng_below(x->f->r, 512) - 256;
  return true;
}

/* Small lanes times a scale around the middle of the data window. */
static bool fill_vsib(filling *x, const ZydisDecodedOperand *decoded, ZydisEncoderOperand *op) {
  frame *f = x->f;
  if (f->index == NO_VECTOR)
    return false;
  if (!f->index_filled) {
    value_indices(f->r, f->test->state.zmm[f->index]);
    f->index_filled = true;
  }
  const ls_window *data = &testcase_layout()->windows[TESTCASE_DATA];
  uint64_t target = data->address + 1024 + (rng_below(f->r, (uint32_t)data->size - 2048));
  if (f->intent == INTENT_BAD_ADDRESS)
    target = rng_below(f->r, 4096);
  else if (f->intent == INTENT_CONST_WRITE)
    target = testcase_layout()->windows[TESTCASE_CONST].address + 2048;
  if (f->intent != INTENT_MISALIGNED)
    target &= ~7ull;
  address_absolute(op, target);
  uint32_t base = pick_bit(f->r, usable(x));
  if (base != LS_NONE && fits32((int64_t)(target - f->value[base]))) {
    op->mem.base = ZydisRegisterEncode(ZYDIS_REGCLASS_GPR64, (ZyanU8)base);
    op->mem.displacement = (int64_t)(target - f->value[base]);
  }
  op->mem.index = ZydisRegisterEncode(ZydisRegisterGetClass(decoded->mem.index), f->index);
  op->mem.scale = (ZyanU8)(1u << rng_below(f->r, 4));
  return true;
}

/* An address that is computed but not accessed. */
static void fill_any_address(filling *x, ZydisEncoderOperand *op) {
  rng *r = x->f->r;
  op->mem.base = ZydisRegisterEncode(ZYDIS_REGCLASS_GPR64, (ZyanU8)rng_below(r, 16));
  uint32_t index = rng_below(r, 16);
  bool indexed = index != LS_RSP && rng_next(r) & 1;
  op->mem.index = indexed ? ZydisRegisterEncode(ZYDIS_REGCLASS_GPR64, (ZyanU8)index) : ZYDIS_REGISTER_NONE;
  op->mem.scale = (ZyanU8)(indexed ? 1u << rng_below(r, 4) : 0);
  op->mem.displacement = (int32_t)value_integer(r);
  if (!indexed && rng_one_in(r, 5)) {
    op->mem.base = ZYDIS_REGISTER_RIP;
    op->mem.displacement = 0x10000000;
    x->relative = address_in(r, TESTCASE_DATA, 1, 1);
  }
}

static bool fill_memory(filling *x, const ZydisDecodedOperand *decoded, ZydisEncoderOperand *op) {
  if (decoded->encoding == ZYDIS_OPERAND_ENCODING_NONE)
    return true;
  if (decoded->mem.type == ZYDIS_MEMOP_TYPE_VSIB)
    return fill_vsib(x, decoded, op);
  if (decoded->mem.type == ZYDIS_MEMOP_TYPE_AGEN) {
    fill_any_address(x, op);
    return true;
  }
  if (decoded->encoding != ZYDIS_OPERAND_ENCODING_MODRM_RM) {
    /* MOV with an address in place of ModRM; its bytes are patched after encoding. */
    x->target = choose_target(x, decoded);
    return true;
  }
  if (decoded->mem.type == ZYDIS_MEMOP_TYPE_MIB)
    return address_near(x, decoded, op) || address_loaded(x, op, choose_target(x, decoded));
  uint32_t draw = rng_below(x->f->r, 100);
  if (!x->target && x->f->intent == INTENT_RUN) {
    if (draw < 25 && address_near(x, decoded, op))
      return true;
    if (draw >= 25 && draw < 31 && address_stack(x, decoded, op))
      return true;
  }
  return shape_address(x, op, choose_target(x, decoded));
}

/* ---- Filling in and encoding ------------------------------------------------------------------------- */

static bool fill_operands(filling *x) {
  const ZydisDecodedInstruction *in = &x->example->instruction;
  unsigned immediate = 0;
  for (unsigned i = 0; i < in->operand_count_visible; i++) {
    const ZydisDecodedOperand *decoded = &x->example->operands[i];
    ZydisEncoderOperand *op = &x->request.operands[i];
    if (decoded->type == ZYDIS_OPERAND_TYPE_MEMORY) {
      if (!fill_memory(x, decoded, op))
        return false;
    }
    if (decoded->encoding == ZYDIS_OPERAND_ENCODING_NONE)
      continue;
    if (decoded->type == ZYDIS_OPERAND_TYPE_REGISTER && !x->example_only) {
      if (x->traits->need != NEED_SELECTOR || i != 0)
        op->reg.value = choose_register(x, decoded);
      if (op->reg.value == ZYDIS_REGISTER_NONE)
        return false;
    }
    if (decoded->type == ZYDIS_OPERAND_TYPE_IMMEDIATE && immediate < 2 &&
        decoded->encoding != ZYDIS_OPERAND_ENCODING_IS4) {
      unsigned bits = in->raw.imm[immediate++].size;
      if (x->traits->need != NEED_ENTER && !decoded->imm.is_relative && bits != 0 && !x->example_only)
        op->imm.u = value_immediate(x->f->r, bits, decoded->imm.is_signed);
    }
  }
  return true;
}

/* MOV AL/AX/EAX/RAX to or from an address of 64 (or 32) bits in place of ModRM. */
static bool patch_offset(filling *x, ls_instruction *in) {
  const ZydisDecodedInstruction *example = &x->example->instruction;
  uint8_t length;
  const uint8_t *bytes = form_bytes(x->form, &length);
  unsigned size = example->raw.disp.size / 8;
  if (size < 4 || (size == 4 && x->target > UINT32_MAX))
    return false;
  memcpy(in->bytes, bytes, length);
  memcpy(in->bytes + example->raw.disp.offset, &x->target, size);
  in->length = length;
  return true;
}

static bool has_offset_operand(const form_example *example) {
  for (unsigned i = 0; i < example->instruction.operand_count_visible; i++) {
    const ZydisDecodedOperand *op = &example->operands[i];
    if (op->type == ZYDIS_OPERAND_TYPE_MEMORY && op->encoding != ZYDIS_OPERAND_ENCODING_NONE &&
        op->encoding != ZYDIS_OPERAND_ENCODING_MODRM_RM)
      return true;
  }
  return false;
}

/* Prefixes that change nothing but which exception a bad address raises (SS: #SS), and hints. */
static void add_prefix(filling *x) {
  static const uint64_t segments[] = {ZYDIS_ATTRIB_HAS_SEGMENT_SS, ZYDIS_ATTRIB_HAS_SEGMENT_DS,
                                      ZYDIS_ATTRIB_HAS_SEGMENT_ES, ZYDIS_ATTRIB_HAS_SEGMENT_CS};
  const ZydisDecodedInstruction *in = &x->example->instruction;
  uint32_t draw = rng_below(x->f->r, 32);
  if (draw == 0 && x->traits->flags & TRAIT_MEMORY && in->attributes & ZYDIS_ATTRIB_ACCEPTS_SEGMENT &&
      !(x->request.prefixes & ZYDIS_ATTRIB_HAS_SEGMENT))
    x->request.prefixes |= segments[rng_below(x->f->r, 4)];
  if (draw < 3 && in->attributes & ZYDIS_ATTRIB_ACCEPTS_BRANCH_HINTS &&
      !(x->request.prefixes & (ZYDIS_ATTRIB_HAS_BRANCH_TAKEN | ZYDIS_ATTRIB_HAS_BRANCH_NOT_TAKEN)))
    x->request.prefixes |=
        rng_next(x->f->r) & 1 ? ZYDIS_ATTRIB_HAS_BRANCH_TAKEN : ZYDIS_ATTRIB_HAS_BRANCH_NOT_TAKEN;
}

static bool encode_main(filling *x, ls_instruction *in) {
  if (has_offset_operand(x->example))
    return patch_offset(x, in);
  ZyanUSize length = sizeof in->bytes;
  add_prefix(x);
  if (!ZYAN_SUCCESS(ZydisEncoderEncodeInstruction(&x->request, in->bytes, &length)))
    return false;
  in->length = (uint8_t)length;
  return true;
}

static void link_field(const filling *x, const ZydisDecodedInstruction *decoded, ls_instruction *in) {
  if (x->traits->role == ROLE_BRANCH || x->traits->role == ROLE_CALL) {
    in->field = LS_FIELD_BRANCH;
    in->field_offset = decoded->raw.imm[0].offset;
    in->field_size = decoded->raw.imm[0].size / 8;
  } else if (x->relative) {
    in->field = LS_FIELD_DATA;
    in->field_offset = decoded->raw.disp.offset;
    in->field_size = decoded->raw.disp.size / 8;
    in->data = x->relative;
  }
  if (decoded->mnemonic == ZYDIS_MNEMONIC_JMP) {
    in->flags = LS_NEVER_FALLS_THROUGH;
    in->next = LS_NONE;
  }
}

static int32_t stack_drift(const ZydisDecodedInstruction *in, const ZydisDecodedOperand *operands) {
  int32_t drift = 0;
  if (in->mnemonic == ZYDIS_MNEMONIC_ENTER || in->meta.category == ZYDIS_CATEGORY_CALL)
    return 0;
  for (unsigned i = 0; i < in->operand_count; i++) {
    const ZydisDecodedOperand *op = &operands[i];
    if (op->type == ZYDIS_OPERAND_TYPE_MEMORY && op->mem.base == ZYDIS_REGISTER_RSP &&
        op->encoding == ZYDIS_OPERAND_ENCODING_NONE)
      drift += op->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE ? -(op->size / 8) : op->size / 8;
  }
  return in->mnemonic == ZYDIS_MNEMONIC_LEAVE ? in->operand_width / 8 : drift;
}

/* Known registers that changed get their values back; RSP its place, where it must have one. */
static bool put_right(filling *x, uint16_t written) {
  frame *f = x->f;
  group *g = x->g;
  uint32_t wrong = f->known & (uint32_t)(written | g->dirty) & ~(uint32_t)RSP_BIT;
  if (wrong && x->traits->role == ROLE_BRANCH)
    return false; /* on the way over the branch they would stay wrong */
  for (; wrong; wrong &= wrong - 1)
    group_load(g, (unsigned)__builtin_ctz(wrong), f->value[__builtin_ctz(wrong)]);
  if (g->drift && (f->balanced || rng_percent(f->r, g->drift % 8 ? 90 : 50))) {
    group_adjust_stack(g, -g->drift);
    g->drift = 0;
  }
  return g->count < GROUP_MAX;
}

static bool finish(filling *x) {
  ZydisDecodedInstruction in;
  ZydisDecodedOperand operands[ZYDIS_MAX_OPERAND_COUNT];
  group *g = x->g;
  ls_instruction *main = group_add(g, (const uint8_t[]){0x90}, 1);
  g->main = g->count - 1;
  if (!encode_main(x, main) || !harness_decode(main->bytes, main->length, &in, operands) ||
      in.length != main->length || form_of(&in, operands) != x->form)
    return false;
  link_field(x, &in, main);
  scan_info info = scan_decoded(main, &in, operands);
  if (info.written_gprs & x->f->kept ||
      (x->f->index != NO_VECTOR && info.written_vectors >> x->f->index & 1) ||
      info.row->action == POLICY_EXCLUDE)
    return false;
  g->drift += stack_drift(&in, operands);
  return put_right(x, info.written_gprs);
}

bool group_make(frame *f, form_id form, const form_traits *traits, group *g) {
  uint8_t patches = f->test->patch_count;
  form_example example;
  form_decode(form, &example);
  for (int attempt = 0; attempt < TRIES; attempt++) {
    filling x = {.f = f,
                 .g = g,
                 .form = form,
                 .traits = traits,
                 .example = &example,
                 .divisor = LS_NONE,
                 .bits = LS_NONE};
    group_clear(g);
    f->test->patch_count = patches;
    if (!ZYAN_SUCCESS(ZydisEncoderDecodedInstructionToEncoderRequest(
            &example.instruction, example.operands, example.instruction.operand_count_visible, &x.request)))
      return false;
    x.example_only = attempt == TRIES - 1 && traits->role == ROLE_FAULT;
    if (meet_need(&x) && meet_implicit(&x) && fill_operands(&x) && finish(&x))
      return true;
  }
  f->test->patch_count = patches;
  return false;
}

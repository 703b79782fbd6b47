/* Memory operands: which address is accessed, and of which registers and displacement it is made. */
#include "generate/filling.h"
#include "generate/values.h"

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

bool fill_memory(filling *x, const ZydisDecodedOperand *decoded, ZydisEncoderOperand *op) {
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

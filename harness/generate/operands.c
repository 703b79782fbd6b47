/* Makes a group: chooses the operands of a form, encodes it, and checks and puts right what comes of it. */
#include <string.h>

#include "forms/scan.h"
#include "generate/filling.h"
#include "generate/operands.h"
#include "generate/values.h"

enum { TRIES = 5 };

/* ---- Registers --------------------------------------------------------------------------------------- */

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

#include "regs.h"

#include <string.h>

#include "cpu.h"
#include "flags.h"
#include "state_offsets.h"
#include "vectors.h"

enum { SELECTOR_RPL = 3, FX_XMM = 160, FSW_ES = 0x80, ST_BYTES = 10 };

/* ptrace refuses null selectors other than 0 and 3; the CPU takes them all for 0. */
static uint16_t null_is_zero(uint16_t selector) {
  return selector <= SELECTOR_RPL ? 0 : selector;
}

void regs_from_state(const ls_state *state, uint64_t gs_base, struct user_regs_struct *regs) {
  const uint64_t *g = state->gpr;
  *regs = (struct user_regs_struct){
      .rax = g[LS_RAX],
      .rcx = g[LS_RCX],
      .rdx = g[LS_RDX],
      .rbx = g[LS_RBX],
      .rsp = g[LS_RSP],
      .rbp = g[LS_RBP],
      .rsi = g[LS_RSI],
      .rdi = g[LS_RDI],
      .r8 = g[LS_R8],
      .r9 = g[LS_R9],
      .r10 = g[LS_R10],
      .r11 = g[LS_R11],
      .r12 = g[LS_R12],
      .r13 = g[LS_R13],
      .r14 = g[LS_R14],
      .r15 = g[LS_R15],
  };
  regs->eflags = state->rflags;
  regs->cs = state->cs;
  regs->ss = state->ss;
  regs->ds = null_is_zero(state->ds);
  regs->es = null_is_zero(state->es);
  regs->fs_base = POISON_FS;
  regs->gs_base = gs_base;
  regs->orig_rax = UINT64_MAX;
}

void regs_to_state(const struct user_regs_struct *regs, ls_state *state) {
  const uint64_t gpr[16] = {regs->rax, regs->rcx, regs->rdx, regs->rbx, regs->rsp, regs->rbp,
                            regs->rsi, regs->rdi, regs->r8,  regs->r9,  regs->r10, regs->r11,
                            regs->r12, regs->r13, regs->r14, regs->r15};
  memcpy(state->gpr, gpr, sizeof gpr);
  state->rip = regs->rip;
  state->rflags = regs->eflags;
  state->cs = (uint16_t)regs->cs;
  state->ss = (uint16_t)regs->ss;
  state->ds = (uint16_t)regs->ds;
  state->es = (uint16_t)regs->es;
  state->fs = (uint16_t)regs->fs;
  state->gs = (uint16_t)regs->gs;
  state->reserved0 = 0;
}

bool regs_fs_gs_changed(const struct user_regs_struct *regs, uint64_t gs_base) {
  return regs->fs || regs->gs || regs->fs_base != POISON_FS || regs->gs_base != gs_base;
}

void gate_put(gate_in *in, const ls_state *state, uint64_t rip, ls_vectors vectors) {
  memcpy(in->fx, (const uint8_t *)state + STATE_FX, STATE_FX_SIZE);
  if (vectors == LS_VECTORS_AVX512) {
    memcpy(in->zmm, state->zmm, sizeof in->zmm);
    memcpy(in->k, state->k, sizeof in->k);
  } else {
    for (unsigned i = 0; i < 16; i++)
      if (vectors == LS_VECTORS_AVX)
        memcpy(in->zmm[i], state->zmm[i], YMM_SIZE);
      else
        memcpy(in->fx + FX_XMM + XMM_SIZE * i, state->zmm[i], XMM_SIZE);
  }
  in->ds = state->ds;
  in->es = state->es;
  in->frame[0] = rip;
  in->frame[1] = state->cs;
  in->frame[2] = state->rflags;
  in->frame[3] = state->gpr[LS_RSP];
  in->frame[4] = state->ss;
  in->step_flags = RFLAGS_CLEAN | (state->rflags & RFLAGS_ID);
}

void gate_get(const gate_out *out, ls_vectors vectors, ls_state *state) {
  memcpy((uint8_t *)state + STATE_FX, out->fx, STATE_FX_SIZE);
  state->reserved1 = 0;
  state->reserved2 = 0; /* MXCSR_MASK in FXSAVE's layout */
  if (vectors == LS_VECTORS_AVX512) {
    memcpy(state->zmm, out->zmm, sizeof state->zmm);
    memcpy(state->k, out->k, sizeof state->k);
  } else {
    for (unsigned i = 0; i < 16; i++)
      if (vectors == LS_VECTORS_AVX)
        memcpy(state->zmm[i], out->zmm[i], YMM_SIZE);
      else
        memcpy(state->zmm[i], out->fx + FX_XMM + XMM_SIZE * i, XMM_SIZE);
  }
  state->gpr[LS_RSP] = out->rsp;
  state->gpr[LS_RCX] = out->rcx;
  state->gpr[LS_R11] = out->r11;
}

uint64_t vectors_components(ls_vectors vectors) {
  uint64_t components = 1u << XSAVE_X87 | 1u << XSAVE_SSE;
  if (vectors >= LS_VECTORS_AVX)
    components |= 1u << XSAVE_AVX;
  if (vectors >= LS_VECTORS_AVX512)
    components |= 1u << XSAVE_OPMASK | 1u << XSAVE_ZMM_HI256 | 1u << XSAVE_HI16_ZMM;
  return components;
}

bool x87_differs(const ls_state *a, const ls_state *b) {
  if (a->fcw != b->fcw || a->fsw != b->fsw || a->ftw != b->ftw)
    return true;
  if ((b->fsw & FSW_ES) && (a->fop != b->fop || a->fip != b->fip || a->fdp != b->fdp))
    return true;
  for (unsigned i = 0; i < 8; i++)
    if (memcmp(a->st[i], b->st[i], ST_BYTES) != 0)
      return true;
  return false;
}

void x87_copy(ls_state *to, const ls_state *from) {
  to->fcw = from->fcw;
  to->fsw = from->fsw;
  to->ftw = from->ftw;
  to->reserved1 = from->reserved1;
  to->fop = from->fop;
  to->fip = from->fip;
  to->fdp = from->fdp;
  memcpy(to->st, from->st, sizeof to->st);
}

#include "guest_code.h"

/* One of INS, OUTS, MOVS, CMPS, STOS, LODS, SCAS. */
static bool is_string_opcode(uint8_t opcode) {
  return (opcode >= 0x6c && opcode <= 0x6f) || (opcode >= 0xa4 && opcode <= 0xa7) ||
         (opcode >= 0xaa && opcode <= 0xaf);
}

/* Those bytes of an instruction that are in windows: the second may begin where the first ends. */
static unsigned fetch(const sandbox *box, uint64_t address, uint8_t bytes[LS_INSTRUCTION_MAX]) {
  for (unsigned i = 0; i < LS_INSTRUCTION_MAX; i++) {
    uint32_t window = sandbox_window(box, address + i, 1);
    if (window == LS_NONE)
      return i;
    bytes[i] = box->alias[box->offset[window] + (address + i - box->layout.windows[window].address)];
  }
  return LS_INSTRUCTION_MAX;
}

/* Opcode and what follows; what is not there is 0. RDFSBASE, RDGSBASE, WRFSBASE and WRGSBASE are F3 0F AE
 * with registers, MOV, POP, LFS and LGS load selectors. */
static bool is_base_opcode(const uint8_t at[3], bool repeat) {
  enum {
    MOV_SREG = 0x8e,
    TWO_BYTES = 0x0f,
    BASES = 0xae,
    POP_FS = 0xa1,
    POP_GS = 0xa9,
    LFS = 0xb4,
    LGS = 0xb5
  };
  enum { FS = 4, GS = 5, MODRM_REGISTER = 3, LAST_BASE = 3 };
  unsigned modrm = at[0] == MOV_SREG ? at[1] : at[2], reg = modrm >> 3 & 7;
  if (at[0] == MOV_SREG)
    return reg == FS || reg == GS;
  if (at[0] != TWO_BYTES)
    return false;
  if (at[1] == BASES)
    return repeat && modrm >> 6 == MODRM_REGISTER && reg <= LAST_BASE;
  return at[1] == POP_FS || at[1] == POP_GS || at[1] == LFS || at[1] == LGS;
}

guest_code guest_code_at(const sandbox *box, uint64_t address) {
  guest_code code = {0};
  uint8_t byte[LS_INSTRUCTION_MAX + 2] = {0};
  unsigned left = fetch(box, address, byte);
  code.known = left > 0;
  bool repeat = false;
  for (unsigned i = 0; i < left; i++)
    switch (byte[i]) {
    case 0x64:
    case 0x65:
      code.fs_gs = true;
      break;
    case 0xf2:
    case 0xf3:
      repeat = true;
      break;
    case 0x26: /* ES, CS, SS, DS: without effect in 64-bit mode, and they do not undo FS or GS */
    case 0x2e:
    case 0x36:
    case 0x3e:
    case 0x66:
    case 0x67:
    case 0xf0:
      break;
    default:
      if ((byte[i] & 0xf0) == 0x40) /* REX */
        break;
      code.base = is_base_opcode(byte + i, repeat);
      code.rep_string = repeat && is_string_opcode(byte[i]);
      code.pushf = byte[i] == 0x9c;
      code.popf = byte[i] == 0x9d || byte[i] == 0xcf;
      return code;
    }
  return code;
}

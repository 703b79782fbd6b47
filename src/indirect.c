/* SDM vol. 2: 2.1 (prefixes, ModRM, SIB), CALL, JMP, RET, IRET. In 64-bit mode. */
#include "indirect.h"

#include <string.h>

enum {
  RET_POP = 0xc2,
  RET = 0xc3,
  RETF_POP = 0xca,
  RETF = 0xcb,
  IRET = 0xcf,
  GROUP_5 = 0xff, /* /2 call, /3 far call, /4 jmp, /5 far jmp */
  FIRST = 2,
  LAST = 5
};

/* A REX byte that does not stand last does nothing. */
static bool is_prefix(uint8_t byte) {
  enum { REX = 0x40 }; /* to 0x4f */
  return (byte & 0xf0) == REX || (byte && strchr("\x26\x2e\x36\x3e\x64\x65\x66\x67\xf0\xf2\xf3", byte));
}

/* Of an instruction of group 5, the bytes from ModRM on; `room`: how many there are at most. */
static uint32_t operand_size(const uint8_t *modrm, uint32_t room) {
  enum { DISPLACEMENT_8 = 1, DISPLACEMENT_32 = 2, DIRECT = 3, HAS_SIB = 4, NO_BASE = 5 };
  unsigned mode = modrm[0] >> 6, base = modrm[0] & 7;
  if (mode == DIRECT)
    return 1;
  bool sib = base == HAS_SIB;
  if (sib && room > 1)
    base = modrm[1] & 7;
  bool wide = mode == DISPLACEMENT_32 || (mode == 0 && base == NO_BASE);
  return 1 + sib + (wide ? 4 : mode == DISPLACEMENT_8);
}

bool is_indirect_branch(const ls_instruction *in) {
  uint32_t at = 0;
  while (at < in->length && is_prefix(in->bytes[at]))
    at++;
  if (at >= in->length || in->field == LS_FIELD_BRANCH)
    return false;
  uint32_t left = in->length - at - 1;
  const uint8_t *operand = &in->bytes[at + 1];
  switch (in->bytes[at]) {
  case RET:
  case RETF:
  case IRET:
    return left == 0;
  case RET_POP:
  case RETF_POP:
    return left == 2;
  case GROUP_5:
    return left && (operand[0] >> 3 & 7) >= FIRST && (operand[0] >> 3 & 7) <= LAST &&
           left == operand_size(operand, left);
  default:
    return false;
  }
}

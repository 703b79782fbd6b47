#include "guest_code.h"

/* One of INS, OUTS, MOVS, CMPS, STOS, LODS, SCAS. */
static bool is_string_opcode(uint8_t opcode) {
  return (opcode >= 0x6c && opcode <= 0x6f) || (opcode >= 0xa4 && opcode <= 0xa7) ||
         (opcode >= 0xaa && opcode <= 0xaf);
}

guest_code guest_code_at(const sandbox *box, uint64_t address) {
  guest_code code = {0};
  uint32_t window = sandbox_window(box, address, 1);
  if (window == LS_NONE)
    return code;
  code.known = true;
  uint64_t offset = address - box->layout.windows[window].address;
  uint64_t left = box->layout.windows[window].size - offset;
  const uint8_t *byte = box->alias + box->offset[window] + offset;
  bool repeat = false;
  for (uint64_t i = 0; i < left && i < LS_INSTRUCTION_MAX; i++)
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
      code.rep_string = repeat && is_string_opcode(byte[i]);
      code.pushf = byte[i] == 0x9c;
      code.popf = byte[i] == 0x9d || byte[i] == 0xcf;
      return code;
    }
  return code;
}

#include "stepping.h"

#include "../flags.h"

enum { PREFIXES_MAX = 14, REPNE = 0xf2, REPE = 0xf3 };

uint8_t *stepping_memory(const sandbox *box, uint64_t address, uint64_t size) {
  uint32_t window = sandbox_window(box, address, size);
  if (window == LS_NONE)
    return NULL;
  return box->alias + box->offset[window] + (address - box->layout.windows[window].address);
}

static bool is_prefix(uint8_t byte) {
  return byte == 0x66 || byte == 0x67 || byte == 0xf2 || byte == 0xf3 || (byte & 0xe7) == 0x26 ||
         (byte & 0xfe) == 0x64 || (byte & 0xf0) == 0x40;
}

static uint8_t opcode_at(const sandbox *box, uint64_t rip, bool *repeated) {
  for (int i = 0; i <= PREFIXES_MAX; i++) {
    const uint8_t *byte = stepping_memory(box, rip + (uint64_t)i, 1);
    if (!byte)
      return 0;
    if (!is_prefix(*byte))
      return *byte;
    *repeated |= *byte == REPNE || *byte == REPE;
  }
  return 0;
}

/* INS and OUTS; MOVS and CMPS; STOS, LODS and SCAS. */
static bool is_string(uint8_t opcode) {
  return (opcode & 0xfc) == 0x6c || (opcode & 0xfc) == 0xa4 || (opcode >= 0xaa && opcode <= 0xaf);
}

static step_effect step_effect_of(const sandbox *box, uint64_t rip, uint64_t rsp) {
  enum { PUSHF = 0x9c, POPF = 0x9d, IRET = 0xcf, TF_BYTE = 1, IRET_FLAGS = 16 };
  bool repeated = false;
  uint8_t opcode = opcode_at(box, rip, &repeated);
  if (repeated && is_string(opcode))
    return STEP_REPEATS;
  if (opcode == PUSHF)
    return STEP_PUSHES_FLAGS;
  if (opcode != POPF && opcode != IRET)
    return STEP_PLAIN;
  const uint8_t *flags = stepping_memory(box, rsp + (opcode == IRET ? IRET_FLAGS : 0), 2);
  return flags && flags[TF_BYTE] & RFLAGS_TF >> 8 ? STEP_SETS_TF : STEP_PLAIN;
}

void stepping_expect(thread_record *record, const signal_executor *executor, uint64_t rip, uint64_t rsp) {
  record->coming_at = rip;
  record->coming = step_effect_of(&executor->base.box, rip, rsp);
}

/* Raw machine code as a program. */
#ifndef TESTS_RAW_H
#define TESTS_RAW_H

#include <string.h>

#include "lockstep.h"

enum { RAW_BYTES_MAX = 4096, RAW_PIECES = RAW_BYTES_MAX / LS_INSTRUCTION_MAX + 1 };

/* Cuts code of at most RAW_BYTES_MAX bytes into pieces of up to 15, which an image keeps together; it leaves
 * the program behind its last byte. The program borrows `pieces`. */
static inline ls_program raw_program(const void *code, size_t size, ls_instruction pieces[RAW_PIECES]) {
  uint32_t count = 0;
  for (size_t at = 0; at < size; at += LS_INSTRUCTION_MAX, count++) {
    size_t length = size - at < LS_INSTRUCTION_MAX ? size - at : LS_INSTRUCTION_MAX;
    pieces[count] = (ls_instruction){.next = count + 1, .jump = LS_NONE, .length = (uint8_t)length};
    memcpy(pieces[count].bytes, (const uint8_t *)code + at, length);
  }
  pieces[count - 1].next = LS_NONE;
  return (ls_program){pieces, count, 0};
}

#endif

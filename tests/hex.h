/* Bytes written in hex. */
#ifndef TESTS_HEX_H
#define TESTS_HEX_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

/* "0f0b": up to the first two characters that are no byte, but `room` bytes at most. Returns how many. */
static inline size_t parse_hex(const char *hex, uint8_t *bytes, size_t room) {
  size_t count = 0;
  for (unsigned value; count < room && sscanf(hex + 2 * count, "%2x", &value) == 1; count++)
    bytes[count] = (uint8_t)value;
  return count;
}

#endif

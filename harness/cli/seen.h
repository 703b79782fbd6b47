/* Which blocks of machine code were there before, and what became of them. */
#ifndef HARNESS_SEEN_H
#define HARNESS_SEEN_H

#include "import/import.h"

typedef struct imported {
  import_report report;
  char name[33]; /* of the entry; "" without one */
  bool again;
} imported;

typedef struct seen_blocks seen_blocks;

/* NULL if there is no memory: with that the others do nothing. */
seen_blocks *seen_create(void);
void seen_destroy(seen_blocks *seen);

/* What seen_add() was told of these bytes; false, with *what as it is, if nothing. Two blocks are taken for
 * the same if their hashes of 128 bits are. What the report says of an error is not kept. */
bool seen_find(const seen_blocks *seen, const uint8_t *code, size_t size, imported *what);
void seen_add(seen_blocks *seen, const uint8_t *code, size_t size, const imported *what);

#endif

/* Blocks of machine code in files: lines of hex, csv, or raw bytes. */
#ifndef HARNESS_BLOCKS_H
#define HARNESS_BLOCKS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct block {
  unsigned line; /* in its file, from 1; 0: the whole file */
  uint8_t *code; /* malloc'ed; NULL: that line holds no hex */
  size_t size;
} block;

/* Zeroed is empty. */
typedef struct block_list {
  block *blocks;
  size_t count, room;
} block_list;

/* Adds the blocks of a file's content (which must have a zero behind it). Text has a block in each line: hex
 * digits, blanks and 0x or \x allowed between bytes; of a line with commas, semicolons or tabs the last
 * column that is hex. Lines without content or beginning with # are skipped. Content that is not text, and
 * any with `raw`, is one block. False if there is no memory. */
bool blocks_parse(block_list *list, const uint8_t *content, size_t size, bool raw);

void blocks_free(block_list *list);

#endif

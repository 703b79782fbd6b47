/* Blocks of machine code in files: lines of hex, csv, or raw bytes. */
#ifndef HARNESS_BLOCKS_H
#define HARNESS_BLOCKS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct block {
  unsigned line; /* in its file, from 1; 0: the whole file */
  uint8_t *code; /* malloc'ed; NULL: that line holds no hex, `why` says what instead */
  char *why;     /* malloc'ed; NULL: there was no memory */
  size_t size;
  bool header; /* no hex, but it can well be the header of the lines below */
} block;

/* Zeroed is empty. */
typedef struct block_list {
  block *blocks;
  size_t count, room;
} block_list;

/* Adds the blocks of a file's content (which must have a zero behind it). Text has a block in each line: hex
 * digits, blanks and 0x or \x allowed between bytes; of a line with commas, semicolons or tabs the last
 * column that is hex. Lines without content or beginning with # are skipped, and so is a UTF-8 byte order
 * mark. Content that is not text, and any with `raw`, is one block; text in which there are zero bytes too is
 * damaged text. False if there is no memory. */
bool blocks_parse(block_list *list, const uint8_t *content, size_t size, bool raw);

void blocks_free(block_list *list);

#endif

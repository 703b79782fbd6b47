#include "seen.h"

#include <stdlib.h>
#include <string.h>

#include <xxhash.h>

enum { ROOM_AT_FIRST = 1024 };

typedef struct seen_block {
  XXH128_hash_t hash;
  size_t offset;
  ls_stop stop;
  unsigned runs, replaced;
  import_status status;
  bool ran, used;
  char name[33];
} seen_block;

/* Open addressing; `room` is a power of two, at most half of it used. */
struct seen_blocks {
  size_t count, room;
  seen_block *blocks;
};

static seen_block *slot_of(seen_block *blocks, size_t room, XXH128_hash_t hash) {
  size_t at = hash.low64 & (room - 1);
  while (blocks[at].used && !XXH128_isEqual(blocks[at].hash, hash))
    at = (at + 1) & (room - 1);
  return &blocks[at];
}

seen_blocks *seen_create(void) {
  seen_blocks *seen = calloc(1, sizeof *seen);
  if (seen == NULL)
    return NULL;
  seen->room = ROOM_AT_FIRST;
  seen->blocks = calloc(seen->room, sizeof *seen->blocks);
  if (seen->blocks != NULL)
    return seen;
  free(seen);
  return NULL;
}

void seen_destroy(seen_blocks *seen) {
  if (seen == NULL)
    return;
  free(seen->blocks);
  free(seen);
}

bool seen_find(const seen_blocks *seen, const uint8_t *code, size_t size, imported *what) {
  if (seen == NULL)
    return false;
  const seen_block *b = slot_of(seen->blocks, seen->room, XXH3_128bits(code, size));
  if (!b->used)
    return false;
  what->report = (import_report){.status = b->status,
                                 .offset = b->offset,
                                 .replaced = b->replaced,
                                 .ran = b->ran,
                                 .stop = b->stop,
                                 .runs = b->runs};
  memcpy(what->name, b->name, sizeof what->name);
  return true;
}

/* Without memory for more it stays as it is: what is not found is run again. */
static bool grow(seen_blocks *seen) {
  size_t room = 2 * seen->room;
  seen_block *blocks = calloc(room, sizeof *blocks);
  if (blocks == NULL)
    return false;
  for (size_t i = 0; i < seen->room; i++)
    if (seen->blocks[i].used)
      *slot_of(blocks, room, seen->blocks[i].hash) = seen->blocks[i];
  free(seen->blocks);
  seen->blocks = blocks;
  seen->room = room;
  return true;
}

void seen_add(seen_blocks *seen, const uint8_t *code, size_t size, const imported *what) {
  if (seen == NULL || (2 * (seen->count + 1) > seen->room && !grow(seen)))
    return;
  XXH128_hash_t hash = XXH3_128bits(code, size);
  seen_block *b = slot_of(seen->blocks, seen->room, hash);
  seen->count += !b->used;
  *b = (seen_block){.hash = hash,
                    .offset = what->report.offset,
                    .stop = what->report.stop,
                    .runs = what->report.runs,
                    .replaced = what->report.replaced,
                    .status = what->report.status,
                    .ran = what->report.ran,
                    .used = true};
  memcpy(b->name, what->name, sizeof b->name);
}

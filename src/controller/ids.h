/* From the stable id of an instruction, which is the caller's and can be any number, to its index. Internal.
 */
#ifndef LOCKSTEP_IDS_H
#define LOCKSTEP_IDS_H

#include "lockstep.h"

/* A hash table with open addressing. All zero: without ids. */
typedef struct ids {
  uint64_t *id;    /* of each instruction */
  uint32_t *slots; /* indices, LS_NONE where free; at least half of them are */
  uint32_t count, mask;
  uint32_t id_room, slot_room; /* what the arrays have room for; builds use it again */
} ids;

/* Takes over the ids of a program of at most LS_PROGRAM_MAX instructions, in time linear in their number.
 * LS_ERR_PROGRAM for an id that occurs twice, with the index of the second; LS_ERR_MEMORY. On failure there
 * are no ids: who needs the old ones until the new ones are there has two of these. */
ls_status ids_build(ids *table, const ls_program *program, ls_error *error);

/* The index of the instruction with that id, or LS_NONE. */
uint32_t ids_find(const ids *table, uint64_t id);

/* Gives the room back; the table is without ids again. */
void ids_free(ids *table);

#endif

/* Proves that the control flow of a code image is the graph of its program: from the emitted bytes, which are
 * decoded, and nothing that the emitter thinks of them. Knows lockstep.h and Zydis only. */
#ifndef HARNESS_GRAPH_CHECK_H
#define HARNESS_GRAPH_CHECK_H

#include <stdbool.h>

#include "lockstep.h"

/* What is looked at. `bytes` and `map` are the image's own, or a changed copy. */
typedef struct graph_view {
  const ls_program *program;
  const ls_layout *layout;
  const ls_image *image;
  const uint8_t *bytes;
  size_t size;
  const ls_range *map;
  size_t range_count;
} graph_view;

graph_view graph_view_of(const ls_image *image, const ls_program *program, const ls_layout *layout);

/* True if all of this holds; if not, false and a sentence in `why`.
 *
 *   - Each instruction stands at its address, its bytes as they were but for the field. Its branch field
 * leads to `jump`, its data field to the address `data`.
 *   - What follows a body, and where its branch goes, ends at the body of the link's instruction, or at the
 *     gate with a number of its own in a control cell where the link leaves the program, by inserted code
 *     alone, with every register, flag and cell as it was.
 *   - With LS_PROGRAM_FUEL the links to the same or a lower address, and no others, take one unit from one
 *     and the same cell, or leave at an exit point of their own when that cell is zero.
 *   - The map is sorted and covers every byte of code once, names the right instruction and part of each, and
 *     every byte of it is code that some link uses. ls_image_find says the same as going through the map.
 *
 * The program must have been one that can be built, each of its instructions be exactly one instruction that
 * Zydis knows, and its flags tell the truth. */
bool graph_check(const graph_view *view, char *why, size_t why_size);

#endif

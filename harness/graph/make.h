/* Programs as graphs, made from any bytes: instructions from a small palette whose effect can be run in this
 * process, linked in any order. The bytes are a header and a record for each instruction, so that a fuzzer's
 * small changes are small changes of the graph:
 *
 *   header  seed (4: registers, stack, order), repeats, entry, spoil kind, spoil place
 *   record  palette row (bit 7: links go far), operands, next, jump
 *
 * A link byte is a distance in instructions: 0 the following one, 0x7f itself, 0x80 out of the program. From
 * a repeats byte of 200 on the list stands 1, 2, 4 … 2048 times behind itself, as far as there is room. */
#ifndef HARNESS_GRAPH_MAKE_H
#define HARNESS_GRAPH_MAKE_H

#include <stdbool.h>

#include "lockstep.h"
#include "rng.h"

enum {
  GRAPH_HEADER = 8,
  GRAPH_RECORD = 4,
  GRAPH_RECORDS_MAX = 300,
  GRAPH_MAX = 3000,    /* instructions */
  GRAPH_CALLS_MAX = 8, /* nested ones multiply: what they can run stays bounded */
  GRAPH_STACK_WORDS = 24
};

typedef struct graph {
  uint32_t count; /* at least 1 */
  uint32_t entry; /* index */
  uint32_t seed;
  uint8_t spoil, spoil_place;
  ls_instruction instructions[GRAPH_MAX]; /* id = index in the list as decoded */
} graph;

/* Lockstep's own layout with a code window that every graph fits into. */
const ls_layout *graph_layout(void);

/* Total: any bytes, none too. */
void graph_decode(graph *g, const uint8_t *data, size_t size);

/* The same graph with its list in another order, which follows from the seed: links and entry renumbered. */
void graph_shuffle(const graph *from, graph *to);

ls_program graph_program(const graph *g, uint32_t flags);

/* Makes one instruction impossible to lay out, as spoil and spoil_place say. Returns its index, or LS_NONE
 * where the graph is to stay as it is. */
uint32_t graph_spoil(graph *g);

/* The state a run starts from: registers small, so that counted loops end; flags of all kinds. */
void graph_state(const graph *g, ls_state *state);

/* What stands at RSP and above, for the returns of graphs without calls: ids of instructions; LS_NONE stands
 * for address 0. */
void graph_stack(const graph *g, uint32_t ids[GRAPH_STACK_WORDS]);

/* Which row of the palette a record's first byte means; below 32. */
uint32_t graph_palette_row(uint8_t kind);

#endif

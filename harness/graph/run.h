/* Runs graphs in this thread, so that runs of different layouts of one graph can be compared. */
#ifndef HARNESS_GRAPH_RUN_H
#define HARNESS_GRAPH_RUN_H

#include "graph/make.h"

/* One layout of a graph: its list in some order, built with some flags. */
typedef struct graph_version {
  const graph *graph;
  const ls_image *image;
  const char *name; /* for people */
} graph_version;

enum { GRAPH_DATA_SIZE = 2 * LS_PAGE };

/* How a run ended, in words that do not depend on the layout: addresses of code are replaced by what stands
 * there. Equal endings are equal by memcmp. */
typedef struct graph_ending {
  ls_state state; /* canonical; rip as below */
  uint32_t kind, part;
  uint64_t id; /* of the instruction where it stopped, or LS_NONE */
  int32_t signal, code;
  uint64_t address;
  uint64_t stack[LS_PAGE / 8];
  uint8_t data[GRAPH_DATA_SIZE];
} graph_ending;

/* Runs from the graph's entry, state, stack and memory with so much fuel. */
ls_status graph_run(ls_executor *executor, const graph_version *version, uint64_t fuel, graph_ending *ending,
                    ls_error *error);

/* What is wrong with that ending of that graph whatever the layout is (a stop on a link that does not leave,
 * a fault in inserted code), or NULL. */
const char *graph_ending_trouble(const graph *g, const graph_ending *ending);

/* What two endings differ in first, or NULL. */
const char *graph_ending_difference(const graph_ending *a, const graph_ending *b);

#endif

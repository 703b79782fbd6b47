/* Follows code that an emitter inserted between a program's instructions, without running it and without
 * knowing its bytes: each instruction is decoded and its effect worked out on values of which only the origin
 * is known (a register's content, a control cell's content, a constant). Knows lockstep.h and Zydis only. */
#ifndef HARNESS_GRAPH_WALK_H
#define HARNESS_GRAPH_WALK_H

#include <stdbool.h>

#include "lockstep.h"

enum { WALK_REGISTERS = 16, WALK_CELLS = LS_CONTROL_SIZE / 8, WALK_PATHS = 2, WALK_STEPS_MAX = 32 };

typedef enum walk_origin { WALK_REGISTER, WALK_CELL, WALK_CONSTANT } walk_origin;

/* What register or cell `index` held when the walk began, plus `number`; or the constant `number`. */
typedef struct walk_value {
  walk_origin origin;
  uint32_t index;
  uint64_t number;
} walk_value;

/* Where one path ended and with what. Flags are as they were: a walk over anything that changes them fails.
 */
typedef struct walk_state {
  uint64_t address; /* of a byte of a body, or the gate */
  walk_value registers[WALK_REGISTERS];
  walk_value cells[WALK_CELLS];
  bool tested; /* the path was taken because cell `tested_cell` was zero, or not zero */
  bool zero;
  uint32_t tested_cell;
} walk_state;

/* The code: the image, and which of its bytes belong to instructions of the program. */
typedef struct walk_code {
  const ls_layout *layout;
  const uint8_t *bytes;
  size_t size;          /* of the image */
  size_t end;           /* of the part that holds code */
  const uint32_t *body; /* per byte up to `end`: LS_NONE, or the instruction whose body it belongs to */
} walk_code;

/* Told of each inserted instruction on the way; `steps` counts those before it on this path. Returns what is
 * wrong with its being there, or NULL. */
typedef const char *(*walk_visitor)(void *context, uint32_t offset, uint32_t length, uint32_t steps);

typedef struct walk_result {
  uint32_t count; /* of paths */
  walk_state paths[WALK_PATHS];
  const char *trouble; /* NULL, or what is wrong, */
  uint64_t address;    /* and where */
} walk_result;

/* Walks from `address` along every path until it reaches a body or the gate. False with trouble and address
 * in *result if it does not, or does what inserted code must not: change a flag, depend on a register of the
 * guest, write memory other than the control cells. */
bool walk(const walk_code *code, uint64_t address, walk_visitor visitor, void *context, walk_result *result);

#endif

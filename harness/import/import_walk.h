/* Where the values of a faulting block came from. Internal to the importer.
 *
 * The path that ran is known with the general registers before each of its instructions. Walking along it,
 * every register and every stored cell gets an origin: a sum of initial values times factors. What is lost on
 * the way (a shift to the right, a value from a vector) counts as a constant. At the fault the origin of the
 * address says which initial value to change, and by how much: the concrete value is known, so only the
 * factor matters. */
#ifndef HARNESS_IMPORT_WALK_H
#define HARNESS_IMPORT_WALK_H

#include "forms/forms.h"
#include "import/import_repair.h"

enum {
  TERMS_MAX = 4,
  CELLS_MAX = 64,
  STORES_MAX = 128,
  ACCESSES_MAX = 2 * TRACE_MAX,
  REGISTERS = 16,
  IMMEDIATES = REGISTERS + CELLS_MAX
};

/* An initial value: register 0 … 15, or REGISTERS + index of a loaded cell, or IMMEDIATES + index of an
 * instruction whose immediate was the address of something. */
typedef uint32_t source;

typedef struct origin {
  uint32_t count;
  struct {
    source from;
    int64_t factor;
  } terms[TERMS_MAX];
} origin;

typedef struct cell {
  uint64_t address;
  uint32_t size;
} cell;

typedef struct store {
  cell place;
  origin value;
} store;

typedef struct memory_use {
  cell place;
  bool write;
  origin address;
} memory_use;

typedef struct walk {
  testcase *test;
  unsigned place;
  origin registers[REGISTERS];
  uint32_t cell_count, store_count, access_count;
  cell cells[CELLS_MAX];
  store stores[STORES_MAX];
  memory_use accesses[ACCESSES_MAX];
} walk;

/* An instruction of the path with what is needed of it. */
typedef struct visited {
  const trace_step *step;
  uint64_t address; /* of a RIP-relative operand */
  ZydisDecodedInstruction decoded;
  ZydisDecodedOperand operands[ZYDIS_MAX_OPERAND_COUNT];
} visited;

/* Follows the path up to its last instruction, which is left in *last. False if that is none of the
 * program's. */
bool walk_path(walk *w, testcase *test, const trace *path, visited *last);

/* Of a memory operand of `v`: is it one with a plain address? The bytes it refers to; is it written; and the
 * origin of its address. */
bool is_plain_memory(const ZydisDecodedOperand *operand);
cell operand_cell(const visited *v, const ZydisDecodedOperand *operand);
bool is_written(const ZydisDecodedOperand *operand);
origin address_origin(const walk *w, const ZydisDecodedOperand *operand);

/* The origin of what an operand holds, and the value of a register operand, before `v`. */
origin operand_origin(walk *w, const visited *v, const ZydisDecodedOperand *operand);
uint64_t register_value(const visited *v, ZydisRegister reg);

#endif

/* A code image from inside. Internal to program.c (which builds it), emit.c (which writes its bytes) and
 * image.c (which answers questions about it). */
#ifndef LOCKSTEP_IMAGE_H
#define LOCKSTEP_IMAGE_H

#include "executor.h"
#include "lockstep.h"

/* The pieces of an image, in the order in which they lie in memory. */
typedef enum item_kind {
  ITEM_COUNTER,   /* before the body of an indirect branch: it costs fuel */
  ITEM_BODY,      /* the instruction; behind it the island of a branch that does not reach */
  ITEM_NEXT_JUMP, /* follows `next` to where it already lies */
  ITEM_NEXT_EXIT, /* `next` leaves the program */
  ITEM_JUMP_EXIT, /* out of line: `jump` leaves the program */
  ITEM_JUMP_FUEL  /* out of line: `jump` goes back and costs fuel */
} item_kind;

typedef struct item {
  uint32_t instruction;
  uint32_t offset;
  uint8_t kind;   /* an item_kind */
  uint8_t island; /* ITEM_BODY: 1 if its branch goes through an island */
} item;

/* One layout of a program, with room that the next one reuses. */
typedef struct code_layout {
  uint64_t base; /* guest address of byte 0 */
  uint64_t control, gate;
  uint8_t *bytes;
  size_t size, bytes_room;
  item *items;
  uint32_t item_count;
  uint32_t *body;             /* per instruction: its item */
  uint32_t *stub;             /* per instruction: the item of its jump's stub, or LS_NONE */
  uint64_t *id;               /* per instruction: the caller's */
  uint32_t count, count_room; /* instructions; what the arrays have room for */
  ls_range *map;
  uint32_t range_count;
  image_exit *exits;
  uint32_t exit_count;
} code_layout;

/* The layout in force, and one whose arrays the next build fills: a build that fails leaves the first alone.
 */
struct ls_image {
  code_layout now, spare;
};

/* The exit point `index` of an image, or NULL: the cell can hold anything, since the guest can write it. */
static inline const image_exit *image_exit_at(const ls_image *image, uint64_t index) {
  return index < image->now.exit_count ? &image->now.exits[index] : NULL;
}

/* The two halves of ls_image_build, for who has to know the size before there is a window to hold it. Until
 * the second succeeds the image answers as before.
 *
 * Lays the program out: the order of the pieces and their offsets, which depend on nothing but the program.
 * LS_ERR_PROGRAM, LS_ERR_MEMORY. */
ls_status image_lay_out(ls_image *image, const ls_program *program, ls_error *error);

/* The bytes that the program laid out last takes: at most IMAGE_SIZE_MAX. */
size_t image_size(const ls_image *image);

/* Writes the program that was laid out last, unchanged since, as bytes for `layout`, and puts that in force.
 * LS_ERR_PROGRAM if the code window is too small or a data field does not reach; LS_ERR_MEMORY. Then it can
 * be tried again with another layout. After success lay out anew. */
ls_status image_emit(ls_image *image, const ls_program *program, const ls_layout *layout, ls_error *error);

/* Sizes of what the emitter inserts, in bytes. */
enum {
  EXIT_SIZE = 11 + 6,  /* mov qword [rip+exit], imm32; jmp [rip+slot] */
  JUMP_SIZE = 5,       /* jmp rel32 */
  ISLAND_SIZE = 2 + 5, /* jmp over; jmp rel32 */
  FUEL_SIZE = 7 + 7 + 2 + 4 + 7 + 7 + JUMP_SIZE + 7 + EXIT_SIZE, /* see emit_fuel */
  SLOT_SIZE = 8,
  IMAGE_SIZE_MAX = LS_PROGRAM_MAX * (LS_INSTRUCTION_MAX + ISLAND_SIZE + 2 * FUEL_SIZE) + 2 * SLOT_SIZE
};

/* The item that links to an instruction lead to: its body, or the counter before that. */
static inline uint32_t first_item(const code_layout *code, uint32_t instruction) {
  uint32_t body = code->body[instruction];
  return body && code->items[body - 1].kind == ITEM_COUNTER ? body - 1 : body;
}

/* Does the link from an instruction to `target` go to a lower or the same address? */
static inline int goes_back(const code_layout *code, uint32_t from, uint32_t target) {
  return code->body[target] <= code->body[from];
}

/* Writes bytes, map and exits of a layout whose items have their offsets. LS_ERR_PROGRAM if a data field does
 * not reach. */
ls_status emit_layout(code_layout *code, const ls_program *program, ls_error *error);

#endif

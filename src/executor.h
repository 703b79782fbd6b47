/* What both executors share, and the seam between lockstep.h and each of them. Internal. */
#ifndef LOCKSTEP_EXECUTOR_H
#define LOCKSTEP_EXECUTOR_H

#include "lockstep.h"
#include "sandbox.h"

typedef struct executor_ops {
  /* As ls_executor_run, arguments checked, an image loaded, control cells set, address of the entry given.
   * Fills outcome->state (rip: where it stopped, or the gate's address after a jump to it), outcome->touched
   * and of outcome->stop all but instruction and part. A jump to the gate is LS_STOP_EXIT. */
  ls_status (*run)(ls_executor *executor, const ls_run *run, uint64_t entry, ls_outcome *outcome,
                   ls_error *error);
  /* Called first in every run, load and reset in a process that has forked: makes the executor this
   * process's own. */
  ls_status (*forked)(ls_executor *executor, ls_error *error);
  int (*stops_syscalls)(ls_executor *executor);
  void (*destroy)(ls_executor *executor); /* frees the executor too, but not its sandbox's contents */
} executor_ops;

struct ls_executor {
  const executor_ops *ops;
  ls_kind kind;
  ls_vectors vectors; /* resolved */
  ls_options options; /* resolved: no zeros */
  const ls_image *image;
  struct control_cells *control; /* in the alias of box */
  sandbox box;
};

/* Each makes its own structure with `struct ls_executor` as first member. `base` holds everything but ops and
 * is moved into it on success; on failure the caller still owns base's sandbox. For the signal executor the
 * sandbox is already mapped at the guest's addresses. */
ls_status signal_executor_create(const ls_executor *base, ls_executor **executor, ls_error *error);
ls_status ptrace_executor_create(const ls_executor *base, ls_executor **executor, ls_error *error);

/* The way out of the guest. Guest code jumps to layout.gate, where one page holds the same bytes in every
 * executor: a jump through a pointer to gate_inner, and int3 besides; the rest of LS_GATE_SIZE there is
 * without access. So whatever a guest does at the gate, it does in both. The executor's own code and data,
 * LS_GATE_SIZE of them at gate_inner, are out of reach of any displacement from anywhere else, and nothing
 * the guest starts with points there. */
static inline uint64_t gate_inner(uint64_t gate) {
  return gate ^ UINT64_C(0x1000000000);
}

/* Writes that page, LS_PAGE bytes. */
void gate_page_write(uint8_t *page, uint64_t gate);

/* What the emitted exit points and fuel counters write at layout.control. The emitter, and nothing else,
 * writes code that uses these offsets. */
typedef struct control_cells {
  uint64_t exit; /* index of the exit point that was taken */
  uint64_t fuel; /* units left */
  uint64_t save; /* RCX while fuel is counted */
  uint64_t reserved[5];
} control_cells;

/* An exit point of an image, by the index it leaves in control_cells.exit. */
typedef struct image_exit {
  uint32_t offset;      /* of its first byte in the image */
  uint32_t instruction; /* whose link it is */
  ls_part part;
  ls_stop_kind kind; /* LS_STOP_EXIT or LS_STOP_FUEL */
} image_exit;

/* The exit point `index` of an image, or NULL: the cell can hold anything, since the guest can write it. */
const image_exit *image_exit_at(const ls_image *image, uint64_t index);

/* Was the image built for the code window, control and gate of this layout? */
bool image_fits(const ls_image *image, const ls_layout *layout);

#endif

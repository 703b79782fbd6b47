/* Guest memory: one memfd holds all windows of a layout, back to back, the code last; this process sees them
 * through one always writable alias, the guest at the addresses and with the access of the layout. Each
 * executor has a sandbox of its own. Internal. */
#ifndef LOCKSTEP_SANDBOX_H
#define LOCKSTEP_SANDBOX_H

#include <stdbool.h>

#include "lockstep.h"

/* What a code window can grow to. Any program fits (program.c sees to that). */
#define SANDBOX_CODE_MAX UINT64_C(0x1000000)

/* Bytes. Windows up to this size are present as a whole: touched before the guest is, set and compared whole.
 * Of larger ones only what was touched takes memory and time. */
#define SANDBOX_DENSE_MAX UINT64_C(0x400000)

typedef struct sandbox {
  ls_layout layout;
  int fd;                          /* the memfd, close-on-exec */
  uint8_t *alias;                  /* of the memfd, and of what it grows to: it stays where it is */
  uint64_t offset[LS_WINDOWS_MAX]; /* of each window in the memfd and the alias; never changes */
  ls_window reserved;              /* what sandbox_code_reserve has made, until commit; size 0: nothing */
  uint64_t code_used;              /* bytes of the code window that are not int3, for all that we know */
  bool code_lent;                  /* the host has a pointer to the code window; atomic, never reset */
  bool mapped;                     /* at the guest's addresses in this process */
  const uint32_t *epoch;           /* see fork_epoch */
  uint32_t epoch_value;
} sandbox;

/* Is the layout one that can be mapped? LS_ERR_ARGUMENT with the window's index if not. */
ls_status layout_check(const ls_layout *layout, ls_error *error);

/* The places that a code window of `size` bytes could have instead of the layout's own. */
typedef struct code_places {
  const ls_layout *layout;
  uint64_t size, low, high; /* all of the window lies in [low, high) */
  uint32_t area;            /* which part of the address space is being searched */
  uint64_t next;            /* which place there */
} code_places;

/* Starts at the best place; the layout is borrowed as long as places are asked for. */
void layout_places(code_places *places, const ls_layout *layout, uint64_t size);

/* Sets the window's address and size to the next place, or returns false when there is none left. A place
 * depends on nothing but the layout and the size. It and its guard pages overlap nothing of the layout, nor
 * any slot but the layout's own; layout_check accepts it; every window within 2 GiB of the old code is so of
 * the new, and it lies below 2 GiB, or 4, if the old code did. */
bool layout_next_place(code_places *places, ls_window *window);

/* Makes the memfd and the alias, zeroed (code: int3). Nothing is at the guest's addresses yet. */
ls_status sandbox_create(sandbox *box, const ls_layout *layout, ls_error *error);
void sandbox_destroy(sandbox *box);

/* Maps windows and guard pages at the guest's addresses in this process, without replacing anything
 * (LS_ERR_ADDRESS says what is in the way). sandbox_destroy unmaps them. The gate is the executor's. */
ls_status sandbox_map(sandbox *box, ls_error *error);

/* Growing the code window of a guest that runs, or could: reserve, then commit or abandon. The guest's code
 * moves to another address; its place in the alias stays the same. One at a time, and in a process that has
 * forked only after sandbox_renew.
 *
 * Makes room for a code window of at least `size` bytes, and twice as large as it is or SANDBOX_CODE_MAX:
 * memfd and alias hold it, with int3 in what is new, and if the box is mapped the window is, with guard pages
 * of its own, at a new address beside the old one; nothing of the process is replaced. *window says where.
 * The layout and what the guest sees at the old address are as before. LS_ERR_MEMORY: the system has no room,
 * or `size` is more than a code window can have; LS_ERR_ADDRESS: there is no place. Then all is as it was. */
ls_status sandbox_code_reserve(sandbox *box, uint64_t size, ls_window *window, ls_error *error);

/* Puts the reserved window in force and unmaps the old one, in which no guest is any more. Afterwards what
 * sandbox_mappings lists is what is mapped. (A guard page that takes the place of old code, where other
 * windows lay next to it, is left unmapped if the kernel has no memory for it.) */
void sandbox_code_commit(sandbox *box, const ls_window *window);

/* Gives the reserved window back. */
void sandbox_code_abandon(sandbox *box, const ls_window *window);

/* One mapping a guest's address space consists of. */
typedef struct sandbox_mapping {
  uint64_t address, size;
  int protection;  /* PROT_*; PROT_NONE for a guard */
  uint64_t offset; /* in the memfd; not for guards */
  bool guard;      /* anonymous, PROT_NONE */
} sandbox_mapping;

enum { SANDBOX_MAPPINGS_MAX = 3 * LS_WINDOWS_MAX };

/* The mappings of a layout, windows and guards, sorted by address; returns how many. What both executors
 * map, so that a fault at a guard has the same si_code in both. */
uint32_t sandbox_mappings(const sandbox *box, sandbox_mapping mappings[SANDBOX_MAPPINGS_MAX]);

/* True in a process that forked since the sandbox was made or last renewed: its memfd is still shared with
 * the parent. */
static inline bool sandbox_forked(const sandbox *box) {
  return __atomic_load_n(box->epoch, __ATOMIC_RELAXED) != box->epoch_value;
}

/* Gives a forked process a memfd of its own with the same contents, at the same alias and guest addresses. A
 * window that was reserved is abandoned: who was about to commit it is not in this process. */
ls_status sandbox_renew(sandbox *box, ls_error *error);

/* The window that holds [address, address + size), or LS_NONE. Signal safe. */
uint32_t sandbox_window(const sandbox *box, uint64_t address, uint64_t size);

/* Bytes [from, to) of the memfd. */
typedef struct sandbox_span {
  uint64_t from, to;
} sandbox_span;

/* The first span of [from, end) of which the memfd holds pages: others are zero, and reading one through the
 * alias makes it be held. False if there is none. Where the kernel cannot tell, it is all of it. */
bool sandbox_next_held(const sandbox *box, uint64_t from, uint64_t end, sandbox_span *held);

/* ftruncate of a memfd. Beyond RLIMIT_FSIZE that would raise SIGXFSZ, which ends the process: here it is
 * EFBIG.
 */
bool sandbox_extend_file(int fd, uint64_t size);

/* A number that differs between a process and what it was forked from. It is kept in a page that the kernel
 * wipes on fork (MADV_WIPEONFORK), and set anew by a call of this function in the new process: a value
 * remembered from before the fork differs from *fork_epoch() for good. NULL when there is no memory. Thread
 * safe. */
const uint32_t *fork_epoch(void);

/* A word in the same page, for a lock: it is 0 in a new process, whatever it was in the one it was forked
 * from. NULL when there is no memory. Thread safe. */
uint32_t *fork_lock(void);

#endif

/* Guest memory: one memfd holds all windows of a layout, back to back; this process sees them through one
 * always writable alias, the guest at the addresses and with the access of the layout. Each executor has a
 * sandbox of its own. Internal. */
#ifndef LOCKSTEP_SANDBOX_H
#define LOCKSTEP_SANDBOX_H

#include <stdbool.h>

#include "lockstep.h"

typedef struct sandbox {
  ls_layout layout;
  int fd;                          /* the memfd, close-on-exec */
  uint8_t *alias;                  /* of the whole memfd */
  uint64_t size;                   /* of the memfd */
  uint64_t offset[LS_WINDOWS_MAX]; /* of each window in the memfd and the alias */
  uint64_t code_used;              /* bytes of the code window that are not int3 */
  bool mapped;                     /* at the guest's addresses in this process */
  const uint32_t *epoch;           /* see fork_epoch */
  uint32_t epoch_value;
} sandbox;

/* Is the layout one that can be mapped? LS_ERR_ARGUMENT with the window's index if not. */
ls_status layout_check(const ls_layout *layout, ls_error *error);

/* Makes the memfd and the alias, zeroed (code: int3). Nothing is at the guest's addresses yet. */
ls_status sandbox_create(sandbox *box, const ls_layout *layout, ls_error *error);
void sandbox_destroy(sandbox *box);

/* Maps windows and guard pages at the guest's addresses in this process, without replacing anything
 * (LS_ERR_ADDRESS says what is in the way). sandbox_destroy unmaps them. The gate is the executor's. */
ls_status sandbox_map(sandbox *box, ls_error *error);

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
 * the parent. Costs one load. */
bool sandbox_forked(const sandbox *box);

/* Gives a forked process a memfd of its own with the same contents, at the same alias and guest addresses. */
ls_status sandbox_renew(sandbox *box, ls_error *error);

/* The window that holds [address, address + size), or LS_NONE. Signal safe. */
uint32_t sandbox_window(const sandbox *box, uint64_t address, uint64_t size);

/* A number that differs between a process and what it was forked from. It is kept in a page that the kernel
 * wipes on fork (MADV_WIPEONFORK), and set anew by a call of this function in the new process: a value
 * remembered from before the fork differs from *fork_epoch() for good. NULL when there is no memory. Thread
 * safe. */
const uint32_t *fork_epoch(void);

#endif

/* What differs between two outcomes: piece by piece, named. */
#ifndef HARNESS_COMPARE_H
#define HARNESS_COMPARE_H

#include "lockstep.h"
#include "oracle/host.h"

typedef enum piece {
  PIECE_STOP_KIND,
  PIECE_STOP_PLACE, /* instruction or part */
  PIECE_SIGNAL,
  PIECE_CODE,
  PIECE_ADDRESS,
  PIECE_NUMBER,   /* of the system call */
  PIECE_REGISTER, /* row, and for vectors the lanes */
  PIECE_MEMORY,   /* window, offset, bytes */
  PIECE_HOST      /* what a run in the thread changed of the host's: before it, after it (host.h) */
} piece;

/* "stop kind", "place", "signal", "code", "address", "number", "register", "memory", "host" */
const char *piece_name(piece p);

typedef struct difference {
  piece piece;
  uint32_t window;      /* memory */
  uint64_t offset;      /* memory: of the first differing byte of a run of at most 16 */
  uint32_t length;      /* memory: bytes in the run */
  uint32_t row;         /* register: in ls_registers() */
  const char *name;     /* host: what, valid until the oracle's next run */
  uint8_t a[64], b[64]; /* the values, little endian: registers and memory whole, numbers as 8 bytes */
} difference;

enum { DIFFERENCES_MAX = 64 };

typedef struct comparison {
  uint32_t count; /* of differences in all */
  uint32_t kept;  /* of them in list */
  difference list[DIFFERENCES_MAX];
} comparison;

/* Compares two canonical outcomes and the memory of two executors; either executor NULL: no memory. Cheap
 * when equal. Returns whether they are. */
int outcome_equal(const ls_outcome *a, const ls_outcome *b, ls_executor *memory_a, ls_executor *memory_b);

/* The same, listed. */
void outcome_compare(const ls_outcome *a, const ls_outcome *b, ls_executor *memory_a, ls_executor *memory_b,
                     comparison *result);

/* Adds what has changed of the host's to differences, which may be none. */
void comparison_add_host(comparison *result, const host_watch *harm);

/* Makes an outcome comparable: ls_state_canonicalise and what a stop of that kind leaves open. */
void outcome_canonicalise(ls_outcome *outcome);

/* XXH3 digests, for quick equality with an earlier run. Two time-outs are equal, wherever they struck. */
typedef struct outcome_digest {
  uint64_t state, memory, stop;
} outcome_digest;
outcome_digest outcome_digest_of(const ls_outcome *canonical, ls_executor *memory);

#endif

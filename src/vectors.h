/* What a mode of vectors (ls_vectors) leaves alone. Internal. */
#ifndef LOCKSTEP_VECTORS_H
#define LOCKSTEP_VECTORS_H

#include <stdbool.h>

#include "cpu.h"
#include "lockstep.h"

enum { XMM_SIZE = 16, YMM_SIZE = 32, ZMM_SIZE = 64, LOW_VECTORS = 16 };

/* What an executor neither loads nor stores with such vectors (not LS_VECTORS_AVX512) becomes what it was at
 * the start. The two are not the same state. `by_avx`: the CPU has AVX, whatever `vectors` is. */
void vectors_repeat_narrow(ls_vectors vectors, bool by_avx, const ls_state *start, ls_state *state);

static inline void vectors_repeat(ls_vectors vectors, const ls_state *start, ls_state *state) {
  if (vectors != LS_VECTORS_AVX512)
    vectors_repeat_narrow(vectors, cpu()->vectors != LS_VECTORS_SSE, start, state);
}

#endif

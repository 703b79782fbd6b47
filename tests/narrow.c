/* A machine with narrower vectors than this one: every call of ls_vectors_available in a test program and in
 * the library linked to it comes here (the linker's --wrap), and so executors that are not told otherwise
 * have no more, and refuse more, as they do on a CPU of that kind. What LOCKSTEP_TEST_VECTORS says: sse, avx
 * or avx512; without it, what this CPU has. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "lockstep.h"

ls_vectors __real_ls_vectors_available(void);
ls_vectors __wrap_ls_vectors_available(void);

static ls_vectors widest; /* AUTO: not asked yet */

static ls_vectors named(const char *name) {
  static const struct {
    const char *name;
    ls_vectors vectors;
  } modes[] = {{"sse", LS_VECTORS_SSE}, {"avx", LS_VECTORS_AVX}, {"avx512", LS_VECTORS_AVX512}};
  for (size_t i = 0; i < sizeof modes / sizeof *modes; i++)
    if (strcmp(name, modes[i].name) == 0)
      return modes[i].vectors;
  fprintf(stderr, "LOCKSTEP_TEST_VECTORS=%s: sse, avx or avx512\n", name);
  exit(2);
}

/* Before main, and so before there are threads. */
__attribute__((constructor)) static void choose(void) {
  const char *name = getenv("LOCKSTEP_TEST_VECTORS");
  const ls_vectors available = __real_ls_vectors_available();
  widest = name ? named(name) : available;
  if (widest <= available)
    return;
  fprintf(stderr, "LOCKSTEP_TEST_VECTORS=%s: this CPU has %s\n", name, ls_vectors_name(available));
  exit(2);
}

ls_vectors __wrap_ls_vectors_available(void) {
  return widest;
}

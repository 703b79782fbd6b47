/* What this machine lacks, and so no test here has tried: the others leave such cases out, this program is
 * shown as skipped for them. A reference executor is not among it: each program that wants one says so. */
#include "check.h"
#include "cpu.h"

static int lacks(bool has, const char *what) {
  return has ? 0 : skip_test(what);
}

int main(void) {
  ls_layout layout;
  ls_executor *executor = NULL;
  ls_error error = {.text = ""};
  ls_layout_default(&layout, 0);
  if (ls_executor_create(LS_SIGNAL, &layout, NULL, &executor, &error) != LS_OK) {
    printf("no executor: %s\n", error.text);
    return 1;
  }
  int skipped =
      lacks(ls_executor_stops_syscalls(executor), "system calls of guests in the thread: the kernel "
                                                  "has no Syscall User Dispatch (Linux 5.11)");
  skipped |= lacks(cpu()->fsgsbase, "guests that write FS base: no FSGSBASE here");
  skipped |= lacks(ls_vectors_available() >= LS_VECTORS_AVX, "YMM registers: no AVX here");
  skipped |= lacks(ls_vectors_available() >= LS_VECTORS_AVX512, "ZMM and mask registers: no AVX-512 here");
  ls_executor_destroy(executor);
  return skipped;
}

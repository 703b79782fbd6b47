/* What this machine lacks, and so no test here has tried: the others leave such cases out, this program is
 * shown as skipped for them. A reference executor is not among it: each program that wants one says so. */
#include "check.h"
#include "cpu.h"
#include "guest.h"

/* RETF to the code segment that Linux has for 32-bit programs; #GP where it has none. */
static bool runs_32_bit_code(void) {
  guest g = guest_open(0, NULL);
  ls_state state;
  ls_outcome out;
  fill(&state);
  return_to_32_bit(&g, &state);
  load(&g, FAR_RETURN " / 0f 0b");
  bool ran = run(&g, &state, 0, 0, &out) == LS_OK && out.state.cs == CS_32;
  guest_close(&g);
  return ran;
}

static int lacks(bool has, const char *what) {
  return has ? 0 : skip_test(what);
}

int main(void) {
  ls_layout layout;
  ls_executor *executor = NULL;
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
  skipped |=
      lacks(runs_32_bit_code(), "guests that go over to 32-bit code: a far return to CS 0x23 is #GP here");
  return skipped;
}

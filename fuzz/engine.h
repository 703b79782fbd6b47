/* The functions by which fuzzing engines and targets know each other (LLVM, "libFuzzer – a library for
 * coverage-guided fuzz testing"). */
#ifndef FUZZ_ENGINE_H
#define FUZZ_ENGINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Given by a target. TestOneInput returns 0, always. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned int seed);
size_t LLVMFuzzerCustomCrossOver(const uint8_t *data1, size_t size1, const uint8_t *data2, size_t size2,
                                 uint8_t *out, size_t max_out_size, unsigned int seed);

/* Given by a target for standalone.c: can it do its job here? If not it says on standard error why; inputs
 * are then taken and nothing comes of them. */
bool fuzz_target_compares(void);

/* Given by a target for standalone.c: why the last input was not run, for want of a feature of the processor;
 * or NULL: it was. Valid until the next. */
const char *fuzz_target_skipped(void);

/* Given by a target for standalone.c: how many findings it has reported without aborting. */
unsigned fuzz_target_found(void);

/* Given by the engine, or by standalone.c. */
size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max_size);

#endif

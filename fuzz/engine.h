/* The functions by which fuzzing engines and targets know each other (LLVM, "libFuzzer – a library for
 * coverage-guided fuzz testing"). */
#ifndef FUZZ_ENGINE_H
#define FUZZ_ENGINE_H

#include <stddef.h>
#include <stdint.h>

/* Given by a target. TestOneInput: 0, or -1 if the input is none to keep, which ours says where nothing can
 * be compared. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned int seed);
size_t LLVMFuzzerCustomCrossOver(const uint8_t *data1, size_t size1, const uint8_t *data2, size_t size2,
                                 uint8_t *out, size_t max_out_size, unsigned int seed);

/* Given by the engine, or by standalone.c. */
size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max_size);

#endif

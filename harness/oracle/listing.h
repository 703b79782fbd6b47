/* Code images as text. */
#ifndef HARNESS_LISTING_H
#define HARNESS_LISTING_H

#include <stdio.h>

#include "testcase/testcase.h"

/* One line for each instruction of the image: address, bytes, Intel syntax, and for the program's own
 * instructions their index and links; what the emitter inserted is marked '+'. The line at guest address
 * `mark` (0: none) is marked "=>". */
void listing_print(FILE *to, const ls_image *image, const ls_program *program, uint64_t mark);

/* The disassembly of one instruction; "(bad)" if there is none. Returns its length, at least 1. */
unsigned listing_instruction(const uint8_t *bytes, size_t size, uint64_t address, char *text,
                             size_t text_size);

#endif

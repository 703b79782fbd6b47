/* What the three files that implement testcase.h share. Internal to them. */
#ifndef HARNESS_TESTCASE_CODEC_H
#define HARNESS_TESTCASE_CODEC_H

#include "testcase/testcase.h"

/* The state that an entry's register section is relative to: ls_state_init, RSP in the middle of the stack,
 * and the vectors of pattern `vectors`. Computed once, then kept. */
const ls_state *testcase_base_state(uint8_t vectors);

/* As testcase_init, without the one instruction: count is 0, which is not a valid test case yet. What
 * the arrays of instructions and patches hold stays as it is. */
void testcase_clear(testcase *test);

/* Where the header holds what is not the test's own, the checksum and testcase.cpu. */
enum { TESTCASE_AT_SUM = 6, TESTCASE_SUM_SIZE = 4, TESTCASE_AT_CPU = 12, TESTCASE_CPU_SIZE = 8 };

#endif

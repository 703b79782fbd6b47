/* A test case: machine code, the initial register file, the initial memory. What an entry of a corpus holds,
 * what the generator makes and the oracle runs. The bytes of an entry are described in docs/FORMAT.md; they
 * hold machine code and links, never recipes, so that an entry stays the same test when Zydis or the
 * generator changes (no function here uses Zydis). */
#ifndef HARNESS_TESTCASE_H
#define HARNESS_TESTCASE_H

#include <stdbool.h>

#include "lockstep.h"

enum {
  TESTCASE_INSTRUCTIONS_MAX = 256,
  TESTCASE_PATCHES_MAX = 64,
  TESTCASE_PATCH_MAX = 64,   /* bytes of one patch */
  TESTCASE_SIZE_MAX = 32768, /* no encoded test case is longer */
  TESTCASE_FUEL_MAX = 65535
};

/* A bit of testcase.cpu: the test is about an instruction that a processor may lack, and runs where it does.
 */
#define TESTCASE_ANYWHERE (1ull << 62)

/* The windows of every test case: ls_layout_default slot 0 without a window of its own for control, which is
 * the last LS_CONTROL_SIZE bytes of the stack. */
enum {
  TESTCASE_CODE = LS_CODE_WINDOW,
  TESTCASE_DATA,  /* 8 KiB, read-write */
  TESTCASE_CONST, /* 4 KiB, read only */
  TESTCASE_STACK, /* 4 KiB, read-write; RSP starts in its middle unless the state says otherwise */
  TESTCASE_WINDOWS
};

const ls_layout *testcase_layout(void);

/* Bytes that replace the fill of a window. */
typedef struct testcase_patch {
  uint8_t window; /* TESTCASE_DATA … */
  uint8_t length; /* 1 to TESTCASE_PATCH_MAX */
  uint16_t offset;
  uint8_t bytes[TESTCASE_PATCH_MAX];
} testcase_patch;

typedef struct testcase {
  uint32_t count; /* of instructions, at least 1; execution starts at 0 */
  uint32_t fuel;  /* at most TESTCASE_FUEL_MAX; back links cost one each */
  uint64_t cpu;   /* features of the CPU it was made on (testcase_cpu), 0 = unknown, for people; and
                     TESTCASE_ANYWHERE. Neither is part of its name */
  uint8_t fill[TESTCASE_WINDOWS]; /* pattern of each window (testcase_fill); [0] is not used */
  uint8_t vectors; /* pattern from which zmm and k registers start; others are stored one by one */
  uint8_t patch_count;
  testcase_patch patches[TESTCASE_PATCHES_MAX];           /* applied in order */
  ls_state state;                                         /* rip is 0 */
  ls_instruction instructions[TESTCASE_INSTRUCTIONS_MAX]; /* id = index */
} testcase;

/* One instruction (nop) and a state as ls_state_init leaves it, RSP in the middle of the stack, memory zero.
 */
void testcase_init(testcase *test);

/* Copies what is used of a test case: a tenth of the structure, most of the time. */
void testcase_copy(testcase *to, const testcase *from);

/* Total: any bytes, none too, give a valid test case. */
void testcase_decode(testcase *test, const uint8_t *data, size_t size);

/* Writes the entry's bytes and returns their number; 0 if they would exceed `size`. For every `data`:
 * decode, encode, decode, encode gives the same bytes twice. */
size_t testcase_encode(const testcase *test, uint8_t *data, size_t size);

/* Is this exactly what testcase_encode writes? If not, false and a sentence in `why` (what is wrong and at
 * which byte: no entry at all, a newer version, cut short, damaged). For people's files; fuzzers need none.
 */
bool testcase_check(const uint8_t *data, size_t size, char *why, size_t why_size);

/* Brings whatever the fields hold into range (counts, links, offsets, registers that must have one value):
 * what decode and the mutator end with. A link out of range becomes LS_NONE. */
void testcase_normalise(testcase *test);

/* The initial contents of all windows: what ls_executor_reset takes is contents->window. The arrays are room
 * for windows with patches. */
typedef struct testcase_contents {
  const void *window[LS_WINDOWS_MAX];
  uint8_t data[8192] __attribute__((aligned(64)));
  uint8_t constants[4096];
  uint8_t stack[4096];
} testcase_contents;

void testcase_contents_make(const testcase *test, testcase_contents *contents);

/* The pattern `fill` of window `window`, of the window's size: computed once, then kept. 0 is all zero. Part
 * of the format: never changes. */
const uint8_t *testcase_fill(unsigned window, uint8_t fill);

/* The zmm and k registers that pattern `vectors` stands for (only these fields of *state are written). 0 is
 * all zero. Part of the format: never changes. */
void testcase_vectors(uint8_t vectors, ls_state *state);

/* The program, its instructions borrowed from the test. Fuel is on. */
ls_program testcase_program(const testcase *test);

/* Bits for this CPU: what testcase.cpu records. Bit 0 AVX, 1 AVX2, 2 AVX-512F, 3 BW, 4 VL, 5 DQ, 6 VBMI, 7
 * BMI2, 8 AMD, 9 Intel; 63 is always set. */
uint64_t testcase_cpu(void);

/* The entry's name, 32 hex digits and a terminator: a hash of what is run (program, state, memory), so that
 * the same test has the same name wherever it was made. */
void testcase_name(const testcase *test, char name[33]);

#endif

/* The programs of the guests that requests are made to. */
#ifndef CLI_BENCH_PROGRAMS_H
#define CLI_BENCH_PROGRAMS_H

#include <stdbool.h>

#include "floor.h"

enum { BENCH_ENDLESS = 2, BENCH_NOP = 0x90 };

/* Instruction `index`, its id too, which goes on with the next one. */
ls_instruction bench_plain(uint32_t index, const void *bytes, uint8_t length);

/* inc qword [rdi], and back: BENCH_ENDLESS instructions. Returns their number. */
uint32_t bench_endless(ls_instruction *in);

/* The FLOOR_ROUND instructions of floor_steps: until RSI is 0. Returns their number. */
uint32_t bench_nops(ls_instruction *in);

/* `count` instructions that begin with the endless program; those behind it lie a byte further on with
 * `shift`. The caller frees them. */
ls_program bench_large(uint32_t count, bool shift);

#endif

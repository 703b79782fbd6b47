/* Values at which instructions behave in special ways: zero, one, minus one, sign bits, powers of two, NaNs,
 * infinities, denormals; and random ones. Each draws from the given generator only, and in
 * an order that does not depend on the compiler (no two draws are unsequenced in one expression). */
#ifndef HARNESS_VALUES_H
#define HARNESS_VALUES_H

#include "lockstep.h"
#include "rng.h"

/* A general-purpose value, special half of the time. */
uint64_t value_integer(rng *r);

/* An immediate of `bits` (8, 16, 32, 64) that needs all of them: one of 16, 32 or 64 bits does not also fit
 * the next shorter sign-extended width, so that an encoder cannot shorten it. Sign-extended if `is_signed`,
 * else zero-extended. */
uint64_t value_immediate(rng *r, unsigned bits, bool is_signed);

/* Bit patterns of floats and doubles, special half of the time. */
uint32_t value_float(rng *r);
uint64_t value_double(rng *r);

/* Fills `size` bytes (a multiple of 8) with lanes of one kind: integers of 8 to 64 bits, floats or doubles.
 */
void value_lanes(rng *r, uint8_t *bytes, unsigned size);

/* The ten bytes of an x87 register: special (zero, denormal, infinity, NaN, unnormal, pseudo-denormal) or an
 * ordinary number. Six more bytes of zero follow. */
void value_extended(rng *r, uint8_t bytes[16]);

/* An MXCSR or an x87 control word with all exceptions masked: rounding, FTZ and DAZ, precision and sticky
 * flags vary. */
uint32_t value_mxcsr(rng *r);
uint16_t value_fcw(rng *r);

/* Status flags (CF PF AF ZF SF OF) at random, DF rarely; IF and bit 1 set. Never TF, NT, AC or ID. */
uint64_t value_rflags(rng *r);

/* Vector register `zmm` filled so that both its dwords and its qwords are small: each qword is v or -v with v
 * below VALUE_INDEX_LIMIT. What gathers and scatters use as indices. */
enum { VALUE_INDEX_LIMIT = 64 };
void value_indices(rng *r, uint8_t zmm[64]);

#endif

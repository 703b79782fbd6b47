/* A fire drill: does a difference, if there is one, come out at the other end? LOCKSTEP_DRILL=MNEMONIC
 * damages what the thread brought of every program that has such an instruction. */
#ifndef HARNESS_DRILL_H
#define HARNESS_DRILL_H

#include "oracle/oracle.h"

/* Sets options->tamper if LOCKSTEP_DRILL is there; `test` is where the program of every run will be. False:
 * it names no mnemonic. */
bool drill_prepare(oracle_options *options, const testcase *test);

#endif

/* Differences, for people. */
#ifndef HARNESS_REPORT_H
#define HARNESS_REPORT_H

#include <stdio.h>

#include "oracle/oracle.h"

/* Prints the program with the offending instruction marked, the two stops, and a table of exactly the
 * registers, lanes and bytes that differ. Runs the program some more times, stepped, to find that
 * instruction. `result` is of oracle_run(o, test). */
void report_difference(FILE *to, const testcase *test, const oracle_result *result, oracle *o);

/* One line: "fault SIGSEGV code 1 at 0x… in instruction 3", "exit behind instruction 2". */
void report_stop(FILE *to, const ls_stop *stop);

#endif

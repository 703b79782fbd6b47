/* What a block's general registers were before each instruction, by one run. Internal to the importer.
 *
 * To step through a block costs a stop of the child for each of its instructions. Here instead every
 * instruction is followed by moves that store the registers which it writes, in a window that blocks do not
 * know of: moves change no flags, and their addresses are absolute. */
#ifndef HARNESS_IMPORT_RECORD_H
#define HARNESS_IMPORT_RECORD_H

#include "import/import_repair.h"

/* testcase_layout() and behind its windows one more, the log. */
const ls_layout *record_layout(void);

/* Can `test` be recorded? Only what goes straight on can: without branches to its own instructions, since the
 * log has one place for each of them, and without loading flags, since a trap flag would strike the moves. */
bool record_possible(const testcase *test);

/* Lays out `test`, for which record_possible() holds, with its moves. */
ls_status record_build(const testcase *test, ls_image *image, ls_error *error);

/* The trace of the run of that image which ended with `stop`, from what it left in the log. What `stop` says
 * of places becomes what it would be without the moves; an address that is one of code (SIGILL, SIGFPE,
 * SIGTRAP) does not. The test and the run must be those of the last record_build(). */
void record_read(const testcase *test, ls_executor *reference, ls_stop *stop, trace *path);

#endif

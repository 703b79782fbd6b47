/* Loops of imported blocks that go round for longer than the fuel lasts. */
#ifndef HARNESS_COUNTERS_H
#define HARNESS_COUNTERS_H

#include "import/import.h"

/* `test` ran out of fuel: looks for other initial values of general registers with which it runs to its end
 * in `reference`. If it finds some, they are in `test`, and `report` has the new stop. Returns an error of
 * the reference only. Loads an image and leaves it loaded but destroyed. */
ls_status counters_shorten(testcase *test, ls_executor *reference, import_report *report);

#endif

/* Instructions whose target is not in their bytes. Internal. */
#ifndef LOCKSTEP_INDIRECT_H
#define LOCKSTEP_INDIRECT_H

#include <stdbool.h>

#include "lockstep.h"

/* Is it, from its first byte to its last, one jump or call through a register or memory, or a return? Such an
 * instruction goes to where no link leads, again and again if it happens to. */
bool is_indirect_branch(const ls_instruction *in);

#endif

/* Which object of the process some code is in. Internal. */
#ifndef LOCKSTEP_LOADED_H
#define LOCKSTEP_LOADED_H

#include <stddef.h>
#include <stdint.h>

/* Writes what holds `address` as the dynamic linker names it: a path, "the program", or the address itself if
 * it is in no object that the linker tells of. */
void loaded_name(uintptr_t address, char *name, size_t size);

#endif

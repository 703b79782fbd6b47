/* Which object of the process some code is in, and that ours stays. Internal. */
#ifndef LOCKSTEP_LOADED_H
#define LOCKSTEP_LOADED_H

#include <stddef.h>
#include <stdint.h>

/* Writes what holds `address` as the dynamic linker names it: a path, "the program", or the address itself if
 * it is in no object that the linker tells of. */
void loaded_name(uintptr_t address, char *name, size_t size);

/* Makes the shared library that this code was linked into stay until the process ends, whoever closes it: the
 * handlers, the threads that run its function when they end, and fork call into it. Nothing to do in a
 * program. Thread safe; later calls do nothing. */
void loaded_keep(void);

#endif

/* What to say of an address that cannot be had. Internal. */
#ifndef LOCKSTEP_OCCUPIED_H
#define LOCKSTEP_OCCUPIED_H

#include <stdint.h>

/* Why mmap did not map [address, address + size) in this process, by its errno; EEXIST: something was there.
 * Valid until the next call in this thread. */
const char *occupied_by(uint64_t address, uint64_t size, int why);

#endif

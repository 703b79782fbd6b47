/* Where the interrupts of guests strike: only a test that has struck inserted code, and the way in and out,
 * has tested them, and what a controller shows does not tell. Ahead of the library's handler of the interrupt
 * signal stands one that notes RIP and touches nothing else: it may run with the guest's FS, RSP and flags
 * all around it. */
#ifndef HARNESS_INSPECT_STRIKES_H
#define HARNESS_INSPECT_STRIKES_H

#include <stdbool.h>
#include <stdint.h>

enum { STRIKES_ROOM = 1024 }; /* the latest ones are kept; a power of two */

/* Puts it in place, once there is an executor of kind LS_SIGNAL with the default interrupt signal. False if
 * that cannot be done. Once is enough. */
bool strikes_watch(void);

/* How many there have been, ever. */
uint32_t strikes_count(void);

/* RIP at strike number `number`, if that is one of the latest. */
uint64_t strikes_address(uint32_t number);

#endif

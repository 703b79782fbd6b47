/* Where samples go: to a callback, or into a ring that one thread fills and another empties. Internal. */
#ifndef LOCKSTEP_CONTROLLER_SAMPLING_H
#define LOCKSTEP_CONTROLLER_SAMPLING_H

#include "../lockstep.h"

typedef struct sampler {
  ls_sample_callback callback; /* NULL: into the ring */
  void *context;
  ls_sample *ring;
  uint32_t room;
  _Atomic uint64_t written, read; /* samples ever: the ring holds the difference */
  _Atomic uint64_t dropped;
} sampler;

#endif

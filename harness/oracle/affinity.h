/* Keeping a tracer and its child on one CPU, which halves the cost of a reference run and more, while other
 * Lockstep processes keep to other CPUs. */
#ifndef HARNESS_AFFINITY_H
#define HARNESS_AFFINITY_H

#include <sched.h>
#include <stdbool.h>

typedef struct affinity {
  cpu_set_t before; /* the thread's mask, to be put back */
  int cpu;          /* that the thread is on, or -1: not pinned */
  int claim;        /* descriptor that holds the claim, or -1 */
} affinity;

/* Pins the calling thread to a CPU of its mask that no other Lockstep process has claimed, the current one if
 * it is free. If all are claimed, or there is only one, the thread stays as it is. */
void affinity_pin(affinity *a);

/* Puts back the mask and gives up the claim. */
void affinity_release(affinity *a);

#endif

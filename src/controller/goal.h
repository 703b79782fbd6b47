/* What the caller of ls_step or ls_run_until waits for. It lies on that caller's stack; who executes the
 * guest concludes it, or who takes its place. Internal. */
#ifndef LOCKSTEP_CONTROLLER_GOAL_H
#define LOCKSTEP_CONTROLLER_GOAL_H

#include <stdbool.h>
#include <stdint.h>

#include "../lockstep.h"

typedef enum goal_kind { GOAL_STEPS, GOAL_INSTRUCTION } goal_kind;

typedef struct goal {
  goal_kind kind;
  bool moved;    /* GOAL_INSTRUCTION: at least one instruction was executed, so that to be there counts */
  uint64_t left; /* GOAL_STEPS: instructions */
  uint64_t id;   /* GOAL_INSTRUCTION */
  _Atomic uint32_t result;
} goal;

/* Tells its caller, who may go away with it at once. NULL: nothing. */
void goal_conclude(goal *g, ls_status status);

/* Waits for that, and returns the status. */
ls_status goal_wait(goal *g);

#endif

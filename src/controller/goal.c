#include "goal.h"

#include <stdatomic.h>
#include <stddef.h>

#include "mailbox.h"

/* Of goal.result; from RESULT_STATUS on it is a status. */
enum { RESULT_PENDING, RESULT_AWAITED, RESULT_STATUS };

/* The futex's address may be another thing's when it is woken: who waits there then looks again. */
void goal_conclude(goal *g, ls_status status) {
  if (g && atomic_exchange(&g->result, RESULT_STATUS + (uint32_t)status) == RESULT_AWAITED)
    word_wake(&g->result);
}

ls_status goal_wait(goal *g) {
  return (ls_status)(word_wait(&g->result, RESULT_PENDING, RESULT_AWAITED) - RESULT_STATUS);
}

/* The floors of requests to a guest that runs in another thread, and of steps: a bare signal and what the
 * kernel makes of it. */
#ifndef CLI_FLOOR_SIGNAL_H
#define CLI_FLOOR_SIGNAL_H

#include <stdint.h>
#include <sys/types.h>

#include "floor.h"

/* A thread that spins in user code, and answers a signal by copying its registers. */
typedef struct floor_answer {
  const ls_state *start; /* its vectors, */
  ls_vectors vectors;    /* and how wide they are */
  floor_spinner spinner;
  pid_t tid; /* valid once it spins */
} floor_answer;

/* Spins in the calling thread, on an alternate stack of its own when struck, until answer->spinner.stop.
 * Registers that it copies are the general ones and the whole XSAVE area of the signal frame. One thread at a
 * time. */
void floor_answer_spin(floor_answer *answer);

/* Sends it the signal and waits, spinning, until the handler has copied all. */
void floor_answer_ask(floor_answer *answer);

/* floor_steps under a handler that only returns. */
void floor_step_all(const ls_state *start, uint64_t rounds, ls_vectors vectors);

/* A bare timer of this thread that rings `rate` times a second of real time, with a handler that only
 * returns. 0, or -1 if there is none. */
typedef struct floor_timer {
  int id;
  struct floor_lent *lent;
} floor_timer;

int floor_timer_start(floor_timer *timer, long rate);
void floor_timer_stop(floor_timer *timer);

#endif

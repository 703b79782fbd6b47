/* What the crew's threads (crew.c) and what they do for a request (requests.c) share. Internal to them. */
#ifndef HARNESS_INSPECT_CREW_INNER_H
#define HARNESS_INSPECT_CREW_INNER_H

#include <pthread.h>
#include <stdatomic.h>

#include "inspect/crew.h"

enum { KINDS = 2 };

struct crew {
  crew_options options;
  ls_controller *controllers[KINDS]; /* by ls_kind; made when first needed, kept */
  pthread_t threads[REQUESTERS_MAX], watch;
  uint32_t started; /* threads */
  bool watched;
  /* Under `lock`: */
  pthread_mutex_t lock;
  pthread_cond_t begin, done;
  uint64_t round;  /* number of the last one that was begun */
  uint32_t wanted; /* requesters that take part in it: who wakes late must not look at a later plan */
  uint32_t arrived, active; /* requesters that have begun it; that are still at work in it */
  bool busy, ending;
  char trouble[TROUBLE_MAX];
  ls_error host;     /* what the host could not do first; LS_OK: nothing */
  _Atomic bool go;   /* the guest is about to run */
  _Atomic bool over; /* it has ended: few requests more make no difference */
  /* Of the round. */
  const subject *s;
  const plan *p;
  ls_controller *controller;
  ls_instruction order[SUBJECT_MAX + SUBJECT_FILLER]; /* the filler only if the plan grows */
  journal journals[JOURNALS];
  _Atomic uint64_t clock;
  uint64_t began;
  pthread_mutex_t control;  /* held by whoever pauses, and wants nobody else to */
  pthread_rwlock_t quiet;   /* held for writing while the guest is not as its program left it */
  _Atomic uint32_t cancels; /* that were answered with LS_OK */
  uint32_t cancelled;       /* runs that ended so */
  _Atomic uint64_t gone_id; /* of the instruction that was taken away; 0: none */
  uint32_t exits;           /* calls of the exit callback */
  ls_stop exit_stop;
  uint32_t struck; /* strikes before the round */
  crew_counts counts;
  _Atomic uint64_t asked[REQUEST_KINDS], answered[REQUEST_KINDS][ANSWERS];
};

/* One requester's view. */
typedef struct worker {
  crew *c;
  uint32_t number;
} worker;

/* The next tick of the clock that all threads share. */
uint64_t crew_tick(crew *c);

/* Notes what no controller may do; the first such thing of a round counts. From any thread. */
__attribute__((format(printf, 2, 3))) void crew_complain(crew *c, const char *format, ...);

/* Is that a failure of the host's, which says nothing of the controller? Notes it: the round ends with it.
 * From any thread. */
bool crew_excuses(crew *c, ls_status status, const ls_error *error);

/* The subject's program, in its own order or the other one. */
ls_program crew_program(const crew *c, bool moved);

/* Room for a look; when there is none left, for one that nobody reads. */
look *journal_add(journal *j);

/* Carries out request `index` of that requester. */
void request_carry_out(worker *w, const request *q, uint32_t index);

/* Moves some samples out of the ring. */
ls_status request_read_samples(crew *c, journal *j, uint32_t *count, ls_error *error);

#endif

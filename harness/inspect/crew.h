/* The threads that inspect: requesters that live as long as the crew does, each with its own list of
 * requests, around the calling thread, which runs the guest. What they see is kept in journals; what no
 * controller may answer is trouble. */
#ifndef HARNESS_INSPECT_CREW_H
#define HARNESS_INSPECT_CREW_H

#include "inspect/check.h"
#include "inspect/plan.h"
#include "inspect/reference.h"

enum {
  LOOKS_MAX = 160, /* in a journal; what does not fit is not kept */
  JOURNALS = REQUESTERS_MAX + 1,
  GUEST_JOURNAL = REQUESTERS_MAX, /* of the guest's own thread: samples, ends of cancelled runs */
  TROUBLE_MAX = 400,
  ANSWERS = 3
};

/* The guest as it was seen at some moment between two ticks of the crew's clock. */
typedef struct look {
  ls_state state; /* as it came */
  ls_position position;
  uint64_t begin, end;
  sight_relation relation;
  uint32_t from; /* index in the same journal, for relations */
  uint64_t count;
  uint32_t target;
  uint32_t request; /* index of the request it was for, or LS_NONE */
  bool stopped;     /* idle, and about to be executed again from there */
} look;

/* One thread's. */
typedef struct journal {
  look looks[LOOKS_MAX];
  uint32_t count;
  struct {
    uint64_t begin, end;
    ls_status status;
  } answers[REQUESTS_MAX];  /* of each request the first that is not LS_OK */
  _Atomic uint32_t current; /* request that is under way */
} journal;

typedef struct crew_counts {
  uint64_t requests[REQUEST_KINDS];
  uint64_t answers[REQUEST_KINDS][ANSWERS]; /* OK; too late or too early; any other */
  uint64_t samples, cancelled, gone;
  uint64_t grown; /* rounds after which the code window was another one */
} crew_counts;

typedef struct crew crew;

typedef struct crew_options {
  uint32_t patience_s; /* how long a round may take before it is taken for stuck: it is shown then, and the
                          process aborts */
  /* For tests: called with whatever a controller has shown, before it is believed; may change it. From any
   * thread. */
  void (*tamper)(ls_state *state, ls_position *position, void *context);
  void *tamper_context;
} crew_options;

ls_status crew_create(crew **out, const crew_options *options, ls_error *error);
void crew_destroy(crew *c);

/* Runs the subject once with all that the plan asks for. An error is the host's, unless crew_trouble says
 * what was wrong with the controller. What the guest ended with is in *ending; false in *ended if a run was
 * cancelled where it cannot be gone on with. */
ls_status crew_run(crew *c, const subject *s, const plan *p, inspect_ending *ending, bool *ended,
                   ls_error *error);

/* Of the last round. */
const journal *crew_journal(const crew *c, uint32_t index);
const char *crew_trouble(const crew *c);          /* NULL: none */
uint32_t crew_strikes(const crew *c);             /* number of its first strike (inspect/strikes.h) */
const crew_counts *crew_counts_of(const crew *c); /* over all rounds */

/* What each thread asked for and was answered in the last round, or, while it runs, until now. */
void crew_print(FILE *to, const crew *c);

#endif

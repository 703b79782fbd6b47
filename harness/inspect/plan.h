/* Which thread asks for what and when: a schedule of requests, drawn from a subject's seed. */
#ifndef HARNESS_INSPECT_PLAN_H
#define HARNESS_INSPECT_PLAN_H

#include <stdio.h>

#include "inspect/subject.h"

enum { REQUESTERS_MAX = 3, REQUESTS_MAX = 24 };

typedef enum request_kind {
  REQUEST_LOOK,         /* get the state, whatever the guest does */
  REQUEST_VISIT,        /* a visitor that looks, and may scribble over the state and discard that */
  REQUEST_HOLD,         /* pause, look, wait, look again */
  REQUEST_STEP,         /* pause, look, step, look */
  REQUEST_UNTIL,        /* pause, look, run to an instruction, look */
  REQUEST_CHANGE,       /* pause, change everything, change it back */
  REQUEST_MOVE,         /* pause, go somewhere else, go back */
  REQUEST_RELOAD,       /* the same program, in the same or another order */
  REQUEST_CANCEL,       /* the guest's thread executes it again from there */
  REQUEST_GONE,         /* pause, take the instruction it is at away */
  REQUEST_SAMPLE,       /* begin to take samples, in either way */
  REQUEST_SAMPLES_READ, /* from the ring */
  REQUEST_SAMPLE_STOP,
  REQUEST_PAUSE, /* from here on only in wild schedules */
  REQUEST_RESUME,
  REQUEST_BARE_STEP,
  REQUEST_BARE_UNTIL,
  REQUEST_KINDS
} request_kind;

/* "look", "step", … */
const char *request_name(request_kind kind);

typedef struct request {
  request_kind kind;
  uint32_t delay;  /* turns of an empty loop before it */
  uint32_t count;  /* of steps; of turns to hold */
  uint32_t target; /* index of the instruction to run or to go to */
  bool other;      /* of the two ways to do it, the other one */
  bool stay;       /* leave the guest paused */
  bool grow;       /* with so much behind it that the code window must grow */
} request;

typedef struct plan {
  uint32_t requesters, count; /* threads, and requests of each */
  bool begins_paused;
  bool moves; /* code does not stay where it is */
  bool grows; /* nor does its window */
  request requests[REQUESTERS_MAX][REQUESTS_MAX];
} plan;

/* The same for the same subject. What it cannot stand is left out: after a cancelled run fuel begins anew;
 * code that matters to the program is not moved. */
void plan_make(plan *p, const subject *s);

void plan_print_request(FILE *to, const request *r);

#endif

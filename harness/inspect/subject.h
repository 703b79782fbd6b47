/* What is inspected: a program that runs long enough for requests to strike it, with the state and memory it
 * starts from, made from any bytes:
 *
 *   header  flags, iterations, requests, mix, seed (4)
 *   body    a test case (testcase/testcase.h) or a graph (graph/make.h)
 *
 * Most bodies end before anybody can look, so what would leave the program goes through a counting loop
 * instead. Its counter is a general register that the body does not use, so that each state tells by itself
 * in which iteration it is; no flag and no other register changes on the way round, but registers from which
 * addresses are made: those start each iteration with what they held in the first, so that the loop does not
 * soon run out of its memory. */
#ifndef HARNESS_INSPECT_SUBJECT_H
#define HARNESS_INSPECT_SUBJECT_H

#include <stdbool.h>

#include "lockstep.h"
#include "rng.h"
#include "testcase/testcase.h"

enum {
  SUBJECT_HEADER = 8,
  SUBJECT_BODY_MAX = 300, /* instructions; the longest body of graphs */
  SUBJECT_LOOP = 5,       /* instructions that count, and as many as there are registers that restore */
  SUBJECT_MAX = SUBJECT_BODY_MAX + SUBJECT_LOOP + 16,
  SUBJECT_FILLER = 2200, /* instructions that no link leads to, and no code window of ours has room for */
  SUBJECT_GRAPH = 1,     /* flags: the body is a graph */
  SUBJECT_TIGHT = 2,     /* fuel that may well run out */
  SUBJECT_WILD = 4,      /* requests of all threads go as they come, against each other */
  SUBJECT_REQUESTERS = 3 << 3,
  SUBJECT_KIND = 7 << 5 /* all set: the controller is of the reference's kind */
};

typedef struct subject {
  ls_instruction list[SUBJECT_MAX];
  uint32_t count, entry; /* entry: an index */
  uint32_t flags;        /* LS_PROGRAM_FUEL */
  uint32_t counter;      /* register that counts iterations down, or LS_NONE: no loop, one iteration */
  uint32_t loop;         /* index of the first instruction of the loop's own */
  uint64_t iterations;
  uint64_t fuel;
  bool movable;               /* nothing shows that addresses of code matter to it */
  bool repeats[SUBJECT_MAX];  /* per instruction: a repeated string instruction */
  bool loads_ss[SUBJECT_MAX]; /* the same: MOV to SS, behind which no single step stops (SDM vol. 3, 6.8.3) */
  bool anywhere;              /* it runs even where the processor lacks what it needs (TESTCASE_ANYWHERE) */
  ls_state state;
  testcase_contents contents; /* of memory; the code window's is not used */
  ls_kind kind;               /* of the controller */
  bool wild;
  uint8_t requesters, requests, mix; /* what the schedule is made from */
  uint32_t seed;
} subject;

/* Total: any bytes, none too. Not thread safe. */
void subject_decode(subject *s, const uint8_t *data, size_t size);

ls_program subject_program(const subject *s);

/* The instructions in another order, under the same ids; `entry` and the like are those of the list in
 * `order`, of s->count instructions. */
void subject_shuffle(const subject *s, ls_instruction *order);

/* Puts the filler behind a list of s->count instructions. */
void subject_fill(const subject *s, ls_instruction *list);

/* The same list without instruction `index`: links to it leave the program. Returns the number left. */
uint32_t subject_without(const subject *s, uint32_t index, ls_instruction *rest);

/* Index of the instruction of that id, or LS_NONE. */
uint32_t subject_index(const subject *s, uint64_t id);

/* Where in the loop a new iteration begins: the first instruction that sees the counter's new value. */
static inline uint32_t subject_turn(const subject *s) {
  return s->loop + 2;
}

/* The instruction that leaves when the counter has reached 0, over its jump link. */
static inline uint32_t subject_exit(const subject *s) {
  return s->loop + 3;
}

/* Guest address at which the loop keeps RCX. */
uint64_t subject_saved(void);

/* ls_state_canonicalise, and FOP, FIP and FDP: where no x87 exception is pending, AMD's processors do not
 * save them (APM vol. 2, 11.4.4), so that an interruption between the instruction that set them and the one
 * that raises the exception loses them. */
void subject_canonicalise(ls_state *state);

#endif

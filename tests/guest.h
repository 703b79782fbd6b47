/* Running a few bytes in the in-thread executor: for the one test program that includes it. Everything fails
 * the running test. */
#ifndef TESTS_GUEST_H
#define TESTS_GUEST_H

#include <signal.h>
#include <stdlib.h>

#include "flags.h"
#include "must.h"
#include "states.h"

/* Windows of ls_layout_default(…, 0). */
#define CODE  UINT64_C(0x20010000)
#define DATA  UINT64_C(0x20100000)
#define CONST UINT64_C(0x20180000)
#define STACK UINT64_C(0x20200000)

enum { PROGRAM_MAX = 16, DATA_WINDOW = 1, STACK_WINDOW = 3 };

/* ---- Running a few bytes ---- */

typedef struct guest {
  ls_executor *executor;
  ls_image *image;
  ls_layout layout;
} guest;

/* Those open, so that a test that fails leaves nothing behind for the next one. */
static guest opened[4];

static inline guest guest_open(unsigned slot, const ls_options *options) {
  guest g = {.image = ls_image_create()};
  ls_layout_default(&g.layout, slot);
  must(ls_executor_create(LS_SIGNAL, &g.layout, options, &g.executor, &error));
  opened[slot] = g;
  return g;
}

static inline void guest_close(guest *g) {
  ls_executor_destroy(g->executor);
  ls_image_destroy(g->image);
  for (size_t i = 0; i < sizeof opened / sizeof *opened; i++)
    if (opened[i].executor == g->executor)
      opened[i].executor = NULL;
}

static inline int close_all(void **unused) {
  (void)unused;
  for (size_t i = 0; i < sizeof opened / sizeof *opened; i++)
    if (opened[i].executor)
      guest_close(&opened[i]);
  return 0;
}

/* "90 / 0f 0b": instructions in hex, one after the other; the last one leaves the program. */
static inline uint32_t parse(const char *code, ls_instruction program[PROGRAM_MAX]) {
  uint32_t count = 1;
  memset(program, 0, PROGRAM_MAX * sizeof *program);
  for (const char *c = code; *c;) {
    char *end;
    if (*c == '/' || *c == ' ') {
      count += *c++ == '/';
      continue;
    }
    ls_instruction *in = &program[count - 1];
    char digits[3] = {c[0], c[1], 0};
    in->bytes[in->length++] = (uint8_t)strtoul(digits, &end, 16);
    c += 2;
  }
  for (uint32_t i = 0; i < count; i++) {
    program[i].next = i + 1 < count ? i + 1 : LS_NONE;
    program[i].jump = LS_NONE;
  }
  return count;
}

static inline void load(guest *g, const char *code) {
  ls_instruction program[PROGRAM_MAX];
  ls_program p = {.instructions = program, .count = parse(code, program)};
  must(ls_image_build(g->image, &p, &g->layout, &error));
  must(ls_executor_load(g->executor, g->image, &error));
}

static inline ls_status run(guest *g, const ls_state *state, uint32_t uses, uint64_t steps,
                            ls_outcome *outcome) {
  ls_run r = {.state = state, .uses = uses, .steps = steps, .limit_ms = 50};
  memset(outcome, 0xa5, sizeof *outcome);
  return ls_executor_run(g->executor, &r, outcome, &error);
}

/* Distinct bytes everywhere that the CPU can load. */
static inline void fill(ls_state *state) {
  ls_state_init(state);
  uint8_t *bytes = (uint8_t *)state;
  for (size_t i = 0; i < offsetof(ls_state, rip); i++)
    bytes[i] = (uint8_t)(i * 37 + i / 251 + 11);
  state->gpr[LS_RSP] =
      UINT64_C(0x5a1234567); /* anything canonical: the kernel must be able to return to it */
  state->rflags = RFLAGS_CLEAN | RFLAGS_CF | RFLAGS_AF | RFLAGS_SF | RFLAGS_ID;
  state->ds = 0x2b;
  state->es = 0x33;
  state->mxcsr = 0x7fa1;
}

/* The same with the x87: eight values, control word, conditions, top of stack 5. */
static inline void fill_x87(ls_state *state) {
  fill(state);
  state->fcw = 0xc7f;
  state->fsw = 0x6d21;
  state->ftw = 0xb7;
  for (int i = 0; i < 8; i++) {
    for (int j = 0; j < 8; j++)
      state->st[i][j] = (uint8_t)(0x80 | (i * 8 + j));
    state->st[i][8] = (uint8_t)(0x10 + i);
    state->st[i][9] = (uint8_t)(0x40 | (i & 1) << 7);
  }
}

static inline void same_stop(const char *name, const ls_outcome *got, ls_stop_kind kind, int sig, int code,
                             uint64_t address) {
  const ls_stop *s = &got->stop;
  if (s->kind != kind || s->signal != sig || s->code != code || s->address != address)
    fail_msg("%s: expected %s %d/%d/0x%lx, got %s %d/%d/0x%lx at 0x%lx", name, ls_stop_kind_name(kind), sig,
             code, (unsigned long)address, ls_stop_kind_name(s->kind), s->signal, s->code,
             (unsigned long)s->address, (unsigned long)got->state.rip);
}

/* What is loaded is "0f 0b". */
static inline void fault_in_guest(guest *g, ls_state *state) {
  ls_outcome out;
  must(run(g, state, 0, 0, &out));
  same_stop("guest", &out, LS_STOP_FAULT, SIGILL, ILL_ILLOPN, CODE);
}

/* ---- 32-bit code ---- */

#define FAR_RETURN "48 cb"

enum { CS_32 = 0x23 };

/* For code that begins with FAR_RETURN, which then leads to what follows it as 32-bit code; #GP where Linux
 * has none. */
static inline void return_to_32_bit(guest *g, ls_state *state) {
  uint64_t *stack = (uint64_t *)((uint8_t *)ls_executor_memory(g->executor, STACK_WINDOW) + 0x800);
  stack[0] = CODE + 2;
  stack[1] = CS_32;
  state->gpr[LS_RSP] = STACK + 0x800;
}

#endif

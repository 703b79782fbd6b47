/* Guests that fault, each in its way, in an executor of either kind: for the one test program that includes
 * it. */
#ifndef TESTS_FAULTS_H
#define TESTS_FAULTS_H

#include <signal.h>
#include <stdbool.h>

#include "executor.h"
#include "flags.h"
#include "left_out.h"
#include "must.h"
#include "places.h"

#define BYTES(code) sizeof code - 1, code
#define MISALIGNED  1 /* as RSP: within the stack, but odd */

static const struct guest {
  const char *name;
  uint8_t size;
  const char *code;
  uint64_t rax, rsp, rflags;
  ls_stop_kind kind;
  int signal;
  uint32_t mxcsr;
  uint16_t fcw;
} guests[] = {
    {"#UD", BYTES("\x0f\x0b"), .kind = LS_STOP_FAULT, .signal = SIGILL},
    {"#DE", BYTES("\xf7\xf1"), .kind = LS_STOP_FAULT, .signal = SIGFPE},
    {"#GP", BYTES("\xf4"), .kind = LS_STOP_FAULT, .signal = SIGSEGV},
    {"#GP, all flags", BYTES("\xf4"), .rflags = RFLAGS_USER & ~RFLAGS_TF, .kind = LS_STOP_FAULT,
     .signal = SIGSEGV},
    {"#PF read", BYTES("\x48\x8b\x00"), .rax = 0x10, .kind = LS_STOP_FAULT, .signal = SIGSEGV},
    {"#PF execute", BYTES("\xff\xe0"), .rax = 0x20, .kind = LS_STOP_FAULT, .signal = SIGSEGV},
    {"#PF, RSP garbage", BYTES("\x48\x8b\x00"), .rax = 0x10, .rsp = 3, .kind = LS_STOP_FAULT,
     .signal = SIGSEGV},
    {"#SS", BYTES("\x50"), .rsp = 1ull << 62, .kind = LS_STOP_FAULT, .signal = SIGBUS},
    {"#AC", BYTES("\x48\x8b\x04\x24"), .rsp = MISALIGNED, .rflags = RFLAGS_AC, .kind = LS_STOP_FAULT,
     .signal = SIGBUS},
    {"#BP", BYTES("\xcc"), .kind = LS_STOP_FAULT, .signal = SIGTRAP},
    {"#DB", BYTES("\x90\x90"), .rflags = RFLAGS_TF, .kind = LS_STOP_FAULT, .signal = SIGTRAP},
    {"#XM", BYTES("\x0f\x5e\xc1"), .mxcsr = 0x9f00, .kind = LS_STOP_FAULT, .signal = SIGFPE},
    {"#MF", BYTES("\xd9\xe8\xd9\xee\xde\xf9\x9b"), .fcw = 0x67b, .kind = LS_STOP_FAULT, .signal = SIGFPE},
    {"x87 left full", BYTES("\xd9\xeb\xd9\xeb\xd9\xeb\x0f\x0b"), .fcw = 0x3f, .kind = LS_STOP_FAULT,
     .signal = SIGILL},
    {"MXCSR left odd", BYTES("\x0f\x0b"), .mxcsr = 0x603f, .kind = LS_STOP_FAULT, .signal = SIGILL},
    {"DS, ES, DF", BYTES("\x8e\xd8\x8e\xc0\xfd\x0f\x0b"), .rax = 0x2b, .kind = LS_STOP_FAULT,
     .signal = SIGILL},
    {"system call", BYTES("\x0f\x05"), .rax = 12, .kind = LS_STOP_SYSCALL},
    {"FS and GS loaded", BYTES("\x8e\xe0\x8e\xe8\x0f\x0b"), .rax = 0x2b, .kind = LS_STOP_FAULT,
     .signal = SIGILL},
    {"FS base lost", BYTES("\xf3\x48\x0f\xae\xd0\x0f\x0b"), .kind = LS_STOP_FAULT, .signal = SIGILL},
};
enum { GUESTS = sizeof guests / sizeof *guests, IN_REFERENCE = GUESTS - 2, SYSCALL_GUEST = GUESTS - 3 };

static ls_image *images[GUESTS];

static inline void build_images(void) {
  for (int i = 0; i < GUESTS; i++) {
    ls_instruction in = {.next = LS_NONE, .jump = LS_NONE, .length = guests[i].size};
    memcpy(in.bytes, guests[i].code, guests[i].size);
    images[i] = ls_image_create();
    must(ls_image_build(images[i], &(ls_program){.instructions = &in, .count = 1}, &layout, &error));
  }
}

static inline void destroy_images(void) {
  for (int i = 0; i < GUESTS; i++)
    ls_image_destroy(images[i]);
}

static inline bool can_run(int i, ls_executor *executor) {
  if (left_out(guests[i].name))
    return false;
  if (i == SYSCALL_GUEST)
    return executor->kind == LS_PTRACE || in_part("dispatch");
  return i < IN_REFERENCE || in_part("fsgsbase");
}

static inline void run_guest(ls_executor *executor, int i) {
  static ls_state state;
  static ls_outcome outcome;
  const struct guest *g = &guests[i];
  ls_state_init(&state);
  state.gpr[LS_RAX] = g->rax;
  uint64_t stack = layout.windows[STACK].address + 0x800;
  state.gpr[LS_RSP] = g->rsp == MISALIGNED ? stack + 1 : g->rsp ? g->rsp : stack;
  state.rflags |= g->rflags;
  state.mxcsr = g->mxcsr ? g->mxcsr : state.mxcsr;
  state.fcw = g->fcw ? g->fcw : state.fcw;
  must(ls_executor_load(executor, images[i], &error));
  ls_run run = {.state = &state, .uses = g->fcw ? LS_USES_X87 : 0};
  must(ls_executor_run(executor, &run, &outcome, &error));
  if (outcome.stop.kind != g->kind || outcome.stop.signal != g->signal)
    fail_msg("%s: %s, signal %d", g->name, ls_stop_kind_name(outcome.stop.kind), outcome.stop.signal);
}

static inline ls_executor *create(ls_kind kind) {
  ls_executor *executor = NULL;
  must(ls_executor_create(kind, &layout, NULL, &executor, &error));
  return executor;
}

static inline void run_round(ls_executor *executor, int count, int kinds, unsigned *done) {
  for (int i = 0, n = 0; n < count; i = (i + 1) % kinds)
    if (can_run(i, executor)) {
      run_guest(executor, i);
      n++;
      ++*done;
    }
}

#endif

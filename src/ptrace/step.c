/* Stepped runs of the reference: the stub loads what PTRACE_SETREGS cannot and stops; the tracer sets the
 * rest, so that the first single step is the guest's first instruction. */
#include <string.h>
#include <sys/ptrace.h>
#include <time.h>

#include "flags.h"
#include "guest_code.h"
#include "ptrace_executor.h"
#include "regs.h"
#include "vectors.h"

#define REQUEST_SYSEMU            31
#define REQUEST_SYSEMU_SINGLESTEP 32

enum { CLOCK_EVERY = 64, TRACE_CODE = TRAP_TRACE };

typedef struct stepper {
  ptrace_executor *x;
  const ls_run *run;
  ls_outcome *outcome;
  uint64_t done;  /* instructions so far */
  uint64_t stops; /* single steps so far */
  uint64_t tf;    /* the guest's own trap flag: 0 or RFLAGS_TF */
  uint64_t limit; /* of the child's CPU clock, nanoseconds, or TIME_ENDLESS */
  bool fs_gs;     /* an instruction went through FS or GS, or was about its base */
} stepper;

/* Single steps use CPU time in small pieces between stops, which a tick that samples may miss: so the limit
 * is one of the clock's, and what has been used by it is taken off the time left when the run ends. */
static void begin_time(stepper *s) {
  uint64_t left = s->x->base.time_left;
  s->limit = left == TIME_ENDLESS ? left : executor_cpu_time(s->x) + left;
}

static void end_time(const stepper *s) {
  if (s->limit == TIME_ENDLESS)
    return;
  uint64_t now = executor_cpu_time(s->x);
  s->x->ticked = now; /* the next tick must not charge it again */
  s->x->base.time_left = now < s->limit ? s->limit - now : 0;
}

static bool too_long(stepper *s) {
  return s->stops++ % CLOCK_EVERY == 0 && s->limit != TIME_ENDLESS && executor_cpu_time(s->x) > s->limit;
}

/* PUSHF under a single step stores the trap flag that the tracer set: puts the guest's own there. */
static void correct_pushed(const stepper *s) {
  const sandbox *box = &s->x->base.box;
  uint64_t at = s->outcome->state.gpr[LS_RSP] + 1; /* TF is bit 8 */
  uint32_t window = sandbox_window(box, at, 1);
  if (window == LS_NONE)
    return;
  uint8_t *byte = box->alias + box->offset[window] + (at - box->layout.windows[window].address);
  *byte = (uint8_t)((*byte & ~1u) | s->tf >> 8);
}

/* The kernel hides the tracer's trap flag but for instructions that load RFLAGS, and for all that follow one
 * (arch/x86/kernel/step.c, enable_single_step). Only those that load it change the guest's. */
static void correct_trap_flag(stepper *s, bool loaded) {
  uint64_t *rflags = &s->outcome->state.rflags;
  if (loaded)
    s->tf = *rflags & RFLAGS_TF;
  *rflags = (*rflags & ~(uint64_t)RFLAGS_TF) | s->tf;
}

/* Brings the child to the first instruction, general registers and all. *event is RUN_INTERRUPTED if it did
 * not get there. */
static ls_status go_to_entry(stepper *s, uint64_t entry, run_event *event, ls_error *error) {
  ptrace_executor *x = s->x;
  uint64_t flags = x->child.inner + GATE_IN + GATE_STEP_FLAGS;
  if (!executor_enter(x, s->run, entry, x->child.step, flags))
    return executor_lost(x, error);
  *event = executor_resume(x, REQUEST_SYSEMU);
  if (*event == RUN_INTERRUPTED)
    return LS_OK;
  if (*event == RUN_LOST || ptrace(PTRACE_GETREGS, x->child.pid, NULL, &x->regs) != 0)
    return executor_lost(x, error);
  if (*event != RUN_SYSCALL)
    return executor_bad_state(error, "a selector or reserved MXCSR bits");
  regs_from_state(s->run->state, x->gs_base, &x->regs);
  x->regs.rip = entry;
  if (ptrace(PTRACE_SETREGS, x->child.pid, NULL, &x->regs) != 0)
    return executor_bad_state(error, "ptrace does not take its selectors");
  s->tf = s->run->state->rflags & RFLAGS_TF;
  s->outcome->state = *s->run->state;
  s->outcome->state.rip = entry;
  return LS_OK;
}

/* Was the stop the end of a single step, and not a fault or a trap of the guest's own? */
static bool stepped(const stepper *s, run_event event) {
  return event == RUN_FAULT && s->x->info.si_signo == SIGTRAP && s->x->info.si_code == TRACE_CODE && !s->tf;
}

/* By the stub's way in, with the trap flag: the kernel does not return to a non-canonical RSP. */
static run_event enter_trapped(stepper *s) {
  ptrace_executor *x = s->x;
  ls_state trapped = s->outcome->state;
  const ls_run run = {.state = &trapped};
  trapped.rflags |= RFLAGS_TF;
  uint64_t frame = x->child.inner + GATE_IN + GATE_FRAME;
  return executor_enter(x, &run, trapped.rip, x->child.load, frame) ? executor_resume(x, REQUEST_SYSEMU)
                                                                    : RUN_LOST;
}

static run_event resume(stepper *s) {
  if (too_long(s))
    return RUN_TIMEOUT;
  bool returned_to = is_canonical(s->outcome->state.gpr[LS_RSP]);
  return returned_to ? executor_resume(s->x, REQUEST_SYSEMU_SINGLESTEP) : enter_trapped(s);
}

/* One single step, of a repeated string instruction one repetition; captures the state. If it was not the
 * *whole of it that was executed, the run ends with the event returned. */
static run_event single_step(stepper *s, bool may_load_flags, bool *whole) {
  ptrace_executor *x = s->x;
  ls_state *state = &s->outcome->state;
  run_event event = resume(s);
  if (event == RUN_INTERRUPTED && executor_in_load(x)) /* the state is what it was */
    return event;
  if (event == RUN_LOST || !executor_capture(x, state))
    return RUN_LOST;
  vectors_repeat(x->base.vectors, s->run->state, state);
  *whole = stepped(s, event);
  correct_trap_flag(s, *whole && may_load_flags);
  return event;
}

/* The same, again while it may have met an interrupt that the kernel could not return from. */
static run_event single_step_surely(stepper *s, bool may_load_flags, bool *whole) {
  const ls_state *state = &s->outcome->state;
  uint64_t before = state->rip;
  run_event event;
  int tries = 0;
  do {
    *whole = false;
    event = single_step(s, may_load_flags, whole);
  } while (event == RUN_FAULT && !*whole && state->rip == before && tries++ < INTERRUPTS_IN_A_ROW &&
           may_be_interrupt(s->x->info.si_signo, s->x->info.si_code, state));
  return event;
}

/* One instruction. Sets *kind and returns true if the run ended with it. */
static bool step(stepper *s, ls_stop_kind *kind, bool *lost) {
  ptrace_executor *x = s->x;
  const ls_state *state = &s->outcome->state;
  guest_code code;
  uint64_t before = x->regs.rip;
  bool whole;
  do {
    code = guest_code_at(&x->base.box, before);
    s->fs_gs |= code.fs_gs || code.base;
    run_event event = single_step_surely(s, code.popf, &whole);
    *lost = event == RUN_LOST;
    if (*lost)
      return true;
    if (!whole) {
      *kind = executor_stop_kind(event);
      return true;
    }
  } while (code.rep_string && state->rip == before);
  if (code.pushf)
    correct_pushed(s);
  s->done++;
  *kind = LS_STOP_STEPS;
  if (s->run->visitor && s->run->visitor(state, s->run->context) != 0)
    return true;
  if (state->rip == x->child.gate)
    *kind = LS_STOP_EXIT;
  return *kind == LS_STOP_EXIT || s->done == s->run->steps;
}

static ls_status run_steps(stepper *s, uint64_t entry, ls_error *error) {
  run_event event = RUN_LOST;
  ls_status status = go_to_entry(s, entry, &event, error);
  if (status)
    return status;
  if (event == RUN_INTERRUPTED)
    return executor_not_started(s->x, s->run, entry, s->outcome);
  ls_stop_kind kind = LS_STOP_STEPS;
  bool lost = false;
  while (!step(s, &kind, &lost)) {
  }
  if (lost)
    return executor_lost(s->x, error);
  if (kind == LS_STOP_SYSCALL && !s->tf)
    s->outcome->state.gpr[LS_R11] &= ~(uint64_t)RFLAGS_TF; /* SYSCALL stores RFLAGS there */
  status = executor_stopped(s->x, s->run, kind, s->outcome);
  if (s->fs_gs)
    s->outcome->touched |= LS_TOUCHED_FS_GS;
  return status;
}

ls_status executor_run_steps(ptrace_executor *x, const ls_run *run, uint64_t entry, ls_outcome *outcome,
                             ls_error *error) {
  stepper s = {.x = x, .run = run, .outcome = outcome};
  begin_time(&s);
  ls_status status = run_steps(&s, entry, error);
  if (!status)
    end_time(&s);
  return status;
}

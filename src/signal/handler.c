/* The C part of the signal handler: whose signal is it, and what becomes of the guest.
 *
 * Compiled without stack protector, sanitizers and coverage: when it starts, FS may be the guest's. It uses
 * no TLS, takes no lock, and makes system calls through kernel_call only. It never jumps out: a guest that
 * has stopped is left by editing the frame, so that rt_sigreturn arrives in the gate with the guest's vectors
 * still in the registers, where the gate stores them as after any run.
 *
 * Whatever the signal was, at the end attention is looked at: a request that was made before any of our
 * signals came is seen by it. */
#include <errno.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/syscall.h>
#include <ucontext.h>

#include "../flags.h"
#include "handlers.h"
#include "stepping.h"
#include "thread.h"

/* Where a signal struck. */
typedef enum place {
  PLACE_HOST,     /* no guest runs, or a handler of the host's runs on top of it */
  PLACE_ENTERING, /* in the gate, nothing of the guest has run */
  PLACE_LEAVING,  /* in the gate, the guest is over */
  PLACE_GATE,     /* at the jump to the exit or at the exit's first instruction: nothing of it has run */
  PLACE_GUEST
} place;

enum {
  ARCH_SET_GS_BASE = 0x1001, /* asm/prctl.h */
  ARCH_SET_FS_BASE = 0x1002,
  ARCH_GET_FS_BASE = 0x1003,
  ARCH_GET_GS_BASE = 0x1004,
  REPEAT_ROOM = 136, /* see handler_repeat_call */
  USER_CS = 0x33,    /* asm/segment.h */
  USER_SS = 0x2b,
  SS_SHIFT = 48 /* REG_CSGSFS: CS, GS, FS, SS; the kernel fills in CS and SS only */
};

/* Flags that rt_sigreturn does not restore and handler_entry loads. */
#define UNRESTORED_FLAGS (RFLAGS_ID | RFLAGS_NT)

HIDDEN void handle_signal(int sig, siginfo_t *info, ucontext_t *context, handler_frame *frame);

/* ---- Where ---- */

/* Here, since it runs with whatever FS is. */
static thread_record *find_record(int tid) {
  for (unsigned slot = 0; slot < THREAD_SLOTS; slot++)
    if (__atomic_load_n(&thread_slot_used[slot], __ATOMIC_ACQUIRE) && thread_slot(slot)->tid == tid)
      return thread_slot(slot);
  return NULL;
}

/* Does a handler of the host's run on top of the guest? The frame says what the alternate stack was when the
 * signal came. SS_AUTODISARM leaves none for the length of a handler, so one that is armed means the guest
 * itself, wherever its RSP points. Without that flag (LS_WITHOUT_AUTODISARM, or a stack by which the host has
 * replaced ours) RSP is all there is to go by. */
static bool on_top_of_guest(const ucontext_t *context, const thread_record *record) {
  const stack_t *stack = &context->uc_stack;
  if (stack->ss_flags & SS_DISABLE)
    return true;
  bool disarms = (unsigned)stack->ss_flags & SS_AUTODISARM;
  if (disarms && thread_slot_of((uintptr_t)stack->ss_sp) == record)
    return false;
  return (uint64_t)context->uc_mcontext.gregs[REG_RSP] - (uintptr_t)stack->ss_sp < stack->ss_size;
}

static bool is_gate(const signal_executor *executor, uint64_t rip) {
  return rip == executor->base.box.layout.gate || rip == executor->inner;
}

static place find_place(const ucontext_t *context, const thread_record *record) {
  const signal_executor *executor = record ? record->running : NULL;
  if (!executor)
    return PLACE_HOST;
  uint64_t rip = (uint64_t)context->uc_mcontext.gregs[REG_RIP];
  if (is_gate(executor, rip))
    return PLACE_GATE;
  if (rip > executor->inner && rip < executor->code_end) /* also where `leave` sends a thread */
    return rip >= executor->enter_at ? PLACE_ENTERING : PLACE_LEAVING;
  return on_top_of_guest(context, record) ? PLACE_HOST : PLACE_GUEST;
}

/* ---- The host's segments ---- */

typedef struct bases {
  uint64_t fs, gs;
} bases;

/* Without FSGSBASE a guest can only have changed the bases by loading a selector: a null one, which clears
 * the base on most CPUs, leaves no other trace than the base. Where seccomp refuses the call it goes
 * unnoticed. */
static bases read_bases(const signal_executor *executor, const thread_record *record) {
  bases b = {record->fs_base, record->gs_base};
  if (executor->gate_flags & GATE_FSGSBASE) {
    __asm__ volatile("rdfsbase %0" : "=r"(b.fs));
    __asm__ volatile("rdgsbase %0" : "=r"(b.gs));
  } else {
    kernel_call(SYS_arch_prctl, ARCH_GET_FS_BASE, (long)&b.fs, 0, 0);
    if (record->gs_base != GS_BASE_UNKNOWN)
      kernel_call(SYS_arch_prctl, ARCH_GET_GS_BASE, (long)&b.gs, 0, 0);
  }
  return b;
}

static bool is_foreign(const bases *guest, const thread_record *record, const handler_frame *frame) {
  return frame->fs || frame->gs || guest->fs != record->fs_base || guest->gs != record->gs_base;
}

/* By system call for the reason given in gate.S. */
static void load_host_bases(const thread_record *record, bool by_instruction) {
  if (kernel_call(SYS_arch_prctl, ARCH_SET_FS_BASE, (long)record->fs_base, 0, 0) && by_instruction)
    __asm__ volatile("mov %0, %%fs; wrfsbase %1" : : "r"(0), "r"(record->fs_base));
  if (kernel_call(SYS_arch_prctl, ARCH_SET_GS_BASE, (long)record->gs_base, 0, 0) && by_instruction)
    __asm__ volatile("mov %0, %%gs; wrgsbase %1" : : "r"(0), "r"(record->gs_base));
}

static void load_host_segments(const bases *guest, const thread_record *record, const handler_frame *frame) {
  if (is_foreign(guest, record, frame))
    load_host_bases(record, record->running->gate_flags & GATE_FSGSBASE);
  if (frame->ds != record->ds)
    __asm__ volatile("mov %0, %%ds" : : "r"((uint32_t)record->ds));
  if (frame->es != record->es)
    __asm__ volatile("mov %0, %%es" : : "r"((uint32_t)record->es));
}

/* Before going back to a guest. Selectors first: loading one changes the base. DS and ES are loaded by
 * handler_entry. */
static void load_guest_bases(const signal_executor *executor, const bases *guest,
                             const handler_frame *frame) {
  __asm__ volatile("mov %0, %%fs" : : "r"((uint32_t)frame->fs));
  __asm__ volatile("mov %0, %%gs" : : "r"((uint32_t)frame->gs));
  if (executor->gate_flags & GATE_FSGSBASE) {
    __asm__ volatile("wrfsbase %0" : : "r"(guest->fs));
    __asm__ volatile("wrgsbase %0" : : "r"(guest->gs));
    return;
  }
  if (!frame->fs)
    kernel_call(SYS_arch_prctl, ARCH_SET_FS_BASE, (long)guest->fs, 0, 0);
  if (!frame->gs)
    kernel_call(SYS_arch_prctl, ARCH_SET_GS_BASE, (long)guest->gs, 0, 0);
}

/* ---- Ending a run ---- */

/* By `resume` or `unstarted`. With selectors of 64-bit code: the guest may have returned far into another
 * mode. */
static void leave(const thread_record *record, uint64_t by, greg_t *regs, handler_frame *frame,
                  uint64_t result) {
  const signal_executor *executor = record->running;
  regs[REG_RIP] = (greg_t)by;
  regs[REG_RSP] = (greg_t)executor->data->host_rsp;
  regs[REG_RBX] = (greg_t)result;
  regs[REG_EFL] = RFLAGS_CLEAN;
  regs[REG_CSGSFS] = (greg_t)(USER_CS | (uint64_t)USER_SS << SS_SHIFT);
  frame->ds = record->ds;
  frame->es = record->es;
}

static void read_general(ls_state *state, const greg_t *regs, const handler_frame *frame) {
  static const uint8_t order[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                    REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
  for (int i = 0; i < 16; i++)
    state->gpr[i] = (uint64_t)regs[order[i]];
  state->rip = (uint64_t)regs[REG_RIP];
  state->rflags = (uint64_t)regs[REG_EFL];
  uint64_t selectors = (uint64_t)regs[REG_CSGSFS];
  state->cs = (uint16_t)selectors;
  state->ss = (uint16_t)(selectors >> SS_SHIFT);
  state->ds = frame->ds;
  state->es = frame->es;
  state->fs = frame->fs;
  state->gs = frame->gs;
}

/* The guest has stopped: `kind` and, for a fault, what the kernel says of it. Its vector part is stored by
 * the gate. */
static void stop(thread_record *record, ls_stop_kind kind, const siginfo_t *info, greg_t *regs,
                 handler_frame *frame) {
  const signal_executor *executor = record->running;
  ls_outcome *outcome = executor->data->outcome;
  read_general(&outcome->state, regs, frame);
  if (record->steps_left && !record->guest_tf) {
    outcome->state.rflags &= ~(uint64_t)RFLAGS_TF;
    if (kind == LS_STOP_SYSCALL) /* SYSCALL copies RFLAGS to R11 */
      outcome->state.gpr[LS_R11] &= ~(uint64_t)RFLAGS_TF;
  }
  outcome->stop = (ls_stop){.kind = kind};
  if (kind == LS_STOP_FAULT) {
    outcome->stop.signal = info->si_signo;
    outcome->stop.code = info->si_code;
    outcome->stop.address = info->si_code == SI_KERNEL ? 0 : (uint64_t)info->si_addr;
  }
  if (outcome->state.rip == executor->inner) /* for the guest, that is the gate */
    outcome->state.rip = executor->base.box.layout.gate;
  if (kind == LS_STOP_FAULT && outcome->stop.address == executor->inner &&
      outcome->state.rip == executor->base.box.layout.gate)
    outcome->stop.address = outcome->state.rip;
  if (kind == LS_STOP_SYSCALL)
    outcome->stop.number = outcome->state.gpr[LS_RAX];
  leave(record, executor->resume, regs, frame, GATE_STOPPED);
}

/* ---- Signals of the host ---- */

static bool ignored_by_default(int sig) {
  return sig == SIGURG || sig == SIGCHLD || sig == SIGWINCH || sig == SIGCONT;
}

/* Does returning repeat it? A trap is reported behind its instruction, and other signals have none. */
static bool strikes_again(int sig, const siginfo_t *info) {
  return info->si_code > 0 && sig != SIGTRAP && sig != SIGSYS;
}

/* Nobody stood there before: the signal takes its default effect, as it would have without us. A fault that
 * is ignored kills (kernel/signal.c, force_sig_info_to_task). */
static void take_default(int sig, siginfo_t *info, const kernel_action *previous) {
  kernel_action action = *previous;
  if (info->si_code <= 0 && (action.handler == (uintptr_t)SIG_IGN || ignored_by_default(sig)))
    return;
  action.handler = (uintptr_t)SIG_DFL;
  kernel_call(SYS_rt_sigaction, sig, (long)&action, 0, sizeof action.mask);
  if (strikes_again(sig, info))
    return;
  long process = kernel_call(SYS_getpid, 0, 0, 0, 0), thread = kernel_call(SYS_gettid, 0, 0, 0, 0);
  kernel_call(SYS_rt_tgsigqueueinfo, process, thread, sig, (long)info);
}

/* The handler's mask, and SA_RESETHAND. */
static void do_as_kernel(int sig, const ucontext_t *context, kernel_action *action) {
  uint64_t mask = action->mask, before;
  memcpy(&before, &context->uc_sigmask, sizeof before);
  mask |= before;
  if (!(action->flags & SA_NODEFER))
    mask |= signal_bit(sig);
  if (action->flags & SA_RESETHAND)
    action->handler = (uintptr_t)SIG_DFL;
  kernel_call(SYS_rt_sigprocmask, SIG_SETMASK, (long)&mask, 0, sizeof mask);
}

static void call_previous(int sig, siginfo_t *info, ucontext_t *context, kernel_action *previous) {
  kernel_action action = *previous;
  if (!handlers_covered(sig))
    do_as_kernel(sig, context, previous);
  if (action.flags & SA_SIGINFO)
    ((void (*)(int, siginfo_t *, void *))action.handler)(sig, info, context);
  else
    ((void (*)(int))action.handler)(sig);
}

/* The host's handler may leave by a jump. So during the call nothing of a guest is going on in the record;
 * and the jump leaves the alternate stack disarmed, which the next run in this thread looks after. */
static void chain(int sig, siginfo_t *info, ucontext_t *context, thread_record *record,
                  const handler_frame *frame) {
  bool called = frame->return_address != (uintptr_t)handler_return;
  kernel_action *previous = handlers_previous(sig, called);
  if (previous->handler == (uintptr_t)SIG_DFL || previous->handler == (uintptr_t)SIG_IGN) {
    take_default(sig, info, previous);
    return;
  }
  if (!record) {
    call_previous(sig, info, context, previous);
    return;
  }
  uint8_t selector = record->selector, unsure = record->unsure;
  signal_executor *running = record->running;
  record->running = NULL;
  record->selector = SELECTOR_ALLOW;
  record->unsure = 1;
  call_previous(sig, info, context, previous);
  record->unsure = unsure;
  record->selector = selector;
  record->running = running;
}

/* A handler of the host's, running on top of the guest, made a system call from outside the allowed range:
 * make it again from inside. rt_sigreturn finds its frame through RSP, which must not move. */
static void repeat_host_call(greg_t *regs) {
  if (regs[REG_RAX] == SYS_rt_sigreturn) {
    regs[REG_RIP] = (greg_t)(uintptr_t)handler_return;
    return;
  }
  uint64_t *return_address = (uint64_t *)(regs[REG_RSP] - REPEAT_ROOM);
  *return_address = (uint64_t)regs[REG_RIP];
  regs[REG_RSP] -= REPEAT_ROOM;
  regs[REG_RIP] = (greg_t)(uintptr_t)handler_repeat_call;
}

/* ---- Stepping ---- */

/* A trap of a stepped run. The guest's own TF makes the trap after the next instruction the guest's. */
static void step(thread_record *record, const siginfo_t *info, greg_t *regs, handler_frame *frame) {
  const signal_executor *executor = record->running;
  uint64_t rip = (uint64_t)regs[REG_RIP], rsp = (uint64_t)regs[REG_RSP];
  if (record->guest_tf) {
    stop(record, LS_STOP_FAULT, info, regs, frame);
    return;
  }
  if (record->coming == STEP_REPEATS && rip == record->coming_at)
    return;
  if (record->coming == STEP_PUSHES_FLAGS) {
    uint8_t *pushed = stepping_memory(&executor->base.box, rsp, 2);
    if (pushed)
      pushed[1] &= (uint8_t) ~(RFLAGS_TF >> 8);
  }
  record->guest_tf = record->coming == STEP_SETS_TF;
  if (is_gate(executor, rip)) {
    stop(record, LS_STOP_EXIT, info, regs, frame);
  } else if (record->steps_left == 1) {
    stop(record, LS_STOP_STEPS, info, regs, frame);
  } else {
    record->steps_left--;
    stepping_expect(record, executor, rip, rsp);
    regs[REG_EFL] |= RFLAGS_TF;
  }
}

/* ---- The guest's signals ---- */

/* How many periods end with this tick of a guest's. */
static uint32_t ticks_passed(ls_executor *executor, const thread_timer *timer, const siginfo_t *info) {
  uint64_t passed = 1 + (info->si_overrun > 0 ? (uint64_t)info->si_overrun : 0);
  return time_passes(executor, passed * timer->tick_ns);
}

/* The same by the clock, whichever of the two timers has rung. What passed until a tick that finds no guest
 * was the host's. */
static uint32_t fine_ticks_passed(ls_executor *executor, thread_timer *timer, place where) {
  uint64_t passed = timer_passed(timer);
  uint32_t ticks = where == PLACE_GUEST ? timer_periods(timer, time_charge(executor, passed)) : 0;
  timer_again(timer);
  return ticks;
}

static void tick(thread_record *record, place where, const siginfo_t *info, greg_t *regs,
                 handler_frame *frame) {
  ls_executor *executor = &record->running->base;
  uint32_t ticks = 0;
  if (timer_is_fine(&record->timer))
    ticks = fine_ticks_passed(executor, &record->timer, where);
  else if (where == PLACE_GUEST)
    ticks = ticks_passed(executor, &record->timer, info);
  if (where != PLACE_GUEST)
    return;
  if (executor->sampling)
    executor->sample_ticks += ticks;
  if (!executor->time_left)
    stop(record, LS_STOP_TIMEOUT, info, regs, frame);
  else if (executor->sampling && ticks)
    stop(record, LS_STOP_INTERRUPTED, info, regs, frame);
}

static bool is_tick(const siginfo_t *info, const thread_record *record) {
  const void *sent = info->si_value.sival_ptr;
  return info->si_code == SI_TIMER && (record ? sent == record : thread_slot_of((uintptr_t)sent) != NULL);
}

static bool is_dispatched_call(int sig, const siginfo_t *info) {
  return sig == SIGSYS && info->si_code == SIGSYS_USER_DISPATCH;
}

static void dispatched_call(thread_record *record, place where, const siginfo_t *info, greg_t *regs,
                            handler_frame *frame) {
  if (where == PLACE_GUEST)
    stop(record, LS_STOP_SYSCALL, info, regs, frame);
  else
    repeat_host_call(regs);
}

/* The kernel leaves AC as the guest has it when it calls a handler of the host's, which knows nothing of it:
 * its first unaligned access faults. */
static bool is_leaked_ac(int sig, const siginfo_t *info, const greg_t *regs) {
  return sig == SIGBUS && info->si_code == BUS_ADRALN && (uint64_t)regs[REG_EFL] & RFLAGS_AC;
}

static void guest_signal(int sig, siginfo_t *info, ucontext_t *context, thread_record *record, place where,
                         handler_frame *frame) {
  greg_t *regs = context->uc_mcontext.gregs;
  bool fault = info->si_code > 0 && (signal_bit(sig) & handlers_fault_mask()) && sig != SIGSYS;
  if (fault && where != PLACE_GUEST && info->si_code == SI_KERNEL && !is_canonical((uint64_t)regs[REG_RSP]))
    return; /* an interrupt that the kernel could not return from: interrupt_guest does what is left */
  if (fault && where == PLACE_ENTERING && info->si_code == SI_KERNEL)
    leave(record, record->running->unstarted, regs, frame, GATE_REFUSED);
  else if (!fault || where == PLACE_ENTERING || where == PLACE_LEAVING)
    chain(sig, info, context, record, frame);
  else if (sig == SIGTRAP && info->si_code == TRAP_TRACE && record->steps_left)
    step(record, info, regs, frame);
  else
    stop(record, LS_STOP_FAULT, info, regs, frame);
}

/* ---- Interruptions ---- */

/* Signals that handler_ring has sent, as a mask. Its address goes with them: that is nobody else's. */
static uint64_t rung;

void handler_ring(int tid, int sig) {
  long process = kernel_call(SYS_getpid, 0, 0, 0, 0);
  siginfo_t info = {.si_signo = sig, .si_code = SI_QUEUE};
  info.si_value.sival_ptr = &rung;
  __atomic_or_fetch(&rung, signal_bit(sig), __ATOMIC_RELAXED);
  kernel_call(SYS_rt_tgsigqueueinfo, process, tid, sig, (long)&info);
}

/* With RLIMIT_SIGPENDING exhausted the kernel delivers a signal without what was sent with it (a real-time
 * signal not at all: then the next tick does what the ring should). */
static bool is_ring(int sig, const siginfo_t *info) {
  if (info->si_code == SI_USER && info->si_pid == 0)
    return __atomic_load_n(&rung, __ATOMIC_RELAXED) & signal_bit(sig);
  return info->si_code == SI_QUEUE && info->si_value.sival_ptr == &rung;
}

/* The guest cannot leave while a handler of the host's is on top of it. Rings again, so that it comes when
 * that handler returns to the guest's mask. */
static void ring_later(ucontext_t *context, const signal_executor *executor) {
  int sig = executor->base.options.interrupt_signal;
  uint64_t mask;
  memcpy(&mask, &context->uc_sigmask, sizeof mask);
  if (mask & signal_bit(sig))
    return;
  mask |= signal_bit(sig);
  memcpy(&context->uc_sigmask, &mask, sizeof mask);
  handler_ring((int)kernel_call(SYS_gettid, 0, 0, 0, 0), sig);
}

/* Before going back: a guest leaves if attention asks for it, and if its RSP is not canonical, since to that
 * the kernel cannot return (its IRET faults). In the latter case `run` goes on with it by itself. */
static void interrupt_guest(ucontext_t *context, thread_record *record, const siginfo_t *info,
                            handler_frame *frame) {
  const signal_executor *executor = record->running;
  greg_t *regs = context->uc_mcontext.gregs;
  bool asked = atomic_load_explicit(executor->base.attention, memory_order_relaxed) != 0;
  bool stuck = !is_canonical((uint64_t)regs[REG_RSP]);
  if (!asked && !stuck)
    return;
  place where = find_place(context, record);
  if (where == PLACE_GUEST)
    stop(record, LS_STOP_INTERRUPTED, info, regs, frame);
  else if (where == PLACE_ENTERING)
    leave(record, executor->unstarted, regs, frame, GATE_INTERRUPTED);
  else if (where == PLACE_HOST)
    ring_later(context, executor);
  else if (where == PLACE_GATE && stuck)
    stop(record, LS_STOP_EXIT, info, regs, frame);
  else if (stuck) /* behind the exit's first instruction; the second loads RSP */
    regs[REG_RSP] = (greg_t)(uintptr_t)((uint8_t *)executor->data + GATE_STACK_TOP);
}

static bool has_left(const signal_executor *executor, const greg_t *regs) {
  uint64_t rip = (uint64_t)regs[REG_RIP];
  return rip == executor->resume || rip == executor->unstarted;
}

void handle_signal(int sig, siginfo_t *info, ucontext_t *context, handler_frame *frame) {
  thread_record *record = thread_slot_of((uintptr_t)frame); /* which lies on the stack */
  if (!record) /* the host has an alternate stack of its own, or this thread never ran a guest */
    record = find_record((int)kernel_call(SYS_gettid, 0, 0, 0, 0));
  const signal_executor *executor = record ? record->running : NULL;
  greg_t *regs = context->uc_mcontext.gregs;
  bases guest = {0, 0};
  if (executor) {
    guest = read_bases(executor, record);
    load_host_segments(&guest, record, frame);
  }
  place where = find_place(context, record);
  if (is_ring(sig, info)) {
    /* What it asks for is done below. */
  } else if (is_tick(info, record)) {
    if (executor)
      tick(record, where, info, regs, frame);
    else if (record)
      record->timer.lapsed = timer_is_fine(&record->timer);
  } else if (executor && is_dispatched_call(sig, info)) {
    dispatched_call(record, where, info, regs, frame);
  } else if (executor && where == PLACE_HOST && is_leaked_ac(sig, info, regs)) {
    regs[REG_EFL] &= ~(greg_t)RFLAGS_AC;
  } else if (where == PLACE_HOST) {
    chain(sig, info, context, record, frame);
  } else {
    guest_signal(sig, info, context, record, where, frame);
  }
  if (executor)
    interrupt_guest(context, record, info, frame);
  if (executor && !has_left(executor, regs) && is_foreign(&guest, record, frame))
    load_guest_bases(executor, &guest, frame);
  frame->flags |= (uint64_t)regs[REG_EFL] & UNRESTORED_FLAGS;
}

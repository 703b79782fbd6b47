/* The in-thread executor: making the gate, and one run. */
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "../cpu.h"
#include "../error.h"
#include "../flags.h"
#include "../occupied.h"
#include "../vectors.h"
#include "copies.h"
#include "handlers.h"
#include "stepping.h"
#include "thread.h"

/* ---- A run ---- */

/* The gate leaves the x87 as after FNINIT with the host's FCW. Sticky flags that the host had must be put
 * back through the environment (SDM vol. 1, 8.1.10). */
RARE static void restore_fsw(uint16_t fsw) {
  struct {
    uint32_t fcw, fsw, rest[5];
  } environment;
  __asm__ volatile("fnstenv %0" : "=m"(environment));
  environment.fsw = (environment.fsw & 0xffff0000) | fsw;
  __asm__ volatile("fldenv %0" : : "m"(environment));
}

static void finish(const signal_executor *executor, const ls_run *run, ls_outcome *outcome) {
  ls_state *state = &outcome->state;
  if (state != run->state)
    vectors_repeat(executor->base.vectors, run->state, state);
  state->reserved0 = 0;
  state->reserved1 = 0;
  state->reserved2 = 0; /* FXSAVE puts MXCSR_MASK there */
  outcome->touched = 0;
  outcome->reserved = 0;
}

RARE static uint32_t prepare_steps(const signal_executor *executor, const ls_state *state, uint64_t entry,
                                   thread_record *record) {
  record->guest_tf = (state->rflags & RFLAGS_TF) != 0;
  stepping_expect(record, executor, entry, state->gpr[LS_RSP]);
  return GATE_FORCE_TF;
}

static uint64_t enter(signal_executor *executor, const ls_state *state, uint64_t entry, uint32_t uses) {
  gate_data *data = executor->data;
  uint32_t flags = executor->gate_flags | (uses & LS_USES_X87 ? GATE_USES_X87 : 0);
  if (data->record->steps_left)
    flags |= prepare_steps(executor, state, entry, data->record);
  ENSURE(data->entry, entry);
  ENSURE(data->flags, flags);
  if (!(uses & LS_USES_X87))
    return executor->enter(state);
  uint16_t fsw;
  __asm__ volatile("fnstsw %0" : "=m"(fsw));
  uint64_t how = executor->enter(state);
  if (fsw)
    restore_fsw(fsw);
  return how;
}

/* Did a stepped run meet an interrupt that the kernel could not return from? */
static bool may_step_again(const signal_executor *executor, uint64_t how, const ls_outcome *outcome) {
  const ls_stop *stop = &outcome->stop;
  return how == GATE_STOPPED && executor->data->record->steps_left && stop->kind == LS_STOP_FAULT &&
         may_be_interrupt(stop->signal, stop->code, &outcome->state);
}

/* Was the guest interrupted, but not for the caller? */
static bool in_passing(const signal_executor *executor, uint64_t how, const ls_outcome *outcome) {
  const ls_executor *base = &executor->base;
  return (how == GATE_INTERRUPTED || (how == GATE_STOPPED && outcome->stop.kind == LS_STOP_INTERRUPTED)) &&
         !(base->sampling && base->sample_ticks) &&
         !atomic_load_explicit(base->attention, memory_order_relaxed);
}

/* Enters the guest as often as it must leave only because the kernel could not return to it. */
static uint64_t enter_again(signal_executor *executor, const ls_run *run, uint64_t entry, uint64_t how,
                            ls_outcome *outcome) {
  const ls_state *state = run->state;
  int tries = 0; /* at the same instruction */
  while (in_passing(executor, how, outcome) ||
         (may_step_again(executor, how, outcome) && tries < INTERRUPTS_IN_A_ROW)) {
    tries = entry == outcome->state.rip ? tries + 1 : 0;
    if (how == GATE_STOPPED) {
      state = &outcome->state;
      entry = state->rip;
    }
    how = enter(executor, state, entry, run->uses);
  }
  if (how == GATE_INTERRUPTED) {
    if (state != &outcome->state)
      outcome->state = *state;
    outcome->state.rip = entry;
    outcome->stop = (ls_stop){.kind = LS_STOP_INTERRUPTED};
  }
  return how;
}

static void left(const signal_executor *executor, const ls_run *run, ls_outcome *outcome) {
  outcome->state.rip = executor->base.box.layout.gate;
  outcome->stop.kind = LS_STOP_EXIT;
  finish(executor, run, outcome);
}

/* The guest has not jumped to the gate, at least not yet. */
RARE static ls_status stopped(signal_executor *executor, const ls_run *run, uint64_t entry, uint64_t how,
                              ls_outcome *outcome, ls_error *error) {
  how = enter_again(executor, run, entry, how, outcome);
  if (how == GATE_REFUSED)
    return error_set(error, LS_ERR_STATE, 0, LS_NONE,
                     "the CPU refuses the state: look at MXCSR's reserved bits, DS, ES and SS");
  if (how == GATE_EXITED)
    left(executor, run, outcome);
  else
    finish(executor, run, outcome);
  return LS_OK;
}

static ls_status run(ls_executor *base, const ls_run *run, uint64_t entry, ls_outcome *outcome,
                     ls_error *error) {
  signal_executor *executor = (signal_executor *)base;
  if (!thread_ready(executor)) {
    ls_status status = thread_attach(executor, error);
    if (status)
      return status;
  }
  ENSURE(executor->data->record->steps_left, run->steps);
  ENSURE(executor->data->outcome, outcome);
  uint64_t how = enter(executor, run->state, entry, run->uses);
  if (how != GATE_EXITED)
    return stopped(executor, run, entry, how, outcome, error);
  left(executor, run, outcome);
  return LS_OK;
}

/* ---- The gate ---- */

typedef struct gate_template {
  const uint8_t *begin, *resume, *unstarted, *enter, *end;
} gate_template;

static const gate_template templates[] = {
    [LS_VECTORS_SSE] = {gate_sse_begin, gate_sse_resume, gate_sse_unstarted, gate_sse_enter, gate_sse_end},
    [LS_VECTORS_AVX] = {gate_avx_begin, gate_avx_resume, gate_avx_unstarted, gate_avx_enter, gate_avx_end},
    [LS_VECTORS_AVX512] = {gate_avx512_begin, gate_avx512_resume, gate_avx512_unstarted, gate_avx512_enter,
                           gate_avx512_end},
};

/* LS_GATE_SIZE bytes at `address`, of which the first `used` can be written and the others not touched. */
static ls_status map_gate(uint64_t address, size_t used, ls_error *error) {
  void *wanted = (void *)address;
  void *got = mmap(wanted, LS_GATE_SIZE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
  if (got == wanted && mprotect(got, used, PROT_READ | PROT_WRITE) == 0)
    return LS_OK;
  int why = got == wanted || got == MAP_FAILED ? errno : EEXIST; /* before Linux 4.17 the flag is a hint */
  if (got != MAP_FAILED)
    munmap(got, LS_GATE_SIZE);
  return error_set(error, LS_ERR_ADDRESS, why, LS_NONE, "cannot map the gate at 0x%" PRIx64 " (%s): %s",
                   address, occupied_by(address, LS_GATE_SIZE, why), "choose another layout or slot");
}

static void unmap_gates(uint64_t gate) {
  munmap((void *)gate, LS_GATE_SIZE);
  munmap((void *)gate_inner(gate), LS_GATE_SIZE);
}

static void fill_inner(signal_executor *executor) {
  const gate_template *t = &templates[executor->base.vectors];
  uint64_t inner = gate_inner(executor->base.box.layout.gate);
  memcpy((void *)inner, t->begin, (size_t)(t->end - t->begin));
  executor->inner = inner;
  executor->data = (gate_data *)(inner + GATE_CODE);
  executor->data->executor = executor;
  executor->base.attention = &executor->data->attention;
  executor->enter = (gate_enter)(inner + (uint64_t)(t->enter - t->begin));
  executor->enter_at = (uint64_t)(uintptr_t)executor->enter;
  executor->resume = inner + (uint64_t)(t->resume - t->begin);
  executor->unstarted = inner + (uint64_t)(t->unstarted - t->begin);
  executor->code_end = inner + (uint64_t)(t->end - t->begin);
}

static ls_status make_gates(signal_executor *executor, ls_error *error) {
  uint64_t gate = executor->base.box.layout.gate, inner = gate_inner(gate);
  ls_status status = map_gate(gate, LS_PAGE, error);
  if (status)
    return status;
  status = map_gate(inner, GATE_CODE + LS_PAGE, error);
  if (status) {
    munmap((void *)gate, LS_GATE_SIZE);
    return status;
  }
  gate_page_write((uint8_t *)gate, gate);
  fill_inner(executor);
  if (mprotect((void *)gate, LS_PAGE, PROT_READ | PROT_EXEC) == 0 &&
      mprotect((void *)inner, GATE_CODE, PROT_READ | PROT_EXEC) == 0)
    return LS_OK;
  status = error_set(error, LS_ERR_SYSTEM, errno, LS_NONE, "the gate cannot be made executable: %s",
                     strerror(errno));
  unmap_gates(gate);
  return status;
}

/* ---- The rest of the seam ---- */

/* Touches all pages at the guest's addresses, so that they are present and writable: the kernel cannot return
 * from a page fault to a non-canonical RSP (IRET faults), so the first touch by such a guest would end it
 * with a fault that is not its own. Measured under a hypervisor with shadow page tables: there a page that is
 * present for the kernel (MADV_POPULATE_*) still faults at its first use, and what follows is emulated,
 * badly. Windows so large that this would cost much memory are left out. */
static void touch(const ls_layout *layout) {
  for (uint32_t i = 0; i < layout->window_count; i++) {
    const ls_window *w = &layout->windows[i];
    for (uint64_t page = 0; w->size <= SANDBOX_DENSE_MAX && page < w->size; page += LS_PAGE)
      if (w->access & LS_WRITE)
        __asm__ volatile("lock orb $0, (%0)" : : "r"(w->address + page) : "memory", "cc");
      else
        __asm__ volatile("testb $0, (%0)" : : "r"(w->address + page) : "memory", "cc");
  }
  __asm__ volatile("testb $0, (%0)" : : "r"(layout->gate) : "memory", "cc");
}

/* The gates are private memory, and run attaches the thread anew. */
static ls_status forked(ls_executor *base, ls_error *error) {
  ls_status status = sandbox_renew(&base->box, error);
  if (!status)
    touch(&base->box.layout);
  return status;
}

static void interrupt(ls_executor *base, int tid) {
  handler_ring(tid, base->options.interrupt_signal);
}

/* The thread that runs attaches, and so may change the record, before it is there for the first time; records
 * are never unmapped. */
static bool inside(ls_executor *base) {
  const signal_executor *executor = (const signal_executor *)base;
  const thread_record *record = __atomic_load_n(&executor->data->record, __ATOMIC_ACQUIRE);
  return record && __atomic_load_n(&record->running, __ATOMIC_RELAXED) == executor;
}

/* The next run finds no record and attaches its thread anew. No guest runs, and whoever calls this makes it
 * happen before that run: both touch plain data. */
static void changed(ls_executor *base) {
  ((signal_executor *)base)->data->record = NULL;
  touch(&base->box.layout);
}

static int stops_syscalls(ls_executor *base) {
  (void)base;
  return thread_can_dispatch();
}

static void destroy(ls_executor *base) {
  signal_executor *executor = (signal_executor *)base;
  if (thread_current && thread_current->serial == executor->serial)
    ls_thread_release();
  handlers_release(base->options.interrupt_signal);
  unmap_gates(base->box.layout.gate);
  free(executor);
  copy_release();
}

static const executor_ops ops = {.run = run,
                                 .forked = forked,
                                 .interrupt = interrupt,
                                 .inside = inside,
                                 .changed = changed,
                                 .stops_syscalls = stops_syscalls,
                                 .destroy = destroy};

static bool can_interrupt(int sig) {
  enum { LIBC_FIRST = 32, LIBC_LAST = 33 }; /* signals that libc keeps for itself */
  return sig > 0 && sig < SIGNALS_MAX && sig != SIGKILL && sig != SIGSTOP &&
         (sig < LIBC_FIRST || sig > LIBC_LAST) && !(signal_bit(sig) & handlers_fault_mask());
}

static ls_status make(ls_executor *base, signal_executor **executor, ls_error *error) {
  static uint64_t last_serial;
  signal_executor *made = aligned_alloc(_Alignof(signal_executor), sizeof *made);
  if (!made)
    return error_set(error, LS_ERR_MEMORY, ENOMEM, LS_NONE, "no memory for an executor");
  *made = (signal_executor){.base = *base};
  made->base.ops = &ops;
  made->serial = __atomic_add_fetch(&last_serial, 1, __ATOMIC_RELAXED);
  made->gate_flags = cpu()->fsgsbase ? GATE_FSGSBASE : 0;
  ls_status status = make_gates(made, error);
  if (!status) {
    status = handlers_acquire(base->options.interrupt_signal, error);
    if (status)
      unmap_gates(base->box.layout.gate);
  }
  if (status)
    free(made);
  else
    *executor = made;
  return status;
}

static ls_status map_and_make(ls_executor *base, signal_executor **executor, ls_error *error) {
  ls_status status = sandbox_map(&base->box, error);
  if (!status)
    status = thread_try(base->options.interrupt_signal, error);
  if (!status)
    status = make(base, executor, error);
  if (!status)
    touch(&base->box.layout);
  return status;
}

ls_status signal_executor_create(ls_executor *base, ls_executor **executor, ls_error *error) {
  int sig = base->options.interrupt_signal;
  if (!can_interrupt(sig))
    return error_set(error, LS_ERR_ARGUMENT, 0, LS_NONE, "signal %d cannot be the interrupt signal", sig);
  ls_status status = thread_set_up(error);
  if (!status)
    status = copy_acquire(error);
  if (status)
    return status;
  signal_executor *made = NULL;
  status = map_and_make(base, &made, error);
  if (status)
    copy_release();
  else
    *executor = &made->base;
  return status;
}

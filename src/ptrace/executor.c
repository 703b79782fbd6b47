/* The reference executor: runs the guest in a traced child (tracee.h) that stops at whatever ends a run.
 *
 * A run: the state goes into the shared page and, by PTRACE_SETREGS, into the child's general registers; the
 * stub loads the rest and enters the guest; PTRACE_SYSEMU stops at every system call without executing it,
 * the stub's own on the way out included, and every signal stops before delivery. Nothing is ever injected:
 * the next run starts over from the stub, whatever the child was doing. */
#include "executor.h"

#include <elf.h>
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "cpu.h"
#include "error.h"
#include "flags.h"
#include "guest_code.h"
#include "ptrace_executor.h"
#include "regs.h"
#include "vectors.h"
#include "wait.h"

/* linux/ptrace.h and sys/ptrace.h do not go together, and old ones of the latter lack these. */
#define REQUEST_SYSEMU ((enum __ptrace_request)31)

/* The page of calls at a fixed address that the kernel offers every process (arch/x86/entry/vsyscall): it
 * cannot be unmapped, and what is called there runs in the kernel without a system call of the guest's. */
#define VSYSCALL_PAGE UINT64_C(0xffffffffff600000)

/* In out->rsp until the way out stores RSP there, as its first instruction: not canonical, and no pattern
 * that a program likes. The upper half tells; a jump past the REX prefix stores the lower one. */
#define NOT_STORED UINT64_C(0x5bd1e995c2b2ae3d)

enum { XSAVE_HEADER_AT = 512, XSAVE_AREA_MIN = 576, NEAR_POISON_SHIFT = 32 };

/* ---- Until something ends the run --------------------------------------------------------------------- */

static bool is_fault_signal(int number) {
  return number == SIGSEGV || number == SIGBUS || number == SIGILL || number == SIGFPE || number == SIGTRAP;
}

/* A vsyscall meets the child's seccomp filter (emulate_vsyscall in arch/x86/entry/vsyscall/vsyscall_64.c asks
 * it, and on SECCOMP_RET_TRAP returns to the caller without having done the call). True if that is what the
 * signal is about. System calls proper never get there: under PTRACE_SYSEMU they stop before seccomp and are
 * over with that (kernel/entry/common.c, syscall_trace_enter). */
static bool is_vsyscall(ptrace_executor *x) {
  enum { FROM_SECCOMP = 1 }; /* SYS_SECCOMP, asm-generic/siginfo.h */
  if (ptrace(PTRACE_GETSIGINFO, x->child.pid, NULL, &x->info) != 0 || x->info.si_code != FROM_SECCOMP)
    return false;
  x->vsyscall = x->foreign = true;
  return true;
}

static bool is_tick(ptrace_executor *x, int number) {
  return number == SIGPROF && ptrace(PTRACE_GETSIGINFO, x->child.pid, NULL, &x->info) == 0 &&
         x->info.si_code == SI_KERNEL; /* else somebody else's SIGPROF */
}

static uint64_t nanoseconds(clockid_t clock) {
  struct timespec now = {0};
  clock_gettime(clock, &now);
  return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

uint64_t executor_cpu_time(const ptrace_executor *x) {
  return nanoseconds(x->clock);
}

/* A tick, wherever in the run it came: how many periods of the guest's time are over with it. The kernel
 * looks at the timer at its own ticks (CONFIG_HZ), does not count what it misses, and goes by whom these
 * find: on a busy machine it can ring after half a period. So the clock says what has passed; what is left
 * over, or was counted too early, is the next one's. */
static uint32_t periods_passed(ptrace_executor *x) {
  uint64_t now = executor_cpu_time(x), passed = now - x->ticked;
  int64_t period = (int64_t)x->base.tick_ns;
  x->ticked = now;
  x->uncounted += (int64_t)time_charge(&x->base, passed);
  int64_t periods = x->uncounted > 0 ? (x->uncounted + period / 2) / period : 0;
  x->uncounted -= periods * period;
  return (uint32_t)periods;
}

bool executor_in_load(const ptrace_executor *x) {
  return x->regs.rip - tracee_label(&x->child, tracee_stub_load) <
             (uint64_t)(tracee_stub_load_end - tracee_stub_load) &&
         x->regs.rsp - (x->child.inner + GATE_IN) < GATE_OUT - GATE_IN;
}

/* At the gate or behind it: it stops by itself in a few instructions, and in the stub it has no guest state
 * to show. */
static bool is_leaving(const ptrace_executor *x) {
  return x->regs.rip == x->child.gate || x->regs.rip - x->child.inner < GATE_IN;
}

/* A signal that is no fault of the guest's: does the run end with it, and how? A tick that comes in the stub
 * ends nothing, but its time has passed all the same: the next one must not be charged with it. */
static bool ends_run(ptrace_executor *x, int number, run_event *event) {
  bool tick = is_tick(x, number), called = x->attention != 0;
  if ((!tick && !called) || ptrace(PTRACE_GETREGS, x->child.pid, NULL, &x->regs) != 0)
    return false;
  uint32_t periods = tick ? periods_passed(x) : 0;
  *event = RUN_INTERRUPTED;
  if (executor_in_load(x))
    return called;
  if (is_leaving(x))
    return false;
  if (x->base.sampling)
    x->base.sample_ticks += periods;
  bool late = tick && !x->base.time_left;
  if (late)
    *event = RUN_TIMEOUT;
  return late || called || (x->base.sampling && periods);
}

static run_event resume(ptrace_executor *x, int request) {
  run_event event;
  for (;;) {
    if (ptrace((enum __ptrace_request)request, x->child.pid, NULL, NULL) != 0)
      return RUN_LOST;
    wait_report report = wait_for(x->child.pid);
    switch (report.event) {
    case WAIT_SYSCALL:
      return RUN_SYSCALL;
    case WAIT_DEAD:
      x->child.pid = 0; /* reaped: the number may be another process's by now */
      return RUN_LOST;
    case WAIT_NOTHING:
      return RUN_LOST;
    case WAIT_GROUP:
      break;
    case WAIT_SIGNAL:
      if (report.signal == SIGSYS && is_vsyscall(x))
        return RUN_SYSCALL;
      /* Codes above 0 are the kernel's own: a fault. Others were sent by someone, and are suppressed. */
      if (is_fault_signal(report.signal) && ptrace(PTRACE_GETSIGINFO, x->child.pid, NULL, &x->info) == 0 &&
          x->info.si_code > 0)
        return RUN_FAULT;
      if (ends_run(x, report.signal, &event))
        return event;
      break;
    }
  }
}

/* Who asks for attention sets it and then looks whom to ring; here `running` is set before attention is
 * looked at. So either it is seen here, or SIGURG stops the child: at once, or, sent while it is stopped,
 * before its next instruction. A ring that is heard when nobody asks any more, in this run or a later one,
 * goes the way of other signals from outside. */
run_event executor_resume(ptrace_executor *x, int request) {
  atomic_store_explicit(&x->resumed, nanoseconds(CLOCK_MONOTONIC), memory_order_relaxed);
  x->running = x->child.pid;
  run_event event = x->attention ? RUN_INTERRUPTED : resume(x, request);
  atomic_store_explicit(&x->running, 0, memory_order_relaxed);
  return event;
}

/* The default action of SIGURG is none, should the child be dead and its number another process's by now. */
static void ptrace_interrupt(ls_executor *executor, int tid) {
  (void)tid;
  ptrace_executor *x = (ptrace_executor *)executor;
  pid_t pid = x->running;
  if (pid && x->attention)
    kill(pid, SIGURG);
}

/* Nobody can see whether the child has reached the guest without stopping it. It mostly has after this time,
 * in which another core wakes up and takes it. */
static bool ptrace_inside(ls_executor *executor) {
  enum { AWAKE_NS = 30000 };
  const ptrace_executor *x = (const ptrace_executor *)executor;
  return atomic_load_explicit(&x->running, memory_order_relaxed) &&
         nanoseconds(CLOCK_MONOTONIC) - atomic_load_explicit(&x->resumed, memory_order_relaxed) > AWAKE_NS;
}

/* ---- Outcomes ----------------------------------------------------------------------------------------- */

ls_status executor_lost(ptrace_executor *x, ls_error *error) {
  tracee_end(&x->child);
  return error_set(error, LS_ERR_CHILD, 0, LS_NONE,
                   "the reference child was killed from outside; the next run makes a new one");
}

ls_status executor_bad_state(ls_error *error, const char *what) {
  return error_set(error, LS_ERR_STATE, 0, LS_NONE, "the CPU does not load this state: %s", what);
}

static bool in_inner(const ptrace_executor *x, uint64_t address) {
  return address - x->child.inner < LS_GATE_SIZE;
}

static bool is_foreign(const ptrace_executor *x, uint64_t address) {
  return in_inner(x, address) || address - VSYSCALL_PAGE < LS_PAGE;
}

bool executor_capture(ptrace_executor *x, ls_state *state) {
  if (ptrace(PTRACE_GETREGS, x->child.pid, NULL, &x->regs) != 0)
    return false;
  struct iovec area = {.iov_base = x->area, .iov_len = x->area_size};
  uint64_t present = vectors_components(x->base.vectors);
  if (ptrace(PTRACE_GETREGSET, x->child.pid, NT_X86_XSTATE, &area) != 0) { /* no XSAVE: FXSAVE's layout */
    if (ptrace(PTRACE_GETFPREGS, x->child.pid, NULL, x->area) != 0)
      return false;
    memcpy(x->area + XSAVE_HEADER_AT, &present, sizeof present);
  }
  xsave_read(x->area, present, state);
  regs_to_state(&x->regs, state);
  if (state->rip == x->child.inner)
    state->rip = x->child.gate;
  else
    x->foreign |= is_foreign(x, state->rip);
  return true;
}

static bool near_poison(uint64_t address) {
  const uint64_t reach = UINT64_C(1) << NEAR_POISON_SHIFT;
  return address - (POISON_FS - reach) < 2 * reach || address - (POISON_GS - reach) < 2 * reach;
}

/* Could the instruction's own bytes not be fetched? A page of them, at or above RIP, is not executable; then
 * what stands there is not an instruction. */
static bool fault_of_fetch(const sandbox *box, const ls_outcome *outcome) {
  uint64_t address = outcome->stop.address;
  if (outcome->stop.code == SI_KERNEL || address - outcome->state.rip >= LS_INSTRUCTION_MAX)
    return false;
  uint32_t window = sandbox_window(box, address, 1);
  return window == LS_NONE || !(box->layout.windows[window].access & LS_EXEC);
}

/* Did the faulting instruction go through FS or GS? Its address may be anywhere if it has an index. */
static bool fault_through_fs_gs(const ptrace_executor *x, const ls_outcome *outcome) {
  int number = outcome->stop.signal;
  if (number != SIGSEGV && number != SIGBUS)
    return false;
  if (near_poison(outcome->stop.address))
    return true;
  return !fault_of_fetch(&x->base.box, outcome) && guest_code_at(&x->base.box, outcome->state.rip).fs_gs;
}

/* What every outcome needs once its state and stop are there. */
static void finish(ptrace_executor *x, const ls_run *run, ls_outcome *outcome) {
  outcome->touched = 0;
  vectors_repeat(x->base.vectors, run->state, &outcome->state);
  if (x87_differs(run->state, &outcome->state))
    outcome->touched |= LS_USES_X87;
  if (!(run->uses & LS_USES_X87))
    x87_copy(&outcome->state, run->state);
  if (regs_fs_gs_changed(&x->regs, x->gs_base) || fault_through_fs_gs(x, outcome))
    outcome->touched |= LS_TOUCHED_FS_GS;
  if (x->foreign || (outcome->stop.signal == SIGSEGV && in_inner(x, outcome->stop.address)))
    outcome->touched |= LS_TOUCHED_FOREIGN;
  outcome->reserved = 0;
}

static void set_stop(ls_outcome *outcome, ls_stop_kind kind) {
  outcome->stop = (ls_stop){.kind = kind, .instruction = LS_NONE, .part = LS_PART_BODY};
}

ls_status executor_stopped(ptrace_executor *x, const ls_run *run, ls_stop_kind kind, ls_outcome *outcome) {
  set_stop(outcome, kind);
  if (kind == LS_STOP_FAULT) {
    outcome->stop.signal = x->info.si_signo;
    outcome->stop.code = x->info.si_code;
    outcome->stop.address = (uint64_t)x->info.si_addr;
    if (x->info.si_signo == SIGTRAP && outcome->stop.address == x->child.inner)
      outcome->stop.address = x->child.gate; /* of a trap it is RIP */
  } else if (kind == LS_STOP_SYSCALL) {
    /* After a vsyscall RAX is its number already, and what the guest had there is lost. */
    uint64_t number = x->vsyscall ? (uint64_t)x->info.si_syscall : x->regs.orig_rax;
    outcome->stop.number = number;
    outcome->state.gpr[LS_RAX] = number;
  }
  finish(x, run, outcome);
  return LS_OK;
}

ls_status executor_not_started(ptrace_executor *x, const ls_run *run, uint64_t entry, ls_outcome *outcome) {
  outcome->state = *run->state;
  outcome->state.rip = entry;
  return executor_stopped(x, run, LS_STOP_INTERRUPTED, outcome);
}

/* A clean run: at the stub's system call. The registers are still the guest's but for RAX, which the kernel
 * keeps as the call's number, and RSP, RCX and R11, which the stub stored before it, or SYSCALL, changed
 * them. */
static ls_status left(ptrace_executor *x, const ls_run *run, ls_outcome *outcome) {
  const gate_out *out = x->child.out;
  regs_to_state(&x->regs, &outcome->state);
  gate_get(out, x->base.vectors, &outcome->state);
  outcome->state.gpr[LS_RAX] = x->regs.orig_rax;
  outcome->state.rip = x->child.gate;
  if (out->rsp >> 32 == NOT_STORED >> 32) /* entered in its middle */
    x->foreign = true;
  set_stop(outcome, LS_STOP_EXIT);
  finish(x, run, outcome);
  if (x->child.in->fsgsbase && (out->fsbase != POISON_FS || out->gsbase != x->gs_base))
    outcome->touched |= LS_TOUCHED_FS_GS;
  return LS_OK;
}

/* ---- Runs --------------------------------------------------------------------------------------------- */

/* The way out stores FOP, FIP and FDP only on some CPUs; on others they are as at the start. */
static void keep_x87_pointers(ptrace_executor *x) {
  memcpy(x->child.out->fx, x->child.in->fx, 32);
}

bool executor_enter(ptrace_executor *x, const ls_run *run, uint64_t entry, uint64_t way_in, uint64_t rsp) {
  gate_put(x->child.in, run->state, entry, x->base.vectors);
  keep_x87_pointers(x);
  x->child.out->rsp = NOT_STORED;
  struct user_regs_struct *regs = &x->regs;
  regs_from_state(run->state, x->gs_base, regs);
  regs->rip = way_in;
  regs->rsp = rsp;
  regs->eflags = RFLAGS_CLEAN;
  regs->cs = x->cs;
  regs->ss = x->ss;
  regs->ds = regs->es = 0;
  return ptrace(PTRACE_SETREGS, x->child.pid, NULL, regs) == 0;
}

static ls_status run_through(ptrace_executor *x, const ls_run *run, uint64_t entry, ls_outcome *outcome,
                             ls_error *error) {
  uint64_t frame = x->child.inner + GATE_IN + GATE_FRAME;
  if (!executor_enter(x, run, entry, x->child.load, frame))
    return executor_lost(x, error);
  run_event event = executor_resume(x, REQUEST_SYSEMU);
  if (event == RUN_LOST)
    return executor_lost(x, error);
  if (event == RUN_SYSCALL) {
    if (ptrace(PTRACE_GETREGS, x->child.pid, NULL, &x->regs) != 0)
      return executor_lost(x, error);
    if (x->regs.rip == x->left && !x->vsyscall)
      return left(x, run, outcome);
  }
  if (event == RUN_INTERRUPTED && executor_in_load(x))
    return executor_not_started(x, run, entry, outcome);
  if (!executor_capture(x, &outcome->state))
    return executor_lost(x, error);
  if (event == RUN_FAULT && executor_in_load(x))
    return executor_bad_state(error, x->info.si_signo == SIGSEGV ? "a selector or reserved MXCSR bits"
                                                                 : strsignal(x->info.si_signo));
  return executor_stopped(x, run, executor_stop_kind(event), outcome);
}

ls_stop_kind executor_stop_kind(run_event event) {
  static const ls_stop_kind kinds[] = {[RUN_SYSCALL] = LS_STOP_SYSCALL,
                                       [RUN_FAULT] = LS_STOP_FAULT,
                                       [RUN_TIMEOUT] = LS_STOP_TIMEOUT,
                                       [RUN_INTERRUPTED] = LS_STOP_INTERRUPTED};
  return kinds[event];
}

/* With a GS base other than 0 the kernel writes an MSR at every switch to the child, which under a hypervisor
 * took a third of a run (24 against 16.5 us on Zen 5). It is needed only where this thread's own base is not
 * 0: where it is, GS: accesses do the same in the child and here. */
static uint64_t choose_gs_base(void) {
  enum { GET_GS = 0x1004 }; /* asm/prctl.h */
  uint64_t own = 0;
  return syscall(SYS_arch_prctl, GET_GS, &own) == 0 && own == 0 ? 0 : POISON_GS;
}

static ls_status start(ptrace_executor *x, ls_error *error) {
  ls_status status = tracee_start(&x->child, &x->base.box, x->base.tick_ns, error);
  if (status)
    return status;
  if (clock_getcpuclockid(x->child.pid, &x->clock) != 0)
    return executor_lost(x, error);
  x->ticked = executor_cpu_time(x);
  x->uncounted = 0;
  x->left = tracee_label(&x->child, tracee_stub_left);
  struct user_regs_struct regs;
  if (ptrace(PTRACE_GETREGS, x->child.pid, NULL, &regs) != 0)
    return executor_lost(x, error);
  x->cs = regs.cs;
  x->ss = regs.ss;
  x->gs_base = choose_gs_base();
  return LS_OK;
}

/* A child that this thread can run. */
static ls_status have_child(ptrace_executor *x, ls_error *error) {
  if (!tracee_is_mine(&x->child))
    tracee_end(&x->child);
  return x->child.pid ? LS_OK : start(x, error);
}

static ls_status ptrace_run(ls_executor *executor, const ls_run *run, uint64_t entry, ls_outcome *outcome,
                            ls_error *error) {
  ptrace_executor *x = (ptrace_executor *)executor;
  ls_status status = have_child(x, error);
  if (status)
    return status;
  x->foreign = x->vsyscall = false;
  x->start = *run->state;
  ls_run own = *run;
  own.state = &x->start;
  status = run->steps ? executor_run_steps(x, &own, entry, outcome, error)
                      : run_through(x, &own, entry, outcome, error);
  if (status && run->state == &outcome->state)
    outcome->state = x->start;
  return status;
}

static void ptrace_changed(ls_executor *executor) {
  if (!sandbox_forked(&executor->box))
    tracee_end(&((ptrace_executor *)executor)->child);
}

/* ---- Making and ending -------------------------------------------------------------------------------- */

/* The child is the parent's, and so is the gate area: this process needs its own. */
static ls_status ptrace_forked(ls_executor *executor, ls_error *error) {
  ptrace_executor *x = (ptrace_executor *)executor;
  x->running = 0;
  tracee_close(&x->child);
  ls_status status = tracee_open(&x->child, &executor->box, executor->vectors, error);
  return status ? status : sandbox_renew(&executor->box, error);
}

static int ptrace_stops_syscalls(ls_executor *executor) {
  (void)executor;
  return 1;
}

static void ptrace_destroy(ls_executor *executor) {
  ptrace_executor *x = (ptrace_executor *)executor;
  if (!sandbox_forked(&executor->box))
    tracee_end(&x->child);
  tracee_close(&x->child);
  free(x->area);
  free(x);
}

static const executor_ops ptrace_ops = {.run = ptrace_run,
                                        .forked = ptrace_forked,
                                        .interrupt = ptrace_interrupt,
                                        .inside = ptrace_inside,
                                        .changed = ptrace_changed,
                                        .stops_syscalls = ptrace_stops_syscalls,
                                        .destroy = ptrace_destroy};

ls_status ptrace_executor_create(ls_executor *base, ls_executor **executor, ls_error *error) {
  size_t area_size = cpu()->xsave_size > XSAVE_AREA_MIN ? cpu()->xsave_size : XSAVE_AREA_MIN;
  ptrace_executor *x = calloc(1, sizeof *x);
  uint8_t *area = calloc(1, area_size);
  if (!x || !area) {
    free(x);
    free(area);
    return error_set(error, LS_ERR_MEMORY, errno, LS_NONE, "no memory for a reference executor");
  }
  x->base = *base;
  x->base.ops = &ptrace_ops;
  x->base.attention = &x->attention;
  x->area = area;
  x->area_size = area_size;
  ls_status status = tracee_open(&x->child, &base->box, base->vectors, error);
  if (!status)
    status = start(x, error);
  if (status) {
    ptrace_destroy(&x->base);
    return status;
  }
  *executor = &x->base;
  return LS_OK;
}

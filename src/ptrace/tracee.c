#include "tracee.h"

#include <errno.h>
#include <inttypes.h>
#include <linux/futex.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

#include "child.h"
#include "cpu.h"
#include "error.h"
#include "executor.h"
#include "wait.h"

enum {
  START_MS = 10000,
  END_MS = 5000,
  KEPT_MAX = 2 /* spans that stay in the child */
};

#define USER_END        0x7ffffffff000u   /* of the addresses that mmap gives without being asked for more */
#define USER_END_5      0xfffffffffff000u /* the same with five-level paging */
#define RSEQ_SIZE       32u               /* what the C library registers (linux/rseq.h) */
#define RSEQ_SIG        0x53053053u       /* glibc's signature for x86 (sys/rseq.h) */
#define RSEQ_UNREGISTER 1u

uint64_t tracee_label(const tracee *child, const uint8_t *label) {
  return child->inner + (uint64_t)(label - tracee_stub_begin);
}

/* ---- The gate area ------------------------------------------------------------------------------------ */

/* A seccomp filter that lets nothing through, for calls to the vsyscall page: they do not stop under
 * PTRACE_SYSEMU, and write where the guest says. */
static void make_filter(gate_in *in, uint64_t address) {
  in->trap_all = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP);
  in->filter.len = 1;
  in->filter.filter = (struct sock_filter *)(address + offsetof(gate_in, trap_all));
}

static void choose_variants(tracee *child, ls_vectors vectors) {
  const uint8_t *load, *step, *leave;
  if (vectors == LS_VECTORS_AVX512) {
    load = tracee_stub_load_avx512, step = tracee_stub_step_avx512, leave = tracee_stub_exit_avx512;
  } else if (vectors == LS_VECTORS_AVX) {
    load = tracee_stub_load_avx, step = tracee_stub_step_avx, leave = tracee_stub_exit_avx;
  } else {
    bool wider = cpu()->vectors != LS_VECTORS_SSE;
    load = wider ? tracee_stub_load_sse : tracee_stub_load_sse_only;
    step = wider ? tracee_stub_step_sse : tracee_stub_step_sse_only;
    leave = tracee_stub_exit_sse;
  }
  child->load = tracee_label(child, load);
  child->step = tracee_label(child, step);
  child->in->exit_target = tracee_label(child, leave);
}

ls_status tracee_open(tracee *child, const sandbox *box, ls_vectors vectors, ls_error *error) {
  *child = (tracee){.fd = -1, .gate = box->layout.gate, .inner = gate_inner(box->layout.gate)};
  int fd = memfd_create("lockstep-gate", MFD_CLOEXEC);
  void *alias = MAP_FAILED;
  if (fd >= 0 && sandbox_extend_file(fd, GATE_FILE))
    alias = mmap(NULL, GATE_FILE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0);
  if (alias == MAP_FAILED) {
    int saved = errno;
    if (fd >= 0)
      close(fd);
    return error_set(error, LS_ERR_MEMORY, saved, LS_NONE, "cannot make the gate area: %s%s", strerror(saved),
                     error_advice(saved));
  }
  child->fd = fd;
  child->alias = alias;
  child->in = (gate_in *)(child->alias + GATE_IN);
  child->out = (gate_out *)(child->alias + GATE_OUT);
  memcpy(child->alias + GATE_CODE, tracee_stub_begin, (size_t)(tracee_stub_end - tracee_stub_begin));
  gate_page_write(child->alias + GATE_PAGE, child->gate);
  child->in->fsgsbase = cpu()->fsgsbase;
  make_filter(child->in, child->inner + GATE_IN);
  child->in->safe_rsp = child->inner + GATE_END;
  choose_variants(child, vectors);
  return LS_OK;
}

void tracee_close(tracee *child) {
  if (child->alias)
    munmap(child->alias, GATE_FILE);
  if (child->fd >= 0)
    close(child->fd);
  *child = (tracee){.fd = -1};
}

/* ---- Forking ------------------------------------------------------------------------------------------- */

/* clone without the C library: its fork handlers may wait for locks of other threads. CLONE_UNTRACED keeps
 * strace -f and debuggers from tracing the child before this thread does; no exit signal, so that a wait() of
 * the host for its own children does not take it. */
static pid_t fork_child(pid_t (*fork)(const child_setup *), const child_setup *setup) {
  uint64_t all = UINT64_MAX, saved = 0;
  syscall(SYS_rt_sigprocmask, SIG_SETMASK, &all, &saved, sizeof all);
  pid_t pid = fork(setup);
  syscall(SYS_rt_sigprocmask, SIG_SETMASK, &saved, NULL, sizeof saved);
  return pid;
}

/* ---- Why there is no reference ------------------------------------------------------------------------ */

/* The number after `name` in a file of lines "name: number", or in a file that is one number if name is "";
 * -1 if there is none. */
static long number_in(const char *path, const char *name) {
  FILE *file = fopen(path, "re");
  if (!file)
    return -1;
  char line[256];
  long number = -1;
  size_t length = strlen(name);
  while (number < 0 && fgets(line, sizeof line, file))
    if (strncmp(line, name, length) == 0)
      number = strtol(line + length, NULL, 10);
  fclose(file);
  return number;
}

/* PTRACE_SEIZE was refused: names the mechanism that did it, as far as it can be known. */
static ls_status refused(pid_t pid, int number, ls_error *error) {
  char path[64];
  snprintf(path, sizeof path, "/proc/%d/status", (int)pid);
  long tracer = number_in(path, "TracerPid:"), own_tracer = number_in("/proc/self/status", "TracerPid:");
  long yama = number_in("/proc/sys/kernel/yama/ptrace_scope", "");
  long seccomp = number_in("/proc/self/status", "Seccomp:");
  const char *why = strerror(number);
  if (tracer > 0)
    return error_set(error, LS_ERR_NO_REFERENCE, number, LS_NONE,
                     "no reference: process %ld already traces the child (a debugger or strace -f?)", tracer);
  if (yama >= 3) /* no capability helps, and it cannot be lowered (Documentation/admin-guide/LSM/Yama.rst) */
    return error_set(
        error, LS_ERR_NO_REFERENCE, number, LS_NONE,
        "no reference: kernel.yama.ptrace_scope is %ld, which nobody can lower: restart the system "
        "with 1 or less",
        yama);
  if (yama >= 2)
    return error_set(error, LS_ERR_NO_REFERENCE, number, LS_NONE,
                     "no reference: kernel.yama.ptrace_scope is %ld; set it to 1 or lower, or give "
                     "CAP_SYS_PTRACE",
                     yama);
  if (seccomp > 0)
    return error_set(error, LS_ERR_NO_REFERENCE, number, LS_NONE,
                     "no reference: ptrace failed (%s) and this process has a seccomp filter; allow ptrace "
                     "in it (docker: --cap-add SYS_PTRACE)",
                     why);
  if (own_tracer > 0)
    return error_set(error, LS_ERR_NO_REFERENCE, number, LS_NONE,
                     "no reference: ptrace failed (%s) and process %ld traces this one", why, own_tracer);
  return error_set(error, LS_ERR_NO_REFERENCE, number, LS_NONE, "no reference: ptrace failed: %s", why);
}

/* A filter may kill who makes the call instead: then nobody would be left to say so. */
static ls_status would_be_killed(ls_error *error) {
  if (number_in("/proc/self/status", "Seccomp:") != SECCOMP_MODE_FILTER)
    return LS_OK;
  pid_t pid = fork_child(child_try_to_trace, NULL);
  wait_report report = pid > 0 ? wait_for(pid) : (wait_report){.event = WAIT_DEAD};
  if (report.signal != SIGSYS)
    return LS_OK;
  return error_set(
      error, LS_ERR_NO_REFERENCE, 0, LS_NONE,
      "no reference: the seccomp filter of this process kills who calls ptrace; allow ptrace in it "
      "(docker: --cap-add SYS_PTRACE)");
}

static const char *call_name(uint64_t number) {
  switch (number) {
  case SYS_rseq:
    return "rseq";
  case SYS_munmap:
    return "munmap";
  case SYS_mmap:
    return "mmap";
  case SYS_setitimer:
    return "setitimer";
  default:
    return "a system call";
  }
}

/* A call of the start-up list failed: which, and for which window. */
static ls_status call_failed(tracee *child, const sandbox *box, const struct user_regs_struct *regs,
                             ls_error *error) {
  uint64_t index = (regs->r12 - child->inner - GATE_OUT) / sizeof(stub_call);
  const stub_call *call = (const stub_call *)child->out + index % STUB_CALLS_MAX;
  int number = (int)-(int64_t)regs->rax;
  child->sealed = call->number == SYS_munmap && number == EPERM; /* nothing else refuses (mseal(2)) */
  if (child->sealed)
    return error_set(error, LS_ERR_NO_REFERENCE, number, LS_NONE,
                     "no reference: memory of this process above %#" PRIx64 " is sealed (mseal), so that it "
                     "cannot be taken away from the child",
                     call->argument[0]);
  uint32_t window = sandbox_window(box, call->argument[0], 1);
  bool window_map = call->number == SYS_mmap && window != LS_NONE;
  return error_set(error, window_map ? LS_ERR_ADDRESS : LS_ERR_NO_REFERENCE, number,
                   window_map ? window : LS_NONE,
                   "no reference: %s of %#" PRIx64 " failed in the child: %s%s", call_name(call->number),
                   call->argument[0], strerror(number), error_advice(number));
}

static ls_status died(wait_report report, ls_error *error) {
  static const char *const reasons[] = {[CHILD_ORPHAN] = "its parent had gone",
                                        [CHILD_NOT_TRACED] = "nobody began to trace it",
                                        [CHILD_NO_GATE] = "the gate area could not be mapped"};
  if (report.event == WAIT_NOTHING)
    return error_set(error, LS_ERR_NO_REFERENCE, ETIMEDOUT, LS_NONE,
                     "no reference: the child did not start within %d s", START_MS / 1000);
  if (report.signal == SIGKILL || (!report.signal && !report.code))
    return error_set(error, LS_ERR_CHILD, 0, LS_NONE,
                     "the reference child was %s while it started: try again",
                     report.signal ? "killed from outside" : "taken by another's wait");
  if (report.signal)
    return error_set(error, LS_ERR_NO_REFERENCE, 0, LS_NONE, "no reference: signal %d (%s) at start-up",
                     report.signal, strsignal(report.signal));
  bool known = report.code > 0 && report.code < (int)(sizeof reasons / sizeof reasons[0]);
  return error_set(error, LS_ERR_NO_REFERENCE, 0, LS_NONE, "no reference: the child exited at start-up: %s",
                   known ? reasons[report.code] : "unknown reason");
}

/* ---- Starting ----------------------------------------------------------------------------------------- */

static void add_call(stub_call **next, uint64_t number, uint64_t a, uint64_t b, uint64_t c, uint64_t d,
                     uint64_t e, uint64_t f) {
  *(*next)++ = (stub_call){.number = number, .argument = {a, b, c, d, e, f}};
}

typedef struct span {
  uint64_t from, to;
} span;

typedef struct kept_spans {
  span spans[KEPT_MAX]; /* sorted */
  uint32_t count;
} kept_spans;

static void keep(kept_spans *kept, span add) {
  span *last = kept->count ? &kept->spans[kept->count - 1] : NULL;
  if (last && last->to == add.from)
    last->to = add.to;
  else if (kept->count < KEPT_MAX)
    kept->spans[kept->count++] = add;
}

/* "from-to " in hexadecimal, as a mapping begins in /proc/self/smaps. */
static bool read_span(const char *line, span *s) {
  char *end;
  s->from = strtoull(line, &end, 16);
  if (end == line || *end != '-')
    return false;
  const char *to = end + 1;
  s->to = strtoull(to, &end, 16);
  return end != to && *end == ' ';
}

/* The vDSO and its data, if the kernel has sealed them (CONFIG_MSEAL_SYSTEM_MAPPINGS). They may stay: they
 * hold nothing of this process, lie at the same addresses in it, and what their code writes it writes to
 * memory of the child, or faults. */
static kept_spans sealed_by_kernel(void) {
  kept_spans kept = {.count = 0};
  FILE *file = fopen("/proc/self/smaps", "re");
  if (!file)
    return kept;
  char line[512];
  span at = {0, 0}, next;
  bool known = false;
  while (fgets(line, sizeof line, file))
    if (read_span(line, &next)) {
      at = next;
      known = strstr(line, "[vdso]") || strstr(line, "[vvar");
    } else if (known && strncmp(line, "VmFlags:", 8) == 0 && strstr(line, " sl")) {
      keep(&kept, at);
    }
  fclose(file);
  return kept;
}

static void add_unmap(stub_call **next, uint64_t from, uint64_t to, const kept_spans *kept) {
  for (uint32_t i = 0; i < kept->count; i++) {
    const span *s = &kept->spans[i];
    if (s->from < from || s->to > to)
      continue;
    if (s->from > from)
      add_call(next, SYS_munmap, from, s->from - from, 0, 0, 0, 0);
    from = s->to;
  }
  add_call(next, SYS_munmap, from, to - from, 0, 0, 0, 0);
}

/* A mapping without access, as the guard pages of windows are. */
static void add_guard(stub_call **next, uint64_t address, uint64_t size) {
  add_call(next, SYS_mmap, address, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED,
           UINT64_MAX, 0);
}

static void list_gate(stub_call **next, const tracee *child) {
  add_guard(next, child->gate, LS_GATE_SIZE);
  add_call(next, SYS_mmap, child->gate, LS_PAGE, PROT_READ | PROT_EXEC, MAP_SHARED | MAP_FIXED | MAP_POPULATE,
           (uint64_t)child->fd, GATE_PAGE);
  add_guard(next, child->inner + GATE_END, LS_GATE_SIZE - GATE_END);
}

/* What the stub does: room for the registration of rseq first (a memory area of the C library, to which the
 * kernel writes at every preemption, and kills if it cannot), then the address space, descriptors, timer, and
 * last the filter, after which no call works.
 * Windows are populated: a first touch would enter the kernel, which does not return to a non-canonical RSP.
 */
static void list_calls(const tracee *child, const sandbox *box, const kept_spans *kept) {
  stub_call *next = (stub_call *)child->out;
  uint64_t inner_end = child->inner + GATE_END, in = child->inner + GATE_IN;
  add_call(&next, SYS_getpid, 0, 0, 0, 0, 0, 0);
  add_call(&next, SYS_rt_sigprocmask, SIG_SETMASK, in + offsetof(gate_in, no_signals), 0, 8, 0, 0);
  add_unmap(&next, 0, child->inner, kept);
  add_unmap(&next, inner_end, USER_END, kept);
  add_call(&next, SYS_munmap, USER_END, USER_END_5 - USER_END, 0, 0, 0, 0);
  next[-1].may_fail = 1; /* EINVAL with four-level paging: there are no such addresses */
  list_gate(&next, child);
  sandbox_mapping maps[SANDBOX_MAPPINGS_MAX];
  uint32_t count = sandbox_mappings(box, maps);
  for (uint32_t i = 0; i < count; i++)
    if (maps[i].guard)
      add_guard(&next, maps[i].address, maps[i].size);
    else
      add_call(&next, SYS_mmap, maps[i].address, maps[i].size, (uint64_t)maps[i].protection,
               MAP_SHARED | MAP_FIXED | (maps[i].size <= SANDBOX_DENSE_MAX ? MAP_POPULATE : 0),
               (uint64_t)box->fd, maps[i].offset);
  add_call(&next, SYS_close, (uint64_t)box->fd, 0, 0, 0, 0, 0);
  add_call(&next, SYS_close, (uint64_t)child->fd, 0, 0, 0, 0, 0);
  add_call(&next, SYS_setitimer, ITIMER_PROF, in + offsetof(gate_in, timer), 0, 0, 0, 0);
  add_call(&next, SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_SPEC_ALLOW,
           in + offsetof(gate_in, filter), 0, 0, 0);
  next[-1].may_fail = 1; /* without it (CONFIG_SECCOMP_FILTER, Linux 4.17) vsyscalls are not stopped */
  add_call(&next, STUB_CALL_END, 0, 0, 0, 0, 0, 0);
}

_Static_assert(SANDBOX_MAPPINGS_MAX + 13 + KEPT_MAX <= STUB_CALLS_MAX, "the longest list of calls fits");

/* Where the C library registered rseq, if the kernel is too old to be asked (glibc 2.35 and later). */
extern const ptrdiff_t __rseq_offset __attribute__((weak));
extern const unsigned __rseq_size __attribute__((weak));

static uint64_t thread_pointer(void) {
  uint64_t pointer;
  __asm__("mov %%fs:0, %0" : "=r"(pointer)); /* its first word is its address (x86-64 psABI, TLS) */
  return pointer;
}

/* At the child's first stop: makes its first call the one that takes the registration of rseq back. */
static void list_rseq(const tracee *child) {
  struct {
    uint64_t pointer;
    uint32_t size, signature, flags, pad;
  } rseq = {0}; /* struct ptrace_rseq_configuration, linux/ptrace.h */
  enum { GET_RSEQ_CONFIGURATION = 0x420f /* Linux 5.13 */ };
  if (ptrace((enum __ptrace_request)GET_RSEQ_CONFIGURATION, child->pid, sizeof rseq, &rseq) < 0) {
    if (!&__rseq_offset || !&__rseq_size || !__rseq_size)
      return;
    rseq.pointer = thread_pointer() + (uint64_t)__rseq_offset;
    rseq.size = RSEQ_SIZE;
    rseq.signature = RSEQ_SIG;
  }
  stub_call *call = (stub_call *)child->out;
  if (rseq.pointer)
    add_call(&call, SYS_rseq, rseq.pointer, rseq.size, RSEQ_UNREGISTER, rseq.signature, 0, 0);
}

/* Waits for a stop of the stub at `label`. Signals that others send meanwhile are suppressed. */
static ls_status wait_at(tracee *child, const sandbox *box, const uint8_t *label, ls_error *error) {
  for (;;) {
    wait_report report = wait_until(child->pid, START_MS);
    if (report.event == WAIT_DEAD)
      child->pid = 0; /* reaped: the number may be another process's by now */
    if (report.event == WAIT_DEAD || report.event == WAIT_NOTHING)
      return died(report, error);
    struct user_regs_struct regs;
    if (report.event == WAIT_SIGNAL && ptrace(PTRACE_GETREGS, child->pid, NULL, &regs) == 0) {
      bool int3 = report.signal == SIGTRAP; /* other signals may come anywhere */
      if (int3 && regs.rip == tracee_label(child, label))
        return LS_OK;
      if (int3 && regs.rip == tracee_label(child, tracee_stub_failed))
        return call_failed(child, box, &regs, error);
      if (report.signal == SIGSEGV || report.signal == SIGBUS || report.signal == SIGILL)
        return died((wait_report){.event = WAIT_DEAD, .signal = report.signal}, error);
    }
    ptrace(PTRACE_CONT, child->pid, NULL, NULL);
  }
}

/* The kernel's error is the same for a child that is dead already. */
static ls_status cannot_seize(tracee *child, int number, ls_error *error) {
  wait_report report = wait_until(child->pid, 0);
  if (report.event != WAIT_DEAD)
    return refused(child->pid, number, error);
  child->pid = 0;
  return died(report, error);
}

static ls_status bring_up(tracee *child, const sandbox *box, ls_error *error) {
  const uintptr_t options = PTRACE_O_EXITKILL | PTRACE_O_TRACESYSGOOD;
  if (ptrace(PTRACE_SEIZE, child->pid, NULL, options) != 0)
    return cannot_seize(child, errno, error);
  __atomic_store_n(&child->in->go, 1, __ATOMIC_RELEASE);
  syscall(SYS_futex, &child->in->go, FUTEX_WAKE, 1, NULL, NULL, 0);
  ls_status status = wait_at(child, box, tracee_stub_hello, error);
  if (status)
    return status;
  list_rseq(child);
  ptrace(PTRACE_CONT, child->pid, NULL,
         NULL); /* it fails if the child has been killed, which the wait tells */
  return wait_at(child, box, tracee_stub_ready, error);
}

/* Thread ids and addresses of thread-local variables come back when a thread has ended. */
static uint64_t this_thread(void) {
  static _Atomic uint64_t last;
  static _Thread_local uint64_t number;
  if (!number)
    number = ++last;
  return number;
}

bool tracee_is_mine(const tracee *child) {
  return child->tracer == this_thread();
}

/* In microseconds, which setitimer counts in; 0 would disarm it. */
static struct timeval tick_time(uint64_t ns) {
  uint64_t us = ns < 1000 ? 1 : ns / 1000;
  return (struct timeval){.tv_sec = (time_t)(us / 1000000), .tv_usec = (suseconds_t)(us % 1000000)};
}

static ls_status start_keeping(tracee *child, const sandbox *box, uint64_t tick_ns, const kept_spans *kept,
                               ls_error *error) {
  struct timeval tick = tick_time(tick_ns);
  child->in->timer = (struct itimerval){.it_interval = tick, .it_value = tick};
  child->in->no_signals = 0;
  child->in->go = 0;
  list_calls(child, box, kept);
  child_setup setup = {.parent = getpid(),
                       .gate_fd = child->fd,
                       .guest_fd = box->fd,
                       .go = &child->in->go,
                       .inner = child->inner,
                       .start = tracee_label(child, tracee_stub_start)};
  child->tracer = this_thread();
  pid_t pid = fork_child(child_fork, &setup);
  if (pid < 0)
    return error_set(error, LS_ERR_NO_REFERENCE, -pid, LS_NONE, "no reference: fork failed: %s",
                     strerror(-pid));
  child->pid = pid;
  ls_status status = bring_up(child, box, error);
  if (status)
    tracee_end(child);
  return status;
}

ls_status tracee_start(tracee *child, const sandbox *box, uint64_t tick_ns, ls_error *error) {
  kept_spans kept = {.count = 0};
  child->sealed = false;
  ls_status status = would_be_killed(error);
  if (status)
    return status;
  status = start_keeping(child, box, tick_ns, &kept, error);
  if (!child->sealed)
    return status;
  kept = sealed_by_kernel();
  return kept.count ? start_keeping(child, box, tick_ns, &kept, error) : status;
}

void tracee_end(tracee *child) {
  if (!child->pid)
    return;
  wait_report report = wait_until(child->pid, 0);
  if (report.event != WAIT_DEAD) /* else the number may be another process's: the host can have reaped it */
    kill(child->pid, SIGKILL);
  while (report.event != WAIT_DEAD) {
    report = wait_until(child->pid, END_MS);
    if (report.event == WAIT_NOTHING)
      break;
  }
  child->pid = 0;
}

#include "oracle/host.h"

#include <cpuid.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "flags.h"

enum { SLOW_EVERY = 64, SIGNALS = 64, MASK_BYTES = 8, HWCAP2_FSGSBASE_BIT = 2 };

/* Bits that calls leave as they are; the rest of RFLAGS is anybody's. */
#define CONTROL_FLAGS (RFLAGS_TF | RFLAGS_DF | RFLAGS_IOPL | RFLAGS_NT | RFLAGS_AC | RFLAGS_ID)

void host_registers_call(void (*function)(void *), void *context, host_registers *before,
                         host_registers *after, bool fsgsbase);

/* As the kernel has it (arch/x86/include/uapi/asm/signal.h): the C library's sigaction() hides its own
 * signals. */
typedef struct kernel_action {
  uint64_t handler, flags, restorer, mask;
} kernel_action;

/* What takes a system call for each signal to see. */
typedef struct slow_look {
  uint64_t mask;
  kernel_action actions[SIGNALS + 1];
} slow_look;

/* ---- Changes ---- */

static void note(host_watch *w, const char *name, uint64_t before, uint64_t after) {
  if (before == after)
    return;
  if (w->count < HOST_CHANGES_MAX) {
    host_change *c = &w->changes[w->count];
    snprintf(c->name, sizeof c->name, "%s", name);
    c->before = before;
    c->after = after;
  }
  w->count++;
}

/* ---- Registers ---- */

static const struct {
  const char *name;
  size_t offset;
  uint64_t mask;
} registers[] = {
#define WHOLE(name)                                                                                          \
  { #name, offsetof(host_registers, name), UINT64_MAX }
    WHOLE(rbx),
    WHOLE(rbp),
    WHOLE(r12),
    WHOLE(r13),
    WHOLE(r14),
    WHOLE(r15),
    {"rflags", offsetof(host_registers, rflags), CONTROL_FLAGS},
    WHOLE(mxcsr),
    WHOLE(fcw),
    WHOLE(ds),
    WHOLE(es),
    WHOLE(fs),
    WHOLE(gs),
    WHOLE(fs_base),
    WHOLE(gs_base),
#undef WHOLE
};

static uint64_t field_of(const host_registers *r, size_t i) {
  uint64_t value;
  memcpy(&value, (const char *)r + registers[i].offset, sizeof value);
  return value & registers[i].mask;
}

static void compare_registers(host_watch *w, const host_registers *before, const host_registers *after) {
  for (size_t i = 0; i < sizeof registers / sizeof *registers; i++)
    note(w, registers[i].name, field_of(before, i), field_of(after, i));
}

/* ---- What the kernel knows ---- */

static void compare_stack(host_watch *w, const stack_t *before) {
  stack_t after = {0};
  sigaltstack(NULL, &after);
  uint32_t count = w->count;
  note(w, "alternate stack", (uintptr_t)before->ss_sp, (uintptr_t)after.ss_sp);
  note(w, "its size", before->ss_size, after.ss_size);
  note(w, "its flags", (unsigned)before->ss_flags, (unsigned)after.ss_flags);
  if (w->count != count)
    sigaltstack(before, NULL);
}

/* Where a seccomp filter refuses to say, all is 0. */
static void look_slowly(slow_look *look) {
  memset(look, 0, sizeof *look);
  syscall(SYS_rt_sigprocmask, SIG_SETMASK, NULL, &look->mask, MASK_BYTES);
  for (int s = 1; s <= SIGNALS; s++)
    syscall(SYS_rt_sigaction, s, NULL, &look->actions[s], MASK_BYTES);
}

/* A handler that is called once, and was: the kernel has put the default in its place. */
static bool has_reset_itself(const kernel_action *before, const kernel_action *after) {
  return before->flags & SA_RESETHAND && after->handler == (uintptr_t)SIG_DFL && after->mask == before->mask;
}

static void compare_action(host_watch *w, int signal, const kernel_action *before,
                           const kernel_action *after) {
  char name[HOST_NAME];
  snprintf(name, sizeof name, "handler of signal %d", signal);
  note(w, name, before->handler, after->handler);
  snprintf(name, sizeof name, "mask of signal %d", signal);
  note(w, name, before->mask, after->mask);
  snprintf(name, sizeof name, "flags of signal %d", signal);
  note(w, name, before->flags, after->flags);
  syscall(SYS_rt_sigaction, signal, before, NULL, MASK_BYTES);
}

static void compare_slowly(host_watch *w, const slow_look *before) {
  slow_look after;
  look_slowly(&after);
  note(w, "signal mask", before->mask, after.mask);
  if (before->mask != after.mask)
    syscall(SYS_rt_sigprocmask, SIG_SETMASK, &before->mask, NULL, MASK_BYTES);
  for (int s = 1; s <= SIGNALS; s++)
    if (memcmp(&before->actions[s], &after.actions[s], sizeof after.actions[s]) != 0 &&
        !has_reset_itself(&before->actions[s], &after.actions[s]))
      compare_action(w, s, &before->actions[s], &after.actions[s]);
}

/* ---- Vectors ---- */

/* XGETBV with ECX = 1 (SDM vol. 1, 13.6): the components of XCR0 that are not in their initial state. CPUs
 * that have it track AVX's, the upper halves of YMM0-15, which a function must leave zero: SSE code is slow
 * otherwise. */
static bool can_ask_what_is_in_use(void) {
  enum { OSXSAVE = 1 << 27, XGETBV1 = 1 << 2 };
  unsigned a, b, c, d;
  return __get_cpuid(1, &a, &b, &c, &d) && c & OSXSAVE && __get_cpuid_count(0xd, 1, &a, &b, &c, &d) &&
         a & XGETBV1;
}

static uint64_t upper_halves_in_use(bool can_ask) {
  enum { AVX_COMPONENT = 1 << 2 };
  uint32_t low, high;
  if (!can_ask)
    return 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(1));
  return low & AVX_COMPONENT;
}

/* ---- A call ---- */

/* Values that are nobody's, to be found again. */
static const host_registers nobodys = {
    .rbx = UINT64_C(0xb0b0b0b0b0b0b0b0),
    .rbp = UINT64_C(0xb1b1b1b1b1b1b1b1),
    .r12 = UINT64_C(0xb2b2b2b2b2b2b2b2),
    .r13 = UINT64_C(0xb3b3b3b3b3b3b3b3),
    .r14 = UINT64_C(0xb4b4b4b4b4b4b4b4),
    .r15 = UINT64_C(0xb5b5b5b5b5b5b5b5),
};

static void look_at_cpu(host_watch *w) {
  w->fsgsbase = (getauxval(AT_HWCAP2) & HWCAP2_FSGSBASE_BIT) != 0;
  w->in_use_asked = can_ask_what_is_in_use();
  w->knows_cpu = true;
}

bool host_call(host_watch *w, void (*function)(void *), void *context) {
  host_registers before = nobodys, after = {0};
  stack_t stack = {0};
  slow_look slow;
  bool slowly = w->calls++ % SLOW_EVERY == 0;
  w->count = 0;
  if (!w->knows_cpu)
    look_at_cpu(w);
  sigaltstack(NULL, &stack);
  if (slowly)
    look_slowly(&slow);
  uint64_t upper = upper_halves_in_use(w->in_use_asked);
  host_registers_call(function, context, &before, &after, w->fsgsbase);
  note(w, "upper halves of ymm", upper, upper_halves_in_use(w->in_use_asked));
  compare_registers(w, &before, &after);
  compare_stack(w, &stack);
  if (slowly)
    compare_slowly(w, &slow);
  return w->count != 0;
}

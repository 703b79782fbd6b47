/* Faults of an emulated CPU that tests of Lockstep run into, each shown without Lockstep: by a few instructions, a signal
 * handler and the kernel. For each a line on standard output: its name, and "yes" if this machine has it. */
#define _GNU_SOURCE
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

static volatile sig_atomic_t seen, code, flags;
static uint8_t *room; /* a page to run code in */
static uint64_t go_on;

static void on_signal(int number, siginfo_t *info, void *context) {
  greg_t *regs = ((ucontext_t *)context)->uc_mcontext.gregs;
  seen = number;
  code = info->si_code;
  flags = (sig_atomic_t)regs[REG_EFL];
  regs[REG_RIP] = (greg_t)go_on;
  regs[REG_EFL] &= ~0x40100; /* TF, AC */
}

/* Runs `asm_text`, and returns the signal it raised, or 0. The stack pointer is put back. */
#define RAISES(asm_text)                                                                                               \
  ({                                                                                                                   \
    seen = 0;                                                                                                          \
    __asm__ volatile("lea 1f(%%rip), %%rax\n mov %%rax, %0\n mov %%rsp, %%r12\n" asm_text                              \
                     "\n1: mov %%r12, %%rsp\n"                                                                         \
                     : "=m"(go_on)                                                                                     \
                     : "r"(room)                                                                                       \
                     : "rax", "rcx", "rdx", "rbx", "rsi", "rdi", "r8", "r9", "r12", "xmm0", "xmm1", "memory", "cc");   \
    (int)seen;                                                                                                         \
  })

static int alignment_is_not_checked(void) {
  int raised = RAISES("mov %1, %%rdx\n sub $128, %%rsp\n pushfq\n orl $0x40000, (%%rsp)\n popfq\n mov 1(%%rdx), %%rcx");
  __asm__ volatile("sub $128, %%rsp\n pushfq\n andl $~0x40000, (%%rsp)\n popfq\n add $128, %%rsp" : : : "memory", "cc");
  return raised != SIGBUS;
}

static int stack_faults_are_general_faults(void) {
  return RAISES("mov %1, %%rdx\n mov $1, %%r8\n shl $63, %%r8\n mov %%r8, %%rsp\n mov (%%rsp), %%rcx") != SIGBUS;
}

static int sse_alignment_is_not_checked(void) {
  return RAISES("mov %1, %%rdx\n movaps 8(%%rdx), %%xmm0") != SIGSEGV;
}

static int sse_exceptions_are_not_raised(void) {
  return RAISES("mov %1, %%rdx\n movl $0x1d80, (%%rdx)\n ldmxcsr (%%rdx)\n mov $1, %%ecx\n cvtsi2ss %%ecx, %%xmm0\n"
                "xorps %%xmm1, %%xmm1\n divss %%xmm1, %%xmm0\n movl $0x1f80, (%%rdx)\n ldmxcsr (%%rdx)") != SIGFPE;
}

static int denormal_flag_is_not_set(void) {
  uint32_t mxcsr = 0x1f80, denormal = 1;
  __asm__ volatile("ldmxcsr %0\n movss %1, %%xmm0\n addss %%xmm0, %%xmm0\n stmxcsr %0"
                   : "+m"(mxcsr)
                   : "m"(denormal)
                   : "xmm0");
  return !(mxcsr & 2);
}

static int int1_is_unknown(void) {
  return RAISES("mov %1, %%rdx\n .byte 0xf1") != SIGTRAP;
}

static int x87_exceptions_wait_for_fwait(void) {
  int raised = RAISES("mov %1, %%rdx\n fninit\n movw $0x37b, (%%rdx)\n fldcw (%%rdx)\n fld1\n fldz\n fdivrp\n fld1");
  __asm__ volatile("fninit");
  return raised != SIGFPE;
}

static int x87_pointers_are_lost(void) {
  static uint8_t image[512] __attribute__((aligned(16)));
  __asm__ volatile("fninit\n fxsave64 %0" : "+m"(image));
  memset(image + 8, 0x12, 4);
  image[0] = 0x40; /* unmasked, and all exceptions pending: without that some CPUs drop the pointers too */
  image[2] = 0xff;
  __asm__ volatile("fxrstor64 %0\n fxsave64 %0\n fninit" : "+m"(image));
  return image[8] != 0x12;
}

static int reserved_mxcsr_bits_are_loaded(void) {
  return RAISES("mov %1, %%rdx\n movl $0x80001f80, (%%rdx)\n ldmxcsr (%%rdx)\n movl $0x1f80, (%%rdx)\n"
                "ldmxcsr (%%rdx)") != SIGSEGV;
}

static int x87_store_fault_sets_flags(void) {
  static const uint8_t huge[10] = {[7] = 0x80, [8] = 0xfe, [9] = 0x7f}; /* too large for a double */
  uint16_t status = 0;
  if (mprotect(room, 4096, PROT_READ))
    return 0;
  __asm__ volatile("fninit\n fldt %0" : : "m"(huge));
  int raised = RAISES("mov %1, %%rdx\n fstl (%%rdx)");
  __asm__ volatile("fnstsw %0\n fninit" : "=m"(status));
  mprotect(room, 4096, PROT_READ | PROT_WRITE | PROT_EXEC);
  return raised == SIGSEGV && (status & 0x3f);
}

/* Nor is #MF raised by MMX instructions. */
static int mmx_does_not_wait(void) {
  int raised = RAISES("mov %1, %%rdx\n fninit\n movw $0x37b, (%%rdx)\n fldcw (%%rdx)\n fld1\n fldz\n fdivrp\n emms");
  __asm__ volatile("fninit");
  return raised != SIGFPE;
}

static int x87_stack_faults_are_not_raised(void) {
  int raised = RAISES("mov %1, %%rdx\n fninit\n movw $0x37e, (%%rdx)\n fldcw (%%rdx)\n fchs\n fwait");
  __asm__ volatile("fninit");
  return raised != SIGFPE;
}

static int x87_denormals_are_not_raised(void) {
  int raised = RAISES("mov %1, %%rdx\n fninit\n movw $0x37d, (%%rdx)\n fldcw (%%rdx)\n movq $1, (%%rdx)\n"
                      "fldl (%%rdx)\n fwait");
  __asm__ volatile("fninit");
  return raised != SIGFPE;
}

/* The undocumented second encoding of TEST; every CPU knows it. */
static int test_alias_is_unknown(void) {
  return RAISES("mov %1, %%rdx\n .byte 0xf6, 0xc8, 0x01") == SIGILL;
}

/* 0F 18 with a register operand is a NOP. */
static int prefetch_of_register_is_unknown(void) {
  return RAISES("mov %1, %%rdx\n .byte 0x0f, 0x18, 0xca") == SIGILL;
}

/* CMPXCHG8B and CMPXCHG16B take the flags of the instruction before from where they are not: RFLAGS is what ADD had for
 * an operand, with IOPL where that has the bits, and IOPL stays once the kernel has seen it. */
static int cmpxchg8b_spoils_flags(void) {
  RAISES("mov %1, %%rdx\n movq $0, (%%rdx)\n movq $0, 8(%%rdx)\n mov %%rdx, %%rdi\n mov $0x20000, %%esi\n pushq $0x202\n popfq\n"
         "jmp 2f\n2: add %%rsi, %%r8\n cmpxchg8b (%%rdi)\n pushfq\n popq (%%rdi)\n pushq $0x202\n popfq");
  return (*(volatile uint64_t *)room & 0x20000) != 0;
}

/* ADOX and ADCX of 32 bits put the upper halves of their operands into RFLAGS. */
static int adx_spoils_flags(void) {
  int raised = RAISES("mov %1, %%rdx\n movq $0, (%%rdx)\n mov $0x20, %%eax\n shl $32, %%rax\n mov $1, %%ecx\n"
                      "pushq $0x202\n popfq\n .byte 0xf3, 0x0f, 0x38, 0xf6, 0xc8\n pushfq\n popq (%%rdx)\n pushq $0x202\n popfq");
  return raised == 0 && (*(volatile uint64_t *)room & ~UINT64_C(0xcd7)) != 0x200;
}

/* SETcc whose store faults has given up what the flags were made of: they are some others'. Of 0x55000001 no
 * flag is set. */
static int setcc_fault_spoils_flags(void) {
  int raised = RAISES("mov %1, %%rdx\n xor %%ecx, %%ecx\n xor %%ecx, %%ecx\n jmp 2f\n2: mov $1, %%eax\n xor $0x55000000, %%eax\n"
                      "setle (%%rcx)");
  return raised == SIGSEGV && (flags & 0x8c5) != 0;
}

/* RCL and RCR of memory that is not there: the same. */
static int rcl_fault_spoils_flags(void) {
  int raised = RAISES("mov %1, %%rdx\n xor %%esi, %%esi\n xor %%esi, %%esi\n jmp 2f\n2: mov $1, %%ecx\n mov $1, %%eax\n"
                      "xor $0x55000000, %%eax\n rclw %%cl, (%%rsi)");
  return raised == SIGSEGV && (flags & 0x8c5) != 0;
}

/* The first trap after PAUSE comes one instruction late. */
static int pause_is_not_stepped(void) {
  RAISES("mov %1, %%rdx\n movq $0, (%%rdx)\n pushfq\n orl $0x100, (%%rsp)\n popfq\n pause\n movq $1, (%%rdx)");
  return seen == SIGTRAP && *(volatile uint64_t *)room == 1;
}

/* 8F with a ModRM byte that is no POP's is an XOP prefix, and invalid where there is no XOP; here a POP whatever the
 * byte says. blcfill rax, rcx or pop rcx; clc; add ecx, ecx. */
static int xop_is_pop(void) {
  int raised = RAISES("mov %1, %%rdx\n movq $0, (%%rdx)\n push $0\n mov %%rsp, %%r9\n .byte 0x8f, 0xe9, 0xf8, 0x01, 0xc9\n"
                      "sub %%rsp, %%r9\n mov %%r9, (%%rdx)");
  return raised == 0 && *(volatile int64_t *)room == -8;
}

static const struct fact {
  const char *name;
  int (*holds)(void);
} facts[] = {
    {"alignment_is_not_checked", alignment_is_not_checked},
    {"stack_faults_are_general_faults", stack_faults_are_general_faults},
    {"sse_alignment_is_not_checked", sse_alignment_is_not_checked},
    {"sse_exceptions_are_not_raised", sse_exceptions_are_not_raised},
    {"denormal_flag_is_not_set", denormal_flag_is_not_set},
    {"x87_exceptions_wait_for_fwait", x87_exceptions_wait_for_fwait},
    {"x87_pointers_are_lost", x87_pointers_are_lost},
    {"reserved_mxcsr_bits_are_loaded", reserved_mxcsr_bits_are_loaded},
    {"int1_is_unknown", int1_is_unknown},
    {"x87_store_fault_sets_flags", x87_store_fault_sets_flags},
    {"pause_is_not_stepped", pause_is_not_stepped},
    {"xop_is_pop", xop_is_pop},
    {"setcc_fault_spoils_flags", setcc_fault_spoils_flags},
    {"rcl_fault_spoils_flags", rcl_fault_spoils_flags},
    {"mmx_does_not_wait", mmx_does_not_wait},
    {"x87_stack_faults_are_not_raised", x87_stack_faults_are_not_raised},
    {"x87_denormals_are_not_raised", x87_denormals_are_not_raised},
    {"test_alias_is_unknown", test_alias_is_unknown},
    {"prefetch_of_register_is_unknown", prefetch_of_register_is_unknown},
    {"cmpxchg8b_spoils_flags", cmpxchg8b_spoils_flags},
    {"adx_spoils_flags", adx_spoils_flags},
};

int main(void) {
  static uint8_t stack[65536];
  struct sigaction action = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_ONSTACK};
  static const int signals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP};
  sigaltstack(&(stack_t){.ss_sp = stack, .ss_size = sizeof stack}, NULL);
  for (size_t i = 0; i < sizeof signals / sizeof *signals; i++)
    sigaction(signals[i], &action, NULL);
  room = mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  for (size_t i = 0; i < sizeof facts / sizeof *facts; i++) {
    printf("%s %s", facts[i].name, facts[i].holds() ? "yes" : "no");
    printf(" (signal %d, code %d)\n", (int)seen, (int)code);
    fflush(stdout);
  }
  return 0;
}

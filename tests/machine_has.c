/* What tests may need and a machine may lack. For each such thing a line on standard output: its name, "yes"
 * or "no", and what to say of a test that needs it where it is missing. CTest asks before it makes its list
 * of tests (here.cmake), so that the reason stands in the test's name. If it cannot tell, it ends with an
 * exit code other than 0. */
#include <cpuid.h>
#include <dlfcn.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "cpu.h"
#include "guest.h"
#include "sanitizers.h"

static bool has_avx(void) {
  return ls_vectors_available() >= LS_VECTORS_AVX;
}

static bool has_avx512(void) {
  return ls_vectors_available() == LS_VECTORS_AVX512;
}

static bool has_fsgsbase(void) {
  return cpu()->fsgsbase;
}

static bool has_dispatch(void) {
  guest g = guest_open(0, NULL);
  bool has = ls_executor_stops_syscalls(g.executor);
  guest_close(&g);
  return has;
}

/* RETF to the code segment that Linux has for 32-bit programs; #GP where it has none. */
static bool has_code32(void) {
  guest g = guest_open(0, NULL);
  ls_state state;
  ls_outcome out;
  fill(&state);
  return_to_32_bit(&g, &state);
  load(&g, FAR_RETURN " / 0f 0b");
  bool has = run(&g, &state, 0, 0, &out) == LS_OK && out.state.cs == CS_32;
  guest_close(&g);
  return has;
}

static char why_no_reference[sizeof((ls_error *)0)->text];

/* That it fails in any other way than by being refused is for the tests to show. */
static bool has_ptrace(void) {
  ls_layout layout;
  ls_executor *reference = NULL;
  ls_layout_default(&layout, 0);
  bool refused = ls_executor_create(LS_PTRACE, &layout, NULL, &reference, &error) == LS_ERR_NO_REFERENCE;
  ls_executor_destroy(reference);
  snprintf(why_no_reference, sizeof why_no_reference, "%s", error.text);
  return !refused;
}

/* In a process of its own, since what is tried lasts. */
static bool in_child(bool (*tries)(void)) {
  int status = 1;
  fflush(NULL);
  pid_t child = fork();
  if (!child)
    _exit(!tries());
  waitpid(child, &status, 0);
  return status == 0;
}

static bool set_filter(void) {
  struct sock_filter filter[] = {BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)};
  struct sock_fprog program = {1, filter};
  return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
         prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

static bool has_seccomp(void) {
  return in_child(set_filter);
}

static bool seal(void) {
  enum { CALL_MSEAL = 462 };
  void *page = mmap(NULL, LS_PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  return syscall(CALL_MSEAL, page, LS_PAGE, 0) == 0;
}

static bool has_mseal(void) {
  return in_child(seal);
}

/* A clock interrupt that comes less often than a sample shall, and timers that are more exact. */
static bool has_fine_timer(void) {
  enum { SELDOM_NS = 2000000, EXACT_NS = 1000 };
  struct timespec coarse = {0}, exact = {.tv_sec = 1};
  clock_getres(CLOCK_MONOTONIC_COARSE, &coarse);
  clock_getres(CLOCK_MONOTONIC, &exact);
  return coarse.tv_nsec >= SELDOM_NS && !exact.tv_sec && exact.tv_nsec <= EXACT_NS;
}

static bool has_avx2(void) {
  return __builtin_cpu_supports("avx2") != 0;
}

/* CPUID leaf 0dh, 1: XGETBV with ECX = 1. */
static bool has_in_use(void) {
  unsigned a, b, c, d;
  return has_avx() && __get_cpuid_count(0xd, 1, &a, &b, &c, &d) && a & 4;
}

static bool is_without_tsan(void) {
  return !TSAN;
}

static bool is_without_sanitizer(void) {
  return !TSAN && !ASAN;
}

static bool has_namespaces(void) {
#ifdef LM_ID_NEWLM
  return true;
#else
  return false;
#endif
}

static bool has_cxx(void) {
  return system("command -v \"${CXX:-c++}\" >/dev/null") == 0;
}

static bool has_pkg_config(void) {
  return system("command -v pkg-config >/dev/null") == 0;
}

/* And a C compiler for what it calls. */
static bool has_go(void) {
  return system("test \"$(go env CGO_ENABLED 2>/dev/null)\" = 1 && command -v \"$(go env CC)\" >/dev/null") ==
         0;
}

static const struct thing {
  const char *name;
  bool (*is_here)(void);
  const char *reason;
} things[] = {
    {"avx", has_avx, "needs AVX, which this CPU lacks"},
    {"avx512", has_avx512, "needs AVX512F and AVX512BW, which this CPU lacks"},
    {"avx2", has_avx2, "needs AVX2, which this CPU lacks"},
    {"in_use", has_in_use, "needs XGETBV to say which vectors are in use, which this CPU lacks"},
    {"fsgsbase", has_fsgsbase, "needs FSGSBASE, which this CPU or kernel lacks"},
    {"dispatch", has_dispatch, "needs Syscall User Dispatch, Linux 5.11, which this kernel lacks"},
    {"code32", has_code32, "needs 32-bit code, which this system refuses"},
    {"no_sanitizer", is_without_sanitizer,
     "needs addresses and system calls that a sanitizer has for itself"},
    {"ptrace", has_ptrace, NULL},
    {"seccomp", has_seccomp, "needs seccomp filters, which this system refuses"},
    {"mseal", has_mseal, "needs mseal, Linux 6.10, which this kernel lacks"},
    {"fine_timer", has_fine_timer,
     "needs high-resolution timers, and a clock interrupt every 2 ms or less often, which this kernel lacks"},
    {"no_tsan", is_without_tsan,
     "needs signals at once and forks among threads, which ThreadSanitizer prevents"},
    {"namespaces", has_namespaces, "needs dlmopen, which this C library lacks"},
    {"cxx", has_cxx, "needs a C++ compiler"},
    {"pkg_config", has_pkg_config, "needs pkg-config"},
    {"go", has_go, "needs Go and a C compiler for it"},
};

int main(void) {
  for (size_t i = 0; i < sizeof things / sizeof *things; i++) {
    const struct thing *t = &things[i];
    bool here = t->is_here();
    printf("%s %s %s%s\n", t->name, here ? "yes" : "no",
           t->reason ? t->reason : "needs ptrace: ", t->reason ? "" : why_no_reference);
  }
  return 0;
}

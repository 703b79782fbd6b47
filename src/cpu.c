/* CPUID, XCR0, and the XSAVE layout. */
#include "cpu.h"

#include <cpuid.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "state_offsets.h"

/* Offsets in an XSAVE area that do not depend on the CPU (SDM vol. 1, 13.4.1 and 13.4.2). */
enum { XSAVE_LEGACY_XMM = 160, XSAVE_HEADER = 512, XSAVE_FX_MXCSR = 24, FXSAVE_SIZE = 512 };

enum { XCR0_AVX = 0x6, XCR0_AVX512 = 0xe6 };

static cpu_features features;

static uint64_t read_xcr0(void) {
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return low | (uint64_t)high << 32;
}

static ls_vectors widest(void) {
  uint32_t a, b, c, d;
  __cpuid(1, a, b, c, d);
  if (!(c & bit_OSXSAVE) || !(c & bit_AVX) || (features.xcr0 & XCR0_AVX) != XCR0_AVX)
    return LS_VECTORS_SSE;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d))
    return LS_VECTORS_AVX;
  /* Opmasks are moved 64 bits at a time, which takes AVX-512BW. */
  if ((b & bit_AVX512F) && (b & bit_AVX512BW) && (features.xcr0 & XCR0_AVX512) == XCR0_AVX512)
    return LS_VECTORS_AVX512;
  return LS_VECTORS_AVX;
}

static void read_xsave_layout(void) {
  uint32_t a, b, c, d;
  features.xsave_size = FXSAVE_SIZE + 64;
  if (!features.xcr0 || !__get_cpuid_count(0xd, 0, &a, &b, &c, &d))
    return;
  features.xsave_size = b;
  for (unsigned i = XSAVE_AVX; i < XSAVE_COMPONENTS; i++) {
    if (!(features.xcr0 >> i & 1))
      continue;
    __cpuid_count(0xd, i, a, b, c, d);
    features.size[i] = a;
    features.offset[i] = b;
  }
}

static uint32_t read_mxcsr_mask(void) {
  uint8_t area[FXSAVE_SIZE] __attribute__((aligned(16))) = {0};
  __asm__ volatile("fxsave64 %0" : "=m"(area));
  uint32_t mask;
  memcpy(&mask, area + XSAVE_FX_MXCSR + 4, sizeof mask);
  return mask ? mask : 0xffbf; /* SDM vol. 1, 11.6.6 */
}

/* In a process of its own, since CPUID may deny what CR4 permits and the other way round. The child is cloned
 * without an exit signal, so that the host sees no SIGCHLD. */
__attribute__((no_sanitize("address", "thread", "undefined"))) static bool try_fsgsbase(void) {
  pid_t child = (pid_t)syscall(SYS_clone, 0, NULL, NULL, NULL, NULL);
  if (child < 0)
    return false;
  if (child == 0) {
    struct {
      void *handler;
      unsigned long flags;
      void *restorer;
      unsigned long mask;
    } fall_back = {0};
    syscall(SYS_rt_sigaction, SIGILL, &fall_back, NULL, sizeof fall_back.mask);
    uint64_t base;
    __asm__ volatile("rdfsbase %0" : "=r"(base));
    syscall(SYS_exit_group, 0);
    __builtin_unreachable();
  }
  int status;
  pid_t waited;
  do
    waited = waitpid(child, &status, __WALL);
  while (waited < 0 && errno == EINTR);
  return waited == child && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

static void read_features(void) {
  uint32_t a, b, c, d;
  __cpuid(1, a, b, c, d);
  features.xcr0 = c & bit_OSXSAVE ? read_xcr0() : 0;
  features.vectors = widest();
  read_xsave_layout();
  features.mxcsr_mask = read_mxcsr_mask();
  features.fsgsbase = try_fsgsbase();
}

const cpu_features *cpu(void) {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  pthread_once(&once, read_features);
  return &features;
}

ls_vectors ls_vectors_available(void) {
  return cpu()->vectors;
}

/* Is component `i` in the area and in use? Otherwise it has its initial value. */
static bool in_use(uint64_t bits, unsigned i) {
  return bits >> i & 1;
}

static void read_fx(const uint8_t *area, uint64_t bits, ls_state *state) {
  uint8_t *fx = (uint8_t *)state + STATE_FX;
  memset(fx, 0, STATE_FX_SIZE);
  if (in_use(bits, XSAVE_X87))
    memcpy(fx, area, STATE_FX_SIZE);
  else
    state->fcw = 0x37f;
  /* MXCSR is stored whenever SSE or AVX is asked for, its XSTATE_BV bit notwithstanding (SDM vol. 1, 13.7).
   */
  memcpy(&state->mxcsr, area + XSAVE_FX_MXCSR, sizeof state->mxcsr);
  state->reserved1 = 0;
  state->reserved2 = 0;
}

void xsave_read(const uint8_t *area, uint64_t present, ls_state *state) {
  const cpu_features *f = &features;
  uint64_t bits;
  memcpy(&bits, area + XSAVE_HEADER, sizeof bits);
  bits &= present;
  read_fx(area, bits, state);
  memset(state->zmm, 0, sizeof state->zmm);
  memset(state->k, 0, sizeof state->k);
  for (unsigned i = 0; i < 16; i++) {
    if (in_use(bits, XSAVE_SSE))
      memcpy(state->zmm[i], area + XSAVE_LEGACY_XMM + 16 * i, 16);
    if (in_use(bits, XSAVE_AVX))
      memcpy(state->zmm[i] + 16, area + f->offset[XSAVE_AVX] + 16 * i, 16);
    if (in_use(bits, XSAVE_ZMM_HI256))
      memcpy(state->zmm[i] + 32, area + f->offset[XSAVE_ZMM_HI256] + 32 * i, 32);
  }
  if (in_use(bits, XSAVE_HI16_ZMM))
    memcpy(state->zmm[16], area + f->offset[XSAVE_HI16_ZMM], sizeof state->zmm / 2);
  if (in_use(bits, XSAVE_OPMASK))
    memcpy(state->k, area + f->offset[XSAVE_OPMASK], sizeof state->k);
}

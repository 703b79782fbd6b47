#include "feedback/stats.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static const char magic[8] = "LSSTATS";

void stats_init(stats *s) {
  memset(s, 0, sizeof *s);
  memcpy(s->magic, magic, sizeof magic);
  s->size = sizeof *s;
  s->forms = forms_count();
}

static void set_bit(uint8_t *bits, form_id form) {
  if (form < STATS_FORMS_MAX)
    bits[form / 8] |= (uint8_t)(1u << form % 8);
}

void stats_see(stats *s, form_id form) {
  set_bit(s->seen, form);
}

void stats_allow(stats *s, form_id form) {
  set_bit(s->allowed, form);
}

void stats_finish(stats *s) {
  s->forms_allowed = 0;
  s->forms_seen = 0;
  for (size_t i = 0; i < sizeof s->allowed; i++) {
    s->forms_allowed += (uint32_t)__builtin_popcount(s->allowed[i]);
    s->forms_seen += (uint32_t)__builtin_popcount((unsigned)(s->allowed[i] & s->seen[i]));
  }
}

void stats_add(stats *sum, const stats *more) {
  if (sum->begun == 0 || more->begun < sum->begun)
    sum->begun = more->begun;
  if (more->ended > sum->ended)
    sum->ended = more->ended;
  sum->programs += more->programs;
  for (int i = 0; i < VERDICTS; i++)
    sum->counts.verdicts[i] += more->counts.verdicts[i];
  for (int i = 0; i < ORACLE_REASONS; i++) {
    sum->counts.reasons[i] += more->counts.reasons[i];
    sum->counts.once[i] += more->counts.once[i];
  }
  for (int i = 0; i < LS_STOP_KINDS; i++)
    sum->counts.stops[i] += more->counts.stops[i];
  for (size_t i = 0; i < sizeof sum->seen; i++) {
    sum->seen[i] |= more->seen[i];
    sum->allowed[i] |= more->allowed[i];
  }
}

/* ---- Limits ---- */

/* The one place of these numbers; docs/INTERNALS.md ("What stays open") has their reasons. */
static const double limits[ORACLE_REASONS] = {
    [REASON_NONE] = 1,
    [REASON_TIMEOUT] = 1e-6,
    [REASON_STACK_POINTER] = 1, /* of fuzz_inspect alone */
    [REASON_REFERENCE_UNSTABLE] = 1e-6,
    [REASON_THREAD_UNSTABLE] = 1e-6,
    [REASON_REFERENCE_LOST] = 1e-5,
    [REASON_POLICY] = 1e-5,
    [REASON_FS_GS] = 1e-5,
    [REASON_FOREIGN] = 1e-5,
    [REASON_ADDRESS] = 1e-5,
    [REASON_SYSCALL] = 1, /* kernels without Syscall User Dispatch */
    [REASON_PROGRAM] = 1e-5,
    [REASON_STATE] = 1e-5,
    [REASON_FEATURE] = 1, /* seeds of richer machines */
    [REASON_HOST] = 1,    /* a finding, whatever its share */
};

double stats_limit(oracle_reason reason) {
  return limits[reason];
}

/* By more than four deviations of a Poisson count, and a few that a short run may always have. */
bool stats_above_limit(const stats *s, oracle_reason reason) {
  double explained = limits[reason] * (double)s->programs;
  double more = (double)s->counts.reasons[reason] - explained - 3;
  return limits[reason] < 1 && more > 0 && more * more > 16 * explained;
}

/* ---- Files ---- */

/* Room on the disk is taken now: a mapped page without would be SIGBUS later. What is no plain file is left
 * alone. */
static int make_file(const char *path) {
  int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (fd < 0)
    return -1;
  struct stat about;
  int trouble = fstat(fd, &about) != 0 ? errno : S_ISREG(about.st_mode) ? 0 : EINVAL;
  if (!trouble)
    trouble = posix_fallocate(fd, 0, sizeof(stats));
  if (!trouble)
    return fd;
  close(fd);
  errno = trouble;
  return -1;
}

stats *stats_open(const char *path) {
  int fd = path ? make_file(path) : -1;
  if (path && fd < 0)
    return NULL;
  stats *s =
      mmap(NULL, sizeof *s, PROT_READ | PROT_WRITE, path ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS, fd, 0);
  if (fd >= 0)
    close(fd);
  if (s == MAP_FAILED)
    return NULL;
  stats_init(s);
  return s;
}

int stats_read(stats *s, const char *path) {
  FILE *file = fopen(path, "rbe");
  if (!file)
    return errno;
  size_t got = fread(s, 1, sizeof *s, file);
  int more = fgetc(file) != EOF, failed = ferror(file) ? errno : 0;
  fclose(file);
  if (failed)
    return failed;
  bool ours = got == sizeof *s && !more && memcmp(s->magic, magic, sizeof magic) == 0 &&
              s->size == sizeof *s && s->forms == forms_count();
  return ours ? 0 : EINVAL;
}

#include "feedback/keep.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "words.h"

static const char *folder_named_by(const char *variable) {
  const char *folder = getenv(variable);
  return folder && *folder ? folder : NULL;
}

const char *keep_folder(void) {
  return folder_named_by("LOCKSTEP_KEEP");
}

const char *keep_findings(void) {
  return folder_named_by("LOCKSTEP_FINDINGS");
}

/* snprintf that fails where the text does not fit. */
#define PUT_PATH(path, ...)                                                                                  \
  ((size_t)snprintf(path, sizeof path, __VA_ARGS__) < sizeof path || (errno = ENAMETOOLONG, false))

static bool make_folder(const char *path) {
  return mkdir(path, 0777) == 0 || errno == EEXIST;
}

static bool write_all(int fd, const uint8_t *data, size_t size) {
  while (size > 0) {
    ssize_t written = write(fd, data, size);
    if (written < 0 && errno == EINTR)
      continue;
    if (written < 0)
      return false;
    data += written;
    size -= (size_t)written;
  }
  return true;
}

static bool write_file(const char *path, const uint8_t *data, size_t size) {
  int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (fd < 0)
    return false;
  bool fine = write_all(fd, data, size);
  int why = errno;
  if (close(fd) != 0 && fine) {
    fine = false;
    why = errno;
  }
  errno = why;
  return fine;
}

/* Other processes may keep the same test at the same time: each writes under a name of its own, and who
 * renames last replaces a file that is equal. */
bool keep_bytes(const char *folder, const char *reason, const char *name, const uint8_t *data, size_t size) {
  char below[PATH_MAX], path[PATH_MAX], temporary[PATH_MAX];
  if (!PUT_PATH(below, "%s%s%s", folder, reason ? separator_after(folder) : "", reason ? reason : "") ||
      !PUT_PATH(path, "%s%s%s", below, separator_after(below), name) ||
      !PUT_PATH(temporary, "%s%s.%s.%d", below, separator_after(below), name, (int)getpid()))
    return false;
  if (access(path, F_OK) == 0)
    return true;
  if (!make_folder(folder) || !make_folder(below))
    return false;
  if (write_file(temporary, data, size) && rename(temporary, path) == 0)
    return true;
  int why = errno;
  unlink(temporary);
  errno = why;
  return false;
}

static bool keep_test(const char *folder, const char *reason, const testcase *test) {
  char name[33];
  uint8_t data[TESTCASE_SIZE_MAX];
  size_t size = testcase_encode(test, data, sizeof data);
  testcase_name(test, name);
  return keep_bytes(folder, reason, name, data, size);
}

bool keep_open(const char *folder, const testcase *test, const oracle_result *result) {
  bool open = result->verdict == VERDICT_INCONCLUSIVE || result->verdict == VERDICT_REFUSED;
  return !folder || !open || keep_test(folder, oracle_reason_name(result->reason), test);
}

bool keep_finding(const char *folder, const testcase *test) {
  return keep_test(folder, NULL, test);
}

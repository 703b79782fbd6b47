#include "error.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>

static const char *const status_names[] = {
    [LS_OK] = "LS_OK",
    [LS_ERR_ARGUMENT] = "LS_ERR_ARGUMENT",
    [LS_ERR_MEMORY] = "LS_ERR_MEMORY",
    [LS_ERR_ADDRESS] = "LS_ERR_ADDRESS",
    [LS_ERR_PROGRAM] = "LS_ERR_PROGRAM",
    [LS_ERR_STATE] = "LS_ERR_STATE",
    [LS_ERR_CPU] = "LS_ERR_CPU",
    [LS_ERR_HANDLER] = "LS_ERR_HANDLER",
    [LS_ERR_NO_REFERENCE] = "LS_ERR_NO_REFERENCE",
    [LS_ERR_CHILD] = "LS_ERR_CHILD",
    [LS_ERR_SYSTEM] = "LS_ERR_SYSTEM",
    [LS_ERR_IDLE] = "LS_ERR_IDLE",
    [LS_ERR_BUSY] = "LS_ERR_BUSY",
    [LS_ERR_SUPERSEDED] = "LS_ERR_SUPERSEDED",
    [LS_ERR_COPY] = "LS_ERR_COPY",
};

const char *ls_status_name(ls_status status) {
  unsigned i = (unsigned)status;
  return i < sizeof status_names / sizeof *status_names ? status_names[i] : "LS_UNKNOWN";
}

ls_status error_set(ls_error *error, ls_status status, int sys_errno, uint32_t index, const char *format,
                    ...) {
  if (!error)
    return status;
  error->status = status;
  error->sys_errno = sys_errno;
  error->index = index;
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(error->text, sizeof error->text, format, arguments);
  va_end(arguments);
  return status;
}

const char *error_advice(int sys_errno) {
  if (sys_errno == EFBIG)
    return " (RLIMIT_FSIZE, ulimit -f, is too low: raise it)";
  if (sys_errno != EPERM && sys_errno != EACCES && sys_errno != ENOSYS)
    return "";
  return " (does a seccomp filter refuse it? allow it there)";
}

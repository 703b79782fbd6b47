/* Filling in an ls_error. Internal. */
#ifndef LOCKSTEP_ERROR_H
#define LOCKSTEP_ERROR_H

#include "lockstep.h"

/* Writes status, errno (0 = none), index (LS_NONE = none) and a sentence into *error, if there is one, and
 * returns status. */
ls_status error_set(ls_error *error, ls_status status, int sys_errno, uint32_t index, const char *format, ...)
    __attribute__((format(printf, 5, 6)));

/* What to do about a system call that failed with `sys_errno`, to be put behind what says so: about one that
 * a seccomp filter may have refused, as containers have them, or one beyond RLIMIT_FSIZE; else nothing, "".
 */
const char *error_advice(int sys_errno);

#endif

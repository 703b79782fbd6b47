/* Finding, putting and taking away the mark of the copy that has the signals. */
#include "copies.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "../error.h"
#include "../loaded.h"
#include "thread.h"

static unsigned executors; /* under the lock */
static void *mark_page;    /* NULL: this copy has not put one */

uint64_t copy_place(int i) {
  ls_layout first;
  ls_layout_default(&first, 0);
  return first.gate - (uint64_t)(i + 1) * LS_GATE_SIZE;
}

/* ---- Looking ---- */

/* Whatever is there, readable or not: the kernel copies it to the file, into a page that is not mapped, or
 * says EFAULT. */
static bool read_mark(int fd, uint64_t place, copy_mark *mark) {
  return kernel_call(SYS_pwrite64, fd, (long)place, sizeof *mark, LS_PAGE) == sizeof *mark &&
         pread(fd, mark, sizeof *mark, LS_PAGE) == sizeof *mark &&
         memcmp(mark->magic, COPY_MAGIC, sizeof mark->magic) == 0;
}

/* Of another copy. Our own can be there without our knowing: another thread had just put it when this process
 * was forked, by the kernel's own call. */
static bool find_mark(int fd, copy_mark *mark) {
  for (int i = 0; i < COPY_PLACES; i++) {
    if (!read_mark(fd, copy_place(i), mark))
      continue;
    if (mark->handler != (uintptr_t)handler_entry)
      return true;
    mark_page = (void *)copy_place(i);
  }
  return false;
}

static ls_status refuse(const copy_mark *mark, ls_error *error) {
  char name[sizeof error->text];
  loaded_name(mark->handler, name, sizeof name);
  return error_set(
      error, LS_ERR_COPY, 0, LS_NONE,
      "another copy of Lockstep, %u.%u, runs guests here: link all with one, use LS_PTRACE in this one, or "
      "destroy its executors and release its threads first; it is in %s",
      mark->major, mark->minor, name);
}

/* ---- Marking ---- */

static void unmark(void) {
  if (mark_page)
    munmap(mark_page, LS_PAGE);
  mark_page = NULL;
}

/* Returns 0 or an errno: EEXIST, something else is there. */
static int map_mark(int fd, uint64_t place) {
  const copy_mark ours = {COPY_MAGIC, (uintptr_t)handler_entry, LS_VERSION_MAJOR, LS_VERSION_MINOR};
  if (pwrite(fd, &ours, sizeof ours, 0) != sizeof ours)
    return errno;
  void *got = mmap((void *)place, LS_PAGE, PROT_READ, MAP_PRIVATE | MAP_FIXED_NOREPLACE, fd, 0);
  if (got == MAP_FAILED)
    return errno;
  if (got != (void *)place) { /* before Linux 4.17 the flag is a hint */
    munmap(got, LS_PAGE);
    return EEXIST;
  }
  mark_page = got;
  return 0;
}

static ls_status cannot_mark(int why, ls_error *error) {
  return error_set(error, why == EEXIST ? LS_ERR_ADDRESS : LS_ERR_MEMORY, why, LS_NONE,
                   "cannot map a page below 0x%" PRIx64
                   ", by which copies of Lockstep know of each other: %s%s",
                   copy_place(0) + LS_GATE_SIZE, strerror(why), error_advice(why));
}

/* The first free place, or why there is none. */
static int take_place(int fd) {
  int why = EEXIST;
  for (int i = 0; why == EEXIST && i < COPY_PLACES; i++)
    why = map_mark(fd, copy_place(i));
  return why;
}

/* All places are looked at before one is taken: what was in the first when another copy came may have gone.
 * And after that: then of two that came at once one sees the other, or each does. */
static ls_status mark(int fd, ls_error *error) {
  copy_mark found;
  if (find_mark(fd, &found))
    return refuse(&found, error);
  int why = mark_page ? 0 : take_place(fd);
  if (find_mark(fd, &found)) {
    unmark();
    return refuse(&found, error);
  }
  return why ? cannot_mark(why, error) : LS_OK;
}

static ls_status mark_once(ls_error *error) {
  if (mark_page)
    return LS_OK;
  int fd = memfd_create("lockstep-signals", MFD_CLOEXEC);
  if (fd < 0)
    return cannot_mark(errno, error);
  ls_status status = mark(fd, error);
  close(fd);
  return status;
}

ls_status copy_acquire(ls_error *error) {
  signal_lock();
  ls_status status = mark_once(error);
  executors += !status;
  signal_unlock();
  return status;
}

void copy_release(void) {
  signal_lock();
  executors--;
  signal_unlock();
}

void copy_settle(void) {
  if (mark_page && !executors && !slots_in_use())
    unmark();
}

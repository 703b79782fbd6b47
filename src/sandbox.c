/* Guest memory. One memfd, two views of it: the guest's, at the layout's addresses with the layout's access,
 * and this process's alias, which is always writable, so that no run needs mprotect. */
#include "sandbox.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "error.h"

enum { INT3 = 0xcc };

/* ---- Fork detection ---- */

static uint32_t *epoch_page;
static atomic_uint epoch_last;

static void make_epoch_page(void) {
  void *page = mmap(NULL, LS_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (page == MAP_FAILED)
    return;
  if (madvise(page, LS_PAGE, MADV_WIPEONFORK) != 0) {
    munmap(page, LS_PAGE);
    return;
  }
  epoch_page = page;
}

const uint32_t *fork_epoch(void) {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  pthread_once(&once, make_epoch_page);
  if (!epoch_page)
    return NULL;
  uint32_t none = 0;
  if (__atomic_load_n(epoch_page, __ATOMIC_RELAXED) == 0)
    __atomic_compare_exchange_n(epoch_page, &none, atomic_fetch_add(&epoch_last, 1) + 1, 0, __ATOMIC_RELAXED,
                                __ATOMIC_RELAXED);
  return epoch_page;
}

bool sandbox_forked(const sandbox *box) {
  return __atomic_load_n(box->epoch, __ATOMIC_RELAXED) != box->epoch_value;
}

/* ---- The memfd and its alias ---- */

static int make_memfd(uint64_t size) {
  int fd = memfd_create("lockstep-guest", MFD_CLOEXEC);
  if (fd < 0)
    return -1;
  if (ftruncate(fd, (off_t)size) != 0) {
    int saved = errno;
    close(fd);
    errno = saved;
    return -1;
  }
  return fd;
}

static ls_status out_of(ls_error *error, const char *what) {
  return error_set(error, LS_ERR_MEMORY, errno, LS_NONE, "cannot make guest memory: %s: %s", what,
                   strerror(errno));
}

ls_status sandbox_create(sandbox *box, const ls_layout *layout, ls_error *error) {
  memset(box, 0, sizeof *box);
  box->fd = -1;
  ls_status status = layout_check(layout, error);
  if (status)
    return status;
  box->layout = *layout;
  for (uint32_t i = 0; i < layout->window_count; i++) {
    box->offset[i] = box->size;
    box->size += layout->windows[i].size;
  }
  box->epoch = fork_epoch();
  if (!box->epoch)
    return out_of(error, "MADV_WIPEONFORK");
  box->epoch_value = *box->epoch;
  box->fd = make_memfd(box->size);
  if (box->fd < 0)
    return out_of(error, "memfd_create");
  void *alias = mmap(NULL, box->size, PROT_READ | PROT_WRITE, MAP_SHARED, box->fd, 0);
  if (alias == MAP_FAILED) {
    status = out_of(error, "mmap");
    sandbox_destroy(box);
    return status;
  }
  box->alias = alias;
  memset(box->alias + box->offset[LS_CODE_WINDOW], INT3, layout->windows[LS_CODE_WINDOW].size);
  return LS_OK;
}

static void unmap_guest(sandbox *box, uint32_t count) {
  sandbox_mapping mappings[SANDBOX_MAPPINGS_MAX];
  sandbox_mappings(box, mappings);
  for (uint32_t i = 0; i < count; i++)
    munmap((void *)mappings[i].address, mappings[i].size);
}

void sandbox_destroy(sandbox *box) {
  if (box->mapped) {
    sandbox_mapping mappings[SANDBOX_MAPPINGS_MAX];
    unmap_guest(box, sandbox_mappings(box, mappings));
  }
  if (box->alias)
    munmap(box->alias, box->size);
  if (box->fd >= 0)
    close(box->fd);
  memset(box, 0, sizeof *box);
  box->fd = -1;
}

/* ---- The guest's view ---- */

static bool is_window_page(const ls_layout *layout, uint64_t address) {
  for (uint32_t i = 0; i < layout->window_count; i++)
    if (address - layout->windows[i].address < layout->windows[i].size)
      return true;
  return false;
}

static int protection_of(uint32_t access) {
  int protection = PROT_READ; /* x86 has no page that can be written or executed but not read */
  if (access & LS_WRITE)
    protection |= PROT_WRITE;
  if (access & LS_EXEC)
    protection |= PROT_EXEC;
  return protection;
}

/* Adds the guard page at `address` unless a window or another guard is there. */
static uint32_t add_guard(const ls_layout *layout, uint64_t address, sandbox_mapping *mappings,
                          uint32_t count) {
  if (is_window_page(layout, address))
    return count;
  for (uint32_t i = 0; i < count; i++)
    if (mappings[i].guard && mappings[i].address == address)
      return count;
  mappings[count] = (sandbox_mapping){.address = address, .size = LS_PAGE, .guard = true};
  return count + 1;
}

static int by_address(const void *a, const void *b) {
  uint64_t x = ((const sandbox_mapping *)a)->address, y = ((const sandbox_mapping *)b)->address;
  return (x > y) - (x < y);
}

uint32_t sandbox_mappings(const sandbox *box, sandbox_mapping mappings[SANDBOX_MAPPINGS_MAX]) {
  const ls_layout *layout = &box->layout;
  uint32_t count = 0;
  for (uint32_t i = 0; i < layout->window_count; i++) {
    const ls_window *w = &layout->windows[i];
    mappings[count++] = (sandbox_mapping){.address = w->address,
                                          .size = w->size,
                                          .protection = protection_of(w->access),
                                          .offset = box->offset[i]};
    count = add_guard(layout, w->address - LS_PAGE, mappings, count);
    count = add_guard(layout, w->address + w->size, mappings, count);
  }
  qsort(mappings, count, sizeof *mappings, by_address);
  return count;
}

static void *map_one(const sandbox *box, const sandbox_mapping *m, int how) {
  int flags = m->guard ? MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE : MAP_SHARED;
  return mmap((void *)m->address, m->size, m->protection, flags | how, m->guard ? -1 : box->fd,
              m->guard ? 0 : (off_t)m->offset);
}

static ls_status in_the_way(const sandbox_mapping *m, int why, ls_error *error) {
  return error_set(error, LS_ERR_ADDRESS, why, LS_NONE,
                   "cannot map the guest's 0x%" PRIx64 "-0x%" PRIx64
                   " in this process (%s): choose another layout or slot",
                   m->address, m->address + m->size,
                   why == EEXIST ? "something else is mapped there" : strerror(why));
}

ls_status sandbox_map(sandbox *box, ls_error *error) {
  sandbox_mapping mappings[SANDBOX_MAPPINGS_MAX];
  uint32_t count = sandbox_mappings(box, mappings);
  for (uint32_t i = 0; i < count; i++) {
    void *wanted = (void *)mappings[i].address;
    void *got = map_one(box, &mappings[i], MAP_FIXED_NOREPLACE);
    if (got == wanted)
      continue;
    int why = got == MAP_FAILED ? errno : EEXIST; /* kernels before 4.17 take the flag for a hint */
    if (got != MAP_FAILED)
      munmap(got, mappings[i].size);
    unmap_guest(box, i);
    return in_the_way(&mappings[i], why, error);
  }
  box->mapped = true;
  return LS_OK;
}

ls_status sandbox_renew(sandbox *box, ls_error *error) {
  const uint32_t *epoch = fork_epoch();
  if (!epoch)
    return out_of(error, "MADV_WIPEONFORK");
  int fd = make_memfd(box->size);
  if (fd < 0)
    return out_of(error, "memfd_create");
  for (uint64_t done = 0; done < box->size;) {
    ssize_t n = pwrite(fd, box->alias + done, box->size - done, (off_t)done);
    if (n <= 0) {
      ls_status status = out_of(error, "write"); /* while errno is the write's */
      close(fd);
      return status;
    }
    done += (uint64_t)n;
  }
  close(box->fd);
  box->fd = fd;
  if (mmap(box->alias, box->size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED)
    return out_of(error, "mmap");
  sandbox_mapping mappings[SANDBOX_MAPPINGS_MAX];
  uint32_t count = box->mapped ? sandbox_mappings(box, mappings) : 0;
  for (uint32_t i = 0; i < count; i++)
    if (map_one(box, &mappings[i], MAP_FIXED) == MAP_FAILED)
      return out_of(error, "mmap");
  box->epoch = epoch; /* last: until all is its own, every run tries again */
  box->epoch_value = *epoch;
  return LS_OK;
}

uint32_t sandbox_window(const sandbox *box, uint64_t address, uint64_t size) {
  for (uint32_t i = 0; i < box->layout.window_count; i++) {
    const ls_window *w = &box->layout.windows[i];
    if (address >= w->address && size <= w->size && address - w->address <= w->size - size)
      return i;
  }
  return LS_NONE;
}

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
#include <sys/resource.h>
#include <unistd.h>

#include "error.h"
#include "occupied.h"

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

uint32_t *fork_lock(void) {
  enum { LINE = 64 / sizeof *epoch_page }; /* every run reads the epoch */
  return fork_epoch() ? epoch_page + LINE : NULL;
}

/* ---- The memfd and its alias ---- */

static uint64_t memfd_size(const sandbox *box) {
  return box->offset[LS_CODE_WINDOW] + box->layout.windows[LS_CODE_WINDOW].size;
}

/* The alias goes beyond the end of the memfd, as far as that can grow: so it never moves, and growing it
 * cannot fail. Nothing reads or writes beyond the windows, which would be SIGBUS. */
static uint64_t alias_size(const sandbox *box) {
  uint64_t code = box->layout.windows[LS_CODE_WINDOW].size;
  return box->offset[LS_CODE_WINDOW] + (code > SANDBOX_CODE_MAX ? code : SANDBOX_CODE_MAX);
}

bool sandbox_extend_file(int fd, uint64_t size) {
  struct rlimit limit;
  if (getrlimit(RLIMIT_FSIZE, &limit) == 0 && size > limit.rlim_cur) {
    errno = EFBIG;
    return false;
  }
  return ftruncate(fd, (off_t)size) == 0;
}

/* Not through the alias, where it would be SIGBUS to have no memory. */
static bool write_memfd(int fd, const uint8_t *bytes, uint64_t size, uint64_t at) {
  while (size) {
    ssize_t n = pwrite(fd, bytes, size, (off_t)at);
    if (n < 0 && errno == EINTR)
      continue;
    if (n <= 0)
      return false;
    bytes += n;
    at += (uint64_t)n;
    size -= (uint64_t)n;
  }
  return true;
}

/* SEEK_DATA fails with ENXIO where nothing follows. The descriptor's position is nobody's. */
bool sandbox_next_held(const sandbox *box, uint64_t from, uint64_t end, sandbox_span *held) {
  if (from >= end)
    return false;
  off_t data = lseek(box->fd, (off_t)from, SEEK_DATA);
  if (data < 0 && errno == ENXIO)
    return false;
  held->from = data < 0 ? from : (uint64_t)data;
  off_t hole = lseek(box->fd, (off_t)held->from, SEEK_HOLE);
  held->to = hole < 0 || (uint64_t)hole > end ? end : (uint64_t)hole;
  return held->from < end;
}

/* What is not held is zero in the new one too. */
static bool copy_memfd(const sandbox *box, int fd, uint64_t size) {
  sandbox_span held;
  for (uint64_t at = 0; sandbox_next_held(box, at, size, &held); at = held.to)
    if (!write_memfd(fd, box->alias + held.from, held.to - held.from, held.from))
      return false;
  return true;
}

static bool write_int3(int fd, uint64_t from, uint64_t to) {
  uint8_t page[LS_PAGE];
  memset(page, INT3, sizeof page);
  for (; from < to; from += LS_PAGE)
    if (!write_memfd(fd, page, LS_PAGE, from))
      return false;
  return true;
}

static int make_memfd(uint64_t size) {
  int fd = memfd_create("lockstep-guest", MFD_CLOEXEC);
  if (fd < 0)
    return -1;
  if (!sandbox_extend_file(fd, size)) {
    int saved = errno;
    close(fd);
    errno = saved;
    return -1;
  }
  return fd;
}

static ls_status out_of(ls_error *error, const char *what) {
  return error_set(error, LS_ERR_MEMORY, errno, LS_NONE, "cannot make guest memory: %s: %s%s", what,
                   strerror(errno), error_advice(errno));
}

/* The code comes last, so that it can grow. */
static void set_offsets(sandbox *box) {
  uint64_t offset = 0;
  for (uint32_t i = LS_CODE_WINDOW + 1; i < box->layout.window_count; i++) {
    box->offset[i] = offset;
    offset += box->layout.windows[i].size;
  }
  box->offset[LS_CODE_WINDOW] = offset;
}

static ls_status make_memory(sandbox *box, ls_error *error) {
  box->fd = make_memfd(memfd_size(box));
  if (box->fd < 0)
    return out_of(error, "memfd_create");
  if (!write_int3(box->fd, box->offset[LS_CODE_WINDOW], memfd_size(box)))
    return out_of(error, "write");
  void *alias = mmap(NULL, alias_size(box), PROT_READ | PROT_WRITE, MAP_SHARED, box->fd, 0);
  if (alias == MAP_FAILED)
    return out_of(error, "mmap");
  box->alias = alias;
  return LS_OK;
}

ls_status sandbox_create(sandbox *box, const ls_layout *layout, ls_error *error) {
  memset(box, 0, sizeof *box);
  box->fd = -1;
  ls_status status = layout_check(layout, error);
  if (status)
    return status;
  box->layout = *layout;
  set_offsets(box);
  box->epoch = fork_epoch();
  if (!box->epoch)
    return out_of(error, "MADV_WIPEONFORK");
  box->epoch_value = *box->epoch;
  status = make_memory(box, error);
  if (status)
    sandbox_destroy(box);
  return status;
}

static void unmap_guest(sandbox *box, uint32_t count) {
  sandbox_mapping mappings[SANDBOX_MAPPINGS_MAX];
  sandbox_mappings(box, mappings);
  for (uint32_t i = 0; i < count; i++)
    munmap((void *)mappings[i].address, mappings[i].size);
}

static void unmap_reserved(sandbox *box, const ls_window *window) {
  if (box->mapped && window->size)
    munmap((void *)(window->address - LS_PAGE), window->size + (uint64_t)2 * LS_PAGE);
  box->reserved = (ls_window){0};
}

void sandbox_destroy(sandbox *box) {
  unmap_reserved(box, &box->reserved);
  if (box->mapped) {
    sandbox_mapping mappings[SANDBOX_MAPPINGS_MAX];
    unmap_guest(box, sandbox_mappings(box, mappings));
  }
  if (box->alias)
    munmap(box->alias, alias_size(box));
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

/* Returns 0 or errno. `how` is MAP_FIXED or MAP_FIXED_NOREPLACE, which before Linux 4.17 is a hint. */
static int map_one(const sandbox *box, const sandbox_mapping *m, int how) {
  int flags = m->guard ? MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE : MAP_SHARED;
  void *got = mmap((void *)m->address, m->size, m->protection, flags | how, m->guard ? -1 : box->fd,
                   m->guard ? 0 : (off_t)m->offset);
  if (got == (void *)m->address)
    return 0;
  if (got == MAP_FAILED)
    return errno;
  munmap(got, m->size);
  return EEXIST;
}

static ls_status in_the_way(const sandbox_mapping *m, int why, ls_error *error) {
  return error_set(error, LS_ERR_ADDRESS, why, LS_NONE,
                   "cannot map the guest's 0x%" PRIx64 "-0x%" PRIx64
                   " in this process (%s): choose another layout or slot",
                   m->address, m->address + m->size, occupied_by(m->address, m->size, why));
}

ls_status sandbox_map(sandbox *box, ls_error *error) {
  sandbox_mapping mappings[SANDBOX_MAPPINGS_MAX];
  uint32_t count = sandbox_mappings(box, mappings);
  for (uint32_t i = 0; i < count; i++) {
    int why = map_one(box, &mappings[i], MAP_FIXED_NOREPLACE);
    if (!why)
      continue;
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
  unmap_reserved(box, &box->reserved);
  int fd = make_memfd(memfd_size(box));
  if (fd < 0)
    return out_of(error, "memfd_create");
  if (!copy_memfd(box, fd, memfd_size(box))) {
    ls_status status = out_of(error, "write"); /* while errno is the write's */
    close(fd);
    return status;
  }
  close(box->fd);
  box->fd = fd;
  if (mmap(box->alias, alias_size(box), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED)
    return out_of(error, "mmap");
  sandbox_mapping mappings[SANDBOX_MAPPINGS_MAX];
  uint32_t count = box->mapped ? sandbox_mappings(box, mappings) : 0;
  for (uint32_t i = 0; i < count; i++) {
    errno = map_one(box, &mappings[i], MAP_FIXED);
    if (errno)
      return out_of(error, "mmap");
  }
  box->epoch = epoch; /* last: until all is its own, every run tries again */
  box->epoch_value = *epoch;
  return LS_OK;
}

/* ---- Growing the code window ---- */

/* How large the code window gets so that it holds `size` bytes: a power of two, or the largest possible. */
static ls_status larger_size(uint64_t old, uint64_t size, uint64_t *larger, ls_error *error) {
  if (size > SANDBOX_CODE_MAX || old >= SANDBOX_CODE_MAX)
    return error_set(error, LS_ERR_MEMORY, 0, LS_NONE,
                     "the code window has %" PRIu64 " bytes and cannot grow to %" PRIu64
                     ": the largest has %" PRIu64,
                     old, size, SANDBOX_CODE_MAX);
  *larger = LS_PAGE;
  while (*larger < SANDBOX_CODE_MAX && (*larger < size || *larger < 2 * old))
    *larger *= 2;
  return LS_OK;
}

/* Without access first, guards and all, so that a place is taken whole or not at all. */
static int map_reserved(const sandbox *box, const ls_window *w) {
  const sandbox_mapping whole = {
      .address = w->address - LS_PAGE, .size = w->size + (uint64_t)2 * LS_PAGE, .guard = true};
  int why = map_one(box, &whole, MAP_FIXED_NOREPLACE);
  if (why)
    return why;
  const sandbox_mapping code = {.address = w->address,
                                .size = w->size,
                                .protection = protection_of(w->access),
                                .offset = box->offset[LS_CODE_WINDOW]};
  why = map_one(box, &code, MAP_FIXED);
  if (why)
    munmap((void *)whole.address, whole.size);
  return why;
}

static ls_status take_place(const sandbox *box, ls_window *window, ls_error *error) {
  code_places places;
  int why = 0;
  layout_places(&places, &box->layout, window->size);
  while (why != ENOMEM && layout_next_place(&places, window)) {
    why = box->mapped ? map_reserved(box, window) : 0;
    if (!why)
      return LS_OK;
  }
  errno = why;
  if (why == ENOMEM)
    return out_of(error, "mmap");
  return error_set(error, LS_ERR_ADDRESS, why, LS_NONE,
                   "no address is free for a code window of %" PRIu64 " bytes within 2 GiB of the others",
                   window->size);
}

ls_status sandbox_code_reserve(sandbox *box, uint64_t size, ls_window *window, ls_error *error) {
  ls_window larger = box->layout.windows[LS_CODE_WINDOW];
  ls_status status = larger_size(larger.size, size, &larger.size, error);
  if (!status)
    status = take_place(box, &larger, error);
  if (status)
    return status;
  box->reserved = larger;
  uint64_t end = box->offset[LS_CODE_WINDOW] + larger.size;
  if (!sandbox_extend_file(box->fd, end) || !write_int3(box->fd, memfd_size(box), end)) {
    status = out_of(error, "the code window cannot grow");
    sandbox_code_abandon(box, &larger);
    return status;
  }
  *window = larger;
  return LS_OK;
}

/* Unmaps the old code window and its guards but for those pages of the latter that others need, and makes
 * guards of those of its pages at which another window begins or ends. Guards last: what was unmapped before
 * is room for them. */
static void unmap_old_code(const sandbox *box, const ls_window *old) {
  sandbox_mapping mappings[SANDBOX_MAPPINGS_MAX];
  uint32_t count = sandbox_mappings(box, mappings);
  uint64_t at = old->address - LS_PAGE, end = old->address + old->size + LS_PAGE;
  for (uint32_t i = 0; i < count; i++) {
    const sandbox_mapping *m = &mappings[i];
    if (m->address + m->size <= at || m->address >= end)
      continue;
    if (m->address > at)
      munmap((void *)at, m->address - at);
    at = m->address + m->size;
  }
  if (at < end)
    munmap((void *)at, end - at);
  for (uint32_t i = 0; i < count; i++)
    if (mappings[i].address - old->address < old->size && map_one(box, &mappings[i], MAP_FIXED) != 0)
      munmap((void *)mappings[i].address, mappings[i].size);
}

void sandbox_code_commit(sandbox *box, const ls_window *window) {
  ls_window old = box->layout.windows[LS_CODE_WINDOW];
  box->layout.windows[LS_CODE_WINDOW] = *window;
  box->reserved = (ls_window){0};
  if (box->mapped)
    unmap_old_code(box, &old);
}

void sandbox_code_abandon(sandbox *box, const ls_window *window) {
  unmap_reserved(box, window);
  int kept = ftruncate(box->fd, (off_t)memfd_size(box));
  (void)kept; /* then it is larger than it need be until it grows or ends */
}

/* ---- Questions ---- */

uint32_t sandbox_window(const sandbox *box, uint64_t address, uint64_t size) {
  for (uint32_t i = 0; i < box->layout.window_count; i++) {
    const ls_window *w = &box->layout.windows[i];
    if (address >= w->address && size <= w->size && address - w->address <= w->size - size)
      return i;
  }
  return LS_NONE;
}

/* Guest memory as the host handles it, through the alias: views, contents, differences.
 *
 * Windows of up to SANDBOX_DENSE_MAX are handled whole. Of larger ones only the pages that the memfd holds
 * are looked at: reading another one, which is zero, would make the kernel take memory for it. */
#include <fcntl.h>
#include <string.h>

#include "error.h"
#include "executor.h"

static const uint8_t zeros[LS_PAGE];

static bool is_dense(const ls_window *window) {
  return window->size <= SANDBOX_DENSE_MAX;
}

static uint64_t start_of(const sandbox *box, uint32_t window) {
  return box->offset[window];
}

static uint64_t end_of(const sandbox *box, uint32_t window) {
  return box->offset[window] + box->layout.windows[window].size;
}

/* ---- Views -------------------------------------------------------------------------------------------- */

ls_status executor_own(ls_executor *executor, ls_error *error) {
  return sandbox_forked(&executor->box) ? executor->ops->forked(executor, error) : LS_OK;
}

/* Who has seen the code window may write to it. */
static void *view_of(sandbox *box, uint32_t window, uint64_t offset) {
  if (window == LS_CODE_WINDOW)
    __atomic_store_n(&box->code_lent, true, __ATOMIC_RELAXED);
  return box->alias + box->offset[window] + offset;
}

void *ls_executor_memory(ls_executor *executor, uint32_t window) {
  if (!executor || window >= executor->box.layout.window_count)
    return NULL;
  return view_of(&executor->box, window, 0);
}

void *ls_executor_pointer(ls_executor *executor, uint64_t address, uint64_t size) {
  uint32_t window = executor && size ? sandbox_window(&executor->box, address, size) : LS_NONE;
  if (window == LS_NONE)
    return NULL;
  return view_of(&executor->box, window, address - executor->box.layout.windows[window].address);
}

/* ---- Contents ----------------------------------------------------------------------------------------- */

static bool give_back(const sandbox *box, uint64_t from, uint64_t to) {
  return fallocate(box->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)from, (off_t)(to - from)) == 0;
}

/* A page that is given back costs five times what it costs to clear it: a system call for all of them, and a
 * page fault for each at its next use. So the first of them are cleared, and the rest, which a guest that
 * touches other pages in each run would add to for ever, is given back. */
static void zero_held(const sandbox *box, uint64_t from, uint64_t to) {
  enum { KEPT_SPANS = 16 };
  sandbox_span held;
  uint64_t kept = 0;
  for (int spans = 0; sandbox_next_held(box, from, to, &held); spans++) {
    kept += held.to - held.from;
    if ((spans >= KEPT_SPANS || kept > SANDBOX_DENSE_MAX) && give_back(box, held.from, to))
      return;
    memset(box->alias + held.from, 0, held.to - held.from);
    from = held.to;
  }
}

/* Pages of zeros take no memory that was not there. */
static void copy_sparsely(const sandbox *box, const uint8_t *bytes, uint64_t from, uint64_t to) {
  sandbox_span held = {from, from};
  for (uint64_t at = from; at < to; at += LS_PAGE) {
    if (at >= held.to && !sandbox_next_held(box, at, to, &held))
      held = (sandbox_span){to, to};
    if (at >= held.from || memcmp(bytes + (at - from), zeros, LS_PAGE) != 0)
      memcpy(box->alias + at, bytes + (at - from), LS_PAGE);
  }
}

static void set_window(const sandbox *box, uint32_t i, const void *bytes) {
  const ls_window *window = &box->layout.windows[i];
  uint64_t from = start_of(box, i), to = end_of(box, i);
  if (bytes == LS_ZERO && is_dense(window))
    memset(box->alias + from, 0, window->size);
  else if (bytes == LS_ZERO)
    zero_held(box, from, to);
  else if (is_dense(window))
    memcpy(box->alias + from, bytes, window->size);
  else
    copy_sparsely(box, bytes, from, to);
}

ls_status ls_executor_reset(ls_executor *executor, const void *const contents[], ls_error *error) {
  if (!executor || !contents)
    return error_set(error, LS_ERR_ARGUMENT, 0, LS_NONE, "a reset needs an executor and contents");
  ls_status status = executor_own(executor, error);
  if (status)
    return status;
  const sandbox *box = &executor->box;
  for (uint32_t i = LS_CODE_WINDOW + 1; i < box->layout.window_count; i++)
    if (contents[i])
      set_window(box, i, contents[i]);
  return LS_OK;
}

/* ---- Differences -------------------------------------------------------------------------------------- */

/* Of the bytes [from, size), the first that differs, or size. */
static uint64_t first_difference(const uint8_t *a, const uint8_t *b, uint64_t from, uint64_t size) {
  if (from < size && memcmp(a + from, b + from, size - from) == 0)
    return size;
  while (from < size && a[from] == b[from])
    from++;
  return from;
}

/* A large window, in one of two boxes, as one goes through it. */
typedef struct walk {
  const sandbox *box;
  uint64_t start, size; /* of the window in the memfd */
  sandbox_span held;    /* the first span that ends after where it is, in the window */
} walk;

static walk walk_of(const sandbox *box, uint32_t window) {
  return (walk){.box = box, .start = start_of(box, window), .size = box->layout.windows[window].size};
}

static void go_to(walk *w, uint64_t page) {
  if (page < w->held.to)
    return;
  if (sandbox_next_held(w->box, w->start + page, w->start + w->size, &w->held))
    w->held = (sandbox_span){w->held.from - w->start, w->held.to - w->start};
  else
    w->held = (sandbox_span){w->size, w->size + 1};
}

/* The page at `page`, where it is now. */
static const uint8_t *page_of(const walk *w, uint64_t page) {
  return page >= w->held.from ? w->box->alias + w->start + page : zeros;
}

static uint64_t first_sparse_difference(walk a, walk b, uint64_t from) {
  while (from < a.size) {
    uint64_t page = from & -(uint64_t)LS_PAGE;
    go_to(&a, page);
    go_to(&b, page);
    if (page < a.held.from && page < b.held.from) {
      from = a.held.from < b.held.from ? a.held.from : b.held.from;
      continue;
    }
    uint64_t at = first_difference(page_of(&a, page), page_of(&b, page), from - page, LS_PAGE);
    if (at < LS_PAGE)
      return page + at;
    from = page + LS_PAGE;
  }
  return a.size;
}

static uint64_t difference_in(const sandbox *a, const sandbox *b, uint32_t i, uint64_t from) {
  const ls_window *window = &a->layout.windows[i];
  if (is_dense(window))
    return first_difference(a->alias + start_of(a, i), b->alias + start_of(b, i), from, window->size);
  return first_sparse_difference(walk_of(a, i), walk_of(b, i), from);
}

int ls_memory_difference(ls_executor *a, ls_executor *b, uint32_t *window, uint64_t *offset) {
  if (!a || !b || !window || !offset)
    return 0;
  const ls_layout *layout = &a->box.layout;
  if (*window == LS_CODE_WINDOW) {
    *window = LS_CODE_WINDOW + 1;
    *offset = 0;
  }
  for (; *window < layout->window_count; ++*window, *offset = 0) {
    *offset = difference_in(&a->box, &b->box, *window, *offset);
    if (*offset < layout->windows[*window].size)
      return 1;
  }
  return 0;
}

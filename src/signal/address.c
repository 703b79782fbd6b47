/* Is an address unmapped in this process? */
#include <errno.h>
#include <stdbool.h>
#include <sys/mman.h>

#include "../executor.h"

/* mmap_min_addr: nothing is ever mapped below, or the system has been told to do without this protection. */
#define ALWAYS_UNMAPPED_BELOW UINT64_C(0x10000)
#define USER_END              UINT64_C(0x0100000000000000) /* five-level page tables (SDM vol. 3, 4.5) */
#define VSYSCALL_PAGE         UINT64_C(0xffffffffff600000)

static bool in_range(uint64_t address, uint64_t start, uint64_t size) {
  return address - start < size;
}

/* Guards are mapped, but fault in every executor alike. */
static bool is_guard(const ls_layout *layout, uint64_t page) {
  for (uint32_t i = 0; i < layout->window_count; i++)
    if (page == layout->windows[i].address - LS_PAGE ||
        page == layout->windows[i].address + layout->windows[i].size)
      return true;
  return false;
}

static bool page_faults(const sandbox *box, uint64_t page) {
  if (sandbox_window(box, page, LS_PAGE) != LS_NONE || in_range(page, box->layout.gate, LS_GATE_SIZE) ||
      page == VSYSCALL_PAGE)
    return false;
  if (page < ALWAYS_UNMAPPED_BELOW || page >= USER_END || is_guard(&box->layout, page))
    return true;
  return msync((void *)page, LS_PAGE, MS_ASYNC) != 0 && errno == ENOMEM;
}

int ls_address_faults(ls_executor *executor, uint64_t address, uint64_t size) {
  if (!size)
    return 1;
  uint64_t page = address & -(uint64_t)LS_PAGE, last = (address + size - 1) & -(uint64_t)LS_PAGE;
  for (; page_faults(&executor->box, page); page += LS_PAGE)
    if (page == last)
      return 1;
  return 0;
}

/* Is an address unmapped in this process? */
#include <errno.h>
#include <stdbool.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/resource.h>

#include "../executor.h"

#define USER_END        UINT64_C(0x0100000000000000) /* five-level page tables (SDM vol. 3, 4.5) */
#define VSYSCALL_PAGE   UINT64_C(0xffffffffff600000)
#define STACK_UNLIMITED ((uint64_t)16 << 30) /* how far an unlimited stack is taken to grow */

static bool in_range(uint64_t address, uint64_t start, uint64_t size) {
  return address - start < size;
}

/* Guards are mapped, but fault in every executor alike; so is what follows the gate's page. */
static bool is_guard(const ls_layout *layout, uint64_t page) {
  if (in_range(page, layout->gate, LS_GATE_SIZE))
    return page != layout->gate;
  for (uint32_t i = 0; i < layout->window_count; i++)
    if (page == layout->windows[i].address - LS_PAGE ||
        page == layout->windows[i].address + layout->windows[i].size)
      return true;
  return false;
}

/* Would the kernel extend the main thread's stack to there? It does at any access, by any thread and whatever
 * its RSP, so such a page is as good as mapped (mm/mmap.c, expand_downwards). The name of the executable lies
 * above all frames. */
static bool is_stack(uint64_t page) {
  uint64_t top = getauxval(AT_EXECFN), size = STACK_UNLIMITED;
  struct rlimit limit;
  if (getrlimit(RLIMIT_STACK, &limit) == 0 && limit.rlim_cur < size)
    size = limit.rlim_cur;
  return top && in_range(page, (top & -(uint64_t)LS_PAGE) - size, size + LS_PAGE);
}

static bool page_faults(const sandbox *box, uint64_t page) {
  if (sandbox_window(box, page, LS_PAGE) != LS_NONE || page == box->layout.gate ||
      in_range(page, gate_inner(box->layout.gate), LS_GATE_SIZE) || page == VSYSCALL_PAGE)
    return false;
  if (page >= USER_END || is_guard(&box->layout, page))
    return true;
  return !is_stack(page) && msync((void *)page, LS_PAGE, MS_ASYNC) != 0 && errno == ENOMEM;
}

int ls_address_faults(ls_executor *executor, uint64_t address, uint64_t size) {
  if (!executor || !size)
    return executor != NULL;
  uint64_t page = address & -(uint64_t)LS_PAGE, last = (address + size - 1) & -(uint64_t)LS_PAGE;
  for (; page_faults(&executor->box, page); page += LS_PAGE)
    if (page == last)
      return 1;
  return 0;
}

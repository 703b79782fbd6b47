/* Where guest memory lies: Lockstep's own layouts, and what makes any layout one that can be mapped. */
#include <inttypes.h>
#include <string.h>

#include "error.h"
#include "executor.h"
#include "sandbox.h"

/* Lockstep's own places. Below 2 GiB is application memory for ASan, TSan and MSan alike (their shadow lies
 * above), lets a guest use 32-bit addresses, and is where nothing but a non-PIE program and its heap live.
 * The gate is out of reach of any 32-bit displacement, so that no slip of the guest hits it, in a range which
 * all three sanitizers leave to the application and mmap reaches last. */
#define SLOT_BASE   UINT64_C(0x20000000)
#define SLOT_STRIDE UINT64_C(0x400000)
#define GATE_BASE   UINT64_C(0x7e9a5c3e0000)

#define USER_END UINT64_C(0x7ffffffff000)
#define REACH    UINT64_C(0x7fff0000)

void ls_layout_default(ls_layout *layout, unsigned slot) {
  uint64_t base = SLOT_BASE + slot % LS_LAYOUT_SLOTS * SLOT_STRIDE;
  memset(layout, 0, sizeof *layout);
  layout->windows[LS_CODE_WINDOW] = (ls_window){base + 0x10000, 0x10000, LS_READ | LS_EXEC, 0};
  layout->windows[1] = (ls_window){base + 0x100000, 0x2000, LS_READ | LS_WRITE, 0};
  layout->windows[2] = (ls_window){base + 0x180000, 0x1000, LS_READ, 0};
  layout->windows[3] = (ls_window){base + 0x200000, 0x1000, LS_READ | LS_WRITE, 0};
  layout->windows[4] = (ls_window){base + 0x280000, 0x1000, LS_READ | LS_WRITE, 0};
  layout->window_count = 5;
  layout->control = layout->windows[4].address;
  layout->gate = GATE_BASE + slot % LS_LAYOUT_SLOTS * (2 * (uint64_t)LS_GATE_SIZE);
}

static uint64_t distance(uint64_t a, uint64_t b) {
  return a < b ? b - a : a - b;
}

static int overlap(uint64_t a, uint64_t a_size, uint64_t b, uint64_t b_size) {
  return a < b + b_size && b < a + a_size;
}

static int is_gate_address(uint64_t address) {
  return address >= LS_GATE_SIZE && address <= USER_END - LS_GATE_SIZE;
}

static ls_status check_window(const ls_layout *layout, uint32_t i, ls_error *error) {
  const ls_window *w = &layout->windows[i];
  if (w->address % LS_PAGE || w->size % LS_PAGE || !w->size)
    return error_set(error, LS_ERR_ARGUMENT, 0, i,
                     "window %u: address and size must be multiples of %d, and the size not 0", i, LS_PAGE);
  if (w->address < LS_PAGE || w->size > USER_END || w->address > USER_END - w->size - LS_PAGE)
    return error_set(error, LS_ERR_ARGUMENT, 0, i, "window %u does not lie in user space", i);
  if (!w->access || w->access & ~(uint32_t)(LS_READ | LS_WRITE | LS_EXEC))
    return error_set(error, LS_ERR_ARGUMENT, 0, i, "window %u: access must be LS_READ, LS_WRITE, LS_EXEC", i);
  uint64_t with_guards = w->address - LS_PAGE, size = w->size + (uint64_t)2 * LS_PAGE;
  if (overlap(with_guards, size, layout->gate, LS_GATE_SIZE) ||
      overlap(with_guards, size, gate_inner(layout->gate), LS_GATE_SIZE))
    return error_set(error, LS_ERR_ARGUMENT, 0, i, "window %u or a guard page of it overlaps the gate", i);
  for (uint32_t j = 0; j < i; j++)
    if (overlap(w->address, w->size, layout->windows[j].address, layout->windows[j].size))
      return error_set(error, LS_ERR_ARGUMENT, 0, i, "windows %u and %u overlap", j, i);
  return LS_OK;
}

static ls_status check_control(const ls_layout *layout, ls_error *error) {
  const ls_window *code = &layout->windows[LS_CODE_WINDOW];
  if (layout->control % LS_CONTROL_SIZE)
    return error_set(error, LS_ERR_ARGUMENT, 0, LS_NONE, "control must be aligned to %d", LS_CONTROL_SIZE);
  if (distance(layout->control, code->address) > REACH ||
      distance(layout->control, code->address + code->size) > REACH)
    return error_set(error, LS_ERR_ARGUMENT, 0, LS_NONE, "control must be within 2 GiB of the code window");
  for (uint32_t i = 0; i < layout->window_count; i++) {
    const ls_window *w = &layout->windows[i];
    if (w->access & LS_WRITE && layout->control >= w->address &&
        layout->control - w->address <= w->size - LS_CONTROL_SIZE)
      return LS_OK;
  }
  return error_set(error, LS_ERR_ARGUMENT, 0, LS_NONE,
                   "control (0x%" PRIx64 ") must lie in a writable window", layout->control);
}

ls_status layout_check(const ls_layout *layout, ls_error *error) {
  if (layout->window_count < 1 || layout->window_count > LS_WINDOWS_MAX)
    return error_set(error, LS_ERR_ARGUMENT, 0, LS_NONE, "a layout has 1 to %d windows", LS_WINDOWS_MAX);
  if (layout->gate % LS_GATE_SIZE || !is_gate_address(layout->gate) ||
      !is_gate_address(gate_inner(layout->gate)))
    return error_set(error, LS_ERR_ARGUMENT, 0, LS_NONE,
                     "the gate must lie in user space and be aligned to %d", LS_GATE_SIZE);
  for (uint32_t i = 0; i < layout->window_count; i++) {
    ls_status status = check_window(layout, i, error);
    if (status)
      return status;
  }
  if (layout->windows[LS_CODE_WINDOW].access != (LS_READ | LS_EXEC))
    return error_set(error, LS_ERR_ARGUMENT, 0, LS_CODE_WINDOW, "windows[0] is code: LS_READ | LS_EXEC");
  return check_control(layout, error);
}

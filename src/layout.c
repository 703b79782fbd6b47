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
#define SLOTS_END   (SLOT_BASE + LS_LAYOUT_SLOTS * SLOT_STRIDE)
#define GATE_BASE   UINT64_C(0x7e9a5c3e0000)

#define USER_END UINT64_C(0x7ffffffff000)
#define REACH    UINT64_C(0x7fff0000)

/* Code windows that have grown begin at multiples of PLACE_STEP, or at least that far apart. Below LOWEST are
 * what vm.mmap_min_addr keeps free and, often, the host. */
#define PLACE_STEP UINT64_C(0x10000)
#define LOWEST     UINT64_C(0x100000)

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

static ls_status check_window(const ls_window *w, uint32_t i, ls_error *error) {
  if (w->address % LS_PAGE)
    return error_set(error, LS_ERR_ARGUMENT, 0, i,
                     "window %u: its address, 0x%" PRIx64 ", is no multiple of %d", i, w->address, LS_PAGE);
  if (!w->size || w->size % LS_PAGE)
    return error_set(error, LS_ERR_ARGUMENT, 0, i,
                     "window %u: its size, 0x%" PRIx64 ", is 0 or no multiple of %d", i, w->size, LS_PAGE);
  if (w->address < LS_PAGE || w->size > USER_END || w->address > USER_END - w->size - LS_PAGE)
    return error_set(error, LS_ERR_ARGUMENT, 0, i,
                     "window %u does not lie in 0x%" PRIx64 "-0x%" PRIx64 ": user space but for guard pages",
                     i, (uint64_t)LS_PAGE, USER_END - LS_PAGE);
  if (i == LS_CODE_WINDOW && w->access != (LS_READ | LS_EXEC))
    return error_set(error, LS_ERR_ARGUMENT, 0, i,
                     "windows[0] is code: its access must be LS_READ | LS_EXEC");
  if (!w->access || w->access & ~(uint32_t)(LS_READ | LS_WRITE | LS_EXEC))
    return error_set(error, LS_ERR_ARGUMENT, 0, i, "window %u: access must be LS_READ, LS_WRITE, LS_EXEC", i);
  return LS_OK;
}

/* Do they leave each other and the gate alone? */
static ls_status check_room(const ls_layout *layout, uint32_t i, ls_error *error) {
  const ls_window *w = &layout->windows[i];
  const uint64_t gates[] = {layout->gate, gate_inner(layout->gate)};
  uint64_t with_guards = w->address - LS_PAGE, size = w->size + (uint64_t)2 * LS_PAGE;
  for (int g = 0; g < 2; g++)
    if (overlap(with_guards, size, gates[g], LS_GATE_SIZE))
      return error_set(error, LS_ERR_ARGUMENT, 0, i,
                       "window %u or a guard page of it overlaps what the gate takes at 0x%" PRIx64
                       "-0x%" PRIx64,
                       i, gates[g], gates[g] + LS_GATE_SIZE);
  for (uint32_t j = 0; j < i; j++)
    if (overlap(w->address, w->size, layout->windows[j].address, layout->windows[j].size))
      return error_set(error, LS_ERR_ARGUMENT, 0, i, "windows %u and %u overlap", j, i);
  return LS_OK;
}

static bool in_writable_window(const ls_layout *layout, uint64_t address, uint64_t size) {
  for (uint32_t i = 0; i < layout->window_count; i++) {
    const ls_window *w = &layout->windows[i];
    if (w->access & LS_WRITE && address >= w->address && address - w->address <= w->size - size)
      return true;
  }
  return false;
}

static ls_status check_control(const ls_layout *layout, ls_error *error) {
  const ls_window *code = &layout->windows[LS_CODE_WINDOW];
  uint64_t control = layout->control;
  if (control % LS_CONTROL_SIZE)
    return error_set(error, LS_ERR_ARGUMENT, 0, LS_NONE, "control (0x%" PRIx64 ") must be aligned to %d",
                     control, LS_CONTROL_SIZE);
  if (!in_writable_window(layout, control, LS_CONTROL_SIZE))
    return error_set(error, LS_ERR_ARGUMENT, 0, LS_NONE,
                     "control (0x%" PRIx64 ") must lie in a window that has LS_WRITE", control);
  if (distance(control, code->address) > REACH || distance(control, code->address + code->size) > REACH)
    return error_set(error, LS_ERR_ARGUMENT, 0, LS_NONE,
                     "control (0x%" PRIx64 ") must be within 2 GiB of all of the code window", control);
  return LS_OK;
}

static ls_status check_gate(const ls_layout *layout, ls_error *error) {
  uint64_t gate = layout->gate, inner = gate_inner(gate);
  if (gate % LS_GATE_SIZE)
    return error_set(error, LS_ERR_ARGUMENT, 0, LS_NONE, "the gate (0x%" PRIx64 ") must be aligned to 0x%x",
                     gate, LS_GATE_SIZE);
  if (!is_gate_address(gate) || !is_gate_address(inner))
    return error_set(error, LS_ERR_ARGUMENT, 0, LS_NONE,
                     "the gate (0x%" PRIx64 ") and the gate XOR 0x1000000000 (0x%" PRIx64
                     ") must lie in user space, not in its first 0x%x bytes",
                     gate, inner, LS_GATE_SIZE);
  return LS_OK;
}

ls_status layout_check(const ls_layout *layout, ls_error *error) {
  if (layout->window_count < 1 || layout->window_count > LS_WINDOWS_MAX)
    return error_set(error, LS_ERR_ARGUMENT, 0, LS_NONE, "a layout has 1 to %d windows, not %u",
                     LS_WINDOWS_MAX, layout->window_count);
  ls_status status = check_gate(layout, error);
  for (uint32_t i = 0; !status && i < layout->window_count; i++) {
    status = check_window(&layout->windows[i], i, error);
    if (!status)
      status = check_room(layout, i, error);
  }
  return status ? status : check_control(layout, error);
}

/* ---- Places for a code window that grows ---- */

static uint64_t end_of(const ls_window *w) {
  return w->address + w->size;
}

/* Keeps all of the code window within reach of all of `w`. */
static void stay_near(code_places *places, const ls_window *w) {
  if (end_of(w) > places->low + REACH)
    places->low = end_of(w) - REACH;
  if (w->address + REACH < places->high)
    places->high = w->address + REACH;
}

void layout_places(code_places *places, const ls_layout *layout, uint64_t size) {
  enum { SIGNED_BITS = 31, BITS = 32 }; /* of 32-bit addresses */
  const ls_window *code = &layout->windows[LS_CODE_WINDOW];
  *places = (code_places){.layout = layout, .size = size, .low = LOWEST, .high = USER_END};
  for (uint32_t i = LS_CODE_WINDOW + 1; i < layout->window_count; i++) {
    const ls_window *w = &layout->windows[i];
    uint64_t end = end_of(w) > end_of(code) ? end_of(w) : end_of(code);
    uint64_t start = w->address < code->address ? w->address : code->address;
    if (end - start <= REACH)
      stay_near(places, w);
  }
  for (unsigned bits = SIGNED_BITS; bits <= BITS; bits++)
    if (end_of(code) <= UINT64_C(1) << bits && places->high > UINT64_C(1) << bits)
      places->high = UINT64_C(1) << bits;
}

/* Which part of the address space is searched, in this order. */
enum { AREA_SLOT, AREA_ABOVE, AREA_BELOW, AREAS };

/* `count` places, `step` bytes apart. */
typedef struct place_area {
  uint64_t first, step, count;
} place_area;

static place_area area_in_slot(const code_places *places, uint64_t control) {
  uint64_t slot = control - (control - SLOT_BASE) % SLOT_STRIDE;
  if (places->size >= SLOT_STRIDE)
    return (place_area){0};
  return (place_area){slot + PLACE_STEP, PLACE_STEP, (SLOT_STRIDE - places->size - 1) / PLACE_STEP};
}

static place_area area_above(const code_places *places, uint64_t from) {
  uint64_t first = from - from % PLACE_STEP + PLACE_STEP, step = places->size + PLACE_STEP;
  uint64_t end = first + places->size;
  return (place_area){first, step, end <= places->high ? (places->high - end) / step + 1 : 0};
}

static place_area area_below(const code_places *places, uint64_t from) {
  uint64_t last = from - from % PLACE_STEP, step = places->size + PLACE_STEP;
  return (place_area){last - step, -step, last > places->low ? (last - places->low) / step : 0};
}

/* Small windows stay in their slot: then how far one sandbox has grown moves none of the others. Else, and
 * for layouts that are not Lockstep's own, above and below control. */
static place_area area_of(const code_places *places) {
  uint64_t control = places->layout->control;
  bool own = control >= SLOT_BASE && control < SLOTS_END;
  switch (places->area) {
  case AREA_SLOT:
    return own ? area_in_slot(places, control) : (place_area){0};
  case AREA_ABOVE:
    return area_above(places, own ? SLOTS_END : control);
  default:
    return area_below(places, own ? SLOT_BASE : control);
  }
}

static bool is_place(const code_places *places, const ls_window *window) {
  enum { GUARDS = 2 * LS_PAGE };
  uint64_t start = window->address - LS_PAGE, size = window->size + GUARDS;
  if (window->address < places->low || end_of(window) > places->high)
    return false;
  if (places->area != AREA_SLOT && overlap(start, size, SLOT_BASE, SLOTS_END - SLOT_BASE))
    return false;
  ls_layout grown = *places->layout;
  for (uint32_t i = 0; i < grown.window_count; i++)
    if (overlap(start, size, grown.windows[i].address - LS_PAGE, grown.windows[i].size + GUARDS))
      return false;
  grown.windows[LS_CODE_WINDOW] = *window;
  return layout_check(&grown, NULL) == LS_OK;
}

bool layout_next_place(code_places *places, ls_window *window) {
  ls_window place = places->layout->windows[LS_CODE_WINDOW];
  place.size = places->size;
  for (; places->area < AREAS; places->area++, places->next = 0)
    for (place_area area = area_of(places); places->next < area.count;) {
      place.address = area.first + places->next++ * area.step;
      if (is_place(places, &place)) {
        *window = place;
        return true;
      }
    }
  return false;
}

/* The public side of executors: arguments, memory, control cells, and where a stop lies in the program. */
#include "executor.h"

#include <signal.h>
#include <string.h>

#include "cpu.h"
#include "error.h"
#include "flags.h"
#include "image.h"
#include "loaded.h"

enum { DEFAULT_TICK_MS = 10, DEFAULT_LIMIT_MS = 1000, CS_USER = 0x33, INT3 = 0xcc };

const char *ls_stop_kind_name(ls_stop_kind kind) {
  static const char *const names[LS_STOP_KINDS] = {"exit",  "fault",   "syscall",   "fuel",
                                                   "steps", "timeout", "cancelled", "gone"};
  return (unsigned)kind < LS_STOP_KINDS ? names[kind] : "unknown";
}

/* ---- Making and ending ---- */

static ls_status resolve_options(const ls_options *given, ls_executor *base, ls_error *error) {
  ls_options options = given ? *given : (ls_options){0};
  if (!options.interrupt_signal)
    options.interrupt_signal = SIGURG;
  if (!options.tick_ms)
    options.tick_ms = DEFAULT_TICK_MS;
  ls_vectors available = ls_vectors_available();
  if ((unsigned)options.vectors > LS_VECTORS_AVX512)
    return error_set(error, LS_ERR_ARGUMENT, 0, LS_NONE, "options.vectors: %d is not known",
                     (int)options.vectors);
  if (options.flags & ~(uint32_t)LS_WITHOUT_AUTODISARM)
    return error_set(error, LS_ERR_ARGUMENT, 0, LS_NONE, "options.flags: 0x%x is not known", options.flags);
  if (options.vectors > available)
    return error_set(error, LS_ERR_CPU, 0, LS_NONE, "this machine has %s, not %s", ls_vectors_name(available),
                     ls_vectors_name(options.vectors));
  base->vectors = options.vectors == LS_VECTORS_AUTO ? available : options.vectors;
  base->options = options;
  base->tick_ns = options.tick_ms * UINT64_C(1000000);
  return LS_OK;
}

/* Where guest and executor see the same address, one processor's loads need not wait until its stores have
 * left for memory. */
static control_cells *control_of(ls_kind kind, const sandbox *box) {
  uint64_t address = box->layout.control;
  if (kind == LS_SIGNAL)
    return (control_cells *)address;
  uint32_t window = sandbox_window(box, address, LS_CONTROL_SIZE);
  return (control_cells *)(box->alias + box->offset[window] +
                           (address - box->layout.windows[window].address));
}

ls_status ls_executor_create(ls_kind kind, const ls_layout *layout, const ls_options *options,
                             ls_executor **executor, ls_error *error) {
  if (!layout || !executor || (kind != LS_SIGNAL && kind != LS_PTRACE))
    return error_set(error, LS_ERR_ARGUMENT, 0, LS_NONE, "an executor needs a kind, a layout and a place");
  loaded_keep();
  ls_executor base = {.kind = kind};
  ls_status status = resolve_options(options, &base, error);
  if (status)
    return status;
  status = sandbox_create(&base.box, layout, error);
  if (status)
    return status;
  base.control = control_of(kind, &base.box);
  status = (kind == LS_SIGNAL ? signal_executor_create : ptrace_executor_create)(&base, executor, error);
  if (status)
    sandbox_destroy(&base.box);
  return status;
}

void ls_executor_destroy(ls_executor *executor) {
  if (!executor)
    return;
  sandbox box = executor->box;
  executor->ops->destroy(executor);
  sandbox_destroy(&box);
}

const ls_layout *ls_executor_layout(const ls_executor *executor) {
  return executor ? &executor->box.layout : NULL;
}

ls_vectors ls_executor_vectors(const ls_executor *executor) {
  return executor ? executor->vectors : LS_VECTORS_AUTO;
}

int ls_executor_stops_syscalls(ls_executor *executor) {
  return executor ? executor->ops->stops_syscalls(executor) : 0;
}

void gate_page_write(uint8_t *page, uint64_t gate) {
  static const uint8_t jump[8] = {0xff, 0x25, 2, 0, 0, 0, INT3, INT3}; /* jmp [rip+2] */
  uint64_t inner = gate_inner(gate);
  memset(page, INT3, LS_PAGE);
  memcpy(page, jump, sizeof jump);
  memcpy(page + sizeof jump, &inner, sizeof inner);
}

/* ---- Code ---- */

ls_status ls_executor_load(ls_executor *executor, const ls_image *image, ls_error *error) {
  if (!executor || !image)
    return error_set(error, LS_ERR_ARGUMENT, 0, LS_NONE, "a load needs an executor and an image");
  ls_status status = executor_own(executor, error);
  if (status)
    return status;
  sandbox *box = &executor->box;
  size_t size;
  const uint8_t *bytes = ls_image_bytes(image, &size);
  const ls_window *code = &box->layout.windows[LS_CODE_WINDOW];
  if (!size || size > code->size || !image_fits(image, &box->layout))
    return error_set(error, LS_ERR_ARGUMENT, 0, LS_NONE,
                     "the image was not built for this executor's layout");
  uint8_t *to = box->alias + box->offset[LS_CODE_WINDOW];
  uint64_t used = __atomic_load_n(&box->code_lent, __ATOMIC_RELAXED) ? code->size : box->code_used;
  memcpy(to, bytes, size);
  if (used > size)
    memset(to + size, INT3, used - size);
  box->code_used = size;
  executor->image = image;
  return LS_OK;
}

/* ---- Running ---- */

static ls_status check_run(const ls_executor *executor, const ls_run *run, const ls_outcome *outcome,
                           ls_error *error) {
  if (!executor || !run)
    return error_set(error, LS_ERR_ARGUMENT, 0, LS_NONE, "a run needs an executor, and an ls_run");
  if (!executor->image)
    return error_set(error, LS_ERR_ARGUMENT, 0, LS_NONE, "no image is loaded");
  if (!run->state || (uintptr_t)run->state % _Alignof(ls_state))
    return error_set(error, LS_ERR_ARGUMENT, 0, LS_NONE, "a run needs a state aligned to %zu bytes",
                     _Alignof(ls_state));
  if (!outcome || (uintptr_t)outcome % _Alignof(ls_outcome))
    return error_set(error, LS_ERR_ARGUMENT, 0, LS_NONE, "a run needs an outcome aligned to %zu bytes",
                     _Alignof(ls_outcome));
  if (run->uses & ~(uint32_t)LS_USES_X87)
    return error_set(error, LS_ERR_ARGUMENT, 0, LS_NONE, "a run's uses are LS_USES_X87 or 0, not 0x%x",
                     run->uses);
  const ls_state *s = run->state;
  if (s->cs != CS_USER || s->fs || s->gs)
    return error_set(error, LS_ERR_STATE, 0, LS_NONE, "a run starts with CS 0x33 and null FS and GS");
  if (s->rflags & ~(uint64_t)(RFLAGS_USER | RFLAGS_CLEAN))
    return error_set(error, LS_ERR_STATE, 0, LS_NONE, "RFLAGS has bits that user code cannot set");
  return LS_OK;
}

static void set_place(const ls_image *image, ls_stop *stop, uint32_t instruction, ls_part part) {
  stop->instruction = instruction;
  stop->part = part;
  stop->id = instruction == LS_NONE ? 0 : image_id(image, instruction);
}

/* The range of the stop in the code map. Traps are reported with RIP behind what caused them. */
static void place_in_image(const ls_image *image, ls_outcome *outcome) {
  ls_stop *stop = &outcome->stop;
  uint64_t behind = stop->kind == LS_STOP_SYSCALL || (stop->signal == SIGTRAP && stop->code == SI_KERNEL);
  const ls_range *range = ls_image_find(image, outcome->state.rip - behind);
  set_place(image, stop, range ? range->instruction : LS_NONE, range ? range->part : LS_PART_BODY);
}

/* A jump to the gate: which exit point was it? None if the guest found the gate by itself. */
void executor_left(const ls_executor *executor, ls_outcome *outcome) {
  const image_exit *at = image_exit_at(executor->image, executor->control->exit);
  if (!at) {
    outcome->stop = (ls_stop){.kind = LS_STOP_EXIT, .instruction = LS_NONE, .part = LS_PART_BODY};
    return;
  }
  outcome->stop = at->stop;
  outcome->state.rip = executor->box.layout.windows[LS_CODE_WINDOW].address + at->offset;
}

/* The kernel returns from interrupts by IRET, which does not take a non-canonical RSP on most machines (SDM
 * vol. 2, IRET): a guest with such an RSP meets #GP at the next interrupt, whatever it does. Has it? */
static bool is_doubtful(const ls_run *run, const ls_outcome *outcome) {
  return outcome->stop.kind == LS_STOP_FAULT && !run->steps &&
         may_be_interrupt(outcome->stop.signal, outcome->stop.code, &outcome->state);
}

static ls_status resume(ls_executor *executor, const ls_run *run, ls_outcome *outcome, ls_error *error) {
  uint32_t touched = outcome->touched;
  ls_status status = executor->ops->run(executor, run, outcome->state.rip, outcome, error);
  outcome->touched |= touched;
  return status;
}

/* Executes the one instruction again, which takes a few nanoseconds from the way in, of which the kernel
 * knows nothing: a fault of its own comes again (executors believe a step's only when it has come many times:
 * it may have met page faults, which are interrupts too). Else the guest goes on. */
static ls_status go_past(ls_executor *executor, const ls_run *run, ls_outcome *outcome, ls_error *error) {
  ls_run again = *run;
  again.state = &outcome->state;
  again.visitor = NULL;
  while (is_doubtful(run, outcome)) {
    if (outcome->state.rip == executor->box.layout.gate) {
      outcome->stop = (ls_stop){.kind = LS_STOP_EXIT};
      break;
    }
    again.steps = 1;
    ls_status status = resume(executor, &again, outcome, error);
    if (status || outcome->stop.kind != LS_STOP_STEPS)
      return status;
    again.steps = 0;
    status = resume(executor, &again, outcome, error);
    if (status)
      return status;
  }
  return LS_OK;
}

ls_status executor_stopped_inside(ls_executor *executor, const ls_run *run, ls_outcome *outcome,
                                  ls_error *error) {
  ls_status status = go_past(executor, run, outcome, error);
  if (status)
    return status;
  if (outcome->stop.kind == LS_STOP_EXIT)
    executor_left(executor, outcome);
  else
    place_in_image(executor->image, outcome);
  return LS_OK;
}

ls_status ls_executor_run(ls_executor *executor, const ls_run *run, ls_outcome *outcome, ls_error *error) {
  ls_status status = check_run(executor, run, outcome, error);
  if (status)
    return status;
  uint64_t entry = ls_image_address(executor->image, run->entry);
  if (!entry)
    return error_set(error, LS_ERR_ARGUMENT, 0, run->entry, "the program has no instruction %u", run->entry);
  status = executor_own(executor, error);
  if (status)
    return status;
  executor->control->exit = UINT64_MAX;
  executor->control->fuel = run->fuel;
  ls_run resolved = *run;
  if (!resolved.limit_ms)
    resolved.limit_ms = DEFAULT_LIMIT_MS;
  time_begin(executor, resolved.limit_ms);
  return executor_go(executor, &resolved, entry, outcome, error);
}

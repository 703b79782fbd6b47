#include "feedback/behaviour.h"

#include <xxhash.h>

#include "forms/scan.h"

/* The six status flags (SDM vol. 1, 3.4.3.1). */
enum { STATUS_FLAGS = 0x8d5 };

static uint32_t hash_of(uint64_t a, uint64_t b, uint64_t c) {
  const uint64_t key[] = {a, b, c};
  return (uint32_t)XXH3_64bits(key, sizeof key);
}

/* Where `i` certainly leads to, or LS_NONE where that depends on the run. */
static uint32_t certain_successor(const ls_instruction *in, const scan_info *info) {
  if (in->field == LS_FIELD_BRANCH) {
    bool call = in->bytes[0] == 0xe8;
    return (in->flags & LS_NEVER_FALLS_THROUGH) || call ? in->jump : LS_NONE;
  }
  if ((in->flags & LS_NEVER_FALLS_THROUGH) || info->length != in->length)
    return LS_NONE;
  return in->next;
}

void behaviour_forms(const testcase *test, const oracle_result *result,
                     void (*seen)(form_id form, void *context), void *context) {
  uint32_t i = 0;
  for (uint32_t steps = 0; i < test->count && steps < test->count; steps++) {
    const scan_info *info = &result->infos[i];
    if (info->form != FORM_NONE)
      seen(info->form, context);
    if (i == result->reference.stop.instruction)
      return;
    i = certain_successor(&test->instructions[i], info);
  }
  i = result->reference.stop.instruction;
  if (i < test->count && result->infos[i].form != FORM_NONE)
    seen(result->infos[i].form, context);
}

static uint32_t window_of(uint64_t address) {
  const ls_layout *layout = testcase_layout();
  for (uint32_t i = 0; i < layout->window_count; i++)
    if (address - layout->windows[i].address + LS_PAGE < layout->windows[i].size + (uint64_t)2 * LS_PAGE)
      return i;
  return LS_NONE;
}

static void note_accesses(uint32_t count, const scan_info *infos, uint8_t *table) {
  for (uint32_t i = 0; i < count; i++)
    if (infos[i].access)
      table[hash_of(infos[i].access, 0, 0) % BEHAVIOUR_ACCESS] = 1;
}

void behaviour_note(const testcase *test, const oracle_result *result, uint8_t *counters) {
  const ls_stop *stop = &result->reference.stop;
  uint8_t *stops = counters, *faults = stops + BEHAVIOUR_STOPS, *flags = faults + BEHAVIOUR_FAULTS;
  uint64_t mnemonic = 0, category = 0;
  if (stop->instruction < test->count) {
    form_id form = result->infos[stop->instruction].form;
    mnemonic = form == FORM_NONE ? 0 : form_mnemonic(form);
    category = form == FORM_NONE ? 0 : form_category(form);
  }
  stops[hash_of(mnemonic, stop->kind, stop->part) % BEHAVIOUR_STOPS] = 1;
  if (stop->kind == LS_STOP_FAULT)
    faults[hash_of(category, (uint64_t)stop->signal << 8 | (uint64_t)stop->code,
                   (uint64_t)window_of(stop->address) << 1 | (stop->address % 8 != 0)) %
           BEHAVIOUR_FAULTS] = 1;
  if (stop->kind == LS_STOP_EXIT)
    flags[hash_of(category, result->reference.state.rflags & STATUS_FLAGS, 0) % BEHAVIOUR_FLAGS] = 1;
  note_accesses(test->count, result->infos, flags + BEHAVIOUR_FLAGS);
}

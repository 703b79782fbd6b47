#include "feedback/drill.h"

#include <stdlib.h>
#include <strings.h>

static struct {
  ZydisMnemonic mnemonic;
  const testcase *test;
} drill;

static void damage(ls_outcome *thread, ls_executor *executor, void *context) {
  (void)executor;
  (void)context;
  for (uint32_t i = 0; i < drill.test->count; i++) {
    form_id form = scan_instruction(&drill.test->instructions[i]).form;
    if (form != FORM_NONE && form_mnemonic(form) == drill.mnemonic) {
      thread->state.gpr[LS_RAX] ^= 1;
      return;
    }
  }
}

static ZydisMnemonic find(const char *name) {
  for (int m = ZYDIS_MNEMONIC_INVALID + 1; m <= ZYDIS_MNEMONIC_MAX_VALUE; m++)
    if (strcasecmp(ZydisMnemonicGetString((ZydisMnemonic)m), name) == 0)
      return (ZydisMnemonic)m;
  return ZYDIS_MNEMONIC_INVALID;
}

bool drill_prepare(oracle_options *options, const testcase *test) {
  const char *name = getenv("LOCKSTEP_DRILL");
  if (!name || !*name)
    return true;
  drill.mnemonic = find(name);
  drill.test = test;
  options->tamper = damage;
  return drill.mnemonic != ZYDIS_MNEMONIC_INVALID;
}

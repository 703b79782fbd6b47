/* The forms that a generator draws from: lists of them by what they are for, and what no program has held
 * yet. */
#include <stdlib.h>
#include <string.h>

#include "forms/policy.h"
#include "forms/probe.h"
#include "generate/generator.h"

enum { FAILURES_MAX = 60 }; /* after which a form counts as used: nothing fits it */

static void list_add(form_array *list, form_id form) {
  list->forms[list->count++] = form;
}

static bool lists_alloc(generator *gen) {
  size_t count = forms_count();
  for (unsigned i = 0; i < LISTS; i++)
    if ((gen->lists[i].forms = malloc(count * sizeof(form_id))) == NULL)
      return false;
  for (unsigned i = 0; i <= LIST_FAULT; i++)
    if ((gen->unused[i].forms = malloc(count * sizeof(form_id))) == NULL)
      return false;
  gen->support = malloc(count);
  gen->traits = calloc(count, sizeof *gen->traits);
  gen->unused_at = malloc(count * sizeof *gen->unused_at);
  gen->failures = calloc(count, 1);
  gen->mnemonics = malloc((count + 1) * sizeof *gen->mnemonics);
  return gen->support && gen->traits && gen->unused_at && gen->failures && gen->mnemonics;
}

static void list_by_flags(generator *gen, form_id form, const form_traits *traits) {
  if (traits->flags & TRAIT_MEMORY && traits->need == NEED_NOTHING)
    list_add(&gen->lists[LIST_MEMORY], form);
  if (traits->flags & TRAIT_STORES && traits->need == NEED_NOTHING)
    list_add(&gen->lists[LIST_STORE], form);
  if (traits->flags & TRAIT_STRICT)
    list_add(&gen->lists[LIST_STRICT], form);
  if (traits->need == NEED_DIVIDEND)
    list_add(&gen->lists[LIST_DIVIDE], form);
  if (traits->flags & TRAIT_FLOAT)
    list_add(&gen->lists[LIST_FLOAT], form);
  if (traits->flags & TRAIT_X87)
    list_add(&gen->lists[LIST_X87], form);
  if (traits->flags & TRAIT_FPU)
    list_add(&gen->lists[LIST_FPU], form);
  if (traits->role == ROLE_BRANCH || traits->role == ROLE_CALL)
    list_add(&gen->lists[traits->role == ROLE_CALL ? LIST_CALL : LIST_BRANCH], form);
}

static void sort_in(generator *gen, form_id form) {
  const form_traits *traits = &gen->traits[form];
  bool allowed = generator_allows(gen, form);
  form_list list = LIST_BODY;
  if (traits->role == ROLE_FAULT || traits->role == ROLE_SYSCALL)
    list = LIST_FAULT;
  else if (traits->role >= ROLE_RETURN)
    list = LIST_ENDING;
  gen->unused_at[form] = UINT32_MAX;
  if (allowed) {
    list_add(&gen->lists[list], form);
    if (list == LIST_BODY)
      list_by_flags(gen, form, traits);
    gen->unused_at[form] = gen->unused[list].count;
    list_add(&gen->unused[list], form);
  } else if (traits->role == ROLE_PLAIN) {
    list_add(&gen->lists[LIST_ILLEGAL], form);
  }
  gen->allowed += allowed;
}

static int by_mnemonic(const void *a, const void *b) {
  form_id left = *(const form_id *)a, right = *(const form_id *)b;
  ZydisMnemonic left_name = form_mnemonic(left), right_name = form_mnemonic(right);
  if (left_name != right_name)
    return left_name < right_name ? -1 : 1;
  return left < right ? -1 : left > right;
}

static void sort_by_mnemonic(generator *gen) {
  form_array *body = &gen->lists[LIST_BODY];
  qsort(body->forms, body->count, sizeof(form_id), by_mnemonic);
  for (uint32_t i = 0; i < body->count; i++) {
    if (i == 0 || form_mnemonic(body->forms[i]) != form_mnemonic(body->forms[i - 1]))
      gen->mnemonics[gen->mnemonic_count++] = i;
  }
  gen->mnemonics[gen->mnemonic_count] = body->count;
}

generator *generator_create(const uint8_t *support, const generator_options *options) {
  generator *gen = calloc(1, sizeof *gen);
  if (gen == NULL || !lists_alloc(gen)) {
    generator_destroy(gen);
    return NULL;
  }
  gen->options = options ? *options : (generator_options){.fault_percent = UINT32_MAX};
  if (gen->options.instructions_max == 0 || gen->options.instructions_max > INSTRUCTIONS_MAX)
    gen->options.instructions_max = INSTRUCTIONS_MAX;
  if (gen->options.fault_percent == UINT32_MAX)
    gen->options.fault_percent = 5;
  memcpy(gen->support, support, forms_count());
  for (form_id form = 0; form < forms_count(); form++) {
    gen->unused_at[form] = UINT32_MAX;
    if (policy_of_form(form)->action == POLICY_EXCLUDE)
      continue;
    gen->traits[form] = traits_of(form);
    sort_in(gen, form);
  }
  sort_by_mnemonic(gen);
  return gen;
}

void generator_destroy(generator *gen) {
  if (gen == NULL)
    return;
  for (unsigned i = 0; i < LISTS; i++)
    free(gen->lists[i].forms);
  for (unsigned i = 0; i <= LIST_FAULT; i++)
    free(gen->unused[i].forms);
  free(gen->support);
  free(gen->traits);
  free(gen->unused_at);
  free(gen->failures);
  free(gen->mnemonics);
  free(gen);
}

bool generator_allows(const generator *gen, form_id form) {
  policy_action action = policy_of_form(form)->action;
  if (action == POLICY_FAULT) /* #UD is as good a fault as any */
    return gen->support[form] == FORM_RUNS || gen->support[form] == FORM_ILLEGAL;
  if (action == POLICY_EXCLUDE || gen->support[form] != FORM_RUNS)
    return false;
  return action != POLICY_SYSCALL || gen->options.syscalls;
}

uint32_t generator_allowed(const generator *gen) {
  return gen->allowed;
}

static form_list unused_list(const generator *gen, form_id form) {
  uint8_t role = gen->traits[form].role;
  return role == ROLE_FAULT || role == ROLE_SYSCALL ? LIST_FAULT
         : role >= ROLE_RETURN                      ? LIST_ENDING
                                                    : LIST_BODY;
}

void generator_used(generator *gen, form_id form) {
  uint32_t at = form == FORM_NONE ? UINT32_MAX : gen->unused_at[form];
  if (at == UINT32_MAX)
    return;
  form_array *list = &gen->unused[unused_list(gen, form)];
  form_id last = list->forms[--list->count];
  list->forms[at] = last;
  gen->unused_at[last] = at;
  gen->unused_at[form] = UINT32_MAX;
}

void generator_failed(generator *gen, form_id form) {
  if (gen->failures[form] < FAILURES_MAX && ++gen->failures[form] == FAILURES_MAX)
    generator_used(gen, form);
}

form_id generator_pick(generator *gen, rng *r, form_list list) {
  const form_array *all = &gen->lists[list];
  if (all->count == 0)
    return FORM_NONE;
  if (list <= LIST_FAULT && gen->unused[list].count > 0 && rng_next(r) & 1)
    return gen->unused[list].forms[rng_below(r, gen->unused[list].count)];
  if (list != LIST_BODY || rng_next(r) & 1)
    return all->forms[rng_below(r, all->count)];
  uint32_t mnemonic = rng_below(r, gen->mnemonic_count);
  uint32_t first = gen->mnemonics[mnemonic], count = gen->mnemonics[mnemonic + 1] - first;
  return all->forms[first + rng_below(r, count)];
}

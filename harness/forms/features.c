/* CPUID is not asked: it says nothing of what the kernel's XCR0 takes away, and hypervisors hide what runs
 * all the same. */
#include "forms/features.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "testcase/testcase.h"

enum { PROBE_LIMIT_MS = 100, PROBE_ATTEMPTS = 8 };

/* ---- The table --------------------------------------------------------------------------------------- */

typedef enum feature_id {
#define F(id, name, rests_on, example) FEATURE_##id,
#include "forms/features.inc"
#undef F
  FEATURES
} feature_id;

_Static_assert(FEATURES <= 64, "a feature_set has a bit for each");

#define FEATURE(id) (1ull << FEATURE_##id)
#define AVX_AND(id) (FEATURE(AVX) | FEATURE(id))
#define F_AND(id)   (AVX_AND(AVX512F) | FEATURE(id))
#define VL_AND(id)  (F_AND(AVX512VL) | FEATURE(id))

static const struct {
  const char *name;
  feature_set rests_on;
  const char *example; /* in hex */
} rows[FEATURES] = {
#define F(id, name, rests_on, example) {name, rests_on, example},
#include "forms/features.inc"
#undef F
};

static const feature_set needed_by[ZYDIS_ISA_SET_MAX_VALUE + 1] = {
#define S(set, features) [ZYDIS_ISA_SET_##set] = (features),
#include "forms/features.inc"
#undef S
};

unsigned features_count(void) {
  return FEATURES;
}

const char *feature_name(unsigned feature) {
  return rows[feature].name;
}

static unsigned hex_digit(char c) {
  return (unsigned)(c <= '9' ? c - '0' : c - 'a' + 10);
}

const uint8_t *feature_example(unsigned feature, uint8_t *length) {
  static uint8_t bytes[FEATURES][LS_INSTRUCTION_MAX];
  const char *hex = rows[feature].example;
  for (*length = 0; hex[2 * *length]; ++*length)
    bytes[feature][*length] = (uint8_t)(hex_digit(hex[2 * *length]) << 4 | hex_digit(hex[2 * *length + 1]));
  return bytes[feature];
}

/* ---- What is needed ---------------------------------------------------------------------------------- */

/* Where the ISA set does not tell. */
feature_set features_needed(const ZydisDecodedInstruction *instruction) {
  switch (instruction->mnemonic) {
  case ZYDIS_MNEMONIC_INCSSPD: /* the others of CET do nothing without it */
  case ZYDIS_MNEMONIC_INCSSPQ:
    return FEATURE(SHADOW_STACK);
  case ZYDIS_MNEMONIC_TZCNT: /* BSF without BMI1, and something else on Knights Corner */
    if (instruction->meta.isa_set == ZYDIS_ISA_SET_BMI1)
      return 0;
    break;
  case ZYDIS_MNEMONIC_PREFETCH: /* no operation without 3DNow */
  case ZYDIS_MNEMONIC_PREFETCHW:
    return 0;
  case ZYDIS_MNEMONIC_CMPXCHG8B:
    return FEATURE(CX8);
  case ZYDIS_MNEMONIC_MOVDIRI:
    return FEATURE(MOVDIRI);
  case ZYDIS_MNEMONIC_MOVDIR64B:
    return FEATURE(MOVDIR64B);
  case ZYDIS_MNEMONIC_VPCLMULQDQ: /* of 128 bits with VEX: Zydis counts it to AVX */
    if (instruction->meta.isa_set == ZYDIS_ISA_SET_AVX)
      return AVX_AND(PCLMULQDQ);
    break;
  default:
    break;
  }
  return needed_by[instruction->meta.isa_set];
}

feature_set features_without(feature_set set) {
  for (feature_set before = 0; before != set;) {
    before = set;
    for (unsigned i = 0; i < FEATURES; i++)
      if (rows[i].rests_on & set)
        set |= 1ull << i;
  }
  return set;
}

/* ---- Names ------------------------------------------------------------------------------------------- */

static unsigned find(const char *name, size_t length) {
  for (unsigned i = 0; i < FEATURES; i++)
    if (strlen(rows[i].name) == length && strncasecmp(rows[i].name, name, length) == 0)
      return i;
  return FEATURES;
}

bool features_parse(const char *names, feature_set *set, const char **at, size_t *length) {
  *set = 0;
  for (*at = names;; *at += *length + 1) {
    *length = strcspn(*at, ",");
    unsigned feature = find(*at, *length);
    if (feature == FEATURES)
      return false;
    *set |= 1ull << feature;
    if (!(*at)[*length])
      return true;
  }
}

size_t features_print(feature_set lacking, char *text, size_t size) {
  feature_set first = 0;
  for (unsigned i = 0; i < FEATURES; i++)
    if (lacking >> i & 1 && !(rows[i].rests_on & lacking))
      first |= 1ull << i;
  unsigned left = (unsigned)__builtin_popcountll(first);
  size_t length = 0;
  if (size)
    *text = 0;
  for (unsigned i = 0; i < FEATURES; i++)
    if (first >> i & 1) {
      const char *end = --left > 1 ? ", " : left == 1 ? " and " : "";
      length += (size_t)snprintf(length < size ? text + length : NULL, length < size ? size - length : 0,
                                 "%s%s", rows[i].name, end);
    }
  return length;
}

/* ---- What there is ----------------------------------------------------------------------------------- */

typedef struct prober {
  ls_executor *reference;
  ls_image *image;
  ls_state state;
} prober;

/* Addresses everywhere, since some examples access memory. */
static ls_status prober_init(prober *p, ls_executor *reference) {
  const ls_window *data = &testcase_layout()->windows[TESTCASE_DATA];
  *p = (prober){.reference = reference, .image = ls_image_create()};
  ls_state_init(&p->state);
  for (unsigned i = 0; i < 16; i++)
    p->state.gpr[i] = data->address + data->size / 2;
  return p->image ? LS_OK : LS_ERR_MEMORY;
}

static ls_status load(prober *p, unsigned feature, ls_error *error) {
  ls_instruction in = {.next = LS_NONE, .jump = LS_NONE};
  memcpy(in.bytes, feature_example(feature, &in.length), LS_INSTRUCTION_MAX);
  const ls_program program = {&in, 1, 0};
  ls_status status = ls_image_build(p->image, &program, testcase_layout(), error);
  return status ? status : ls_executor_load(p->reference, p->image, error);
}

/* Illegal or not, as two runs one after the other say: now and then a hypervisor reports #UD for once, or a
 * child is lost. */
static ls_status runs(prober *p, bool *legal, ls_error *error) {
  ls_run run = {.state = &p->state, .limit_ms = PROBE_LIMIT_MS, .uses = LS_USES_X87};
  static ls_outcome outcome;
  unsigned agreed = 0;
  ls_status status = LS_OK;
  for (unsigned i = 0; i < PROBE_ATTEMPTS && agreed < 2; i++) {
    status = ls_executor_run(p->reference, &run, &outcome, error);
    if (status == LS_ERR_CHILD || (!status && outcome.stop.kind == LS_STOP_TIMEOUT))
      continue;
    if (status)
      return status;
    bool now = outcome.stop.kind != LS_STOP_FAULT || outcome.stop.signal != SIGILL;
    agreed = agreed && now == *legal ? 2 : 1;
    *legal = now;
  }
  return status;
}

ls_status features_probe(ls_executor *reference, feature_set *have, ls_error *error) {
  prober p;
  ls_status status = prober_init(&p, reference);
  *have = 0;
  for (unsigned i = 0; i < FEATURES && !status; i++) {
    bool legal = false;
    status = load(&p, i, error);
    if (!status)
      status = runs(&p, &legal, error);
    if (legal)
      *have |= 1ull << i;
  }
  ls_image_destroy(p.image);
  *have &= ~features_without(~*have & ((1ull << FEATURES) - 1)); /* what rests on nothing cannot stand */
  return status;
}

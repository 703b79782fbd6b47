/* The catalogue of forms. Plain main; `test_forms probe` tries the forms on this CPU. */
#include <signal.h>
#include <stdlib.h>

#include "check.h"
#include "forms/forms.h"
#include "forms/policy.h"
#include "forms/probe.h"
#include "hex.h"
#include "rng.h"
#include "testcase/testcase.h"

static int failures;

#define CHECK(condition, ...)                                                                                \
  do {                                                                                                       \
    if (!(condition)) {                                                                                      \
      printf("FAIL %s:%d: ", __FILE__, __LINE__);                                                            \
      printf(__VA_ARGS__);                                                                                   \
      putchar('\n');                                                                                         \
      failures++;                                                                                            \
    }                                                                                                        \
  } while (0)

static form_id form_of_bytes(const uint8_t *bytes, size_t length) {
  form_example decoded;
  return harness_decode(bytes, length, &decoded.instruction, decoded.operands)
             ? form_of(&decoded.instruction, decoded.operands)
             : FORM_NONE;
}

static form_id form_of_hex(const char *hex) {
  uint8_t bytes[15];
  return form_of_bytes(bytes, parse_hex(hex, bytes, sizeof bytes));
}

/* ---- The catalogue as a whole ------------------------------------------------------------------------ */

static form_id reencoded(const form_example *example) {
  ZydisEncoderRequest request;
  uint8_t bytes[ZYDIS_MAX_INSTRUCTION_LENGTH];
  ZyanUSize length = sizeof bytes;
  if (!ZYAN_SUCCESS(ZydisEncoderDecodedInstructionToEncoderRequest(
          &example->instruction, example->operands, example->instruction.operand_count_visible, &request)) ||
      !ZYAN_SUCCESS(ZydisEncoderEncodeInstruction(&request, bytes, &length)))
    return FORM_NONE;
  return form_of_bytes(bytes, length);
}

static void check_every_form(void) {
  for (form_id form = 0; form < forms_count(); form++) {
    form_example decoded;
    const form_example *example = &decoded;
    form_decode(form, &decoded);
    char text[128];
    uint8_t length = 0;
    const uint8_t *bytes = form_bytes(form, &length);
    CHECK(length >= 1 && length <= 15 && bytes != NULL, "form %u has %u bytes", form, length);
    CHECK(example->instruction.length == length, "form %u: %u bytes decode as %u", form, length,
          example->instruction.length);
    CHECK(form_of(&example->instruction, example->operands) == form, "form %u is not its own form", form);
    CHECK(reencoded(example) == form, "form %u re-encodes as form %u", form, reencoded(example));
    const size_t printed = form_print(form, text, sizeof text);
    CHECK(printed > 0 && printed == strlen(text) && strchr(text, '?') == NULL, "form %u prints as \"%s\"",
          form, text);
  }
}

static void check_size(void) {
  uint32_t mnemonics = 0;
  ZydisMnemonic last = ZYDIS_MNEMONIC_INVALID;
  for (form_id form = 0; form < forms_count(); form++) {
    const ZydisMnemonic mnemonic = form_mnemonic(form);
    CHECK(mnemonic >= last, "forms are not sorted at %u", form);
    mnemonics += mnemonic != last;
    last = mnemonic;
  }
  printf("%u forms of %u mnemonics\n", forms_count(), mnemonics);
  CHECK(forms_count() > 17000 && forms_count() < 40000, "%u forms", forms_count());
  CHECK(mnemonics >= 1600, "%u mnemonics", mnemonics);
}

/* ---- What is one form and what is another ------------------------------------------------------------ */

typedef struct form_pair {
  const char *a, *b;
  bool same;
  const char *text;
} form_pair;

static const form_pair pairs[] = {
    {"4801d8", "4d01c7", true, "add r64, r64: other registers"},
    {"4801d8", "4803c3", true, "add r64, r64: the other direction"},
    {"488b03", "4a8b842400010000", true, "mov r64, m64: other base, index, displacement"},
    {"488b03", "488b0500000000", true, "mov r64, m64: RIP-relative"},
    {"488b03", "67488b03", true, "mov r64, m64: 32-bit address"},
    {"62f17c48580b", "62a17c405803", true, "vaddps zmm: high registers"},
    {"c4e1685803", "c5e85803", true, "vaddps xmm: three and two bytes of VEX"},
    {"62f27d09900c13", "62f27d0b900c5320", true, "vpgatherdd: other mask, scale, displacement"},
    {"7402", "74f0", true, "jz rel8: elsewhere"},
    {"c3", "66c3", true, "ret: the policy tells them apart"},
    {"4801d8", "01d8", false, "add: 64 and 32 bits"},
    {"480103", "f0480103", false, "add with lock and without"},
    {"a4", "f3a4", false, "movsb with rep and without"},
    {"7402", "0f8402000000", false, "jz rel8 and rel32"},
    {"4883c002", "4881c002010000", false, "add r64: imm8 and imm32"},
    {"62f17c48580b", "62f17c49580b", false, "vaddps with mask and without"},
    {"62f17c49580b", "62f17cc9580b", false, "vaddps merging and zeroing"},
    {"62f17c48580b", "62f17c58580b", false, "vaddps from memory, broadcast"},
    {"62f17c4858ca", "62f17c1858ca", false, "vaddps with rounding and without"},
    {"62f17c1858ca", "62f17c3858ca", false, "vaddps with two roundings"},
    {"c5e85803", "62f16c085803", false, "vaddps: VEX and EVEX"},
    {"c4e279900c13", "c4e27d900c13", false, "vpgatherdd: index xmm and ymm"},
    {"8ed8", "8ee0", false, "mov ds and mov fs"},
    {"6a02", "666a02", false, "push imm8: 64 and 16 bits"},
    {"c9", "66c9", false, "leave: 64 and 16 bits"},
    {"d3e0", "c1e002", false, "shl by cl and by imm8"},
};

static void check_pairs(void) {
  for (size_t i = 0; i < sizeof pairs / sizeof pairs[0]; i++) {
    const form_id a = form_of_hex(pairs[i].a), b = form_of_hex(pairs[i].b);
    CHECK(a != FORM_NONE && b != FORM_NONE, "%s: no form for %s or %s", pairs[i].text, pairs[i].a,
          pairs[i].b);
    CHECK((a == b) == pairs[i].same, "%s: %s is %u, %s is %u", pairs[i].text, pairs[i].a, a, pairs[i].b, b);
  }
}

static void check_text(const char *hex, const char *expected) {
  char text[128];
  const form_id form = form_of_hex(hex);
  CHECK(form != FORM_NONE, "%s has no form", hex);
  if (form == FORM_NONE)
    return;
  form_print(form, text, sizeof text);
  CHECK(strcmp(text, expected) == 0, "%s: expected \"%s\", got \"%s\"", hex, expected, text);
  char cut[5];
  const size_t length = form_print(form, cut, sizeof cut);
  CHECK(length == strlen(cut) && strncmp(cut, expected, length) == 0, "%s cut: \"%s\"", hex, cut);
}

static void check_texts(void) {
  check_text("90", "NOP");
  check_text("f0480103", "LOCK ADD m64, r64");
  check_text("f3a4", "REP MOVSB");
  check_text("48c1e002", "SHL r64, imm8");
  check_text("48d1e0", "SHL r64, 1");
  check_text("48d3e0", "SHL r64, cl");
  check_text("0f8402000000", "JZ rel32");
  check_text("62f17cd9580b", "{evex} VADDPS zmm{k}{z}, zmm, m32{1to16}");
  check_text("62f17c1858ca", "{evex} VADDPS zmm, zmm, zmm, {rn-sae}");
  check_text("c4e27d900c13", "VPGATHERDD ymm, m32[ymm], ymm");
  check_text("62f17c18c2ca02", "{evex} VCMPPS k, zmm, zmm, imm8, {sae}");
}

/* ---- Random bytes ------------------------------------------------------------------------------------ */

/* Whatever Zydis decodes has a form, or nearly: what is missing takes prefixes that change a form and that
 * the walk does not try (address size with hidden registers). */
static void check_random(void) {
  rng r = {1};
  uint32_t decoded = 0, unknown = 0;
  for (unsigned i = 0; i < 300000; i++) {
    uint64_t bytes[2] = {rng_next(&r), rng_next(&r)};
    form_example example;
    if (!harness_decode((const uint8_t *)bytes, 15, &example.instruction, example.operands))
      continue;
    decoded++;
    unknown += form_of(&example.instruction, example.operands) == FORM_NONE;
    CHECK(policy_of(&example.instruction, example.operands) != NULL, "no policy");
  }
  printf("random bytes: %u instructions, %u without a form\n", decoded, unknown);
  CHECK(decoded > 100000 && unknown < decoded / 100, "%u of %u have no form", unknown, decoded);
}

/* ---- The probe --------------------------------------------------------------------------------------- */

static void check_support(const uint8_t *support, const char *hex, form_support expected) {
  const form_id form = form_of_hex(hex);
  CHECK(form != FORM_NONE && support[form] == expected, "%s: support is %d, not %d", hex,
        form == FORM_NONE ? -1 : support[form], expected);
}

static void check_probed(const uint8_t *support) {
  uint32_t counts[4] = {0};
  for (form_id form = 0; form < forms_count(); form++) {
    const bool excluded = policy_of_form(form)->action == POLICY_EXCLUDE;
    counts[support[form]]++;
    CHECK(excluded == (support[form] == FORM_NOT_PROBED), "form %u: excluded %d, support %d", form, excluded,
          support[form]);
  }
  printf("%u run, %u are illegal, %u are excluded\n", counts[FORM_RUNS], counts[FORM_ILLEGAL],
         counts[FORM_NOT_PROBED]);
  CHECK(counts[FORM_UNPROBED] == 0, "%u were not probed", counts[FORM_UNPROBED]);
  check_support(support, "4801d8", FORM_RUNS);     /* add */
  check_support(support, "0f58ca", FORM_RUNS);     /* addps: every x86-64 has it */
  check_support(support, "d803", FORM_RUNS);       /* fadd */
  check_support(support, "e802000000", FORM_RUNS); /* call */
  check_support(support, "48f733", FORM_RUNS);     /* div by zero faults, and so runs */
  check_support(support, "f4", FORM_RUNS);         /* hlt: #GP */
  check_support(support, "0f05", FORM_RUNS);       /* syscall */
  check_support(support, "0f0b", FORM_ILLEGAL);    /* ud2 */
  check_support(support, "0f31", FORM_NOT_PROBED); /* rdtsc */
  check_support(support, "62f17c48580b",           /* vaddps zmm */
                __builtin_cpu_supports("avx512f") ? FORM_RUNS : FORM_ILLEGAL);
}

static int run_probe(void) {
  ls_executor *reference = NULL;
  ls_error error = {.text = ""};
  if (open_reference(testcase_layout(), &reference))
    return 1;
  uint8_t *support = calloc(forms_count(), 1), *again = calloc(forms_count(), 1);
  const bool probed = support != NULL && again != NULL && probe_forms(reference, support, &error) == LS_OK;
  CHECK(probed, "%s", error.text);
  if (probed) {
    check_probed(support);
    CHECK(probe_forms(reference, again, &error) == LS_OK, "%s", error.text);
    for (form_id form = 0; form < forms_count(); form++)
      CHECK(support[form] == again[form], "form %u: %d, then %d", form, support[form], again[form]);
  }
  free(support);
  free(again);
  ls_executor_destroy(reference);
  return failures == 0 ? 0 : 1;
}

int main(int argc, char **argv) {
  if (argc > 1 && strcmp(argv[1], "probe") == 0)
    return run_probe();
  check_every_form();
  check_size();
  check_pairs();
  check_texts();
  check_random();
  printf("%d failures\n", failures);
  return failures == 0 ? 0 : 1;
}

/* What instructions need of a processor, and what this one has. Each statement about an ISA set is held
 * against the probe of every form: an instruction runs exactly if nothing that it needs is lacking. */
#include <stdlib.h>

#include "check.h"
#include "forms/features.h"
#include "forms/policy.h"
#include "forms/probe.h"
#include "hex.h"
#include "left_out.h"
#include "testcase/testcase.h"

static feature_set needs_of(const uint8_t *bytes, size_t length) {
  form_example decoded;
  if (!harness_decode(bytes, length, &decoded.instruction, decoded.operands))
    fail_msg("a %zu byte instruction that begins with %02x does not decode", length, bytes[0]);
  assert_int_equal(decoded.instruction.length, length);
  return features_needed(&decoded.instruction);
}

static feature_set set_of(const char *names) {
  feature_set set;
  const char *at;
  size_t length;
  if (!features_parse(names, &set, &at, &length))
    fail_msg("'%.*s' is no feature", (int)length, at);
  return set;
}

static const char *text_of(feature_set set) {
  static char text[2][2000];
  static unsigned turn;
  turn ^= 1;
  for (unsigned i = 0, at = text[turn][0] = 0; i < features_count(); i++)
    if (set >> i & 1)
      at += (unsigned)sprintf(text[turn] + at, "%s ", feature_name(i));
  return text[turn];
}

static void examples_need_their_feature_and_what_it_rests_on(void **unused) {
  (void)unused;
  for (unsigned i = 0; i < features_count(); i++) {
    uint8_t length;
    const uint8_t *bytes = feature_example(i, &length);
    feature_set needs = needs_of(bytes, length), others = needs & ~(1ull << i);
    if (!(needs >> i & 1))
      fail_msg("the example of %s needs %s", feature_name(i), text_of(needs));
    for (unsigned other = 0; other < features_count(); other++)
      if (others >> other & 1 && !(features_without(1ull << other) >> i & 1))
        fail_msg("%s does not rest on %s, which its example needs", feature_name(i), feature_name(other));
  }
}

static void instructions_need(const char *hex, const char *names) {
  uint8_t bytes[15];
  feature_set needs = needs_of(bytes, parse_hex(hex, bytes, sizeof bytes)),
              expected = *names ? set_of(names) : 0;
  if (needs != expected)
    fail_msg("%s needs %s, not %s", hex, text_of(needs), text_of(expected));
}

static void needs_are_named(void **unused) {
  (void)unused;
  instructions_need("4801d8", "");   /* add rax, rbx */
  instructions_need("0f58ca", "");   /* addps */
  instructions_need("f30fbcc8", ""); /* tzcnt: bsf without BMI1 */
  instructions_need("0f0d0b", "");   /* prefetchw */
  instructions_need("f30f1efa", ""); /* endbr64 */
  instructions_need("0f0b", "");     /* ud2: nothing helps it */
  instructions_need("0fc70b", "cmpxchg8b");
  instructions_need("c5e85803", "avx"); /* vaddps xmm */
  instructions_need("c4e37944c800", "avx,pclmulqdq");
  instructions_need("62f17c48580b", "avx,avx512f");
  instructions_need("62f16c085803", "avx,avx512f,avx512vl");
  instructions_need("62f17d08fcc8", "avx,avx512f,avx512vl,avx512bw");
  instructions_need("62f27d48dcc8", "avx,avx512f,vaes");
}

static void names_are_read_and_printed(void **unused) {
  (void)unused;
  feature_set set;
  const char *at;
  size_t length;
  char text[64];
  assert_false(features_parse("", &set, &at, &length));
  assert_false(features_parse("avx,avx512", &set, &at, &length));
  assert_string_equal(at, "avx512");
  assert_int_equal(length, 6);
  assert_true(features_parse("AVX512f,sse4.1", &set, &at, &length));
  assert_int_equal(features_print(set, text, sizeof text), 18);
  assert_string_equal(text, "SSE4.1 and AVX512F");
  assert_true(features_without(set) & set_of("avx512vl"));
  assert_false(features_without(set) & set_of("avx"));
  features_print(features_without(set), text, sizeof text); /* not what goes with it */
  assert_string_equal(text, "SSE4.1 and AVX512F");
  features_print(set_of("sha,tbm,avx"), text, sizeof text);
  assert_string_equal(text, "SHA, TBM and AVX");
  assert_int_equal(features_print(set_of("sha,tbm,avx"), text, 4), 16);
  assert_string_equal(text, "SHA");
}

/* What is #UD in user mode everywhere needs nothing that would help; 0f 0d on a register is up to the vendor.
 */
static bool never_runs(form_id form, const form_example *example) {
  return policy_of_form(form)->action == POLICY_FAULT ||
         (example->instruction.meta.isa_set == ZYDIS_ISA_SET_PREFETCH_NOP &&
          example->operands[0].type == ZYDIS_OPERAND_TYPE_REGISTER);
}

/* Where an emulator does not know them. */
static bool is_left_out(const ZydisDecodedInstruction *in) {
  if (in->encoding == ZYDIS_INSTRUCTION_ENCODING_XOP)
    return left_out("XOP");
  if (in->mnemonic == ZYDIS_MNEMONIC_TEST && in->raw.modrm.reg == 1)
    return left_out("TEST, F6 /1 and F7 /1");
  if (in->mnemonic == ZYDIS_MNEMONIC_NOP && in->opcode == 0x18 && in->raw.modrm.mod == 3)
    return left_out("NOP, 0F 18 with a register");
  return false;
}

static void a_form_runs_exactly_if_nothing_is_lacking(void **unused) {
  (void)unused;
  ls_executor *reference = NULL;
  ls_error error = {.text = ""};
  feature_set have;
  assert_int_equal(ls_executor_create(LS_PTRACE, testcase_layout(), NULL, &reference, &error), LS_OK);
  uint8_t *support = calloc(forms_count(), 1);
  assert_non_null(support);
  if (features_probe(reference, &have, &error) || probe_forms(reference, support, &error))
    fail_msg("%s", error.text);
  unsigned wrong = 0;
  for (form_id form = 0; form < forms_count(); form++) {
    form_example example;
    char text[128];
    form_decode(form, &example);
    if (is_left_out(&example.instruction))
      continue;
    feature_set lacking = features_needed(&example.instruction) & ~have;
    bool runs = support[form] == FORM_RUNS || support[form] == FORM_OTHER;
    if ((!runs && (support[form] != FORM_ILLEGAL || never_runs(form, &example))) || runs == !lacking)
      continue;
    form_print(form, text, sizeof text);
    if (wrong++ < 20)
      printf("%s (%s) is %s and lacks %s\n", text, ZydisISASetGetString(example.instruction.meta.isa_set),
             support[form] == FORM_ILLEGAL ? "illegal" : "run", lacking ? text_of(lacking) : "nothing");
  }
  printf("this processor lacks %s\n", text_of(~have & ((1ull << features_count()) - 1)));
  assert_int_equal(wrong, 0);
  free(support);
  ls_executor_destroy(reference);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(examples_need_their_feature_and_what_it_rests_on),
      cmocka_unit_test(needs_are_named),
      cmocka_unit_test(names_are_read_and_printed),
      PART("probed", a_form_runs_exactly_if_nothing_is_lacking, NULL, NULL),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}

/* A round with narrower vectors (narrow.c) is what it says: whoever is not told otherwise, tests, executors
 * and controllers, has those, and more cannot be had. */
#include "must.h"

static ls_vectors round_vectors(void) {
  const char *name = getenv("LOCKSTEP_TEST_VECTORS");
  return name == NULL               ? ls_vectors_available()
         : strcmp(name, "sse") == 0 ? LS_VECTORS_SSE
         : strcmp(name, "avx") == 0 ? LS_VECTORS_AVX
                                    : LS_VECTORS_AVX512;
}

static void check_kind(ls_kind kind) {
  ls_layout layout;
  ls_executor *executor = NULL;
  ls_controller *controller = NULL;
  ls_layout_default(&layout, 0);
  assert_int_equal(ls_vectors_available(), round_vectors());
  must(ls_executor_create(kind, &layout, NULL, &executor, &error));
  assert_int_equal(ls_executor_vectors(executor), round_vectors());
  ls_executor_destroy(executor);
  for (ls_vectors v = round_vectors() + 1; v <= LS_VECTORS_AVX512; v++) {
    assert_int_equal(ls_executor_create(kind, &layout, &(ls_options){.vectors = v}, &executor, &error),
                     LS_ERR_CPU);
    assert_int_equal(
        ls_controller_create(kind, &(ls_controller_options){.executor.vectors = v}, &controller, &error),
        LS_ERR_CPU);
  }
}

static void vectors_are_as_wide_as_said(void **unused) {
  (void)unused;
  for (ls_kind kind = LS_SIGNAL; kind <= LS_PTRACE; kind++)
    if (is_wanted(kind))
      check_kind(kind);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(vectors_are_as_wide_as_said)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}

/* Generated programs and mutants in the reference: most run to their end, and those that fault on purpose do
 * so in all ways. */
#include <signal.h>

#include "generated.h"
#include "left_out.h"

static ls_stop run_reference(const testcase *test, ls_image *image) {
  static testcase_contents contents;
  ls_error error = {0};
  ls_outcome outcome;
  ls_program program = testcase_program(test);
  ls_run run = {.state = &test->state, .uses = LS_USES_X87, .fuel = test->fuel, .limit_ms = 500};
  testcase_contents_make(test, &contents);
  ls_status status = ls_image_build(image, &program, testcase_layout(), &error);
  if (status == LS_OK)
    status = ls_executor_load(reference, image, &error);
  if (status == LS_OK)
    status = ls_executor_reset(reference, contents.window, &error);
  if (status == LS_OK)
    status = ls_executor_run(reference, &run, &outcome, &error);
  if (status != LS_OK)
    printf("%s: %s\n", ls_status_name(status), error.text);
  assert_int_equal(status, LS_OK);
  return outcome.stop;
}

static void count_stops(uint32_t fault_percent, uint32_t mutations, uint32_t stops[LS_STOP_KINDS]) {
  static testcase test;
  generator *gen = make_generator(fault_percent);
  ls_image *image = ls_image_create();
  rng r = {23};
  assert_non_null(image);
  memset(stops, 0, LS_STOP_KINDS * sizeof stops[0]);
  for (int i = 0; i < PROGRAMS; i++) {
    generate_program(gen, &r, &test);
    for (uint32_t m = 0; m < mutations; m++)
      mutate_program(gen, &r, &test);
    stops[run_reference(&test, image).kind]++;
  }
  printf("faults %u %%, %u mutations: of %d programs", fault_percent, mutations, PROGRAMS);
  for (unsigned kind = 0; kind < LS_STOP_KINDS; kind++)
    printf(", %s %u", ls_stop_kind_name((ls_stop_kind)kind), stops[kind]);
  printf("\n");
  ls_image_destroy(image);
  generator_destroy(gen);
}

static void most_programs_exit(void **unused) {
  (void)unused;
  uint32_t stops[LS_STOP_KINDS];
  count_stops(0, 0, stops);
  assert_true(stops[LS_STOP_EXIT] * 100 >= PROGRAMS * 98);
  assert_int_equal(stops[LS_STOP_TIMEOUT], 0);
}

static void some_programs_fault_on_purpose(void **unused) {
  (void)unused;
  uint32_t stops[LS_STOP_KINDS];
  count_stops(5, 0, stops);
  assert_in_range(stops[LS_STOP_FAULT] * 100, PROGRAMS * 3, PROGRAMS * 10);
  count_stops(100, 0, stops);
  assert_true(stops[LS_STOP_FAULT] * 100 >= PROGRAMS * (left_out("SSE invalid") ? 70 : 85));
}

/* Every signal a fault can raise, integer and floating-point exceptions, traps, and system calls. */
static void faults_are_of_all_kinds(void **unused) {
  (void)unused;
  static testcase test;
  static uint32_t seen[65][16];
  generator_options options = {.fault_percent = 100, .syscalls = true};
  generator *gen = generator_create(support, &options);
  ls_image *image = ls_image_create();
  uint32_t syscalls = 0;
  rng r = {29};
  for (int i = 0; i < PROGRAMS; i++) {
    generate_program(gen, &r, &test);
    ls_stop stop = run_reference(&test, image);
    syscalls += stop.kind == LS_STOP_SYSCALL;
    if (stop.kind == LS_STOP_FAULT)
      seen[stop.signal][stop.code & 15]++;
  }
  for (int signal = 1; signal < 65; signal++)
    for (int code = 0; code < 16; code++)
      if (seen[signal][code])
        printf("signal %d, code %d (mod 16): %u\n", signal, code, seen[signal][code]);
  assert_true(syscalls > 0);
  assert_true(seen[SIGILL][ILL_ILLOPN] > 0);
  assert_true(seen[SIGBUS][BUS_ADRALN] > 0 || left_out("#AC"));
  assert_true(seen[SIGFPE][FPE_INTDIV] > 0);
  assert_true((seen[SIGFPE][FPE_FLTINV] > 0 && seen[SIGFPE][FPE_FLTRES] > 0) || left_out("SSE invalid"));
  assert_true(seen[SIGTRAP][TRAP_TRACE] > 0);
  assert_true(seen[SIGSEGV][0] > 0); /* SI_KERNEL, 128: not canonical, privileged, misaligned */
  assert_true(seen[SIGSEGV][SEGV_MAPERR] > 0 && seen[SIGSEGV][SEGV_ACCERR] > 0);
  ls_image_destroy(image);
  generator_destroy(gen);
}

static void most_mutants_exit(void **unused) {
  (void)unused;
  uint32_t stops[LS_STOP_KINDS];
  count_stops(0, 1, stops);
  assert_true(stops[LS_STOP_EXIT] * 100 >= PROGRAMS * 90);
  count_stops(0, 5, stops);
  assert_true(stops[LS_STOP_EXIT] * 100 >= PROGRAMS * 80);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(most_programs_exit),
      cmocka_unit_test(some_programs_fault_on_purpose),
      cmocka_unit_test(faults_are_of_all_kinds),
      cmocka_unit_test(most_mutants_exit),
  };
  if (open_support())
    return 1;
  int failed = cmocka_run_group_tests(tests, NULL, NULL);
  close_support();
  return failed;
}

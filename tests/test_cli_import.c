/* lockstep import from outside, and how what it imports ends. Usage: test_cli_import LOCKSTEP. */
#include "cli.h"

static void test_import(void **state) {
  (void)state;
  expect("echo 4801c8 | $L import -o taken -", 0);
  expect_text(output, "1 block: 1 runs to its end");
  assert_int_equal(count_entries("taken"), 1);
  expect("$L run taken", 0);
  expect("printf '# note\\nname,code\\na,4801c8\\nb,0x90 0x90\\n\\nc,488b07,1.5\\n' >b.csv; $L import --json "
         "b.csv",
         0);
  json_t *value = parse_output();
  assert_int_equal(number(value, "total"), 3);
  assert_int_equal(number(value, "exit"), 3);
  assert_int_equal(number(value, "fault"), 0);
  assert_int_equal(number(value, "refused"), 0);
  assert_int_equal(length_of(value, "blocks"), 3);
  json_decref(value);
  expect("echo 65488b07 | $L import -", 5);
  expect_text(output, "gs: operand");
  expect("printf '90\\nxyz\\n90\\n' | $L import -", 4);
  expect_text(complaints, "-:2: column 1: 'x' is no hex digit");
  expect_text(output, "2 blocks: 2 run");
  expect("printf '\\220\\220' | $L import -v -", 0);
  expect_text(output, "-: exit");
  expect("printf '48' | $L import --raw --no-run -", 0); /* xor al, 0x38 */
  expect_text(output, "1 not run");
  expect("printf '\\220\\017\\004' | $L import -", 5);
  expect_text(output, "byte 1 begins no instruction");
  expect("head -c 1000000 /dev/zero | $L import -", 4);
  expect_text(complaints, "-: too large: ");
  expect("head -c 10000 /dev/zero | tr '\\0' 9 | $L import -", 4);
  expect_text(complaints, "-:1: too large: ");
  expect("head -c 520 /dev/zero | tr '\\0' 9 | $L import -", 5); /* xchg eax, ecx, 260 times */
  expect_text(output, "more than 256 instructions");
  expect("printf '# nothing\\n' | $L import -", 4);
  expect("$L import missing", 4);
}

/* What is nearly hex is named, with the place; the first line too, unless it is a header. */
static void test_import_damaged(void **state) {
  (void)state;
  expect("printf '\\357\\273\\2774801c8\\n' | $L import -", 0);
  expect_text(output, "1 block: 1 runs");
  expect("echo 4801c | $L import -", 4);
  expect_text(complaints, "-:1: odd number of digits");
  expect("echo 4801c8z | $L import -", 4);
  expect_text(complaints, "-:1: column 7: 'z' is no hex digit");
  expect("printf '4801c8z\\n90\\n' | $L import -", 4);
  expect_text(complaints, "-:1: column 7");
  expect_text(output, "1 block: 1 runs");
  expect("printf 'code\\n90\\n' | $L import -", 0);
  expect("printf '90\\00090\\n90\\n' | $L import -", 4);
  expect_text(complaints, "-:1: column 3: a zero byte");
  expect_text(output, "1 block: 1 runs");
  expect("printf '\\000\\000' | $L import -v -", 0); /* add byte ptr [rax], al */
  expect_text(output, "-: exit");
}

/* Bytes that were there before are not run again; what became of them is said again. */
static void test_import_again(void **state) {
  (void)state;
  expect("printf '90\\n4801c8\\n90\\n48 01 c8\\n65488b07\\n65488b07\\n' | $L import --json -o again -", 5);
  json_t *value = parse_output();
  assert_int_equal(number(value, "total"), 6);
  assert_int_equal(number(value, "exit"), 4);
  assert_int_equal(number(value, "refused"), 2);
  assert_int_equal(number(value, "again"), 3);
  assert_int_equal(number(value, "written"), 2);
  const json_t *blocks = json_object_get(value, "blocks"), *first = json_array_get(blocks, 1),
               *second = json_array_get(blocks, 3);
  assert_true(number(first, "runs") > 0);
  assert_int_equal(number(second, "runs"), 0);
  assert_true(json_is_true(json_object_get(second, "again")));
  assert_true(json_equal(json_object_get(first, "entry"), json_object_get(second, "entry")));
  assert_true(json_equal(json_object_get(first, "stop"), json_object_get(second, "stop")));
  json_decref(value);
  expect("printf '90\\n90\\n' | $L import -", 0);
  expect_text(output, "; 1 of them repeats an earlier block");
}

/* A loop that no fuel lasts for ends with smaller counters; one that has none stays as it is. */
static void test_import_loops(void **state) {
  (void)state;
  expect("echo 4801d848ffc975f8660f58c1 | $L import -o loops -", 0); /* dec rcx; jnz */
  expect_text(output, "1 block: 1 runs to its end");
  expect("$L run loops", 0);
  expect_text(output, "exit, behind instruction #3");
  expect("echo 4883c0084839d075f790 | $L import -", 0); /* add rax, 8; cmp rax, rdx; jne */
  expect_text(output, "1 block: 1 runs to its end");
  expect("echo ebfe | $L import -", 0); /* jmp to itself */
  expect_text(output, "1 stops otherwise");
}

/* Faults have the names of signal.h, in JSON beside the numbers. */
static void test_fault_names(void **state) {
  static const struct {
    const char *code, *text, *signal, *name;
    int number;
  } faults[] = {{"0f0b", "fault SIGILL, ILL_ILLOPN, ", "SIGILL", "ILL_ILLOPN", ILL_ILLOPN},
                {"31c9f7f1", "fault SIGFPE, FPE_INTDIV, ", "SIGFPE", "FPE_INTDIV", FPE_INTDIV},
                {"cc", "fault SIGTRAP, SI_KERNEL, ", "SIGTRAP", "SI_KERNEL", SI_KERNEL},
                {"31c08b00", "fault SIGSEGV, SEGV_MAPERR, ", "SIGSEGV", "SEGV_MAPERR", SEGV_MAPERR},
                {"f4", "fault SIGSEGV, SI_KERNEL, ", "SIGSEGV", "SI_KERNEL", SI_KERNEL},
                {"8b042500000020", NULL, NULL, NULL, 0}}; /* absolute: redirected, and runs */
  char line[200];
  (void)state;
  for (size_t i = 0; faults[i].text != NULL; i++) {
    snprintf(line, sizeof line, "rm -rf fault; echo %s | $L import -o fault -", faults[i].code);
    expect(line, 0);
    expect_text(output, faults[i].text);
    expect("$L run fault", 0);
    expect_text(output, faults[i].text);
    expect("$L run --json fault", 0);
    json_t *value = parse_output();
    const json_t *stop = json_object_get(json_array_get(json_object_get(value, "entries"), 0), "stop");
    assert_int_equal(number(stop, "code"), faults[i].number);
    assert_string_equal(json_string_value(json_object_get(stop, "code_name")), faults[i].name);
    assert_string_equal(json_string_value(json_object_get(stop, "signal_name")), faults[i].signal);
    json_decref(value);
  }
}

int main(int argc, char **argv) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_import),       cmocka_unit_test(test_import_damaged),
      cmocka_unit_test(test_import_again), cmocka_unit_test(test_import_loops),
      cmocka_unit_test(test_fault_names),
  };
  return find_command(argc, argv) ? cmocka_run_group_tests(tests, set_up, tear_down) : 2;
}

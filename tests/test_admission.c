/* What may run in this process: the same, whichever in-thread executor of the process is asked, and whether
 * one has mapped the layout of test cases already or not. */
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "must.h"
#include "oracle/admission.h"
#include "raw.h"
#include "sanitizers.h"

enum { OTHER_SLOT = 3, LIMIT_MS = 50 };

#define CANONICAL_END (UINT64_C(1) << 47)

static ls_executor *reference;
static ls_image *image;

static uint64_t window(uint32_t index) {
  return testcase_layout()->windows[index].address;
}

/* In-thread executors that are asked. */
static ls_executor *stranger, *owner;

static ls_executor *open_thread(const ls_layout *layout) {
  ls_executor *executor = NULL;
  must(ls_executor_create(LS_SIGNAL, layout, NULL, &executor, &error));
  return executor;
}

static int close_threads(void **unused) {
  (void)unused;
  ls_executor_destroy(stranger);
  ls_executor_destroy(owner);
  stranger = owner = NULL;
  return 0;
}

/* ---- What is judged ---- */

typedef struct judged {
  const char *name;
  const char *code;
  uint8_t size;
  oracle_reason reason;
  uint64_t rax, rsp; /* rsp 0: in the stack */
} judged;

#define CODE(bytes) bytes, sizeof bytes - 1

static oracle_reason judge(const judged *j, ls_executor *here) {
  static ls_instruction pieces[RAW_PIECES];
  static scan_info infos[RAW_PIECES];
  static ls_outcome outcome;
  const void *const contents[LS_WINDOWS_MAX] = {0};
  const ls_program program = raw_program(j->code, j->size, pieces);
  bool uses_x87;
  oracle_reason reason;
  must(admission_of_program(&program, image, infos, &uses_x87, &reason, &error));
  if (reason != REASON_NONE)
    return reason;
  testcase test;
  testcase_init(&test);
  test.state.gpr[LS_RAX] = j->rax;
  test.state.gpr[LS_RSP] = j->rsp ? j->rsp : test.state.gpr[LS_RSP];
  const ls_run run = {.state = &test.state, .limit_ms = LIMIT_MS};
  must(ls_executor_load(reference, image, &error));
  must(ls_executor_reset(reference, contents, &error));
  must(ls_executor_run(reference, &run, &outcome, &error));
  return admission_of_outcome(&outcome, image, here);
}

static void check_all(const judged *list, size_t count, const char *who, ls_executor *here) {
  for (size_t i = 0; i < count; i++) {
    oracle_reason got = judge(&list[i], here);
    if (got != list[i].reason)
      fail_msg("%s, %s: expected %s, got %s", list[i].name, who, oracle_reason_name(list[i].reason),
               oracle_reason_name(got));
  }
}

/* By an executor with another layout, before and after somebody has mapped that of test cases, and by the one
 * that has. */
static void check(const judged *list, size_t count) {
  ls_layout other;
  ls_layout_default(&other, OTHER_SLOT);
  stranger = open_thread(&other);
  check_all(list, count, "asked elsewhere", stranger);
  owner = open_thread(testcase_layout());
  check_all(list, count, "asked where it is mapped", owner);
  check_all(list, count, "asked elsewhere, mapped", stranger);
}

#define CHECK(list) check(list, sizeof(list) / sizeof *(list))

/* ---- The rules ---- */

static int ours;

static void what_is_the_guests_is_admitted(void **unused) {
  (void)unused;
  const uint64_t end = window(TESTCASE_DATA) + testcase_layout()->windows[TESTCASE_DATA].size;
  const uint64_t code_end = window(TESTCASE_CODE) + testcase_layout()->windows[TESTCASE_CODE].size;
  const uint64_t gate = testcase_layout()->gate;
  const judged list[] = {
      {"nop", CODE("\x90"), REASON_NONE, 0, 0},
      {"ud2", CODE("\x0f\x0b"), REASON_NONE, 0, 0},
      {"int3", CODE("\xcc"), REASON_NONE, 0, 0},
      {"hlt", CODE("\xf4"), REASON_NONE, 0, 0},
      {"write to constants", CODE("\x88\x00"), REASON_NONE, window(TESTCASE_CONST), 0},
      {"write to code", CODE("\x88\x00"), REASON_NONE, window(TESTCASE_CODE), 0},
      {"guard behind data", CODE("\x88\x00"), REASON_NONE, end, 0},
      {"end of that guard", CODE("\x88\x00"), REASON_NONE, end + LS_PAGE - 1, 0},
      {"guard before data", CODE("\x88\x00"), REASON_NONE, window(TESTCASE_DATA) - 1, 0},
      {"start of that guard", CODE("\x88\x00"), REASON_NONE, window(TESTCASE_DATA) - LS_PAGE, 0},
      {"guard behind code", CODE("\xff\xe0"), REASON_NONE, code_end, 0},
      {"write to the gate", CODE("\x88\x00"), REASON_NONE, gate, 0},
      {"behind the gate's page", CODE("\x8a\x00"), REASON_NONE, gate + LS_PAGE, 0},
      {"end of the gate", CODE("\x8a\x00"), REASON_NONE, gate + LS_GATE_SIZE - 1, 0},
      {"page 0", CODE("\x88\x00"), REASON_NONE, 0x10, 0},
      {"not canonical", CODE("\x88\x00"), REASON_NONE, CANONICAL_END, 0},
      {"not canonical, RSP", CODE("\x90"), REASON_NONE, 0, CANONICAL_END},
      {"not canonical, RSP, int3", CODE("\xcc"), REASON_NONE, 0, CANONICAL_END},
  };
  CHECK(list);
}

static void what_is_the_hosts_is_not(void **unused) {
  (void)unused;
  void *of_heap = malloc(1);
  const judged list[] = {
      {"static data", CODE("\x88\x00"), REASON_ADDRESS, (uintptr_t)&ours, 0},
      {"code", CODE("\xff\xe0"), REASON_ADDRESS, (uintptr_t)&window, 0},
      {"stack", CODE("\x8a\x00"), REASON_ADDRESS, (uintptr_t)&of_heap, 0},
      {"heap", CODE("\x8a\x00"), REASON_ADDRESS, (uintptr_t)of_heap, 0},
      {"rdtsc", CODE("\x0f\x31"), REASON_POLICY, 0, 0},
      {"mov rax, fs:[0]", CODE("\x64\x48\x8b\x04\x25\0\0\0\0"), REASON_POLICY, 0, 0},
      {"fs: in an immediate that is jumped into", CODE("\xff\xe0\x48\xb8\x64\x8b\x00\x90\x90\x90\x90\x90"),
       REASON_FS_GS, window(TESTCASE_CODE) + 4, 0},
      {"endless", CODE("\xeb\xfe"), REASON_TIMEOUT, 0, 0},
      {"push, RSP not canonical", CODE("\x50"), REASON_NONE, 0, 2 * CANONICAL_END},
      {"hlt, RSP not canonical", CODE("\xf4"), REASON_NONE, 0, CANONICAL_END},
  };
  ours = 0x5a;
  CHECK(list);
  assert_int_equal(ours, 0x5a);
  free(of_heap);
}

static void system_calls_are_where_they_can_be_stopped(void **unused) {
  (void)unused;
  owner = open_thread(testcase_layout());
  const judged call = {"syscall", CODE("\x0f\x05"),
                       ls_executor_stops_syscalls(owner) ? REASON_NONE : REASON_SYSCALL, 231, 0};
  check_all(&call, 1, "asked where it is mapped", owner);
}

/* ---- Names, errors, states ---- */

static void the_row_is_named(void **unused) {
  (void)unused;
  static ls_instruction pieces[RAW_PIECES];
  static scan_info infos[RAW_PIECES];
  bool uses_x87;
  oracle_reason reason;
  ls_program program = raw_program("\x8e\xe0", 2, pieces); /* mov fs, eax */
  for (int told = 0; told < 2; told++) {
    must(admission_of_program(&program, image, infos, &uses_x87, &reason, told ? &error : NULL));
    assert_int_equal(reason, REASON_POLICY);
  }
  assert_string_equal(error.text, "fs-gs");
  pieces[0].next = 7;
  for (int told = 0; told < 2; told++) {
    must(admission_of_program(&program, image, infos, &uses_x87, &reason, told ? &error : NULL));
    assert_int_equal(reason, REASON_PROGRAM);
  }
  assert_non_null(strstr(error.text, "0"));
}

/* Leaves this process no more address space than it has, and nothing of that to allocate. */
static void allow_no_more_memory(void) {
  enum { LARGEST = 1 << 20, SMALLEST = 64 };
  unsigned long pages = 0;
  FILE *f = fopen("/proc/self/statm", "r");
  if (!f || fscanf(f, "%lu", &pages) != 1)
    _exit(2);
  fclose(f);
  const struct rlimit limit = {pages * LS_PAGE, pages * LS_PAGE};
  setrlimit(RLIMIT_AS, &limit);
  for (size_t size = LARGEST; size >= SMALLEST; size /= 2) {
    void *volatile taken;
    do
      taken = malloc(size);
    while (taken);
  }
}

/* No memory for a program says nothing of the program, and a sentence says so. */
static const char *no_memory_is_told(const ls_program *program, scan_info *infos) {
  bool uses_x87;
  oracle_reason reason = REASON_PROGRAM;
  oracle *o = NULL;
  allow_no_more_memory();
  error = (ls_error){.text = ""};
  if (admission_of_program(program, image, infos, &uses_x87, &reason, &error) != LS_ERR_MEMORY)
    return "a program that there is no memory for is no error";
  if (reason != REASON_NONE)
    return "no memory is a reason to refuse a program";
  if (!strstr(error.text, "memory"))
    return "the sentence of the first error";
  error = (ls_error){.text = ""};
  if (oracle_create(NULL, &o, &error) != LS_ERR_MEMORY)
    return "an oracle is made without memory";
  return strstr(error.text, "memory") ? NULL : "the sentence of the second error";
}

static void no_memory_is_no_refusal(void **unused) {
  (void)unused;
  if (ASAN || TSAN)
    return; /* their allocators end the process; elsewhere it is tested */
  ls_instruction *in = calloc(LS_PROGRAM_MAX, sizeof *in);
  scan_info *infos = calloc(LS_PROGRAM_MAX, sizeof *infos);
  assert_non_null(in);
  assert_non_null(infos);
  for (uint32_t i = 0; i < LS_PROGRAM_MAX; i++)
    in[i] = (ls_instruction){.next = LS_NONE, .length = 1, .bytes = {0x90}};
  const ls_program program = {in, LS_PROGRAM_MAX, 0};
  pid_t child = fork();
  if (child == 0) {
    const char *trouble = no_memory_is_told(&program, infos);
    if (trouble)
      fprintf(stderr, "%s\n", trouble);
    _exit(trouble ? 1 : 0);
  }
  int status;
  assert_int_equal(waitpid(child, &status, 0), child);
  assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  free(in);
  free(infos);
}

static void errors_are_the_programs_or_the_hosts(void **unused) {
  (void)unused;
  assert_int_equal(admission_of_error(LS_ERR_STATE), REASON_STATE);
  assert_int_equal(admission_of_error(LS_ERR_CHILD), REASON_REFERENCE_LOST);
  assert_int_equal(admission_of_error(LS_OK), REASON_NONE);
  assert_int_equal(admission_of_error(LS_ERR_MEMORY), REASON_NONE);
  assert_int_equal(admission_of_error(LS_ERR_NO_REFERENCE), REASON_NONE);
}

static void interrupts_want_a_canonical_stack_pointer(void **unused) {
  (void)unused;
  static const struct {
    uint64_t rsp;
    bool bears;
  } list[] = {{0, true},
              {CANONICAL_END - 1, true},
              {CANONICAL_END, false},
              {~CANONICAL_END, false},
              {-CANONICAL_END - 1, false},
              {-CANONICAL_END, true},
              {UINT64_MAX, true}};
  ls_state state;
  ls_state_init(&state);
  for (size_t i = 0; i < sizeof list / sizeof *list; i++) {
    state.gpr[LS_RSP] = list[i].rsp;
    if (admission_bears_interrupts(&state) != list[i].bears)
      fail_msg("RSP %#llx", (unsigned long long)list[i].rsp);
  }
}

int main(void) {
  if (open_reference(testcase_layout(), &reference))
    return 1;
  image = ls_image_create();
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_teardown(what_is_the_guests_is_admitted, close_threads),
      cmocka_unit_test_teardown(what_is_the_hosts_is_not, close_threads),
      cmocka_unit_test_teardown(system_calls_are_where_they_can_be_stopped, close_threads),
      cmocka_unit_test(the_row_is_named),
      cmocka_unit_test(no_memory_is_no_refusal),
      cmocka_unit_test(errors_are_the_programs_or_the_hosts),
      cmocka_unit_test(interrupts_want_a_canonical_stack_pointer),
  };
  int failed = cmocka_run_group_tests(tests, NULL, NULL);
  ls_executor_destroy(reference);
  ls_image_destroy(image);
  return failed;
}

/* The lockstep command from outside: exit codes, JSON, what it does about bad files and full disks.
 * Usage: test_cli LOCKSTEP. */
#include <sys/stat.h>

#include "cli.h"
#include "feedback/stats.h"
#include "testcase/testcase.h"

static void test_help(void **state) {
  (void)state;
  static const char *const commands[] = {"run", "show", "generate", "import", "forms", "bench", "stats"};
  static char all[OUTPUT_MAX];
  char line[100];
  expect("$L --help", 0);
  strcpy(all, output);
  for (size_t i = 0; i < sizeof commands / sizeof commands[0]; i++) {
    expect_text(all, commands[i]);
    snprintf(line, sizeof line, "$L %s --help", commands[i]);
    expect(line, 0);
    expect_text(output, "Usage: lockstep ");
    expect_text(output, "Example: ");
    expect_text(output, "lockstep help exit-codes");
    snprintf(line, sizeof line, "$L %s --help >long; $L %s -h | cmp - long && $L help %s | cmp - long",
             commands[i], commands[i], commands[i]);
    expect(line, 0);
  }
  expect("$L --help >long; $L -h | cmp - long && $L help | cmp - long && $L help help | cmp - long", 0);
  expect("$L help exit-codes", 0);
  expect_text(output, "143");
  expect("$L help shwo", 2);
  expect_text(complaints, "did you mean 'show'");
  expect("$L --version", 0);
  expect_text(output, "lockstep ");
}

static void test_usage(void **state) {
  (void)state;
  expect("$L", 2);
  expect("$L shwo", 2);
  expect_text(complaints, "did you mean 'show'");
  expect("$L bogus", 2);
  assert_null(strstr(complaints, "did you mean"));
  expect("$L frobnicate", 2);
  expect_text(complaints, "--help");
  expect("$L --frobnicate", 2);
  expect_text(complaints, "--help");
  expect("$L run", 2);
  expect("$L run --frobnicate x", 2);
  expect("$L show", 2);
  expect("$L import", 2);
  expect("$L generate -n 0", 2);
  expect("$L generate -n 1x", 2);
  expect("$L generate -m 65", 2);
  expect("$L generate -f 101", 2);
  expect("$L generate surplus", 2);
  expect("$L generate -o ''", 2);
  expect_text(complaints, "empty");
  expect("echo 90 | $L import -o '' -", 2);
  expect_text(complaints, "empty");
  expect("$L run ''", 4);
  expect_text(complaints, "the name is empty");
  expect("$L bench nothing", 2);
  expect_text(complaints, "reference");
  expect("$L run --limit 0 x", 2);
}

static void test_generate_and_run(void **state) {
  (void)state;
  expect("$L generate -n 20 -s 7 -m 8 -o made", 0);
  assert_int_equal(count_entries("made"), 20);
  expect("$L generate -n 20 -s 7 -m 8 -o made", 0);
  expect_text(output, "0 entries written");
  assert_int_equal(count_entries("made"), 20);
  int status = run("$L run --json made");
  json_t *value = parse_output();
  json_int_t open = number(value, "inconclusive") + number(value, "refused");
  assert_int_equal(length_of(value, "entries"), 20);
  assert_int_equal(number(value, "same") + number(value, "different") + open, 20);
  assert_int_equal(number(value, "different"), 0);
  assert_int_equal(status, open > 0 ? 5 : 0);
  const json_t *entry = json_array_get(json_object_get(value, "entries"), 0);
  assert_true(json_is_string(json_object_get(entry, "file")));
  assert_true(json_is_string(json_object_get(entry, "verdict")));
  assert_true(json_is_string(json_object_get(entry, "reason")));
  json_decref(value);
  assert_int_equal(run("$L run --quiet --json made"), status);
  value = parse_output();
  assert_int_equal(length_of(value, "entries"), open);
  assert_int_equal(number(value, "same"), 20 - open);
  json_decref(value);
  assert_int_equal(run("$L run made"), status);
  expect_text(output, "20 entries: ");
  expect("$L generate -n 2 -s 7", 0);
  expect_text(output, "program (");
}

/* Whenever it is interrupted, what it has written are entries, and nothing else. */
static void test_writing_interrupted(void **state) {
  (void)state;
  expect("awk 'BEGIN { for (i = 1; i <= 200000; i++) printf \"b8%08d\\n\", i }' >many", 0); /* mov eax, … */
  for (int round = 0; round < 6; round++) {
    static const char *const lines[] = {"exec $L import --no-run -o cut many",
                                        "exec $L generate -n 1000000 -o cut"};
    int from, sig = round % 2 ? SIGTERM : SIGINT;
    expect("rm -rf cut", 0);
    pid_t pid = start(lines[round == 0], &from);
    while (count_entries("cut") == 0 && waitpid(pid, NULL, WNOHANG) == 0)
      usleep(100);
    assert_int_equal(interrupt(pid, sig, from), 128 + sig);
    expect("ls -A cut | grep -vxE '[0-9a-f]{32}'", 1);
    expect("find cut -type f -size 0 | grep .", 1);
    int status = run("$L run -q cut");
    if (status != 0 && status != 5)
      fail_msg("exit status %d: %s%s", status, output, complaints);
  }
}

/* What has an entry's name but other bytes makes room for it. */
static void test_generate_over_damage(void **state) {
  (void)state;
  expect("$L generate -s 1 -o again && for e in again/*; do cp $e kept; echo damaged >$e; done", 0);
  expect("$L run again", 4);
  expect("$L generate -s 1 -o again", 0);
  expect_text(output, "1 entry written");
  expect("cmp again/* kept && test \"$(ls -A again | wc -l)\" = 1", 0);
}

static void write_testcase(const char *path, const testcase *test) {
  static uint8_t data[TESTCASE_SIZE_MAX];
  size_t size = testcase_encode(test, data, sizeof data);
  FILE *file = fopen(path, "w");
  assert_non_null(file);
  assert_int_equal(fwrite(data, 1, size, file), size);
  assert_int_equal(fclose(file), 0);
}

/* An entry of one instruction (nop), which any CPU runs. */
static void write_entry(const char *path, uint32_t fuel) {
  static testcase test;
  testcase_init(&test);
  test.fuel = fuel;
  write_testcase(path, &test);
}

/* Out of fuel before an indirect branch, in text and in JSON. */
static void test_part_before(void **state) {
  (void)state;
  static testcase test;
  testcase_init(&test); /* nop; ret */
  test.count = 2;
  test.instructions[0].next = 1;
  test.instructions[1] = (ls_instruction){.next = LS_NONE, .jump = LS_NONE, .length = 1, .bytes = {0xc3}};
  test.fuel = 0;
  write_testcase("returns", &test);
  expect("$L run returns", 0);
  expect_text(output, "fuel, before instruction #1");
  expect("$L run --json returns", 0);
  expect_text(output, "\"before\"");
  expect("$L show --json returns", 0);
  expect_text(output, "\"before\"");
}

static void test_bad_files(void **state) {
  (void)state;
  assert_int_equal(mkdir("mixed", 0755), 0);
  assert_int_equal(mkdir("mixed/below", 0755), 0);
  assert_int_equal(mkdir("empty", 0755), 0);
  write_entry("mixed/b", 1);
  write_entry("mixed/below/a", 2);
  write_entry("single", 3);
  expect("$L run single", 0);
  expect("$L run mixed single", 0);
  expect_text(output, "3 entries: 3 same");
  expect("head -c 20 single >mixed/a && $L run mixed", 4);
  expect_text(output, "2 entries: 2 same");
  expect_text(complaints, "mixed/a: the entry is cut short");
  expect("$L run --json mixed", 4);
  json_t *value = parse_output();
  assert_int_equal(number(value, "same"), 2);
  assert_int_equal(length_of(value, "errors"), 1);
  json_decref(value);
  expect("$L run empty", 4);
  expect_text(complaints, "nothing to run");
  expect("$L run missing", 4);
  expect_text(complaints, "missing: ");
  expect("$L run missing single", 4);
  expect_text(output, "1 entry: 1 same");
  expect_text(output, "; 1 file could not be used");
  expect("$L run missing mixed/a", 4);
  expect_text(output, "0 entries: ");
  expect_text(output, "; 2 files could not be used");
  expect("$L run mixed/a", 4);
  expect_text(complaints, "nothing was run");
  expect("$L run --any mixed/a single", 0);
  expect("echo no entry >odd; $L show odd", 4);
  expect_text(complaints, "not a Lockstep entry");
  expect_text(complaints, "--any");
  expect("head -c 100000 /dev/zero >large; $L run large", 4);
  expect_text(complaints, "large: too large");
  expect("$L show missing", 4);
}

/* Nobody writes into the pipe: opening it would never end. */
static void test_no_files(void **state) {
  (void)state;
  write_entry("single", 3);
  assert_int_equal(mkfifo("pipe", 0600), 0);
  expect("timeout 20 $L run pipe", 4);
  expect_text(complaints, "pipe: neither a regular file nor a directory");
  expect("timeout 20 $L show pipe", 4);
  expect_text(complaints, "pipe: neither a regular file nor a directory");
  expect("timeout 20 $L run pipe single", 4);
  expect_text(output, "1 entry: 1 same");
  expect("$L run - <single && $L show - <single", 0);
}

static void read_line(int from) {
  char c = 0;
  while (c != '\n')
    assert_int_equal(read(from, &c, 1), 1);
}

/* Waits until the process handles `sig`. */
static void await_handler(pid_t pid, int sig) {
  char path[64], line[200];
  unsigned long caught = 0;
  snprintf(path, sizeof path, "/proc/%d/status", pid);
  while ((caught >> (sig - 1) & 1) == 0) {
    FILE *status = fopen(path, "r");
    assert_non_null(status);
    while (fgets(line, sizeof line, status) != NULL)
      if (strncmp(line, "SigCgt:", 7) == 0)
        caught = strtoul(line + 7, NULL, 16);
    fclose(status);
    assert_int_equal(waitpid(pid, NULL, WNOHANG), 0);
  }
}

/* What was done until then is printed. Nothing comes out of the pipe "held", and it does not end. */
static void test_run_interrupted(void **state) {
  (void)state;
  int from;
  write_entry("single", 3);
  assert_int_equal(mkfifo("held", 0600), 0);
  pid_t pid = start("exec $L run single - single <>held", &from);
  read_line(from);
  assert_int_equal(interrupt(pid, SIGINT, from), 130);
  expect_text(output,
              "1 entry: 1 same, 0 different, 0 inconclusive, 0 refused; interrupted after 1 of 3 files");
  pid = start("trap '' INT; exec $L run -q single - <>held", &from);
  await_handler(pid, SIGTERM);
  assert_int_equal(kill(pid, SIGINT), 0); /* ignored before: so it is still */
  assert_int_equal(interrupt(pid, SIGTERM, from), 143);
  expect_text(output, " of 2 files");
  pid = start("exec $L run --json - single <>held", &from);
  await_handler(pid, SIGTERM);
  assert_int_equal(interrupt(pid, SIGTERM, from), 143);
  json_t *value = parse_output(), *interrupted = json_object_get(value, "interrupted");
  assert_int_equal(length_of(value, "entries"), 0);
  assert_int_equal(number(interrupted, "signal"), SIGTERM);
  assert_int_equal(number(interrupted, "after"), 0);
  assert_int_equal(number(interrupted, "of"), 2);
  json_decref(value);
  expect("$L run --json single", 0);
  value = parse_output();
  assert_true(json_is_null(json_object_get(value, "interrupted")));
  json_decref(value);
}

/* While guests run. All lines are more than fit into the pipe, so it cannot be done before the signal. */
static void test_run_interrupted_at_work(void **state) {
  (void)state;
  expect("$L generate -n 200 -s 3 -o work", 0);
  for (int round = 0; round < 4; round++) {
    int from, sig = round % 2 ? SIGTERM : SIGINT;
    pid_t pid = start("exec $L run work work work work work work work work work work", &from);
    if (round < 2)
      read_line(from);
    else
      await_handler(pid, SIGTERM);
    assert_int_equal(interrupt(pid, sig, from), 128 + sig);
    expect_text(output, " of 2000 files\n");
    expect_text(output, " 0 different");
  }
}

/* A host that can run nothing says so once and does not blame the files. */
static void test_host_failure(void **state) {
  (void)state;
  assert_int_equal(mkdir("several", 0755), 0);
  write_entry("several/a", 1);
  write_entry("several/b", 2);
  int status = run("(prlimit --sigpending=0 $L run several 2>&1) | cat; "
                   "(prlimit --sigpending=0 $L run --json several) 2>/dev/null | cat >json");
  assert_int_equal(status, 0);
  expect_text(output, "this host cannot run guests: ");
  assert_null(strstr(output, "is an entry"));
  expect("cat json", 0);
  json_t *value = parse_output();
  assert_int_equal(length_of(value, "entries"), 0);
  assert_int_equal(length_of(value, "errors"), 1);
  json_decref(value);
}

/* Exactly one document, whatever happens. */
static void test_json_on_failure(void **state) {
  (void)state;
  write_entry("single", 3);
  expect("$L run --json missing", 4);
  json_t *value = parse_output();
  assert_int_equal(length_of(value, "entries"), 0);
  assert_int_equal(length_of(value, "errors"), 1);
  json_decref(value);
  expect("$L show --json single single", 0);
  value = parse_output();
  assert_int_equal(json_array_size(value), 2);
  json_decref(value);
  expect("$L show --json single missing", 4);
  value = parse_output();
  assert_int_equal(json_array_size(value), 2);
  assert_true(json_is_string(json_object_get(json_array_get(value, 1), "why")));
  json_decref(value);
  expect("$L show --json missing", 4);
  value = parse_output();
  assert_true(json_is_object(value));
  json_decref(value);
  expect("$L stats -f missing --json missing", 4);
  value = parse_output();
  assert_int_equal(number(value, "programs"), 0);
  assert_int_equal(length_of(value, "findings"), 0);
  assert_int_equal(length_of(value, "errors"), 2);
  json_decref(value);
}

/* Its numbers add up. */
static void test_forms(void **state) {
  (void)state;
  unsigned forms, allowed, runnable, faulting, absent, excluded, mnemonics;
  expect("$L forms", 0);
  int found =
      sscanf(output,
             "%u forms of %u mnemonics: %u are allowed: %u that this CPU runs, %u that are undefined and "
             "are to fault %u this CPU does not have %u are excluded",
             &forms, &mnemonics, &allowed, &runnable, &faulting, &absent, &excluded);
  if (found != 7)
    fail_msg("%d of 7 numbers in: %s", found, output);
  assert_int_equal(forms, allowed + absent + excluded);
  assert_int_equal(allowed, runnable + faulting);
  expect("$L forms --json", 0);
  json_t *value = parse_output();
  assert_int_equal(number(value, "runnable"), runnable);
  assert_int_equal(number(value, "allowed"), allowed);
  assert_int_equal(number(value, "unsupported"), absent);
  json_decref(value);
}

static void test_stats(void **state) {
  (void)state;
  stats *account = stats_open("account");
  assert_non_null(account);
  stats_finish(account);
  expect("$L stats account", 0);
  expect_text(output, "nothing diverged");
  expect("touch found; $L stats -f found account", 0);
  expect_text(output, "FINDING found");
  expect("$L stats -f missing account", 4);
  expect_text(complaints, "missing: ");
  assert_null(strstr(output, "FINDING"));
  assert_null(strstr(output, "nothing diverged"));
  expect("$L stats found", 4);
  expect_text(complaints, "LOCKSTEP_STATS");
}

static void test_show(void **state) {
  (void)state;
  write_entry("shown", 5);
  expect("$L show shown", 0);
  expect_text(output, "nop");
  expect_text(output, " + 0x");
  expect_text(output, "fuel: 5");
  expect("$L show --json shown", 0);
  json_t *value = parse_output();
  assert_int_equal(number(value, "fuel"), 5);
  assert_true(length_of(value, "program") >= 2);
  assert_int_equal(length_of(value, "patches"), 0);
  assert_true(json_is_object(json_object_get(value, "state")));
  json_decref(value);
}

/* What cannot be read may be an entry: there is no advice to make one. Root can read all but these. */
static void test_unreadable(void **state) {
  (void)state;
  expect("$L run /proc/self/mem", 4);
  assert_null(strstr(complaints, "is no entry"));
  expect("$L run missing", 4);
  assert_null(strstr(complaints, "`lockstep "));
  expect("echo >blank && $L run missing blank", 4);
  assert_null(strstr(complaints, "lockstep import"));
  expect("$L run blank", 4);
  expect_text(complaints, "lockstep import");
  expect("$L stats .", 4);
  expect_text(complaints, "Is a directory");
}

/* run() sees that nothing of this is printed as it is. */
static void test_names_of_files(void **state) {
  (void)state;
  expect("mkdir slash && $L generate -s 1 -o slash/ && $L run slash/ --json | grep -F '\"slash/'", 0);
  expect("$L run slash/", 0);
  write_entry("weird\033[2J\r", 1);
  expect("$L run weird*", 0);
  expect_text(output, "weird\\x1b[2J\\r: ");
  expect("$L show weird* weird*", 0);
  expect_text(output, "==> weird\\x1b[2J\\r <==");
  expect("$L run missing$(printf '\\033')", 4);
  expect_text(complaints, "missing\\x1b: ");
  expect("$L run missing$(printf '\\302\\233')", 4); /* CSI in one character of UTF-8 */
  expect_text(complaints, "missing\\xc2\\x9b: ");
  expect("echo 0f0b >weird$(printf '\\a').hex && $L import weird*.hex", 0);
  expect_text(output, "weird\\a.hex:1: fault");
  expect("$L $(printf 'a\\033')", 2);
  expect_text(complaints, "'a\\x1b'");
  expect("$L stats -f slash$(printf '\\033') slash", 4);
}

/* Nothing else takes their numbers. */
static void test_closed_streams(void **state) {
  (void)state;
  write_entry("single", 3);
  expect("timeout 20 $L run - <&-", 4);
  expect_text(complaints, "-: Bad file descriptor");
  expect("timeout 20 $L import - <&-", 4);
  expect("$L run single >&-", 4);
  expect_text(complaints, "could not be written");
  expect("$L run single missing 2>&-", 4);
  expect_text(output, "1 entry: 1 same");
  expect("$L generate -s 1 <&- >&- 2>&-", 4);
}

/* Nothing half-written stays behind, and nothing goes wrong in silence. */
static void test_full_disk(void **state) {
  (void)state;
  expect("touch plain; echo 90 | $L import --no-run -o plain -", 4);
  expect_text(complaints, "plain");
  expect_text(complaints, "give --output a directory");
  expect("echo 90 | $L import --no-run -o /proc/no/such -", 4);
  expect("echo 90 | $L import --no-run -o no/such -", 4);
  expect_text(complaints, "make the directory above it first");
  /* A file size limit of 0 stands for a disk that is full. SIGXFSZ is ignored, so that write fails. */
  expect("trap '' XFSZ; mkdir full; echo 90 >in; L2=$L; "
         "sh -c 'ulimit -f 0; exec \"$0\" import --no-run -o full in' \"$L\" 2>&1 | cat; "
         "test -z \"$(ls -A full)\"",
         0);
  expect_text(output, "full/");
  expect_text(output, "make room");
  write_entry("shown", 5);
  expect("test -c /dev/full", 0); /* else root's next line would make it a file, for all */
  expect("$L show shown >/dev/full", 4);
  expect_text(complaints, "could not be written");
  expect("$L --help >/dev/full", 4);
  expect("$L --version >/dev/full", 4);
  expect("$L run --help >/dev/full", 4);
}

int main(int argc, char **argv) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_help),
      cmocka_unit_test(test_usage),
      cmocka_unit_test(test_generate_and_run),
      cmocka_unit_test(test_writing_interrupted),
      cmocka_unit_test(test_generate_over_damage),
      cmocka_unit_test(test_bad_files),
      cmocka_unit_test(test_part_before),
      cmocka_unit_test(test_run_interrupted),
      cmocka_unit_test(test_run_interrupted_at_work),
      cmocka_unit_test(test_forms),
      cmocka_unit_test(test_stats),
      cmocka_unit_test(test_show),
      cmocka_unit_test(test_full_disk),
      cmocka_unit_test(test_unreadable),
      cmocka_unit_test(test_closed_streams),
      cmocka_unit_test(test_names_of_files),
      cmocka_unit_test(test_no_files),
      cmocka_unit_test(test_host_failure),
      cmocka_unit_test(test_json_on_failure),
  };
  return find_command(argc, argv) ? cmocka_run_group_tests(tests, set_up, tear_down) : 2;
}

/* What fuzzing processes leave behind of themselves, and what they count as seen. */
#include "check.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "feedback/behaviour.h"
#include "feedback/stats.h"

static char directory[] = "/tmp/lockstep-test-XXXXXX";
static char path[64];

static int make_directory(void **unused) {
  (void)unused;
  if (!mkdtemp(directory))
    return -1;
  snprintf(path, sizeof path, "%s/account", directory);
  return 0;
}

static int remove_directory(void **unused) {
  (void)unused;
  unlink(path);
  return rmdir(directory);
}

static void accounts_outlive_sigkill(void **unused) {
  (void)unused;
  static stats read_back;
  pid_t child = fork();
  if (child == 0) {
    stats *s = stats_open(path);
    if (s) {
      s->programs = 12345;
      s->counts.verdicts[VERDICT_SAME] = 12345;
      stats_see(s, 7);
    }
    raise(SIGKILL);
  }
  assert_int_equal(waitpid(child, NULL, 0), child);
  assert_int_equal(stats_read(&read_back, path), 0);
  assert_int_equal(read_back.programs, 12345);
  assert_int_equal(read_back.counts.verdicts[VERDICT_SAME], 12345);
  assert_int_equal(read_back.seen[0], 1 << 7);
}

static void other_files_are_no_accounts(void **unused) {
  (void)unused;
  static stats s;
  assert_int_equal(stats_read(&s, "/dev/null"), EINVAL);
  assert_int_equal(stats_read(&s, directory), EISDIR);
  assert_int_equal(stats_read(&s, "/nowhere/account"), ENOENT);
  assert_non_null(stats_open(path));
  assert_int_equal(stats_read(&s, path), 0);
  assert_int_equal(truncate(path, sizeof s - 1), 0);
  assert_int_equal(stats_read(&s, path), EINVAL);
}

static void what_is_no_plain_file_stays(void **unused) {
  (void)unused;
  struct stat about;
  assert_null(stats_open("/dev/null"));
  assert_int_equal(errno, EINVAL);
  assert_int_equal(stat("/dev/null", &about), 0);
  assert_true(S_ISCHR(about.st_mode));
  assert_null(stats_open("/nowhere/account"));
  assert_int_equal(errno, ENOENT);
}

static void accounts_add_up(void **unused) {
  (void)unused;
  static stats sum, one, two;
  stats_init(&sum);
  stats_init(&one);
  stats_init(&two);
  one.begun = 10, one.ended = 20, one.programs = 5, one.counts.reasons[REASON_TIMEOUT] = 1;
  two.begun = 12, two.ended = 25, two.programs = 7, two.counts.reasons[REASON_TIMEOUT] = 2;
  for (form_id form = 0; form < 10; form++)
    stats_allow(&one, form);
  stats_see(&one, 1);
  stats_see(&two, 1);
  stats_see(&two, 9);
  stats_see(&two, 100); /* not an allowed one */
  stats_add(&sum, &one);
  stats_add(&sum, &two);
  stats_finish(&sum);
  assert_int_equal(sum.programs, 12);
  assert_int_equal(sum.counts.reasons[REASON_TIMEOUT], 3);
  assert_int_equal((int)(sum.ended - sum.begun), 15);
  assert_int_equal(sum.forms_allowed, 10);
  assert_int_equal(sum.forms_seen, 2);
}

static unsigned seen_count;

static void count_seen(form_id form, void *context) {
  (void)form;
  (void)context;
  seen_count++;
}

/* nop; jnz over; inc rax; (over:) nop: only the first two are sure to have run. */
static void only_what_surely_ran_is_seen(void **unused) {
  (void)unused;
  static testcase test;
  static oracle_result result;
  static scan_info infos[4];
  static const ls_instruction in[] = {
      {.next = 1, .jump = LS_NONE, .length = 1, .bytes = {0x90}},
      {.next = 2,
       .jump = 3,
       .length = 2,
       .field = LS_FIELD_BRANCH,
       .field_offset = 1,
       .field_size = 1,
       .bytes = {0x75}},
      {.next = 3, .jump = LS_NONE, .length = 3, .bytes = {0x48, 0xff, 0xc0}},
      {.next = LS_NONE, .jump = LS_NONE, .length = 1, .bytes = {0x90}},
  };
  testcase_init(&test);
  test.count = 4;
  memcpy(test.instructions, in, sizeof in);
  for (int i = 0; i < 4; i++)
    infos[i] = scan_instruction(&in[i]);
  result.infos = infos;
  result.reference.stop = (ls_stop){.kind = LS_STOP_EXIT, .instruction = LS_NONE};
  seen_count = 0;
  behaviour_forms(&test, &result, count_seen, NULL);
  assert_int_equal(seen_count, 2);
  result.reference.stop =
      (ls_stop){.kind = LS_STOP_FAULT, .instruction = 3}; /* and the one that stopped it */
  seen_count = 0;
  behaviour_forms(&test, &result, count_seen, NULL);
  assert_int_equal(seen_count, 3);
  result.reference.stop = (ls_stop){.kind = LS_STOP_FAULT, .instruction = 0};
  seen_count = 0;
  behaviour_forms(&test, &result, count_seen, NULL);
  assert_int_equal(seen_count, 1);
}

static void behaviour_differs_where_runs_do(void **unused) {
  (void)unused;
  static testcase test;
  static oracle_result result;
  static scan_info infos[1];
  static uint8_t exited[BEHAVIOUR_SIZE], faulted[BEHAVIOUR_SIZE], carried[BEHAVIOUR_SIZE];
  testcase_init(&test);
  infos[0] = scan_instruction(&test.instructions[0]);
  result.infos = infos;
  result.reference.stop = (ls_stop){.kind = LS_STOP_EXIT, .part = LS_PART_NEXT};
  behaviour_note(&test, &result, exited);
  result.reference.state.rflags = 1; /* CF */
  behaviour_note(&test, &result, carried);
  result.reference.stop =
      (ls_stop){.kind = LS_STOP_FAULT, .signal = SIGSEGV, .code = 1, .address = 0x20100000};
  behaviour_note(&test, &result, faulted);
  assert_memory_not_equal(exited, faulted, sizeof exited);
  assert_memory_not_equal(exited, carried, sizeof exited);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(accounts_outlive_sigkill),     cmocka_unit_test(other_files_are_no_accounts),
      cmocka_unit_test(what_is_no_plain_file_stays),  cmocka_unit_test(accounts_add_up),
      cmocka_unit_test(only_what_surely_ran_is_seen), cmocka_unit_test(behaviour_differs_where_runs_do),
  };
  return cmocka_run_group_tests(tests, make_directory, remove_directory);
}

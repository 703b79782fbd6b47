/* The command on a terminal: a line says how far it is, and leaves none behind; Ctrl-C and SIGTERM end it
 * with what was done until then. Usage: test_terminal LOCKSTEP. */
#include <errno.h>
#include <pty.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include <jansson.h>

#include "check.h"

static const char *command;
static char scratch[] = "/tmp/lockstep-test-XXXXXX";

enum { OUTPUT_MAX = 1 << 22, CTRL_C = 3 };
static char typed[OUTPUT_MAX]; /* all that came over the terminal */
static size_t length;

/* Starts a shell line on a terminal of its own, $L being the command. */
static pid_t start(const char *line, int *terminal) {
  length = 0;
  typed[0] = 0;
  pid_t pid = forkpty(terminal, NULL, NULL, NULL);
  assert_true(pid >= 0);
  if (pid == 0) {
    execl("/bin/sh", "sh", "-c", line, (char *)NULL);
    _exit(127);
  }
  return pid;
}

/* False at the end, which is EIO once nobody has the terminal open. What is too much is forgotten. */
static bool read_more(int terminal) {
  if (length > OUTPUT_MAX / 2)
    length = 0;
  ssize_t got = read(terminal, typed + length, OUTPUT_MAX - 1 - length);
  if (got <= 0)
    return false;
  length += (size_t)got;
  typed[length] = 0;
  return true;
}

static void await(int terminal, const char *text) {
  while (strstr(typed, text) == NULL)
    if (!read_more(terminal))
      fail_msg("'%s' did not come: %s", text, typed);
}

static int finish(pid_t pid, int terminal) {
  int status;
  while (read_more(terminal)) {
  }
  close(terminal);
  assert_int_equal(waitpid(pid, &status, 0), pid);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

/* What stands on the line that is written last, and on those above, when all is over: '\r' goes back to the
 * begin of a line. `text` receives the lines without blanks at their ends. */
static void screen(char *text) {
  char *begin = text, *at = text, *end = text;
  for (const char *from = typed; *from != 0; from++)
    if (*from == '\n') {
      while (end > begin && end[-1] == ' ')
        end--;
      *end++ = '\n';
      begin = at = end;
    } else if (*from == '\r') {
      at = begin;
    } else {
      *at++ = *from;
      end = at > end ? at : end;
    }
  while (end > begin && end[-1] == ' ')
    end--;
  *end = 0;
}

static void shell(const char *line) {
  if (system(line) != 0)
    fail_msg("failed: %s", line);
}

typedef struct long_case {
  const char *line;     /* begins with exec, so that the signal reaches it */
  const char *progress; /* what the line of progress begins with */
  const char *end;      /* what is printed in the end; NULL: JSON in the file "json" */
} long_case;

static const long_case cases[] = {
    {"exec $L import many", "importing: ", "; interrupted after "},
    {"exec $L import --json many >json", "importing: ", NULL},
    {"exec $L import -o cut many", "importing: ", "; interrupted after "},
    {"exec $L generate -n 100000000 -o cut", "generating: ", "; interrupted after "},
    {"exec $L run -q $(yes work | head -n 200)", "running: ", "; interrupted after "},
    {"exec $L run --json $(yes work | head -n 200) >json", "running: ", NULL},
    {"exec $L forms", "trying what this CPU runs: ", " were not tried: it was interrupted"},
    {"exec $L forms --json >json", "trying what this CPU runs: ", NULL},
    {"exec $L bench -r 1001 thread", "measuring: ", "interrupted after "},
    {"exec $L bench --json -r 1001 thread >json", "measuring: ", NULL},
    {"exec $L show $(yes one | head -n 20000) >/dev/null", "showing: ", "interrupted after "},
    {"exec $L show --json $(yes one | head -n 20000) >json", "showing: ", NULL},
    {"exec $L stats $(yes account | head -n 50000)", "adding up: ", "interrupted after "},
    {"exec $L stats --json $(yes account | head -n 50000) >json", "adding up: ", NULL}};

/* One document, which says that it was interrupted (but for the array of `show`). */
static void expect_json(const char *line) {
  json_error_t error;
  json_t *value = json_load_file("json", 0, &error);
  if (value == NULL)
    fail_msg("%s: no JSON: %s", line, error.text);
  const json_t *cut = json_object_get(value, "interrupted");
  if (!json_is_array(value) && !json_is_object(cut))
    fail_msg("%s: not interrupted", line);
  if (!json_is_array(value))
    assert_true(json_integer_value(json_object_get(cut, "after")) <
                json_integer_value(json_object_get(cut, "of")));
  json_decref(value);
}

/* By Ctrl-C, which all processes of the terminal get, the traced child too; or by a signal to the command. */
static int interrupt_once(const long_case *c, int sig) {
  int terminal;
  const char control = CTRL_C;
  pid_t pid = start(c->line, &terminal);
  await(terminal, c->progress);
  if (sig == SIGINT)
    assert_int_equal(write(terminal, &control, 1), 1);
  else
    assert_true(kill(pid, sig) == 0);
  return finish(pid, terminal);
}

/* On a busy machine this process may come too late: then once more. */
static void interrupted(const long_case *c, int sig) {
  enum { TIMES = 20 };
  static char shown[OUTPUT_MAX];
  int status = 0;
  for (int i = 0; i < TIMES && status == 0; i++)
    status = interrupt_once(c, sig);
  if (status != 128 + sig)
    fail_msg("%s: exit status %d after signal %d: %s", c->line, status, sig, typed);
  screen(shown);
  if (strstr(shown, c->progress) != NULL)
    fail_msg("%s: the line is left: %s", c->line, shown);
  if (c->end == NULL)
    expect_json(c->line);
  else if (strstr(shown, c->end) == NULL)
    fail_msg("%s: '%s' is not in: %s", c->line, c->end, shown);
}

static void test_interrupted(void **state) {
  (void)state;
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    interrupted(&cases[i], SIGINT);
    interrupted(&cases[i], SIGTERM);
  }
  shell("$L run -q cut >/dev/null; test $? = 0 -o $? = 5; ! ls -A cut | grep -vxE '[0-9a-f]{32}'");
}

/* What is over soon has no line, nor has what complains to a file; and what is printed is not mixed with it.
 */
static void test_no_line(void **state) {
  (void)state;
  static char shown[OUTPUT_MAX];
  int terminal;
  pid_t pid = start("exec env -u LOCKSTEP_PROGRESS_MS $L run -q one", &terminal);
  assert_int_equal(finish(pid, terminal), 0);
  assert_null(strstr(typed, "running"));
  pid = start("exec $L run -q one one one 2>complaints", &terminal);
  assert_int_equal(finish(pid, terminal), 0);
  assert_null(strstr(typed, "running"));
  shell("test ! -s complaints");
  pid = start("exec $L run one work one", &terminal);
  assert_int_equal(finish(pid, terminal), 0);
  screen(shown);
  assert_null(strstr(shown, "running"));
  assert_non_null(strstr(shown, "202 entries: "));
}

/* Paths alone are as they are for a program, and printable on a terminal. */
static void test_listed_names(void **state) {
  (void)state;
  int terminal;
  shell("cp one odd\033name");
  pid_t pid = start("exec $L run --list same odd*", &terminal);
  assert_int_equal(finish(pid, terminal), 0);
  assert_non_null(strstr(typed, "odd\\x1bname"));
  assert_null(strchr(typed, '\033'));
  shell("$L run --list same odd* | grep -F \"$(printf 'odd\\033name')\" >/dev/null");
}

static int set_up(void **state) {
  (void)state;
  if (mkdtemp(scratch) == NULL || chdir(scratch) != 0 || setenv("L", command, 1) != 0 ||
      setenv("LOCKSTEP_PROGRESS_MS", "0", 1) != 0)
    return 1;
  return system("awk 'BEGIN { for (i = 1; i <= 200000; i++) printf \"b8%08d\\n\", i }' >many && $L generate "
                "-n 200 -s 3 -f 0 -o work >/dev/null && "
                "echo 90 | $L import -o nop - >/dev/null && mv nop/* one && "
                "LOCKSTEP_STATS=account $REPLAY one >/dev/null") != 0;
}

static int tear_down(void **state) {
  char line[100];
  (void)state;
  snprintf(line, sizeof line, "rm -rf %s", scratch);
  return chdir("/") != 0 || system(line) != 0;
}

int main(int argc, char **argv) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_interrupted), cmocka_unit_test(test_no_line),
                                     cmocka_unit_test(test_listed_names)};
  if (argc != 3 || (command = realpath(argv[1], NULL)) == NULL || setenv("REPLAY", argv[2], 1) != 0) {
    fputs("usage: test_terminal LOCKSTEP REPLAY_FUZZ_RUN\n", stderr);
    return 2;
  }
  return cmocka_run_group_tests(tests, set_up, tear_down);
}

/* The lockstep command from outside, in a directory of its own: what its tests share. */
#ifndef TESTS_CLI_H
#define TESTS_CLI_H

#include <regex.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include <jansson.h>

#include "check.h"
#include "files.h"

static const char *command;
static char scratch[] = "/tmp/lockstep-test-XXXXXX";

enum { OUTPUT_MAX = 1 << 22 };
static char output[OUTPUT_MAX], complaints[OUTPUT_MAX];

static inline void read_back(const char *name, char *text) {
  FILE *file = fopen(name, "r");
  assert_non_null(file);
  text[fread(text, 1, OUTPUT_MAX - 1, file)] = 0;
  fclose(file);
}

/* What people read: no blanks at the ends of lines, no "1 entries", no "//" in paths, no control characters.
 */
static inline void expect_tidy(const char *line, const char *text) {
  static const char *const never[] = {
      "[ \t]$", "(^|[^0-9.,])1 (entries|blocks|files|instructions|processes|rounds|programs|forms)",
      "[a-z0-9]//", "[^[:print:][:space:]\x80-\xff]"};
  for (size_t i = 0; i < sizeof never / sizeof never[0]; i++) {
    regex_t untidy;
    regmatch_t at;
    assert_int_equal(regcomp(&untidy, never[i], REG_EXTENDED | REG_NEWLINE), 0);
    if (regexec(&untidy, text, 1, &at, 0) == 0)
      fail_msg("%s: '%s' is in: %s", line, never[i], text + (at.rm_so > 80 ? at.rm_so - 80 : 0));
    regfree(&untidy);
  }
}

/* Runs a shell line in the scratch directory, $L being the command; returns its exit status. */
static inline int run(const char *line) {
  char *all;
  assert_true(asprintf(&all, "( %s ) >out 2>err </dev/null", line) > 0);
  int status = system(all);
  free(all);
  read_back("out", output);
  read_back("err", complaints);
  expect_tidy(line, output);
  expect_tidy(line, complaints);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static inline void expect(const char *line, int expected) {
  int status = run(line);
  if (status != expected)
    fail_msg("%s: exit status %d, expected %d\n%s%s", line, status, expected, output, complaints);
}

/* Starts a shell line, which should begin with exec, in the scratch directory; *from receives its output. */
static inline pid_t start(const char *line, int *from) {
  int ends[2];
  assert_int_equal(pipe(ends), 0);
  pid_t pid = fork();
  assert_true(pid >= 0);
  if (pid == 0) {
    dup2(ends[1], STDOUT_FILENO);
    close(ends[0]);
    close(ends[1]);
    execl("/bin/sh", "sh", "-c", line, (char *)NULL);
    _exit(127);
  }
  close(ends[1]);
  *from = ends[0];
  return pid;
}

/* Sends `sig` to what start() began, reads its output to the end; its exit status, or 128 + what killed it.
 */
static inline int interrupt(pid_t pid, int sig, int from) {
  int status;
  assert_int_equal(kill(pid, sig), 0);
  FILE *file = fdopen(from, "r");
  assert_non_null(file);
  output[fread(output, 1, OUTPUT_MAX - 1, file)] = 0;
  fclose(file);
  assert_int_equal(waitpid(pid, &status, 0), pid);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static inline void expect_text(const char *text, const char *part) {
  if (strstr(text, part) == NULL)
    fail_msg("'%s' is not in: %s", part, text);
}

static inline json_t *parse_output(void) {
  json_error_t error;
  json_t *value = json_loads(output, 0, &error);
  if (value == NULL)
    fail_msg("no JSON: %s in line %d of: %s", error.text, error.line, output);
  return value;
}

static inline json_int_t number(const json_t *object, const char *key) {
  const json_t *value = json_object_get(object, key);
  if (!json_is_integer(value))
    fail_msg("no number '%s' in: %s", key, output);
  return json_integer_value(value);
}

static inline size_t length_of(const json_t *object, const char *key) {
  const json_t *value = json_object_get(object, key);
  if (!json_is_array(value))
    fail_msg("no array '%s' in: %s", key, output);
  return json_array_size(value);
}

static inline int set_up(void **state) {
  (void)state;
  return mkdtemp(scratch) == NULL || chdir(scratch) != 0 || setenv("L", command, 1) != 0;
}

static inline int tear_down(void **state) {
  char line[100];
  (void)state;
  snprintf(line, sizeof line, "rm -rf %s", scratch);
  return chdir("/") != 0 || system(line) != 0;
}

/* argv[1] is the command. False: it is not there, and was said. */
static inline bool find_command(int argc, char **argv) {
  if (argc == 2 && (command = realpath(argv[1], NULL)) != NULL)
    return true;
  fprintf(stderr, "usage: %s LOCKSTEP\n", argv[0]);
  return false;
}

#endif

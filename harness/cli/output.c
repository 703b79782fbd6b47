/* Messages and JSON. */
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"
#include "oracle/report.h"
#include "words.h"

void cli_complain(const char *format, ...) {
  char *text = NULL;
  va_list arguments;
  va_start(arguments, format);
  if (vasprintf(&text, format, arguments) < 0)
    text = NULL;
  va_end(arguments);
  fflush(stdout);
  progress_hide();
  fprintf(stderr, "lockstep: %s\n", text != NULL ? printable(text) : format);
  free(text);
}

const char *cli_reason(const ls_error *error) {
  return error->text[0] ? error->text : ls_status_name(error->status);
}

int cli_failed(const char *what, const ls_error *error) {
  cli_complain("%s: %s", what, cli_reason(error));
  return error->status == LS_ERR_NO_REFERENCE ? CLI_NO_REFERENCE : CLI_BAD;
}

void print_stop(const ls_stop *stop) {
  report_stop(stdout, stop);
  putchar('\n');
}

bool cli_flush(void) {
  errno = 0;
  if (fflush(stdout) == 0 && !ferror(stdout))
    return true;
  const char *why = errno ? strerror(errno) : "an earlier write failed";
  cli_complain("the output could not be written (%s); is it open, and is there room where it goes?", why);
  return false;
}

json_t *json_text(const char *text) {
  json_t *value = json_string(text);
  if (value != NULL)
    return value;
  char *plain = strdup(text);
  if (plain == NULL)
    return json_null();
  for (char *at = plain; *at != 0; at++)
    if ((unsigned char)*at >= 0x80)
      *at = '?';
  value = json_string(plain);
  free(plain);
  return value;
}

json_t *json_trouble(const char *path, const char *why) {
  return json_pack("{so so}", "file", json_text(path), "why", json_text(why));
}

json_t *json_hex(uint64_t value) {
  return json_sprintf("0x%" PRIx64, value);
}

static json_t *json_index(uint32_t index) {
  return index == LS_NONE ? json_null() : json_integer(index);
}

static json_t *json_name(const char *name) {
  return name == NULL ? json_null() : json_string(name);
}

json_t *json_stop(const ls_stop *stop) {
  json_t *value = json_pack("{ss so ss}", "kind", ls_stop_kind_name(stop->kind), "instruction",
                            json_index(stop->instruction), "part", word_of_part(stop->part));
  if (stop->kind == LS_STOP_FAULT) {
    json_object_set_new(value, "signal", json_integer(stop->signal));
    json_object_set_new(value, "signal_name", json_string(word_of_signal(stop->signal)));
    json_object_set_new(value, "code", json_integer(stop->code));
    json_object_set_new(value, "code_name", json_name(word_of_code(stop->signal, stop->code)));
    json_object_set_new(value, "address", json_hex(stop->address));
  }
  if (stop->kind == LS_STOP_SYSCALL)
    json_object_set_new(value, "number", json_hex(stop->number));
  return value;
}

void json_print(json_t *value) {
  json_dumpf(value, stdout, JSON_INDENT(1) | JSON_PRESERVE_ORDER);
  putchar('\n');
  json_decref(value);
}

feature_set features_argument(struct argp_state *state, const char *argument) {
  feature_set set;
  const char *at;
  size_t length, written = 0;
  char all[1000] = "";
  if (features_parse(argument, &set, &at, &length))
    return set;
  for (unsigned i = 0; i < features_count() && written < sizeof all; i++)
    written += (size_t)snprintf(all + written, sizeof all - written, " %s", feature_name(i));
  char name[64];
  snprintf(name, sizeof name, "%.*s", (int)length, at);
  argp_error(state, "'%s' is no feature; there are%s", printable(name), all);
  return 0;
}

/* The `lockstep` command: what its sub-commands share. */
#ifndef HARNESS_CLI_H
#define HARNESS_CLI_H

#include <argp.h>
#include <jansson.h>
#include <stdbool.h>
#include <stdio.h>

#include "forms/features.h"
#include "lockstep.h"
#include "testcase/testcase.h"

/* What every sub-command exits with; where several apply, the first of 1, 130 and 143, 4, 5, 77.
 * `lockstep help exit-codes` says the same (main.c). */
enum {
  CLI_OK = 0,           /* done; all entries same */
  CLI_DIFFERENCE = 1,   /* the executors differ */
  CLI_USAGE = 2,        /* unknown command, option or argument */
  CLI_NO_REFERENCE = 3, /* tracing is not possible here, so nothing was compared */
  CLI_BAD = 4,          /* a file that cannot be read or written, is no entry, or nothing to do at all */
  CLI_OPEN = 5,         /* entries were inconclusive or refused */
  CLI_SKIPPED = 77,     /* nothing but skips: this CPU lacks what every entry needs */
  CLI_INTERRUPTED = 128 /* and the number of the signal: SIGINT or SIGTERM came before all was done */
};

#define CLI_EXIT_CODES "`lockstep help exit-codes` says what the exit status means."

/* The sub-commands. argv[0] is "lockstep run" and so on; returns the exit status. */
int cmd_run(int argc, char **argv);
int cmd_show(int argc, char **argv);
int cmd_generate(int argc, char **argv);
int cmd_import(int argc, char **argv);
int cmd_forms(int argc, char **argv);
int cmd_bench(int argc, char **argv);
int cmd_stats(int argc, char **argv);

/* For the `children` of every parser: -h, which argp does not know by itself. */
extern const struct argp_child cli_help[];

/* "lockstep: …" and a newline on standard error. */
void cli_complain(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* What a failed library call says about itself: never empty. */
const char *cli_reason(const ls_error *error);

/* Complains about a failed library call; the exit status for it. */
int cli_failed(const char *what, const ls_error *error);

/* ---- Files (files.c) --------------------------------------------------------------------------------- */

/* Paths of regular files, and "-". Zeroed is empty. */
typedef struct file_list {
  char **paths;
  size_t count, room;
  size_t bad;     /* what was named or found, but could not be added */
  json_t *errors; /* receives what is complained about as {file, why}; NULL: nobody wants it */
} file_list;

/* Adds `path` itself ("-": standard input), or, of a directory, all files below it in the order of their
 * names; files whose names begin with a dot are not entries. Complains about what cannot be read or is no
 * file, and counts it in `bad`; what can be is added all the same. */
void files_collect(file_list *list, const char *path);
void files_free(file_list *list);

/* The whole of a file ("-": standard input) of at most `limit` bytes, malloc'ed, with a zero behind it; NULL
 * and a sentence in `why` if that fails, or a signal was noted before its end. */
uint8_t *file_read(const char *path, size_t limit, size_t *size, char *why, size_t why_size);

typedef enum loaded {
  LOADED_ENTRY,
  LOADED_NOTHING, /* the file cannot be read */
  LOADED_STRANGER /* it can, and is no entry */
} loaded;

/* Reads an entry, from a regular file or standard input only: the end of a pipe or a device may never come.
 * `any`: also bytes that are no entry, as the fuzz target takes them. If it is none, `why` has a sentence. */
loaded entry_load(const char *path, bool any, testcase *test, char *why, size_t why_size);

/* The name of the fuzz target, other than that of entries, in whose corpus the file `path` is; or NULL. */
const char *target_of_input(const char *path);

/* The argument of an --output, which names a directory; ends the process with CLI_USAGE if it is empty. */
const char *directory_argument(struct argp_state *state, const char *argument);

/* Writes the entry into `directory` (made if need be) under its name, whole or not at all. 1: written; 0: it
 * was there already; -1: failed, with a sentence in `why`. `name` receives its name. */
int entry_save(const char *directory, const testcase *test, char name[33], char *why, size_t why_size);

/* The argument of a --without: names of features, separated by commas; ends the process with CLI_USAGE,
 * naming all there are, if one is no feature's. */
feature_set features_argument(struct argp_state *state, const char *argument);

/* Is the output written, to the last byte? Complains if not. */
bool cli_flush(void);

/* ---- Interruption (interrupt.c) ---------------------------------------------------------------------- */

/* From here on SIGINT and SIGTERM, unless they are ignored, are noted only; the second of a kind ends the
 * process as if this had not been called. Guests may run. */
void interrupt_watch(void);

/* The signal that was noted last, or 0. */
int interrupt_noted(void);

/* Waits until the descriptor has something to read, or its end, or a signal was noted. */
void interrupt_wait(int fd);

/* Was a signal noted when only `done` of `total` was? */
bool interrupt_cuts(size_t done, size_t total);

/* null, or, if interrupt_cuts() is true, {"signal": …, "after": done, "of": total}. */
json_t *interrupt_json(size_t done, size_t total);

/* ---- Progress (progress.c) --------------------------------------------------------------------------- */

/* What takes more than a moment says how far it is on a line of standard error, if that is a terminal:
 * "`doing`: 5 of 9 `things`, 2 a second". `total` 0: it is not known. It comes after half a second, or after
 * LOCKSTEP_PROGRESS_MS milliseconds, for tests. The strings are borrowed until
 * progress_end(). */
void progress_begin(const char *doing, const char *things, size_t total);

/* `done` of them are. Cheap enough for each. */
void progress_at(size_t done);

/* Makes the line blank before something else is printed; the next progress_at() brings it back in time. */
void progress_hide(void);

/* No line any more. Without a progress_begin() nothing happens. */
void progress_end(void);

/* ---- Forms (forms.c) --------------------------------------------------------------------------------- */

/* Probes all forms (forms/probe.h) in a reference made for it, with a line of progress, until a signal is
 * noted. `support` has room for forms_count(). */
ls_status forms_probe_here(uint8_t *support, ls_error *error);

/* ---- Output (output.c, show.c) ----------------------------------------------------------------------- */

/* Prints `test` for people, or gives it as an object, as `lockstep show` does. */
bool show_print(FILE *to, const testcase *test);
json_t *show_json(const testcase *test);

/* How a run ended, on a line of its own. */
void print_stop(const ls_stop *stop);

/* {"file": …, "why": …} */
json_t *json_trouble(const char *path, const char *why);

/* A JSON string of any bytes: those that are not UTF-8 become '?'. */
json_t *json_text(const char *text);
json_t *json_hex(uint64_t value); /* "0x…" */
json_t *json_stop(const ls_stop *stop);

/* Prints and releases. */
void json_print(json_t *value);

#endif

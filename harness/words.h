/* Words for people that several parts use: names of faults, numbers with their nouns, names of files. */
#ifndef HARNESS_WORDS_H
#define HARNESS_WORDS_H

#include <stddef.h>
#include <string.h>

#include "lockstep.h"

/* "SIGSEGV" and the like of the signals that guests raise; "a signal" of any other. */
const char *word_of_signal(int number);

/* What <signal.h> calls the si_code of a fault, "SEGV_MAPERR", or NULL if it has no name. */
const char *word_of_code(int number, int code);

/* The same, or the number. Valid until the fourth call after this one. */
const char *text_of_code(int number, int code);

/* "body", "next", "jump", "before". */
const char *word_of_part(ls_part part);

/* `one` if the count is 1, else `many`. */
static inline const char *word_for(size_t count, const char *one, const char *many) {
  return count == 1 ? one : many;
}

/* What is not the terminal's business: `text` with its control characters (ASCII's, and those of UTF-8 that
 * terminals obey too) as \n, \t or \x1b. Valid until the fourth call after this one. */
const char *printable(const char *text);

/* What stands between the name of a directory and one below it: it may end with a slash. */
static inline const char *separator_after(const char *directory) {
  size_t length = strlen(directory);
  return length > 0 && directory[length - 1] == '/' ? "" : "/";
}

#endif

/* A line on standard error that says how far a command is, if that is a terminal. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "cli.h"

/* What ends before the first of them is over says nothing. */
enum { FIRST_MS = 500, EVERY_MS = 200, WIDTH = 79 };

static struct {
  const char *doing, *things; /* doing NULL: nothing is under way */
  size_t total;
  long long begun, next; /* milliseconds */
  int shown;             /* columns on the terminal now */
} line;

static long long milliseconds(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
  return (long long)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

void progress_begin(const char *doing, const char *things, size_t total) {
  progress_end();
  if (!isatty(STDERR_FILENO))
    return;
  line.doing = doing;
  line.things = things;
  line.total = total;
  line.begun = milliseconds();
  const char *first = getenv("LOCKSTEP_PROGRESS_MS"); /* tests cannot wait */
  line.next = line.begun + (first != NULL ? strtol(first, NULL, 10) : FIRST_MS);
}

/* By blanks, which any terminal understands. */
void progress_hide(void) {
  if (line.shown > 0)
    fprintf(stderr, "\r%*s\r", line.shown, "");
  line.shown = 0;
}

static void show(size_t done, long long now) {
  char text[WIDTH + 1];
  long long rate = (long long)done * 1000 / (now > line.begun ? now - line.begun : 1);
  int length = line.total > 0 ? snprintf(text, sizeof text, "%s: %zu of %zu %s, %lld a second", line.doing,
                                         done, line.total, line.things, rate)
                              : snprintf(text, sizeof text, "%s: %zu %s, %lld a second", line.doing, done,
                                         line.things, rate);
  length = length > WIDTH ? WIDTH : length;
  fflush(stdout);
  fprintf(stderr, "\r%s%*s", text, line.shown > length ? line.shown - length : 0, "");
  line.shown = length;
}

void progress_at(size_t done) {
  if (line.doing == NULL)
    return;
  long long now = milliseconds();
  if (now < line.next)
    return;
  line.next = now + EVERY_MS;
  show(done, now);
}

void progress_end(void) {
  progress_hide();
  line.doing = NULL;
}

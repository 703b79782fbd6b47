#include "words.h"

#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>

enum { ANY = 0, RING = 4 };

#define SIGNAL(name)                                                                                         \
  { name, #name }
#define CODE(signal, name)                                                                                   \
  { signal, name, #name }

static const struct {
  int number;
  const char *name;
} signals[] = {SIGNAL(SIGSEGV), SIGNAL(SIGBUS), SIGNAL(SIGILL), SIGNAL(SIGFPE), SIGNAL(SIGTRAP)};

/* sigaction(2). */
static const struct {
  int number, code;
  const char *name;
} codes[] = {CODE(SIGSEGV, SEGV_MAPERR), CODE(SIGSEGV, SEGV_ACCERR),  CODE(SIGSEGV, SEGV_BNDERR),
             CODE(SIGSEGV, SEGV_PKUERR), CODE(SIGBUS, BUS_ADRALN),    CODE(SIGBUS, BUS_ADRERR),
             CODE(SIGBUS, BUS_OBJERR),   CODE(SIGBUS, BUS_MCEERR_AR), CODE(SIGBUS, BUS_MCEERR_AO),
             CODE(SIGILL, ILL_ILLOPC),   CODE(SIGILL, ILL_ILLOPN),    CODE(SIGILL, ILL_ILLADR),
             CODE(SIGILL, ILL_ILLTRP),   CODE(SIGILL, ILL_PRVOPC),    CODE(SIGILL, ILL_PRVREG),
             CODE(SIGILL, ILL_COPROC),   CODE(SIGILL, ILL_BADSTK),    CODE(SIGFPE, FPE_INTDIV),
             CODE(SIGFPE, FPE_INTOVF),   CODE(SIGFPE, FPE_FLTDIV),    CODE(SIGFPE, FPE_FLTOVF),
             CODE(SIGFPE, FPE_FLTUND),   CODE(SIGFPE, FPE_FLTRES),    CODE(SIGFPE, FPE_FLTINV),
             CODE(SIGFPE, FPE_FLTSUB),   CODE(SIGTRAP, TRAP_BRKPT),   CODE(SIGTRAP, TRAP_TRACE),
             CODE(SIGTRAP, TRAP_BRANCH), CODE(SIGTRAP, TRAP_HWBKPT),  CODE(ANY, SI_USER),
             CODE(ANY, SI_KERNEL),       CODE(ANY, SI_QUEUE),         CODE(ANY, SI_TKILL)};

const char *word_of_signal(int number) {
  for (size_t i = 0; i < sizeof signals / sizeof signals[0]; i++)
    if (signals[i].number == number)
      return signals[i].name;
  return "a signal";
}

const char *word_of_code(int number, int code) {
  for (size_t i = 0; i < sizeof codes / sizeof codes[0]; i++)
    if (codes[i].code == code && (codes[i].number == number || codes[i].number == ANY))
      return codes[i].name;
  return NULL;
}

const char *text_of_code(int number, int code) {
  static char texts[RING][24];
  static unsigned next;
  const char *name = word_of_code(number, code);
  if (name != NULL)
    return name;
  char *text = texts[next++ % RING];
  snprintf(text, sizeof texts[0], "code %d", code);
  return text;
}

const char *word_of_part(ls_part part) {
  static const char *const names[] = {
      [LS_PART_BODY] = "body", [LS_PART_NEXT] = "next", [LS_PART_JUMP] = "jump", [LS_PART_BEFORE] = "before"};
  return (unsigned)part < sizeof names / sizeof names[0] ? names[part] : "unknown";
}

/* C0, DEL, and C1 as UTF-8 has it, 0xc2 0x80 to 0xc2 0x9f. How many bytes it has. */
static size_t control_at(const unsigned char *at) {
  if (*at < 0x20 || *at == 0x7f)
    return 1;
  return at[0] == 0xc2 && at[1] >= 0x80 && at[1] < 0xa0 ? 2 : 0;
}

static char *escape(char *to, unsigned char c) {
  static const char names[] = "abtnvfr"; /* 7 to 13 */
  if (c >= 7 && c <= 13)
    return to + sprintf(to, "\\%c", names[c - 7]);
  return to + sprintf(to, "\\x%02x", c);
}

const char *printable(const char *text) {
  static char *ring[RING];
  static unsigned next;
  char *all = realloc(ring[next % RING], 4 * strlen(text) + 1), *to = all;
  if (all == NULL)
    return "?";
  ring[next++ % RING] = all;
  for (const unsigned char *at = (const unsigned char *)text; *at != 0;) {
    size_t control = control_at(at);
    if (control == 0)
      *to++ = (char)*at++;
    for (; control > 0; control--)
      to = escape(to, *at++);
  }
  *to = 0;
  return all;
}

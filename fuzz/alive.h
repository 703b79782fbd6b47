/* Whether the executor in the thread works at all: tried in a child, since where it does not, it takes the
 * process with it, and an engine would keep an empty input and say nothing. */
#ifndef FUZZ_ALIVE_H
#define FUZZ_ALIVE_H

#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "oracle/oracle.h"

/* One program that ends, and one that faults; exits with 0 however they compare. */
static inline void run_first_programs(void) {
  enum { PATIENCE_S = 20 };
  static const int deadly[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP, SIGABRT, SIGALRM};
  static testcase test;
  static oracle_result result;
  oracle *o;
  ls_error error;
  for (size_t i = 0; i < sizeof deadly / sizeof *deadly; i++)
    signal(deadly[i], SIG_DFL);
  alarm(PATIENCE_S);
  if (oracle_create(NULL, &o, &error) != LS_OK)
    _exit(0); /* the parent will say why */
  for (int i = 0; i < 2; i++) {
    static const uint8_t codes[2][2] = {{0x66, 0x90}, {0x0f, 0x0b}};
    testcase_init(&test);
    test.instructions[0] = (ls_instruction){.next = LS_NONE, .jump = LS_NONE, .length = 2};
    memcpy(test.instructions[0].bytes, codes[i], sizeof codes[i]);
    (void)!oracle_run(o, &test, &result, &error);
  }
  oracle_destroy(o);
  _exit(0);
}

/* Ends the process with `status`, and a sentence, if they kill it. */
static inline void prove_alive(int status) {
  int how = 0;
  pid_t child = fork();
  if (child == 0)
    run_first_programs();
  if (child < 0 || waitpid(child, &how, 0) != child || !WIFSIGNALED(how))
    return;
  fprintf(
      stderr,
      "lockstep: THE EXECUTOR IN THE THREAD DOES NOT WORK HERE, NOTHING IS COMPARED: a first program of one "
      "instruction killed its process (%s)\n",
      strsignal(WTERMSIG(how)));
  _exit(status);
}

#endif

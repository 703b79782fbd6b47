#include "floor_ptrace.h"

#include <signal.h>
#include <stddef.h>
#include <sys/ptrace.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

static void child_body(void) {
  ptrace(PTRACE_TRACEME, 0, NULL, NULL);
  raise(SIGSTOP);
  for (;;)
    __asm__ volatile("syscall" : : "a"(39) : "rcx", "r11", "memory");
}

pid_t floor_ptrace_start(void) {
  pid_t child = fork();
  if (child == 0)
    child_body();
  int status;
  if (child < 0)
    return -1;
  if (waitpid(child, &status, __WALL) != child || !WIFSTOPPED(status) ||
      ptrace(PTRACE_SETOPTIONS, child, NULL, (void *)PTRACE_O_EXITKILL) != 0) {
    kill(child, SIGKILL);
    waitpid(child, &status, __WALL);
    return -1;
  }
  return child;
}

int floor_ptrace_trip(pid_t child) {
  struct user_regs_struct regs;
  int status;
  if (ptrace(PTRACE_SYSEMU, child, NULL, NULL) != 0 || waitpid(child, &status, __WALL) != child)
    return -1;
  return ptrace(PTRACE_GETREGS, child, NULL, &regs) == 0 ? 0 : -1;
}

void floor_ptrace_end(pid_t child) {
  int status;
  kill(child, SIGKILL);
  waitpid(child, &status, __WALL);
}

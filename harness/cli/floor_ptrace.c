#include "floor_ptrace.h"

#include <elf.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

enum { XSAVE_ROOM = 16384 };

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

static void spin_body(const ls_state *start, floor_spinner *spinner, int cpu, ls_vectors vectors) {
  cpu_set_t set;
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  CPU_ZERO(&set);
  if (cpu >= 0) {
    CPU_SET((unsigned)cpu, &set);
    sched_setaffinity(0, sizeof set, &set);
  }
  floor_spin(start, spinner, vectors);
}

int floor_ptrace_go(pid_t child) {
  return ptrace(PTRACE_CONT, child, NULL, NULL) == 0 ? 0 : -1;
}

int floor_ptrace_stop(pid_t child) {
  int status;
  if (ptrace(PTRACE_INTERRUPT, child, NULL, NULL) != 0 || waitpid(child, &status, __WALL) != child)
    return -1;
  return WIFSTOPPED(status) ? 0 : -1;
}

int floor_ptrace_look(pid_t child) {
  static uint8_t xsave[XSAVE_ROOM];
  struct user_regs_struct regs;
  struct iovec area = {xsave, sizeof xsave};
  if (floor_ptrace_stop(child) != 0 || ptrace(PTRACE_GETREGS, child, NULL, &regs) != 0 ||
      ptrace(PTRACE_GETREGSET, child, (void *)NT_X86_XSTATE, &area) != 0)
    return -1;
  return floor_ptrace_go(child);
}

pid_t floor_ptrace_spin(const ls_state *start, floor_spinner *spinner, int cpu, ls_vectors vectors) {
  pid_t child = fork();
  if (child == 0)
    spin_body(start, spinner, cpu, vectors);
  if (child < 0)
    return -1;
  if (ptrace(PTRACE_SEIZE, child, NULL, (void *)PTRACE_O_EXITKILL) != 0 || floor_ptrace_stop(child) != 0) {
    floor_ptrace_end(child);
    return -1;
  }
  return child;
}

void floor_ptrace_end(pid_t child) {
  int status;
  kill(child, SIGKILL);
  waitpid(child, &status, __WALL);
}

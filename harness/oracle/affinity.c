/* A claim on a CPU is an abstract socket's name: one process can have it, and the kernel gives it up when
 * that process ends, however it ends (unix(7), "Abstract sockets"). */
#include "oracle/affinity.h"

#include <stddef.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static int claim_cpu(int cpu) {
  int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  if (fd < 0)
    return -1;
  struct sockaddr_un name = {.sun_family = AF_UNIX};
  int length = snprintf(name.sun_path + 1, sizeof name.sun_path - 1, "lockstep-cpu-%d", cpu);
  socklen_t size = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + (size_t)length);
  if (bind(fd, (struct sockaddr *)&name, size) == 0)
    return fd;
  close(fd);
  return -1;
}

static bool try_pin(affinity *a, int cpu) {
  if (cpu < 0 || !CPU_ISSET(cpu, &a->before))
    return false;
  int claim = claim_cpu(cpu);
  if (claim < 0)
    return false;
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(cpu, &one);
  if (sched_setaffinity(0, sizeof one, &one) != 0) {
    close(claim);
    return false;
  }
  a->cpu = cpu;
  a->claim = claim;
  return true;
}

void affinity_pin(affinity *a) {
  a->cpu = -1;
  a->claim = -1;
  if (sched_getaffinity(0, sizeof a->before, &a->before) != 0 || CPU_COUNT(&a->before) < 2)
    return;
  if (try_pin(a, sched_getcpu()))
    return;
  for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
    if (try_pin(a, cpu))
      return;
}

void affinity_release(affinity *a) {
  if (a->cpu < 0)
    return;
  sched_setaffinity(0, sizeof a->before, &a->before);
  close(a->claim);
  a->cpu = -1;
  a->claim = -1;
}

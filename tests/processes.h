/* Looking at processes through /proc: children of this one, and whether one has gone. */
#ifndef TESTS_PROCESSES_H
#define TESTS_PROCESSES_H

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* A number of /proc/PID/status, of "State" the letter; -1: no such process or line. */
static inline long process_status(pid_t pid, const char *name) {
  char path[64], line[256];
  snprintf(path, sizeof path, "/proc/%d/status", (int)pid);
  FILE *file = fopen(path, "r");
  if (!file)
    return -1;
  long value = -1;
  while (value < 0 && fgets(line, sizeof line, file))
    if (strncmp(line, name, strlen(name)) == 0)
      value = strcmp(name, "State") == 0 ? strchr(line, ':')[2] : strtol(strchr(line, ':') + 1, NULL, 10);
  fclose(file);
  return value;
}

/* How many children `parent` has; the last in *pid if there is one. */
static inline unsigned process_children(pid_t parent, pid_t *pid) {
  unsigned count = 0;
  DIR *proc = opendir("/proc");
  for (struct dirent *entry; proc && (entry = readdir(proc));) {
    pid_t candidate = (pid_t)strtol(entry->d_name, NULL, 10);
    if (candidate > 0 && process_status(candidate, "PPid") == parent) {
      *pid = candidate;
      count++;
    }
  }
  if (proc)
    closedir(proc);
  return count;
}

/* Is it gone, or dead and only waiting for somebody's wait()? Allows it two seconds to die. */
static inline int process_is_gone(pid_t pid) {
  for (int i = 0; i < 200; i++) {
    long state = process_status(pid, "State");
    if (state < 0 || state == 'Z' || state == 'X')
      return 1;
    usleep(10000);
  }
  return 0;
}

#endif

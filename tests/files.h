/* Counting what is in files and folders, of which there may be none: then it is 0. */
#ifndef TESTS_FILES_H
#define TESTS_FILES_H

#include <dirent.h>
#include <stdio.h>
#include <string.h>

/* Lines of less than 512 bytes that have `with` in them. */
static inline unsigned count_lines(const char *path, const char *with) {
  char line[512];
  unsigned count = 0;
  FILE *file = fopen(path, "r");
  while (file && fgets(line, sizeof line, file))
    count += strstr(line, with) != NULL;
  if (file)
    fclose(file);
  return count;
}

/* Those whose names do not begin with a dot. Of /proc/self/fd one is the folder itself, open to be read. */
static inline unsigned count_entries(const char *path) {
  unsigned count = 0;
  DIR *folder = opendir(path);
  for (struct dirent *entry; folder && (entry = readdir(folder));)
    count += entry->d_name[0] != '.';
  if (folder)
    closedir(folder);
  return count;
}

#endif

/* Replays files and directories through a fuzz target without an engine: with any compiler, under any
 * sanitizer. Exit code 0: all inputs ran; 2: usage; 4: an input could not be read, or there was none; 77: the
 * target cannot do its job here. A finding aborts. */
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "engine.h"

enum { EXIT_USAGE = 2, EXIT_INPUT = 4, EXIT_SKIPPED = 77, INPUT_MAX = 1 << 20 };

static unsigned ran, failed;

size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max_size) {
  (void)data;
  return size < max_size ? size : max_size;
}

static void complain(const char *path) {
  fprintf(stderr, "%s: %s\n", path, strerror(errno));
  failed++;
}

static void replay_file(const char *path) {
  static uint8_t data[INPUT_MAX];
  FILE *file = fopen(path, "rbe");
  size_t size = file ? fread(data, 1, sizeof data, file) : 0;
  if (!file || ferror(file)) {
    complain(path);
  } else {
    LLVMFuzzerTestOneInput(data, size);
    ran++;
  }
  if (file)
    fclose(file);
}

static void replay(const char *path);

static void replay_directory(const char *path) {
  struct dirent **names;
  int count = scandir(path, &names, NULL, alphasort);
  if (count < 0) {
    complain(path);
    return;
  }
  for (int i = 0; i < count; i++) {
    char child[4096];
    if (names[i]->d_name[0] != '.' &&
        (size_t)snprintf(child, sizeof child, "%s/%s", path, names[i]->d_name) < sizeof child)
      replay(child);
    free(names[i]);
  }
  free(names);
}

static void replay(const char *path) {
  struct stat about;
  if (stat(path, &about) != 0)
    complain(path);
  else if (S_ISDIR(about.st_mode))
    replay_directory(path);
  else
    replay_file(path);
}

int main(int argc, char **argv) {
  if (argc < 2 || argv[1][0] == '-') {
    fprintf(stderr, "usage: %s FILE|DIRECTORY...\nReplays inputs through the fuzz target.\n", argv[0]);
    return EXIT_USAGE;
  }
  if (!fuzz_target_compares()) {
    puts("SKIPPED: the target cannot do its job here; it says why above");
    return EXIT_SKIPPED;
  }
  for (int i = 1; i < argc; i++)
    replay(argv[i]);
  printf("%u inputs ran, %u could not be read\n", ran, failed);
  return ran && !failed ? 0 : EXIT_INPUT;
}

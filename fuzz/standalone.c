/* Replays files and directories through a fuzz target without an engine: with any compiler, under any
 * sanitizer. Exit code 0: all inputs ran; 1: the target has kept findings (LOCKSTEP_FINDINGS); 2: usage; 4:
 * an input could not be read, or there was none; 77: the target cannot do its job here, or nothing but
 * skipped inputs. A finding aborts. */
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "engine.h"
#include "words.h"

enum {
  EXIT_FOUND = 1,
  EXIT_USAGE = 2,
  EXIT_INPUT = 4,
  EXIT_SKIPPED = 77,
  INPUT_MAX = 1 << 20,
  REASONS_MAX = 16
};

static unsigned ran, failed, skipped;

/* Why inputs were skipped, and how many for that; what is more than there is room for counts in `skipped`
 * only. */
static struct {
  char why[200];
  unsigned count;
} reasons[REASONS_MAX];

static void count_skipped(const char *why) {
  unsigned i = 0;
  skipped++;
  while (i < REASONS_MAX && reasons[i].count && strcmp(reasons[i].why, why) != 0)
    i++;
  if (i == REASONS_MAX)
    return;
  snprintf(reasons[i].why, sizeof reasons[i].why, "%s", why);
  reasons[i].count++;
}

size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max_size) {
  (void)data;
  return size < max_size ? size : max_size;
}

static void complain(const char *path) {
  fprintf(stderr, "%s: %s\n", printable(path), strerror(errno));
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
    const char *why = fuzz_target_skipped();
    if (why)
      count_skipped(why);
    else
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
        (size_t)snprintf(child, sizeof child, "%s%s%s", path, separator_after(path), names[i]->d_name) <
            sizeof child)
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
    bool asked = argc == 2 && strcmp(argv[1], "--help") == 0;
    fprintf(asked ? stdout : stderr, "usage: %s FILE|DIRECTORY...\nReplays inputs through the fuzz target.\n",
            argv[0]);
    return asked ? 0 : EXIT_USAGE;
  }
  if (!fuzz_target_compares()) {
    puts("SKIPPED: the target cannot do its job here; it says why above");
    return EXIT_SKIPPED;
  }
  for (int i = 1; i < argc; i++)
    replay(argv[i]);
  for (unsigned i = 0; i < REASONS_MAX && reasons[i].count; i++)
    printf("%u skipped: %s\n", reasons[i].count, reasons[i].why);
  printf("%u %s ran, %u %s skipped, %u could not be read\n", ran, word_for(ran, "input", "inputs"), skipped,
         word_for(skipped, "was", "were"), failed);
  if (fuzz_target_found()) {
    printf("%u of them differ\n", fuzz_target_found());
    return EXIT_FOUND;
  }
  if (failed || ran + skipped == 0)
    return EXIT_INPUT;
  return ran ? 0 : EXIT_SKIPPED;
}

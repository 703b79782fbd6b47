/* Files and directories of entries. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cli.h"
#include "words.h"

static const char not_a_file[] =
    "neither a regular file nor a directory; a pipe is read as - (standard input)";

/* ---- Lists ------------------------------------------------------------------------------------------- */

/* Why `path` cannot be opened, by errno. */
static const char *why_not(const char *path) {
  return *path == 0 ? "the name is empty" : strerror(errno);
}

static bool list_add(file_list *list, const char *path) {
  if (list->count == list->room) {
    size_t room = list->room ? 2 * list->room : 64;
    char **paths = realloc(list->paths, room * sizeof *paths);
    if (paths == NULL)
      return false;
    list->paths = paths;
    list->room = room;
  }
  list->paths[list->count] = strdup(path);
  return list->paths[list->count] != NULL && ++list->count > 0;
}

void files_free(file_list *list) {
  while (list->count > 0)
    free(list->paths[--list->count]);
  free(list->paths);
  json_decref(list->errors);
  *list = (file_list){0};
}

static void list_complain(file_list *list, const char *path, const char *why) {
  list->bad++;
  if (list->errors != NULL)
    json_array_append_new(list->errors, json_trouble(path, why));
  cli_complain("%s: %s", path, why);
}

static int visible(const struct dirent *entry) {
  return entry->d_name[0] != '.';
}

static int by_bytes(const struct dirent **a, const struct dirent **b) {
  return strcmp((*a)->d_name, (*b)->d_name);
}

static void collect(file_list *list, const char *path, bool named);

static void collect_directory(file_list *list, const char *path) {
  struct dirent **names;
  int count = scandir(path, &names, visible, by_bytes);
  if (count < 0) {
    list_complain(list, path, strerror(errno));
    return;
  }
  for (int i = 0; i < count; i++) {
    char *below = NULL;
    if (asprintf(&below, "%s%s%s", path, separator_after(path), names[i]->d_name) < 0)
      list_complain(list, path, "out of memory");
    else
      collect(list, below, false);
    free(below);
    free(names[i]);
  }
  free(names);
}

/* `named` by the user, so a symbolic link is followed and must lead somewhere; a link met below a directory
 * is followed to files only, or a loop would never end. */
static void collect(file_list *list, const char *path, bool named) {
  struct stat info = {.st_mode = S_IFREG}, link;
  if (!(named && strcmp(path, "-") == 0) && stat(path, &info) != 0) {
    list_complain(list, path, why_not(path));
    return;
  }
  bool followed = !named && lstat(path, &link) == 0 && S_ISLNK(link.st_mode);
  if (S_ISDIR(info.st_mode)) {
    if (!followed)
      collect_directory(list, path);
  } else if (!S_ISREG(info.st_mode)) {
    if (named)
      list_complain(list, path, not_a_file);
  } else if (!list_add(list, path)) {
    list_complain(list, path, "out of memory");
  }
}

void files_collect(file_list *list, const char *path) {
  collect(list, path, true);
}

/* ---- Reading ----------------------------------------------------------------------------------------- */

/* False, with EINTR: a signal was noted. */
static bool wait_on(int fd) {
  interrupt_wait(fd);
  if (interrupt_noted())
    errno = EINTR;
  return !interrupt_noted();
}

/* What is no regular file may let wait, which a signal that is noted ends. False: errno. */
static bool read_piece(int fd, uint8_t *data, size_t room, size_t *size) {
  struct stat info;
  if ((fstat(fd, &info) != 0 || !S_ISREG(info.st_mode)) && !wait_on(fd))
    return false;
  ssize_t got;
  do
    got = read(fd, data, room);
  while (got < 0 && errno == EAGAIN && wait_on(fd));
  *size = got > 0 ? (size_t)got : 0;
  return got >= 0;
}

static uint8_t *read_all(int fd, size_t limit, size_t *size, char *why, size_t why_size) {
  size_t room = 4096, piece;
  uint8_t *data = NULL;
  *size = 0;
  do {
    room = *size == room ? 2 * room : room;
    uint8_t *more = realloc(data, room + 1);
    if (more == NULL || !read_piece(fd, more + *size, room - *size, &piece)) {
      snprintf(why, why_size, "%s", more == NULL ? "out of memory" : strerror(errno));
      free(more == NULL ? data : more);
      return NULL;
    }
    data = more;
    *size += piece;
  } while (piece > 0 && *size <= limit);
  if (*size <= limit) {
    data[*size] = 0;
    return data;
  }
  snprintf(why, why_size, "too large: at most %zu bytes are read", limit);
  free(data);
  return NULL;
}

uint8_t *file_read(const char *path, size_t limit, size_t *size, char *why, size_t why_size) {
  if (strcmp(path, "-") == 0)
    return read_all(STDIN_FILENO, limit, size, why, why_size);
  int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a FIFO that nobody writes to: read_piece waits */
  if (fd < 0) {
    snprintf(why, why_size, "%s", why_not(path));
    return NULL;
  }
  uint8_t *data = read_all(fd, limit, size, why, why_size);
  close(fd);
  return data;
}

static void add_remedy(char *why, size_t why_size, const char *remedy) {
  size_t length = strlen(why);
  snprintf(why + length, why_size - length, "%s", remedy);
}

loaded entry_load(const char *path, bool any, testcase *test, char *why, size_t why_size) {
  size_t size;
  struct stat info;
  if (strcmp(path, "-") != 0 && stat(path, &info) == 0 && !S_ISREG(info.st_mode)) {
    snprintf(why, why_size, "%s", S_ISDIR(info.st_mode) ? strerror(EISDIR) : not_a_file);
    return LOADED_NOTHING;
  }
  uint8_t *data = file_read(path, any ? 1 << 20 : TESTCASE_SIZE_MAX, &size, why, why_size);
  if (data == NULL)
    return LOADED_NOTHING;
  bool fine = any || testcase_check(data, size, why, why_size);
  if (fine)
    testcase_decode(test, data, size);
  else
    add_remedy(why, why_size, "; --any takes it all the same");
  free(data);
  return fine ? LOADED_ENTRY : LOADED_STRANGER;
}

const char *target_of_input(const char *path) {
  static const char *const targets[] = {"fuzz_program", "fuzz_inspect"};
  char *full = realpath(path, NULL);
  char *slash = full != NULL ? strrchr(full, '/') : NULL;
  const char *found = NULL;
  if (slash != NULL) {
    *slash = 0;
    const char *last = strrchr(full, '/');
    for (size_t i = 0; last != NULL && i < sizeof targets / sizeof targets[0]; i++)
      if (strcmp(last + 1, targets[i]) == 0)
        found = targets[i];
  }
  free(full);
  return found;
}

/* ---- Writing ----------------------------------------------------------------------------------------- */

static bool write_all(int fd, const uint8_t *data, size_t size) {
  while (size > 0) {
    ssize_t written = write(fd, data, size);
    if (written < 0 && errno == EINTR)
      continue;
    if (written <= 0)
      return false;
    data += written;
    size -= (size_t)written;
  }
  return true;
}

/* All of an entry into a new file, which is closed. `path`: the name that it then gets, NULL if it has one.
 */
static bool fill(int fd, const uint8_t *data, size_t size, const char *path) {
  char self[32];
  snprintf(self, sizeof self, "/proc/self/fd/%d", fd);
  bool fine = fchmod(fd, 0644) == 0 && write_all(fd, data, size) &&
              (path == NULL || linkat(AT_FDCWD, self, AT_FDCWD, path, AT_SYMLINK_FOLLOW) == 0);
  int saved = errno;
  if (close(fd) != 0 && fine)
    return false;
  errno = saved;
  return fine;
}

/* A file that has no name before it is complete: whatever ends this process leaves nothing behind. It cannot
 * take the place of another (open(2), O_TMPFILE), and some file systems have no such files. */
static bool write_unnamed(const char *directory, const char *path, const uint8_t *data, size_t size) {
  int fd = open(directory, O_TMPFILE | O_WRONLY | O_CLOEXEC, 0644);
  return fd >= 0 && fill(fd, data, size, path);
}

/* Under a name that is no entry's (files_collect), and then renamed. Signals wait meanwhile, so that only
 * what nobody can wait for, a SIGKILL, leaves that name behind. */
static bool write_renamed(const char *directory, const char *path, const uint8_t *data, size_t size) {
  char *temporary;
  sigset_t all, before;
  if (asprintf(&temporary, "%s%s.lockstep-XXXXXX", directory, separator_after(directory)) < 0)
    return false;
  sigfillset(&all);
  sigprocmask(SIG_SETMASK, &all, &before);
  int fd = mkostemp(temporary, O_CLOEXEC);
  bool fine = fd >= 0 && fill(fd, data, size, NULL) && rename(temporary, path) == 0;
  int saved = errno;
  if (!fine && fd >= 0)
    unlink(temporary);
  sigprocmask(SIG_SETMASK, &before, NULL);
  free(temporary);
  errno = saved;
  return fine;
}

/* What to do about an entry that could not be written, by errno. */
static const char *write_remedy(int reason) {
  switch (reason) {
  case ENOENT:
    return "; make the directory above it first";
  case EEXIST:
  case ENOTDIR:
    return "; give --output a directory";
  case EACCES:
  case EPERM:
  case EROFS:
    return "; give --output a directory in which you may write";
  case ENOSPC:
  case EDQUOT:
  case EFBIG:
    return "; make room, or give --output another directory";
  default:
    return "";
  }
}

static int write_failed(const char *path, char *why, size_t why_size) {
  const int reason = errno;
  snprintf(why, why_size, "%s: %s%s", path, strerror(reason), write_remedy(reason));
  return -1;
}

const char *directory_argument(struct argp_state *state, const char *argument) {
  if (*argument == 0)
    argp_error(state, "the name of the directory for --output is empty");
  return argument;
}

/* Is this very entry there? What has its name but other bytes is replaced. */
static bool already_there(const char *path, const uint8_t *data, size_t size) {
  char why[8];
  size_t old_size = 0;
  uint8_t *old = file_read(path, TESTCASE_SIZE_MAX, &old_size, why, sizeof why);
  bool same = old != NULL && old_size == size && memcmp(old, data, size) == 0;
  free(old);
  return same;
}

int entry_save(const char *directory, const testcase *test, char name[33], char *why, size_t why_size) {
  uint8_t data[TESTCASE_SIZE_MAX];
  size_t size = testcase_encode(test, data, sizeof data);
  char *path;
  int result;
  testcase_name(test, name);
  if (mkdir(directory, 0755) != 0 && errno != EEXIST)
    return write_failed(directory, why, why_size);
  if (asprintf(&path, "%s%s%s", directory, separator_after(directory), name) < 0) {
    snprintf(why, why_size, "out of memory");
    return -1;
  }
  if (already_there(path, data, size))
    result = 0;
  else
    result =
        write_unnamed(directory, path, data, size) || write_renamed(directory, path, data, size) ? 1 : -1;
  if (result < 0)
    write_failed(path, why, why_size);
  free(path);
  return result;
}

/* A code window that grows: what is mapped before, meanwhile and afterwards, and that failure
 * changes nothing. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "executor.h"
#include "must.h"

enum { INT3 = 0xcc, MARK = 0x5a };

static const ls_window *code_of(const sandbox *box) {
  return &box->layout.windows[LS_CODE_WINDOW];
}

static uint8_t *code_alias(const sandbox *box) {
  return box->alias + box->offset[LS_CODE_WINDOW];
}

static sandbox open_box(const ls_layout *layout) {
  sandbox box;
  must(sandbox_create(&box, layout, &error));
  must(sandbox_map(&box, &error));
  return box;
}

static sandbox open_slot(unsigned slot) {
  ls_layout layout;
  ls_layout_default(&layout, slot);
  return open_box(&layout);
}

static uint64_t memfd_bytes(const sandbox *box) {
  struct stat about;
  assert_int_equal(fstat(box->fd, &about), 0);
  return (uint64_t)about.st_size;
}

/* ---- What is mapped ---- */

/* Where all guests of this file are, and nothing of the host comes and goes. */
#define GUESTS_FROM UINT64_C(0x1000000)
#define GUESTS_TO   UINT64_C(0x7f000000)

typedef struct map_line {
  uint64_t start, end, offset;
  char access[4];
} map_line;

enum { LINES_MAX = 512 };

/* The lines of /proc/self/maps in that range; returns how many. */
static uint32_t read_maps(map_line lines[LINES_MAX]) {
  FILE *maps = fopen("/proc/self/maps", "re");
  char text[512];
  uint32_t count = 0;
  assert_non_null(maps);
  while (fgets(text, sizeof text, maps)) {
    map_line *l = &lines[count];
    char *rest; /* "start-end access offset …" */
    l->start = strtoull(text, &rest, 16);
    l->end = strtoull(rest + 1, &rest, 16);
    memcpy(l->access, rest + 1, sizeof l->access);
    l->offset = strtoull(rest + 1 + sizeof l->access, NULL, 16);
    if (l->start >= GUESTS_FROM && l->end <= GUESTS_TO)
      count++;
    assert_true(count < LINES_MAX);
  }
  fclose(maps);
  return count;
}

static uint64_t mapped_bytes(void) {
  static map_line lines[LINES_MAX];
  uint64_t sum = 0;
  for (uint32_t i = read_maps(lines); i-- > 0;)
    sum += lines[i].end - lines[i].start;
  return sum;
}

static void check_line(const map_line *lines, uint32_t count, const sandbox_mapping *m) {
  uint32_t i = 0;
  while (i < count && (lines[i].start > m->address || lines[i].end < m->address + m->size))
    i++; /* the kernel joins guards that lie side by side */
  if (i == count)
    fail_msg("%#" PRIx64 " (%#" PRIx64 " bytes) is not mapped as one", m->address, m->size);
  const char access[] = {m->protection & PROT_READ ? 'r' : '-', m->protection & PROT_WRITE ? 'w' : '-',
                         m->protection & PROT_EXEC ? 'x' : '-', m->guard ? 'p' : 's'};
  if (memcmp(lines[i].access, access, sizeof access) != 0)
    fail_msg("%#" PRIx64 " is %.4s", m->address, lines[i].access);
  if (!m->guard)
    assert_int_equal(lines[i].offset + (m->address - lines[i].start), m->offset);
}

/* What sandbox_mappings lists is there; returns its size. */
static uint64_t check_mappings(const sandbox *box) {
  static map_line lines[LINES_MAX];
  sandbox_mapping m[SANDBOX_MAPPINGS_MAX];
  uint32_t count = sandbox_mappings(box, m), line_count = read_maps(lines);
  uint64_t sum = 0;
  for (uint32_t i = 0; i < count; i++) {
    check_line(lines, line_count, &m[i]);
    sum += m[i].size;
  }
  return sum;
}

/* And nothing else, beside `others` bytes. */
static void check_mapped(const sandbox *box, uint64_t others) {
  assert_int_equal(check_mappings(box) + others, mapped_bytes());
}

/* ---- Growing ---- */

static void fill(const sandbox *box) {
  for (uint32_t i = 0; i < box->layout.window_count; i++)
    memset(box->alias + box->offset[i], MARK + (int)i, box->layout.windows[i].size);
}

static void check_all(const uint8_t *bytes, uint8_t value, uint64_t size) {
  for (uint64_t i = 0; i < size; i++)
    if (bytes[i] != value)
      fail_msg("byte %" PRIu64 " is %#x, not %#x", i, bytes[i], value);
}

/* Every window as fill left it, but that the code had `filled` bytes then. */
static void check_filled(const sandbox *box, uint64_t filled) {
  for (uint32_t i = 1; i < box->layout.window_count; i++)
    check_all((const uint8_t *)box->layout.windows[i].address, (uint8_t)(MARK + i),
              box->layout.windows[i].size);
  const uint8_t *code = (const uint8_t *)code_of(box)->address;
  check_all(code, MARK, filled);
  check_all(code + filled, INT3, code_of(box)->size - filled);
}

static void grow_once(sandbox *box, uint64_t size) {
  const ls_layout before = box->layout;
  ls_window old = *code_of(box), larger;
  must(sandbox_code_reserve(box, size, &larger, &error));
  assert_memory_equal(&box->layout, &before, sizeof before);
  assert_true(larger.size >= size && larger.size >= 2 * old.size);
  assert_int_equal(larger.access, LS_READ | LS_EXEC);
  check_mapped(box, larger.size + (uint64_t)2 * LS_PAGE);
  assert_memory_equal((void *)old.address, (void *)larger.address,
                      old.size); /* both, until the last moment */
  sandbox_code_commit(box, &larger);
  assert_memory_equal(code_of(box), &larger, sizeof larger);
  assert_int_equal(layout_check(&box->layout, &error), LS_OK);
  assert_int_equal(memfd_bytes(box), box->offset[LS_CODE_WINDOW] + larger.size);
  check_mapped(box, 0);
}

static void every_size_up_to_the_largest(void **unused) {
  (void)unused;
  sandbox box = open_slot(5);
  const uint8_t *alias = box.alias;
  const sandbox first = box;
  fill(&box);
  while (code_of(&box)->size < SANDBOX_CODE_MAX) {
    uint64_t old = code_of(&box)->size;
    grow_once(&box, old + 1);
    assert_int_equal(code_of(&box)->size, 2 * old);
    check_filled(&box, first.layout.windows[LS_CODE_WINDOW].size);
  }
  assert_ptr_equal(box.alias, alias);
  assert_memory_equal(box.offset, first.offset, sizeof first.offset);
  check_all(code_alias(&box) + LS_PAGE * 16, INT3, code_of(&box)->size - LS_PAGE * 16);
  ls_window window;
  assert_int_equal(sandbox_code_reserve(&box, 1, &window, &error), LS_ERR_MEMORY);
  check_mapped(&box, 0);
  sandbox_destroy(&box);
  assert_int_equal(mapped_bytes(), 0);
  assert_int_equal(msync((void *)(uintptr_t)alias, LS_PAGE, MS_ASYNC), -1);
}

static void at_once_to_the_largest(void **unused) {
  (void)unused;
  sandbox box = open_slot(6);
  ls_window window;
  fill(&box);
  assert_int_equal(sandbox_code_reserve(&box, SANDBOX_CODE_MAX + 1, &window, &error), LS_ERR_MEMORY);
  assert_non_null(strstr(error.text, "16777217"));
  assert_int_equal(sandbox_code_reserve(&box, UINT64_MAX, &window, &error), LS_ERR_MEMORY);
  grow_once(&box, SANDBOX_CODE_MAX - 1);
  assert_int_equal(code_of(&box)->size, SANDBOX_CODE_MAX);
  check_filled(&box, 0x10000);
  sandbox_destroy(&box);
}

static void sizes_that_are_no_power_of_two(void **unused) {
  (void)unused;
  ls_layout layout;
  ls_layout_default(&layout, 7);
  layout.windows[LS_CODE_WINDOW].size = (uint64_t)3 * LS_PAGE;
  sandbox box = open_box(&layout);
  grow_once(&box, 1);
  assert_int_equal(code_of(&box)->size, 8 * LS_PAGE);
  sandbox_destroy(&box);
  layout.windows[LS_CODE_WINDOW] = (ls_window){0x60010000, SANDBOX_CODE_MAX - LS_PAGE, LS_READ | LS_EXEC, 0};
  box = open_box(&layout);
  ls_window window;
  must(sandbox_code_reserve(&box, SANDBOX_CODE_MAX, &window, &error));
  assert_int_equal(window.size, SANDBOX_CODE_MAX);
  sandbox_destroy(&box); /* what is reserved goes too */
  assert_int_equal(mapped_bytes(), 0);
}

/* Windows on both sides of the code: its first and last page become guards of theirs. */
static void neighbours_get_guards(void **unused) {
  (void)unused;
  for (uint64_t pages = 1; pages <= 4; pages++) {
    ls_layout layout;
    ls_layout_default(&layout, 8);
    ls_window *w = layout.windows;
    w[2].address = w[0].address - w[2].size;
    w[0].size = pages * LS_PAGE;
    w[3].address = w[0].address + w[0].size;
    sandbox box = open_box(&layout);
    fill(&box);
    grow_once(&box, 1);
    check_filled(&box, w[0].size);
    sandbox_destroy(&box);
    assert_int_equal(mapped_bytes(), 0);
  }
}

/* The guard page between code and another window belongs to both. */
static void a_shared_guard_stays(void **unused) {
  (void)unused;
  ls_layout layout;
  ls_layout_default(&layout, 9);
  layout.windows[3].address = layout.windows[0].address + layout.windows[0].size + LS_PAGE;
  layout.windows[2].address = layout.windows[0].address - LS_PAGE - layout.windows[2].size;
  sandbox box = open_box(&layout);
  grow_once(&box, 1);
  sandbox_destroy(&box);
}

static void several_side_by_side(void **unused) {
  (void)unused;
  enum { BOXES = 6 };
  sandbox boxes[BOXES];
  for (unsigned i = 0; i < BOXES; i++)
    boxes[i] = open_slot(10 + i);
  for (uint64_t size = 1 << 18; size <= 1 << 22; size *= 2)
    for (unsigned i = 0; i < BOXES; i++) {
      ls_window window;
      must(sandbox_code_reserve(&boxes[i], size, &window, &error));
      sandbox_code_commit(&boxes[i], &window);
      code_alias(&boxes[i])[size - 1] = (uint8_t)i;
    }
  uint64_t sum = 0;
  for (unsigned i = 0; i < BOXES; i++) {
    sum += check_mappings(&boxes[i]);
    assert_int_equal(((uint8_t *)code_of(&boxes[i])->address)[(1 << 22) - 1], i);
  }
  assert_int_equal(sum, mapped_bytes());
  sandbox later = open_slot(10 + BOXES); /* nobody took another slot's place */
  sandbox_destroy(&later);
  for (unsigned i = 0; i < BOXES; i++)
    sandbox_destroy(&boxes[i]);
}

/* The host has something in the window, or where one of its guards would be. */
static void a_place_in_use_is_passed_over(void **unused) {
  (void)unused;
  for (uint64_t size = 1 << 17; size <= 1 << 22; size <<= 5)
    for (int where = 0; where < 3; where++) {
      sandbox box = open_slot(20), twin;
      must(sandbox_create(&twin, &box.layout, &error));
      ls_window first, window;
      must(sandbox_code_reserve(&twin, size, &first, &error)); /* not mapped: the best place */
      uint64_t taken = first.address + (where == 0 ? 0 : where == 1 ? first.size : -(uint64_t)LS_PAGE);
      uint8_t *page = mmap((void *)taken, LS_PAGE, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
      assert_int_equal((uintptr_t)page, taken);
      *page = MARK;
      must(sandbox_code_reserve(&box, size, &window, &error));
      assert_int_not_equal(window.address, first.address);
      assert_int_equal(*page, MARK);
      sandbox_code_commit(&box, &window);
      check_mapped(&box, LS_PAGE);
      munmap(page, LS_PAGE);
      sandbox_destroy(&twin);
      sandbox_destroy(&box);
    }
}

static void abandoned_as_if_nothing_had_been(void **unused) {
  (void)unused;
  sandbox box = open_slot(21);
  const sandbox before = box;
  ls_window window, again;
  fill(&box);
  must(sandbox_code_reserve(&box, 1 << 20, &window, &error));
  code_alias(&box)[0x10000] = MARK; /* somebody was about to write code */
  sandbox_code_abandon(&box, &window);
  assert_memory_equal(&box, &before, sizeof box);
  assert_int_equal(memfd_bytes(&box), box.offset[LS_CODE_WINDOW] + 0x10000);
  check_mapped(&box, 0);
  check_filled(&box, 0x10000);
  must(sandbox_code_reserve(&box, 1 << 20, &again, &error));
  assert_memory_equal(&window, &again, sizeof again);
  sandbox_code_commit(&box, &again);
  check_filled(&box, 0x10000);
  sandbox_destroy(&box);
}

/* ---- Forks ---- */

/* In the child, while the parent is about to commit `reserved`. */
static int grows_on_its_own(sandbox *box, const ls_window *reserved) {
  ls_window window;
  uint8_t *code = (uint8_t *)code_of(box)->address;
  if (!sandbox_forked(box) || sandbox_renew(box, &error) != LS_OK || sandbox_forked(box))
    return 1;
  if (msync((void *)reserved->address, LS_PAGE, MS_ASYNC) == 0)
    return 2;
  if (code[0] != MARK || code[code_of(box)->size - 1] != INT3)
    return 3;
  code_alias(box)[0] = 1;
  if (code[0] != 1)
    return 4;
  if (sandbox_code_reserve(box, SANDBOX_CODE_MAX, &window, &error) != LS_OK)
    return 5;
  sandbox_code_commit(box, &window);
  code_alias(box)[window.size - 1] = 2;
  code = (uint8_t *)window.address;
  return code[0] == 1 && code[1] == MARK && code[window.size - 2] == INT3 && code[window.size - 1] == 2 ? 0
                                                                                                        : 6;
}

static void a_fork_has_windows_of_its_own(void **unused) {
  (void)unused;
  sandbox box = open_slot(22);
  ls_window reserved;
  fill(&box);
  code_alias(&box)[0xffff] = INT3;
  for (int round = 0; round < 2; round++) { /* before and after it has grown */
    must(sandbox_code_reserve(&box, 1 << (17 + round), &reserved, &error));
    pid_t child = fork();
    if (child == 0)
      _exit(grows_on_its_own(&box, &reserved));
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
    sandbox_code_commit(&box, &reserved);
    check_filled(&box, 0xffff);
    check_mapped(&box, 0);
  }
  sandbox_destroy(&box);
}

/* ---- Failures of the system ---- */

static void check_refused(sandbox *box, int resource, uint64_t limit, int why) {
  struct rlimit old, low;
  ls_window window;
  const sandbox before = *box;
  assert_int_equal(getrlimit((__rlimit_resource_t)resource, &old), 0);
  low = (struct rlimit){limit, old.rlim_max};
  assert_int_equal(setrlimit((__rlimit_resource_t)resource, &low), 0);
  ls_status status = sandbox_code_reserve(box, 1 << 20, &window, &error);
  assert_int_equal(setrlimit((__rlimit_resource_t)resource, &old), 0);
  assert_int_equal(status, LS_ERR_MEMORY);
  assert_int_equal(error.sys_errno, why);
  assert_memory_equal(box, &before, sizeof *box);
  assert_int_equal(memfd_bytes(box), box->offset[LS_CODE_WINDOW] + code_of(box)->size);
  check_mapped(box, 0);
  check_filled(box, code_of(box)->size);
}

static uint64_t address_space(void) {
  FILE *statm = fopen("/proc/self/statm", "re");
  char text[128] = "";
  assert_non_null(statm);
  assert_non_null(fgets(text, sizeof text, statm));
  fclose(statm);
  return strtoull(text, NULL, 10) * LS_PAGE;
}

static void without_memory_all_stays(void **unused) {
  (void)unused;
  sandbox box = open_slot(23);
  fill(&box);
  check_refused(&box, RLIMIT_FSIZE, memfd_bytes(&box), EFBIG);
  check_refused(&box, RLIMIT_AS, address_space(), ENOMEM);
  check_refused(&box, RLIMIT_AS, address_space() / 2, ENOMEM);
  grow_once(&box, 1 << 20);
  check_filled(&box, 0x10000);
  sandbox_destroy(&box);
}

/* RLIMIT_FSIZE is an error, and not SIGXFSZ. */
static void a_sandbox_too_large_for_a_file(void **unused) {
  (void)unused;
  struct rlimit old, low;
  ls_layout layout;
  sandbox box;
  ls_layout_default(&layout, 24);
  assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
  low = (struct rlimit){LS_PAGE, old.rlim_max};
  assert_int_equal(setrlimit(RLIMIT_FSIZE, &low), 0);
  ls_status status = sandbox_create(&box, &layout, &error);
  assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
  assert_int_equal(status, LS_ERR_MEMORY);
  assert_int_equal(error.sys_errno, EFBIG);
}

/* ---- Executors ---- */

/* lea rax, [rip] to the data window, and out. */
static void run_in(ls_executor *executor) {
  const ls_layout *layout = ls_executor_layout(executor);
  const ls_instruction in[] = {{.next = LS_NONE,
                                .jump = LS_NONE,
                                .length = 7,
                                .bytes = {0x48, 0x8d, 0x05},
                                .field = LS_FIELD_DATA,
                                .field_offset = 3,
                                .field_size = 4,
                                .data = layout->windows[1].address}};
  ls_image *image = ls_image_create();
  ls_state start;
  ls_outcome outcome;
  ls_state_init(&start);
  must(ls_image_build(image, &(ls_program){in, 1, 0}, layout, &error));
  must(ls_executor_load(executor, image, &error));
  must(ls_executor_run(executor, &(ls_run){.state = &start}, &outcome, &error));
  assert_int_equal(outcome.stop.kind, LS_STOP_EXIT);
  assert_int_equal(outcome.state.gpr[LS_RAX], layout->windows[1].address);
  assert_int_equal(outcome.state.rip, layout->windows[LS_CODE_WINDOW].address + 7);
  ls_image_destroy(image);
}

static void code_runs_where_it_has_gone(void **unused) {
  (void)unused;
  ls_layout layout;
  ls_executor *executor, *reference;
  ls_layout_default(&layout, 25);
  must(ls_executor_create(LS_SIGNAL, &layout, NULL, &executor, &error));
  run_in(executor);
  while (code_of(&executor->box)->size < SANDBOX_CODE_MAX) {
    ls_window window;
    must(sandbox_code_reserve(&executor->box, code_of(&executor->box)->size + 1, &window, &error));
    run_in(executor);
    sandbox_code_commit(&executor->box, &window);
    run_in(executor);
    if (!is_wanted(LS_PTRACE))
      continue;
    must(ls_executor_create(LS_PTRACE, ls_executor_layout(executor), NULL, &reference, &error));
    run_in(reference);
    ls_executor_destroy(reference);
  }
  ls_executor_destroy(executor);
  assert_int_equal(mapped_bytes(), 0);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(every_size_up_to_the_largest),   cmocka_unit_test(at_once_to_the_largest),
      cmocka_unit_test(sizes_that_are_no_power_of_two), cmocka_unit_test(neighbours_get_guards),
      cmocka_unit_test(a_shared_guard_stays),           cmocka_unit_test(several_side_by_side),
      cmocka_unit_test(a_place_in_use_is_passed_over),  cmocka_unit_test(abandoned_as_if_nothing_had_been),
      cmocka_unit_test(a_fork_has_windows_of_its_own),  cmocka_unit_test(without_memory_all_stays),
      cmocka_unit_test(a_sandbox_too_large_for_a_file), cmocka_unit_test(code_runs_where_it_has_gone),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}

/* The slots of threads that run guests: record, guard page and alternate stack. */
#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "thread.h"

_Static_assert(sizeof(thread_record) <= LS_PAGE, "the record has one page");

HIDDEN uintptr_t slot_chunks[CHUNKS];
HIDDEN uint8_t thread_slot_used[THREAD_SLOTS];

/* mmap aligns to pages: what is too much is given back. */
static bool reserve_chunk(unsigned chunk) {
  size_t size = (size_t)CHUNK_SIZE + SLOT_SIZE;
  char *got = mmap(NULL, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (got == MAP_FAILED)
    return false;
  size_t before = -(uintptr_t)got % SLOT_SIZE;
  if (before)
    munmap(got, before);
  munmap(got + before + CHUNK_SIZE, SLOT_SIZE - before);
  __atomic_store_n(&slot_chunks[chunk], (uintptr_t)got + before, __ATOMIC_RELEASE);
  return true;
}

bool slots_reserve(void) {
  return slot_chunks[0] || reserve_chunk(0);
}

/* Who asks a guest's thread may still look at the `running` of a record that the thread has given back. */
static void clear(thread_record *record) {
  size_t rest = offsetof(thread_record, fs_base); /* what follows it */
  record->selector = SELECTOR_ALLOW;
  __atomic_store_n(&record->running, NULL, __ATOMIC_RELAXED);
  memset((char *)record + rest, 0, sizeof *record - rest);
}

thread_record *slot_claim(void) {
  unsigned slot = 0;
  while (slot < THREAD_SLOTS && thread_slot_used[slot])
    slot++;
  if (slot == THREAD_SLOTS) {
    errno = EAGAIN;
    return NULL;
  }
  if (!slot_chunks[slot / CHUNK_SLOTS] && !reserve_chunk(slot / CHUNK_SLOTS))
    return NULL;
  thread_record *record = thread_slot(slot);
  if (mprotect(record, LS_PAGE, PROT_READ | PROT_WRITE) ||
      mprotect((char *)record + SLOT_STACK, SLOT_STACK_SIZE, PROT_READ | PROT_WRITE))
    return NULL;
  clear(record);
  record->timer = TIMER_NONE;
  __atomic_store_n(&thread_slot_used[slot], 1, __ATOMIC_RELEASE);
  return record;
}

void slot_free(const thread_record *record) {
  unsigned chunk = 0;
  while ((uintptr_t)record - slot_chunks[chunk] >= CHUNK_SIZE)
    chunk++;
  unsigned slot = chunk * CHUNK_SLOTS + (unsigned)(((uintptr_t)record - slot_chunks[chunk]) / SLOT_SIZE);
  __atomic_store_n(&thread_slot_used[slot], 0, __ATOMIC_RELEASE);
}

bool slots_in_use(void) {
  return memchr(thread_slot_used, 1, sizeof thread_slot_used) != NULL;
}

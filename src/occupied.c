/* Who has an address that was asked for. A sanitizer takes most of the address space for its shadow, and who
 * meets it should be told by name. */
#include "occupied.h"

#include <errno.h>
#include <string.h>

/* The shadow with what lies around it (compiler-rt, asan_mapping.h, Linux x86-64). */
#define ASAN_LOW  UINT64_C(0x7fff8000)
#define ASAN_HIGH UINT64_C(0x10007fff8000)

/* Of their run-time libraries, should the process have one: whether this library was built with it or not. */
extern void __asan_init(void) __attribute__((weak));
extern void __tsan_init(void) __attribute__((weak));
extern void __msan_init(void) __attribute__((weak));

static const char *occupant(uint64_t address, uint64_t size) {
  if (__asan_init && address < ASAN_HIGH && address + size > ASAN_LOW)
    return "AddressSanitizer keeps 0x7fff8000-0x10007fff8000 to itself";
  if (__tsan_init)
    return "ThreadSanitizer keeps it to itself, or something else is mapped there";
  if (__msan_init)
    return "MemorySanitizer keeps it to itself, or something else is mapped there";
  return "something else is mapped there";
}

const char *occupied_by(uint64_t address, uint64_t size, int why) {
  if (why == EEXIST)
    return occupant(address, size);
  return why == EPERM ? "the system keeps the lowest addresses free: vm.mmap_min_addr" : strerror(why);
}

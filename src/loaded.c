/* Asking the dynamic linker, where there is one. */
#include "loaded.h"

#include <dlfcn.h>
#include <inttypes.h>
#include <link.h>
#include <stdbool.h>
#include <stdio.h>

/* Before glibc 2.34 it is in a library of its own, which is there where somebody can close something. */
#pragma weak dlsym

typedef struct query {
  uintptr_t address;
  const char *name; /* of what holds it, "" for the program; NULL: nothing does */
} query;

static int look(struct dl_phdr_info *object, size_t size, void *context) {
  query *q = context;
  (void)size;
  for (int i = 0; i < object->dlpi_phnum; i++) {
    const ElfW(Phdr) *part = &object->dlpi_phdr[i];
    if (part->p_type == PT_LOAD && q->address - object->dlpi_addr - part->p_vaddr < part->p_memsz)
      q->name = object->dlpi_name;
  }
  return q->name != NULL;
}

void loaded_name(uintptr_t address, char *name, size_t size) {
  query q = {address, NULL};
  dl_iterate_phdr(look, &q);
  if (!q.name)
    snprintf(name, size, "0x%" PRIxPTR, address);
  else
    snprintf(name, size, "%s", *q.name ? q.name : "the program");
}

/* By the name under which it is loaded, so that no file is looked for. What this returns is never closed.
 * Whoever links a program statically would be warned of a reference to dlopen, which it never calls. */
static void keep(void) {
  query q = {(uintptr_t)&keep, NULL};
  void *(*open)(const char *, int) = NULL;
  dl_iterate_phdr(look, &q);
  if (!q.name || !*q.name || !dlsym)
    return;
  *(void **)&open = dlsym(RTLD_DEFAULT, "dlopen");
  if (open)
    open(q.name, RTLD_LAZY | RTLD_NOLOAD | RTLD_NODELETE);
}

/* Not pthread_once: who waits here could have the linker's lock, in a constructor, and be waited for by who
 * is in keep. Two may be. */
void loaded_keep(void) {
  static bool kept;
  if (__atomic_load_n(&kept, __ATOMIC_ACQUIRE))
    return;
  keep();
  __atomic_store_n(&kept, true, __ATOMIC_RELEASE);
}

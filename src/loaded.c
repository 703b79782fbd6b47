/* Asking the dynamic linker, where there is one. */
#include "loaded.h"

#include <inttypes.h>
#include <link.h>
#include <stdio.h>

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

#include "floor.h"

#include <cpuid.h>
#include <stdbool.h>

enum { AVX = 2, OPMASK = 5, HI16_ZMM = 7, FXSAVE_SIZE = 512, XSAVE_HEADER = 64, XSAVE_LEAF = 0xd };

static bool has_xsave(void) {
  unsigned eax, ebx, ecx, edx;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) && ecx & bit_OSXSAVE;
}

floor_area floor_area_of(ls_vectors vectors) {
  floor_area area = {3, FXSAVE_SIZE + XSAVE_HEADER}; /* x87, SSE */
  if (!has_xsave())
    return (floor_area){0, FXSAVE_SIZE};
  if (vectors >= LS_VECTORS_AVX)
    area.components |= 1u << AVX;
  if (vectors >= LS_VECTORS_AVX512)
    area.components |= 7u << OPMASK;
  for (unsigned component = AVX; component <= HI16_ZMM; component++) {
    uint32_t size, offset, unused, more;
    __cpuid_count(XSAVE_LEAF, component, size, offset, unused, more);
    if (area.components >> component & 1 && offset + size > area.size)
      area.size = offset + size;
  }
  return area;
}

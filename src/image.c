/* A code image: its memory, and look-ups in its map. */
#include "image.h"

#include <stdlib.h>

ls_image *ls_image_create(void) {
  return calloc(1, sizeof(ls_image));
}

static void free_layout(code_layout *code) {
  free(code->bytes);
  free(code->items);
  free(code->body);
  free(code->stub);
  free(code->id);
  free(code->map);
  free(code->exits);
}

void ls_image_destroy(ls_image *image) {
  if (!image)
    return;
  free_layout(&image->now);
  free_layout(&image->spare);
  free(image);
}

const uint8_t *ls_image_bytes(const ls_image *image, size_t *size) {
  *size = image->now.size;
  return image->now.bytes;
}

uint64_t ls_image_address(const ls_image *image, uint32_t index) {
  return index < image->now.count ? image->now.base + image->now.items[image->now.body[index]].offset : 0;
}

const ls_range *ls_image_map(const ls_image *image, size_t *count) {
  *count = image->now.range_count;
  return image->now.map;
}

const ls_range *ls_image_find(const ls_image *image, uint64_t address) {
  if (address - image->now.base >= image->now.size)
    return NULL;
  uint32_t offset = (uint32_t)(address - image->now.base);
  uint32_t low = 0, high = image->now.range_count;
  while (low < high) {
    uint32_t middle = low + (high - low) / 2;
    const ls_range *range = &image->now.map[middle];
    if (offset < range->offset)
      high = middle;
    else if (offset - range->offset >= range->length)
      low = middle + 1;
    else
      return range;
  }
  return NULL;
}

uint64_t image_id(const ls_image *image, uint32_t index) {
  return image->now.id[index];
}

bool image_fits(const ls_image *image, const ls_layout *layout) {
  return image->now.size && image->now.base == layout->windows[LS_CODE_WINDOW].address &&
         image->now.control == layout->control && image->now.gate == layout->gate;
}

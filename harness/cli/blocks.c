#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#include "blocks.h"

static bool add(block_list *list, unsigned line, uint8_t *code, size_t size) {
  if (list->count == list->room) {
    size_t room = list->room ? 2 * list->room : 64;
    block *blocks = realloc(list->blocks, room * sizeof *blocks);
    if (blocks == NULL)
      return false;
    list->blocks = blocks;
    list->room = room;
  }
  list->blocks[list->count++] = (block){line, code, size};
  return true;
}

void blocks_free(block_list *list) {
  while (list->count > 0)
    free(list->blocks[--list->count].code);
  free(list->blocks);
  *list = (block_list){0};
}

static int digit(char c) {
  if (c >= '0' && c <= '9')
    return c - '0';
  c = (char)(c | 0x20);
  return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* Reads text[0 … size-1] as hex into `code`, which has room for size / 2 bytes. Returns how many, or 0 if it
 * is anything but hex. */
static size_t parse_hex(const char *text, size_t size, uint8_t *code) {
  size_t count = 0;
  for (size_t i = 0; i < size;) {
    if (isspace((unsigned char)text[i]) || text[i] == '"') {
      i++;
      continue;
    }
    if (i + 1 < size && (text[i] == '0' || text[i] == '\\') && (text[i + 1] | 0x20) == 'x') {
      i += 2;
      continue;
    }
    int high = digit(text[i]), low = i + 1 < size ? digit(text[i + 1]) : -1;
    if (high < 0 || low < 0)
      return 0;
    code[count++] = (uint8_t)(high << 4 | low);
    i += 2;
  }
  return count;
}

static bool separator(char c) {
  return c == ',' || c == ';' || c == '\t';
}

/* The last column that is hex. */
static size_t parse_columns(const char *text, size_t size, uint8_t *code) {
  size_t end = size;
  for (;;) {
    size_t begin = end;
    while (begin > 0 && !separator(text[begin - 1]))
      begin--;
    size_t count = parse_hex(text + begin, end - begin, code);
    if (count > 0 || begin == 0)
      return count;
    end = begin - 1;
  }
}

static bool parse_line(block_list *list, unsigned line, const char *text, size_t size) {
  while (size > 0 && isspace((unsigned char)text[size - 1]))
    size--;
  while (size > 0 && isspace((unsigned char)*text)) {
    text++;
    size--;
  }
  if (size == 0 || *text == '#')
    return true;
  uint8_t *code = malloc(size / 2 + 1);
  if (code == NULL)
    return false;
  size_t count = parse_columns(text, size, code);
  if (count == 0) {
    free(code);
    code = NULL;
  }
  if (add(list, line, code, count))
    return true;
  free(code);
  return false;
}

static bool is_text(const uint8_t *content, size_t size) {
  for (size_t i = 0; i < size; i++)
    if (content[i] < 0x20 && !isspace(content[i]))
      return false;
  for (size_t i = 0; i < size; i++)
    if (content[i] == 0x7f || content[i] >= 0x80)
      return false;
  return true;
}

static bool parse_raw(block_list *list, const uint8_t *content, size_t size) {
  uint8_t *code = malloc(size + 1);
  if (code == NULL)
    return false;
  memcpy(code, content, size);
  if (size > 0 && add(list, 0, code, size))
    return true;
  free(code);
  return size == 0;
}

bool blocks_parse(block_list *list, const uint8_t *content, size_t size, bool raw) {
  if (raw || !is_text(content, size))
    return parse_raw(list, content, size);
  const char *text = (const char *)content, *end = text + size;
  for (unsigned line = 1; text < end; line++) {
    const char *stop = memchr(text, '\n', (size_t)(end - text));
    if (stop == NULL)
      stop = end;
    if (!parse_line(list, line, text, (size_t)(stop - text)))
      return false;
    text = stop + 1;
  }
  return true;
}

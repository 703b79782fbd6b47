#include <ctype.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "blocks.h"

#define NOWHERE SIZE_MAX

static bool add(block_list *list, const block *added) {
  if (list->count == list->room) {
    size_t room = list->room ? 2 * list->room : 64;
    block *blocks = realloc(list->blocks, room * sizeof *blocks);
    if (blocks == NULL)
      return false;
    list->blocks = blocks;
    list->room = room;
  }
  list->blocks[list->count++] = *added;
  return true;
}

void blocks_free(block_list *list) {
  while (list->count > 0) {
    free(list->blocks[--list->count].code);
    free(list->blocks[list->count].why);
  }
  free(list->blocks);
  *list = (block_list){0};
}

static int digit(char c) {
  if (c >= '0' && c <= '9')
    return c - '0';
  c = (char)(c | 0x20);
  return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

static bool blank(char c) {
  return isspace((unsigned char)c) || c == '"';
}

/* Reads text[0 … size-1] as hex into `code`, which has room for size / 2 bytes. Returns how many, or 0 if it
 * is anything but hex; *stopped is then where a byte begins or goes on that is none, or NOWHERE. */
static size_t parse_hex(const char *text, size_t size, uint8_t *code, size_t *stopped) {
  size_t count = 0, i = 0;
  while (i < size) {
    if (blank(text[i])) {
      i++;
      continue;
    }
    if (i + 1 < size && (text[i] == '0' || text[i] == '\\') && (text[i + 1] | 0x20) == 'x') {
      i += 2;
      continue;
    }
    int high = digit(text[i]), low = i + 1 < size ? digit(text[i + 1]) : -1;
    if (high < 0 || low < 0) {
      *stopped = high < 0 ? i : i + 1;
      return 0;
    }
    code[count++] = (uint8_t)(high << 4 | low);
    i += 2;
  }
  *stopped = NOWHERE;
  return count;
}

static bool separator(char c) {
  return c == ',' || c == ';' || c == '\t';
}

/* The last column that is hex. */
static size_t parse_columns(const char *text, size_t size, uint8_t *code) {
  size_t end = size, stopped;
  for (;;) {
    size_t begin = end;
    while (begin > 0 && !separator(text[begin - 1]))
      begin--;
    size_t count = parse_hex(text + begin, end - begin, code, &stopped);
    if (count > 0 || begin == 0)
      return count;
    end = begin - 1;
  }
}

static bool any_of(const char *text, size_t size, bool (*is)(char)) {
  for (size_t i = 0; i < size; i++)
    if (is(text[i]))
      return true;
  return false;
}

static bool decimal(char c) {
  return c >= '0' && c <= '9';
}

static void say(block *b, const char *format, ...) __attribute__((format(printf, 2, 3)));

static void say(block *b, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  if (vasprintf(&b->why, format, arguments) < 0)
    b->why = NULL;
  va_end(arguments);
}

/* Says why the line is no hex; of a line of one column also where, which is at text[stopped]. */
static void explain(block *b, const char *line, const char *text, size_t size, size_t stopped) {
  if (stopped == NOWHERE || any_of(text, size, separator)) {
    b->header = true;
    say(b, "no machine code in hex");
  } else if (stopped == size || blank(text[stopped])) {
    say(b, "odd number of digits: a byte has two");
  } else {
    b->header = !any_of(text, stopped, decimal); /* else it began as machine code */
    say(b, "column %zu: '%c' is no hex digit", (size_t)(text - line) + stopped + 1, text[stopped]);
  }
}

static bool parse_text(block *b, const char *line, const char *text, size_t size) {
  size_t stopped;
  b->code = malloc(size / 2 + 1);
  if (b->code == NULL)
    return false;
  b->size = parse_hex(text, size, b->code, &stopped);
  if (b->size == 0)
    b->size = parse_columns(text, size, b->code);
  if (b->size == 0) {
    explain(b, line, text, size, stopped);
    free(b->code);
    b->code = NULL;
  }
  return true;
}

static bool parse_line(block_list *list, unsigned number, const char *line, size_t size) {
  block b = {.line = number};
  const char *text = line, *zero = memchr(line, 0, size);
  while (size > 0 && isspace((unsigned char)text[size - 1]))
    size--;
  while (size > 0 && isspace((unsigned char)*text)) {
    text++;
    size--;
  }
  if (zero != NULL)
    say(&b, "column %zu: a zero byte (--raw takes bytes as they are)", (size_t)(zero - line) + 1);
  else if (size == 0 || *text == '#')
    return true;
  else if (!parse_text(&b, line, text, size))
    return false;
  if (add(list, &b))
    return true;
  free(b.code);
  free(b.why);
  return false;
}

/* Zero bytes may be damage to a text, but there is no text of nothing else. */
static bool is_text(const uint8_t *content, size_t size) {
  size_t zeros = 0;
  for (size_t i = 0; i < size; i++) {
    if (content[i] >= 0x7f || (content[i] < 0x20 && content[i] != 0 && !isspace(content[i])))
      return false;
    zeros += content[i] == 0;
  }
  return zeros < size || size == 0;
}

static size_t skip_mark(const uint8_t *content, size_t size) {
  return size >= 3 && memcmp(content, "\xef\xbb\xbf", 3) == 0 && is_text(content + 3, size - 3) ? 3 : 0;
}

static bool parse_raw(block_list *list, const uint8_t *content, size_t size) {
  uint8_t *code = malloc(size + 1);
  if (code == NULL)
    return false;
  memcpy(code, content, size);
  if (size > 0 && add(list, &(block){.code = code, .size = size}))
    return true;
  free(code);
  return size == 0;
}

bool blocks_parse(block_list *list, const uint8_t *content, size_t size, bool raw) {
  size_t mark = raw ? 0 : skip_mark(content, size);
  if (raw || !is_text(content + mark, size - mark))
    return parse_raw(list, content, size);
  const char *text = (const char *)content + mark, *end = (const char *)content + size;
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

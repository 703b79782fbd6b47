/* lockstep show: an entry as text. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"
#include "forms.h"
#include "testcase_codec.h"

static const char *const window_names[TESTCASE_WINDOWS] = {"code", "data", "constants", "stack"};

/* ---- Disassembly ------------------------------------------------------------------------------------- */

/* One line of the listing: an instruction of the code image. */
typedef struct line {
  uint64_t address;
  const uint8_t *bytes;
  uint8_t length;
  uint32_t instruction;
  ls_part part;
  char text[128];
} line;

typedef void (*line_visitor)(const testcase *test, const line *l, void *context);

static void decode_line(line *l, size_t left) {
  static ZydisFormatter formatter;
  static bool ready;
  ZydisDecodedInstruction decoded;
  ZydisDecodedOperand operands[ZYDIS_MAX_OPERAND_COUNT];
  if (!ready) {
    ZydisFormatterInit(&formatter, ZYDIS_FORMATTER_STYLE_INTEL);
    ready = true;
  }
  if (!harness_decode(l->bytes, left, &decoded, operands)) {
    l->length = 1;
    snprintf(l->text, sizeof l->text, "(no instruction)");
    return;
  }
  l->length = decoded.length;
  ZydisFormatterFormatInstruction(&formatter, &decoded, operands, decoded.operand_count_visible, l->text,
                                  sizeof l->text, l->address, ZYAN_NULL);
}

/* Calls `visit` for every instruction of the code image; false if it cannot be laid out. */
static bool each_line(const testcase *test, line_visitor visit, void *context, ls_error *error) {
  ls_program program = testcase_program(test);
  ls_image *image = ls_image_create();
  size_t size, count;
  if (image == NULL || ls_image_build(image, &program, testcase_layout(), error) != LS_OK) {
    ls_image_destroy(image);
    return false;
  }
  const uint8_t *bytes = ls_image_bytes(image, &size);
  const ls_range *ranges = ls_image_map(image, &count);
  for (size_t i = 0; i < count; i++)
    for (uint32_t at = 0; at < ranges[i].length;) {
      line l = {.address = testcase_layout()->windows[TESTCASE_CODE].address + ranges[i].offset + at,
                .bytes = bytes + ranges[i].offset + at,
                .instruction = ranges[i].instruction,
                .part = ranges[i].part};
      decode_line(&l, ranges[i].length - at);
      at += l.length;
      visit(test, &l, context);
    }
  ls_image_destroy(image);
  return true;
}

/* ---- Text -------------------------------------------------------------------------------------------- */

static void print_link(FILE *to, const char *name, uint32_t target) {
  if (target == LS_NONE)
    fprintf(to, " %s=leaves", name);
  else
    fprintf(to, " %s=%u", name, target);
}

/* Links are mentioned where they are not simply the next instruction in the list. */
static void print_links(FILE *to, const testcase *test, uint32_t index) {
  const ls_instruction *instruction = &test->instructions[index];
  if (!(instruction->flags & LS_NEVER_FALLS_THROUGH) && instruction->next != index + 1)
    print_link(to, "next", instruction->next);
  if (instruction->field == LS_FIELD_BRANCH)
    print_link(to, "jump", instruction->jump);
}

typedef struct listing {
  FILE *to;
  uint32_t last; /* instruction whose number was printed last */
} listing;

static void print_line(const testcase *test, const line *l, void *context) {
  listing *list = context;
  char hex[2 * LS_INSTRUCTION_MAX + 1] = "";
  for (unsigned i = 0; i < l->length; i++)
    snprintf(hex + 2 * i, 3, "%02x", l->bytes[i]);
  if (l->part == LS_PART_BODY && l->instruction != list->last) {
    list->last = l->instruction;
    fprintf(list->to, "%4u  0x%08" PRIx64 "  %-22s %-40s", l->instruction, l->address, hex, l->text);
    print_links(list->to, test, l->instruction);
  } else
    fprintf(list->to, "   +  0x%08" PRIx64 "  %-22s %-40s ; inserted: %s of %u", l->address, hex, l->text,
            l->part == LS_PART_NEXT   ? "next"
            : l->part == LS_PART_JUMP ? "jump"
                                      : "body",
            l->instruction);
  fputc('\n', list->to);
}

static const char *const cpu_bits[] = {"AVX",       "AVX2",        "AVX-512F", "AVX-512BW", "AVX-512VL",
                                       "AVX-512DQ", "AVX-512VBMI", "BMI2",     "AMD",       "Intel"};

static void print_header(FILE *to, const testcase *test) {
  char name[33];
  testcase_name(test, name);
  fprintf(to, "entry %s\nmade on:", name);
  for (unsigned bit = 0; bit < sizeof cpu_bits / sizeof cpu_bits[0]; bit++)
    if (test->cpu >> bit & 1)
      fprintf(to, " %s", cpu_bits[bit]);
  fprintf(to, "%s\nfuel: %u\n", test->cpu == 0 ? " unknown" : "", test->fuel);
}

static void print_state(FILE *to, const testcase *test) {
  ls_state base;
  size_t count, shown = 0;
  const ls_register *registers = ls_registers(&count);
  testcase_base_state(test->vectors, &base);
  fprintf(to,
          "\nregisters (pattern %u in vectors and opmasks, 0x%" PRIx64 " in rsp, else the usual start):\n",
          test->vectors, base.gpr[LS_RSP]);
  for (size_t row = 0; row < count; row++) {
    char text[200];
    const ls_register *reg = &registers[row];
    if (memcmp((const char *)&test->state + reg->offset, (const char *)&base + reg->offset, reg->size) == 0)
      continue;
    ls_register_print(reg, &test->state, text, sizeof text);
    fprintf(to, "  %-6s %s\n", reg->name, text);
    shown++;
  }
  if (shown == 0)
    fputs("  nothing else\n", to);
}

static void print_memory(FILE *to, const testcase *test) {
  const ls_layout *layout = testcase_layout();
  fputs("\nmemory:\n", to);
  for (unsigned window = TESTCASE_DATA; window < TESTCASE_WINDOWS; window++)
    fprintf(to, "  0x%08" PRIx64 "  %-9s %5" PRIu64 " bytes, pattern %u%s\n", layout->windows[window].address,
            window_names[window], layout->windows[window].size, test->fill[window],
            test->fill[window] ? "" : " (zero)");
  for (unsigned i = 0; i < test->patch_count; i++) {
    const testcase_patch *patch = &test->patches[i];
    fprintf(to, "  0x%08" PRIx64 "  %s:", layout->windows[patch->window].address + patch->offset,
            window_names[patch->window]);
    for (unsigned n = 0; n < patch->length; n++)
      fprintf(to, " %02x", patch->bytes[n]);
    fputc('\n', to);
  }
}

bool show_print(FILE *to, const testcase *test) {
  listing list = {to, LS_NONE};
  ls_error error = {0};
  print_header(to, test);
  fputs("\nprogram:\n", to);
  bool fine = each_line(test, print_line, &list, &error);
  if (!fine)
    fprintf(to, "  cannot be laid out: %s\n", error.text);
  print_state(to, test);
  print_memory(to, test);
  fputc('\n', to);
  return fine;
}

/* ---- JSON -------------------------------------------------------------------------------------------- */

static json_t *hex_bytes(const uint8_t *bytes, size_t size) {
  char text[2 * TESTCASE_PATCH_MAX + 1] = "";
  for (size_t i = 0; i < size && i < TESTCASE_PATCH_MAX; i++)
    snprintf(text + 2 * i, 3, "%02x", bytes[i]);
  return json_string(text);
}

static json_t *link_json(uint32_t target) {
  return target == LS_NONE ? json_null() : json_integer(target);
}

static void line_json(const testcase *test, const line *l, void *context) {
  static const char *const parts[] = {"body", "next", "jump"};
  json_t *value =
      json_pack("{so so ss si ss}", "address", json_hex(l->address), "bytes", hex_bytes(l->bytes, l->length),
                "text", l->text, "instruction", (int)l->instruction, "part", parts[l->part]);
  const ls_instruction *instruction = &test->instructions[l->instruction];
  if (l->part == LS_PART_BODY) {
    json_object_set_new(value, "next", link_json(instruction->next));
    if (instruction->field == LS_FIELD_BRANCH)
      json_object_set_new(value, "jump", link_json(instruction->jump));
  }
  json_array_append_new(context, value);
}

static json_t *state_json(const testcase *test) {
  ls_state base;
  size_t count;
  const ls_register *registers = ls_registers(&count);
  json_t *value = json_object();
  testcase_base_state(test->vectors, &base);
  for (size_t row = 0; row < count; row++) {
    char text[200];
    const ls_register *reg = &registers[row];
    if (memcmp((const char *)&test->state + reg->offset, (const char *)&base + reg->offset, reg->size) == 0)
      continue;
    ls_register_print(reg, &test->state, text, sizeof text);
    json_object_set_new(value, reg->name, json_string(text));
  }
  return value;
}

static json_t *patches_json(const testcase *test) {
  json_t *value = json_array();
  for (unsigned i = 0; i < test->patch_count; i++) {
    const testcase_patch *patch = &test->patches[i];
    json_array_append_new(value, json_pack("{ss si so}", "window", window_names[patch->window], "offset",
                                           patch->offset, "bytes", hex_bytes(patch->bytes, patch->length)));
  }
  return value;
}

json_t *show_json(const testcase *test) {
  char name[33];
  ls_error error = {0};
  json_t *lines = json_array();
  testcase_name(test, name);
  if (!each_line(test, line_json, lines, &error))
    json_array_append_new(lines, json_pack("{ss}", "error", error.text));
  return json_pack("{ss so si so si si si si so so}", "name", name, "cpu", json_hex(test->cpu), "fuel",
                   (int)test->fuel, "program", lines, "vectors", test->vectors, "data",
                   test->fill[TESTCASE_DATA], "constants", test->fill[TESTCASE_CONST], "stack",
                   test->fill[TESTCASE_STACK], "state", state_json(test), "patches", patches_json(test));
}

/* ---- Command ----------------------------------------------------------------------------------------- */

typedef struct show_options {
  bool json, any;
  const char **files;
  int count;
} show_options;

static const struct argp_option option_table[] = {
    {"any", 'a', NULL, 0, "Take files that are no entries too: their bytes are the program", 0},
    {"json", 'j', NULL, 0, "Print one JSON object for each file", 0},
    {0}};

static error_t parse_option(int key, char *argument, struct argp_state *state) {
  show_options *options = state->input;
  switch (key) {
  case 'a':
    options->any = true;
    return 0;
  case 'j':
    options->json = true;
    return 0;
  case ARGP_KEY_ARG:
    options->files[options->count++] = argument;
    return 0;
  case ARGP_KEY_NO_ARGS:
    argp_error(state, "no FILE is given");
    return EINVAL;
  default:
    return ARGP_ERR_UNKNOWN;
  }
}

static bool show_file(const show_options *options, const char *path) {
  static testcase test;
  char why[256];
  if (!entry_load(path, options->any, &test, why, sizeof why)) {
    cli_complain("%s: %s", path, why);
    return false;
  }
  if (!options->json) {
    if (options->count > 1)
      printf("==> %s <==\n", path);
    return show_print(stdout, &test);
  }
  json_t *value = show_json(&test);
  json_object_set_new(value, "file", json_text(path));
  json_print(value);
  return true;
}

int cmd_show(int argc, char **argv) {
  const struct argp parser = {
      option_table,
      parse_option,
      "FILE...",
      "Prints entries: the program as it is laid out, with its links and what was inserted for them, and "
      "what of the initial state and memory is not the usual start.\v"
      "Example: lockstep show corpus/run/0123abcd\n\n" CLI_EXIT_CODES,
      NULL,
      NULL,
      NULL};
  show_options options = {.files = calloc((size_t)argc, sizeof *options.files)};
  int status = CLI_OK;
  if (options.files == NULL)
    return CLI_BAD;
  argp_parse(&parser, argc, argv, 0, NULL, &options);
  for (int i = 0; i < options.count; i++)
    if (!show_file(&options, options.files[i]))
      status = CLI_BAD;
  free(options.files);
  return status;
}

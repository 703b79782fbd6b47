/* lockstep show: an entry as text. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"
#include "forms/scan.h"
#include "oracle/listing.h"
#include "testcase/testcase_codec.h"
#include "words.h"

static const char *const window_names[TESTCASE_WINDOWS] = {"code", "data", "constants", "stack"};

/* The code image, or NULL. The caller destroys it. */
static ls_image *lay_out(const testcase *test, ls_error *error) {
  ls_program program = testcase_program(test);
  ls_image *image = ls_image_create();
  if (image != NULL && ls_image_build(image, &program, testcase_layout(), error) == LS_OK)
    return image;
  ls_image_destroy(image);
  return NULL;
}

/* ---- Text -------------------------------------------------------------------------------------------- */

static const char *const cpu_bits[] = {"AVX",       "AVX2",        "AVX-512F", "AVX-512BW", "AVX-512VL",
                                       "AVX-512DQ", "AVX-512VBMI", "BMI2",     "AMD",       "Intel"};

static feature_set needs_of(const testcase *test) {
  feature_set needs = 0;
  for (uint32_t i = 0; i < test->count; i++)
    needs |= scan_instruction(&test->instructions[i]).needs;
  return needs;
}

static void print_header(FILE *to, const testcase *test) {
  char name[33];
  testcase_name(test, name);
  fprintf(to, "entry %s\nmade on:", name);
  for (unsigned bit = 0; bit < sizeof cpu_bits / sizeof cpu_bits[0]; bit++)
    if (test->cpu >> bit & 1)
      fprintf(to, " %s", cpu_bits[bit]);
  fprintf(to, "%s\nneeds:", (test->cpu & ~TESTCASE_ANYWHERE) == 0 ? " unknown" : "");
  feature_set needs = needs_of(test);
  for (unsigned i = 0; i < features_count(); i++)
    if (needs >> i & 1)
      fprintf(to, " %s", feature_name(i));
  fprintf(to, "%s%s\nfuel: %u\n", needs ? "" : " nothing that not every x86-64 has",
          test->cpu & TESTCASE_ANYWHERE ? "; runs anywhere" : "", test->fuel);
}

static void print_state(FILE *to, const testcase *test) {
  size_t count, shown = 0;
  const ls_register *registers = ls_registers(&count);
  const ls_state *base = testcase_base_state(test->vectors);
  fprintf(to,
          "\nregisters (pattern %u in vectors and opmasks, 0x%" PRIx64 " in rsp, else the usual start):\n",
          test->vectors, base->gpr[LS_RSP]);
  for (size_t row = 0; row < count; row++) {
    char text[200];
    const ls_register *reg = &registers[row];
    if (memcmp((const char *)&test->state + reg->offset, (const char *)base + reg->offset, reg->size) == 0)
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
  ls_program program = testcase_program(test);
  ls_error error = {0};
  print_header(to, test);
  fputs("\nprogram (+ was inserted to follow links, \"out\" leaves the program):\n", to);
  ls_image *image = lay_out(test, &error);
  bool fine = image != NULL;
  if (fine)
    listing_print(to, image, &program, 0);
  else
    fprintf(to, "  cannot be laid out: %s\n", error.text);
  ls_image_destroy(image);
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

static json_t *line_json(const testcase *test, const ls_range *range, uint64_t address, const uint8_t *bytes,
                         unsigned length, const char *text) {
  const ls_instruction *instruction = &test->instructions[range->instruction];
  json_t *value =
      json_pack("{so so ss si ss}", "address", json_hex(address), "bytes", hex_bytes(bytes, length), "text",
                text, "instruction", (int)range->instruction, "part", word_of_part(range->part));
  if (range->part == LS_PART_BODY) {
    json_object_set_new(value, "next", link_json(instruction->next));
    if (instruction->field == LS_FIELD_BRANCH)
      json_object_set_new(value, "jump", link_json(instruction->jump));
  }
  return value;
}

/* One object for each instruction of the code image. */
static json_t *program_json(const testcase *test) {
  ls_error error = {0};
  size_t size, count;
  json_t *lines = json_array();
  ls_image *image = lay_out(test, &error);
  if (image == NULL) {
    json_array_append_new(lines, json_pack("{ss}", "error", error.text));
    return lines;
  }
  const uint8_t *bytes = ls_image_bytes(image, &size);
  const ls_range *ranges = ls_image_map(image, &count);
  for (size_t i = 0; i < count; i++)
    for (uint32_t at = ranges[i].offset, end = at + ranges[i].length; at < end;) {
      char text[160];
      uint64_t address = testcase_layout()->windows[TESTCASE_CODE].address + at;
      unsigned length = listing_instruction(bytes + at, end - at, address, text, sizeof text);
      json_array_append_new(lines, line_json(test, &ranges[i], address, bytes + at, length, text));
      at += length;
    }
  ls_image_destroy(image);
  return lines;
}

static json_t *state_json(const testcase *test) {
  size_t count;
  const ls_register *registers = ls_registers(&count);
  json_t *value = json_object();
  const ls_state *base = testcase_base_state(test->vectors);
  for (size_t row = 0; row < count; row++) {
    char text[200];
    const ls_register *reg = &registers[row];
    if (memcmp((const char *)&test->state + reg->offset, (const char *)base + reg->offset, reg->size) == 0)
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

static json_t *needs_json(const testcase *test) {
  json_t *names = json_array();
  feature_set needs = needs_of(test);
  for (unsigned i = 0; i < features_count(); i++)
    if (needs >> i & 1)
      json_array_append_new(names, json_string(feature_name(i)));
  return names;
}

json_t *show_json(const testcase *test) {
  char name[33];
  testcase_name(test, name);
  return json_pack("{ss so so sb si so si si si si so so}", "name", name, "cpu", json_hex(test->cpu), "needs",
                   needs_json(test), "anywhere", (test->cpu & TESTCASE_ANYWHERE) != 0, "fuel",
                   (int)test->fuel, "program", program_json(test), "vectors", test->vectors, "data",
                   test->fill[TESTCASE_DATA], "constants", test->fill[TESTCASE_CONST], "stack",
                   test->fill[TESTCASE_STACK], "state", state_json(test), "patches", patches_json(test));
}

/* ---- Command ----------------------------------------------------------------------------------------- */

typedef struct show_options {
  bool json, any;
  json_t *shown; /* NULL without --json */
  const char **files;
  int count;
} show_options;

static const struct argp_option option_table[] = {
    {"any", 'a', NULL, 0, "Take files that are no entries too: their bytes are the program", 0},
    {"json", 'j', NULL, 0, "Print a JSON object; of several files an array of them", 0},
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
  if (entry_load(path, options->any, &test, why, sizeof why) != LOADED_ENTRY) {
    if (interrupt_noted())
      return false; /* which show_all says */
    if (options->json)
      json_array_append_new(options->shown, json_trouble(path, why));
    cli_complain("%s: %s", path, why);
    return false;
  }
  if (!options->json) {
    progress_hide();
    if (options->count > 1)
      printf("==> %s <==\n", printable(path));
    return show_print(stdout, &test);
  }
  json_t *value = show_json(&test);
  json_object_set_new(value, "file", json_text(path));
  json_array_append_new(options->shown, value);
  return true;
}

/* An object, of several files an array; also if it was interrupted before the first. */
static void print_shown(const show_options *options) {
  json_t *first = json_array_get(options->shown, 0);
  json_print(json_incref(options->count > 1 || first == NULL ? options->shown : first));
  json_decref(options->shown);
}

static int show_all(const show_options *options) {
  int status = CLI_OK, i = 0;
  interrupt_watch();
  progress_begin("showing", "files", (size_t)options->count);
  for (; i < options->count && !interrupt_noted() && !ferror(stdout); i++) {
    progress_at((size_t)i);
    if (show_file(options, options->files[i]))
      continue;
    if (interrupt_noted()) /* while it was read */
      break;
    status = CLI_BAD;
  }
  progress_end();
  if (options->json)
    print_shown(options);
  if (!interrupt_cuts((size_t)i, (size_t)options->count))
    return status;
  cli_complain("interrupted after %d of %d %s", i, options->count,
               word_for((size_t)options->count, "file", "files"));
  return CLI_INTERRUPTED + interrupt_noted();
}

int cmd_show(int argc, char **argv) {
  const struct argp parser = {
      option_table,
      parse_option,
      "FILE...",
      "Prints entries: the program as it is laid out, with its links and what was inserted for them, and "
      "what of the initial state and memory is not the usual start.\v"
      "Example: lockstep show corpus/fuzz_run/00*\n\n" CLI_EXIT_CODES,
      cli_help,
      NULL,
      NULL};
  show_options options = {.files = calloc((size_t)argc, sizeof *options.files)};
  if (options.files == NULL)
    return CLI_BAD;
  argp_parse(&parser, argc, argv, 0, NULL, &options);
  options.shown = options.json ? json_array() : NULL;
  int status = show_all(&options);
  free(options.files);
  return status;
}

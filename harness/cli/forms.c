/* lockstep forms: which instruction forms there are, which this CPU runs, which are excluded and why. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"
#include "forms/forms.h"
#include "forms/policy.h"
#include "forms/probe.h"
#include "oracle/affinity.h"

typedef struct forms_options {
  bool list, json;
} forms_options;

static const struct argp_option option_table[] = {
    {"list", 'l', NULL, 0, "One line per form: number, status, policy class, example, text", 0},
    {"json", 'j', NULL, 0, "The summary as JSON", 0},
    {0}};

static error_t parse_option(int key, char *argument, struct argp_state *state) {
  forms_options *options = state->input;
  (void)argument;
  switch (key) {
  case 'l':
    options->list = true;
    return 0;
  case 'j':
    options->json = true;
    return 0;
  case ARGP_KEY_ARG:
    argp_error(state, "no arguments are taken");
    return EINVAL;
  case ARGP_KEY_END:
    if (options->list && options->json)
      argp_error(state, "--list and --json exclude each other");
    return 0;
  default:
    return ARGP_ERR_UNKNOWN;
  }
}

/* ---- Counting ---------------------------------------------------------------------------------------- */

enum { ENCODINGS = ZYDIS_INSTRUCTION_ENCODING_MAX_VALUE + 1 };

static const char *const encoding_names[ENCODINGS] = {
    [ZYDIS_INSTRUCTION_ENCODING_LEGACY] = "legacy", [ZYDIS_INSTRUCTION_ENCODING_3DNOW] = "3DNow",
    [ZYDIS_INSTRUCTION_ENCODING_XOP] = "XOP",       [ZYDIS_INSTRUCTION_ENCODING_VEX] = "VEX",
    [ZYDIS_INSTRUCTION_ENCODING_EVEX] = "EVEX",     [ZYDIS_INSTRUCTION_ENCODING_MVEX] = "MVEX"};

typedef struct census_row {
  uint32_t forms, runnable, allowed;
} census_row;

typedef struct census {
  bool probed; /* without: runnable and allowed mean nothing */
  uint32_t mnemonics;
  uint32_t illegal;  /* that the policy lets run, and this CPU does not */
  uint32_t untried;  /* that the policy lets run, and nobody tried: it was interrupted */
  uint32_t excluded; /* by the policy */
  census_row all, by_encoding[ENCODINGS];
  census_row *by_class; /* one for each of policy_rows() */
} census;

/* May the generator use it? What the policy lets run must run; what is to fault faults either way. */
static bool is_allowed(policy_action action, uint8_t support) {
  if (action == POLICY_RUN)
    return support == FORM_RUNS;
  return action != POLICY_EXCLUDE;
}

static void count_in(census_row *row, const policy_row *policy, uint8_t support) {
  row->forms++;
  row->runnable += support == FORM_RUNS;
  row->allowed += is_allowed(policy->action, support);
}

static bool take_census(const uint8_t *support, bool probed, census *c) {
  size_t rows;
  const policy_row *first = policy_rows(&rows);
  ZydisMnemonic last = ZYDIS_MNEMONIC_INVALID;
  *c = (census){.probed = probed, .by_class = calloc(rows, sizeof(census_row))};
  if (c->by_class == NULL)
    return false;
  for (form_id form = 0; form < forms_count(); form++) {
    const policy_row *policy = policy_of_form(form);
    count_in(&c->all, policy, support[form]);
    count_in(&c->by_encoding[form_encoding(form)], policy, support[form]);
    count_in(&c->by_class[policy - first], policy, support[form]);
    c->illegal +=
        policy->action == POLICY_RUN && (support[form] == FORM_ILLEGAL || support[form] == FORM_OTHER);
    c->untried += policy->action == POLICY_RUN && support[form] == FORM_UNPROBED;
    c->excluded += policy->action == POLICY_EXCLUDE;
    c->mnemonics += form_mnemonic(form) != last; /* forms are sorted by mnemonic */
    last = form_mnemonic(form);
  }
  return true;
}

/* ---- Output ------------------------------------------------------------------------------------------ */

static const char *action_name(policy_action action) {
  static const char *const names[] = {"run", "fault", "syscall", "excluded"};
  return names[action];
}

static void print_counts(const char *name, const census_row *row, bool probed) {
  if (probed)
    printf("  %-20s %6u %9u %8u\n", name, row->forms, row->runnable, row->allowed);
  else
    printf("  %-20s %6u %9s %8s\n", name, row->forms, "?", "?");
}

static void print_classes(const census *c) {
  size_t rows;
  const policy_row *policy = policy_rows(&rows);
  puts("\nClasses of the policy\n                        forms  runnable  allowed");
  for (size_t i = 0; i < rows; i++) {
    if (policy[i].action != POLICY_EXCLUDE && c->by_class[i].forms > 0)
      print_counts(policy[i].name, &c->by_class[i], c->probed);
  }
  puts("\nExcluded");
  for (size_t i = 0; i < rows; i++) {
    if (policy[i].action == POLICY_EXCLUDE && c->by_class[i].forms > 0)
      printf("  %-20s %6u  %s\n", policy[i].name, c->by_class[i].forms, policy[i].reason);
  }
}

/* All forms, each in one of these lines. */
static void print_sum(const census *c) {
  printf("%u forms of %u mnemonics:\n", c->all.forms, c->mnemonics);
  if (c->probed) {
    printf("  %6u are allowed: %u that this CPU runs, %u that are undefined and are to fault\n",
           c->all.allowed, c->all.runnable, c->all.allowed - c->all.runnable);
    printf("  %6u this CPU does not have\n", c->illegal);
    if (c->untried > 0)
      printf("  %6u were not tried: it was interrupted\n", c->untried);
  } else {
    printf("  %6u would be allowed, those of them that this CPU runs\n", c->all.forms - c->excluded);
  }
  printf("  %6u are excluded, each for one of the reasons below\n", c->excluded);
}

static void print_summary(const census *c) {
  print_sum(c);
  puts("\nEncodings\n                        forms  runnable  allowed");
  for (unsigned i = 0; i < ENCODINGS; i++) {
    if (c->by_encoding[i].forms > 0)
      print_counts(encoding_names[i], &c->by_encoding[i], c->probed);
  }
  print_classes(c);
}

static const char *status_name(policy_action action, uint8_t support) {
  if (action == POLICY_EXCLUDE)
    return "excluded";
  if (support == FORM_UNPROBED)
    return "unprobed";
  return support == FORM_RUNS ? "runs" : support == FORM_OTHER ? "other" : "illegal";
}

static void print_list(const uint8_t *support) {
  for (form_id form = 0; form < forms_count(); form++) {
    const policy_row *policy = policy_of_form(form);
    uint8_t length;
    const uint8_t *bytes = form_bytes(form, &length);
    char hex[2 * LS_INSTRUCTION_MAX + 1] = "", text[128];
    for (unsigned i = 0; i < length; i++)
      snprintf(hex + 2 * i, 3, "%02x", bytes[i]);
    form_print(form, text, sizeof text);
    printf("%5u  %-8s  %-17s  %-22s  %s\n", form, status_name(policy->action, support[form]), policy->name,
           hex, text);
  }
}

static json_t *json_count(const census *c, uint32_t count) {
  return c->probed ? json_integer(count) : json_null();
}

static json_t *json_excluded(const census *c) {
  size_t rows;
  const policy_row *policy = policy_rows(&rows);
  json_t *excluded = json_array();
  for (size_t i = 0; i < rows; i++) {
    if (policy[i].action == POLICY_EXCLUDE && c->by_class[i].forms > 0)
      json_array_append_new(excluded, json_pack("{s:s, s:i, s:s}", "reason", policy[i].reason, "forms",
                                                (int)c->by_class[i].forms, "class", policy[i].name));
  }
  return excluded;
}

static json_t *json_classes(const census *c) {
  size_t rows;
  const policy_row *policy = policy_rows(&rows);
  json_t *classes = json_array();
  for (size_t i = 0; i < rows; i++)
    json_array_append_new(classes,
                          json_pack("{s:s, s:s, s:i, s:o, s:o}", "class", policy[i].name, "action",
                                    action_name(policy[i].action), "forms", (int)c->by_class[i].forms,
                                    "runnable", json_count(c, c->by_class[i].runnable), "allowed",
                                    json_count(c, c->by_class[i].allowed)));
  return classes;
}

static void print_json(const census *c, const ls_error *error) {
  json_t *root =
      json_pack("{s:i, s:o, s:o, s:o, s:i, s:o, s:o, s:o, s:o}", "forms", (int)c->all.forms, "runnable",
                json_count(c, c->all.runnable), "allowed", json_count(c, c->all.allowed), "excluded",
                json_excluded(c), "mnemonics", (int)c->mnemonics, "unsupported", json_count(c, c->illegal),
                "untried", json_count(c, c->untried), "interrupted",
                interrupt_json(c->all.forms - c->untried, c->all.forms), "classes", json_classes(c));
  if (!c->probed)
    json_object_set_new(root, "no_reference", json_text(error->text));
  json_print(root);
}

/* ---- The command ------------------------------------------------------------------------------------- */

static bool go_on(form_id form) {
  progress_at(form);
  return !interrupt_noted();
}

ls_status forms_probe_here(uint8_t *support, ls_error *error) {
  ls_executor *reference = NULL;
  affinity pin;
  affinity_pin(&pin); /* before there is a child, which inherits it */
  ls_status status = ls_executor_create(LS_PTRACE, testcase_layout(), NULL, &reference, error);
  progress_begin("trying what this CPU runs", "forms", forms_count());
  if (status == LS_OK)
    status = probe_forms_while(reference, support, go_on, error);
  progress_end();
  ls_executor_destroy(reference);
  affinity_release(&pin);
  return status;
}

static int print_all(const forms_options *options, const uint8_t *support, bool probed, ls_error *error) {
  census c;
  if (!take_census(support, probed, &c)) {
    cli_complain("no memory for the table of forms");
    return CLI_BAD;
  }
  int status = probed ? CLI_OK : cli_failed("what this CPU runs is not known", error);
  if (probed && interrupt_cuts(c.all.forms - c.untried, c.all.forms))
    status = CLI_INTERRUPTED + interrupt_noted();
  if (options->json)
    print_json(&c, error);
  else if (options->list)
    print_list(support);
  else
    print_summary(&c);
  free(c.by_class);
  return status;
}

int cmd_forms(int argc, char **argv) {
  static const struct argp parser = {
      .options = option_table,
      .parser = parse_option,
      .children = cli_help,
      .doc =
          "Shows the catalogue of instruction forms, one for each way in which an instruction can be "
          "encoded: "
          "how many there are, which this CPU runs (each is tried), which the generator may use, and which "
          "are excluded and why.\vExample: lockstep forms --list | grep -i paddb\n\n" CLI_EXIT_CODES};
  forms_options options = {false, false};
  ls_error error = {.text = ""};
  if (argp_parse(&parser, argc, argv, 0, NULL, &options) != 0)
    return CLI_USAGE;
  uint8_t *support = calloc(forms_count(), 1);
  if (support == NULL) {
    cli_complain("no memory for the table of forms");
    return CLI_BAD;
  }
  interrupt_watch();
  const ls_status status = forms_probe_here(support, &error);
  const int result = print_all(&options, support, status == LS_OK, &error);
  free(support);
  return result;
}

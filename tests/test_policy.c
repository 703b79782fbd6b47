/* The policy: bytes → the row that claims them, one case a line (test_policy.inc). Plain main: prints the
 * case, what was expected and what came. */
#include <stdio.h>
#include <string.h>

#include "forms/policy.h"
#include "hex.h"

typedef struct policy_case {
  const char *bytes; /* hex */
  const char *row;
  bool x87;
  const char *text; /* what the bytes are, for the reader */
} policy_case;

static const policy_case cases[] = {
#define CASE(bytes, row, text)     {bytes, row, false, text},
#define CASE_X87(bytes, row, text) {bytes, row, true, text},
#include "test_policy.inc"
};

static int failures;

static void fail(const char *what, const char *bytes, const char *expected, const char *got) {
  printf("FAIL %s %s: expected %s, got %s\n", what, bytes, expected, got);
  failures++;
}

static void check_case(const policy_case *c) {
  uint8_t bytes[15];
  form_example decoded;
  const size_t length = parse_hex(c->bytes, bytes, sizeof bytes);
  if (!harness_decode(bytes, length, &decoded.instruction, decoded.operands) ||
      decoded.instruction.length != length) {
    fail(c->text, c->bytes, "one instruction", "something else");
    return;
  }
  const policy_row *row = policy_of(&decoded.instruction, decoded.operands);
  if (strcmp(row->name, c->row) != 0)
    fail(c->text, c->bytes, c->row, row->name);
  if (policy_uses_x87(&decoded.instruction, decoded.operands) != c->x87)
    fail(c->text, c->bytes, c->x87 ? "x87" : "no x87", c->x87 ? "no x87" : "x87");
}

/* A row without a reason is no policy, and two of one name cannot be told apart. */
static void check_rows(void) {
  size_t count;
  const policy_row *rows = policy_rows(&count);
  if (rows[0].name == NULL || strcmp(rows[0].name, "ordinary") != 0)
    fail("row 0", "-", "ordinary", rows[0].name != NULL ? rows[0].name : "(null)");
  for (size_t i = 0; i < count; i++) {
    if (rows[i].name == NULL || rows[i].reason == NULL || strlen(rows[i].reason) < 10)
      fail("row without name or reason", "-", "both", rows[i].name != NULL ? rows[i].name : "(null)");
    for (size_t k = 0; k < i && rows[i].name != NULL; k++) {
      if (rows[k].name != NULL && strcmp(rows[i].name, rows[k].name) == 0)
        fail("row named twice", "-", "once", rows[i].name);
    }
  }
}

/* Every row claims a case of the table, so that a class cannot silently lose its instructions. */
static void check_coverage(void) {
  size_t count;
  const policy_row *rows = policy_rows(&count);
  for (size_t i = 0; i < count; i++) {
    bool covered = false;
    for (size_t k = 0; k < sizeof cases / sizeof cases[0]; k++)
      covered = covered || strcmp(rows[i].name, cases[k].row) == 0;
    if (!covered)
      fail("row without a case", "-", "at least one", rows[i].name);
  }
}

/* The table by form says what the look-up says. */
static void check_forms(void) {
  for (form_id form = 0; form < forms_count(); form++) {
    form_example example;
    form_decode(form, &example);
    const policy_row *row = policy_of(&example.instruction, example.operands);
    if (policy_of_form(form) != row)
      fail("form", "-", row->name, policy_of_form(form)->name);
  }
}

int main(void) {
  check_rows();
  if (failures == 0) { /* all rows have names */
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
      check_case(&cases[i]);
    check_coverage();
    check_forms();
  }
  printf("%zu cases, %u forms, %d failures\n", sizeof cases / sizeof cases[0], forms_count(), failures);
  return failures == 0 ? 0 : 1;
}

/* Which forms this CPU runs: found by running an example of each in the reference child. */
#ifndef HARNESS_PROBE_H
#define HARNESS_PROBE_H

#include "forms/features.h"
#include "lockstep.h"

typedef enum form_support {
  FORM_UNPROBED = 0,
  FORM_RUNS,       /* executed, or faulted with anything but SIGILL */
  FORM_ILLEGAL,    /* SIGILL (#UD): not on this CPU, or not in user mode */
  FORM_NOT_PROBED, /* its policy row excludes it */
  FORM_OTHER /* executed although the CPU lacks what it needs: taken for another instruction, such as XOP's
                for POP (both begin with 8F) by an emulator */
} form_support;

/* Forms that run and need one of `lacking` become FORM_OTHER. */
void support_without(uint8_t *support, feature_set lacking);

/* Probes all forms that the policy does not exclude (about half a second) with a reference executor made for
 * testcase_layout(). support[forms_count()] is filled in. */
ls_status probe_forms(ls_executor *reference, uint8_t *support, ls_error *error);

/* The same, asking before each form: what `go_on` says no to stays FORM_UNPROBED. NULL: probes all. */
typedef bool (*probe_go_on)(form_id form);
ls_status probe_forms_while(ls_executor *reference, uint8_t *support, probe_go_on go_on, ls_error *error);

#endif

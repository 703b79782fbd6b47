/* Keeping test cases under their names: findings, and those of which nothing was learned, so that people can
 * look at them one by one. */
#ifndef HARNESS_KEEP_H
#define HARNESS_KEEP_H

#include "oracle/oracle.h"

/* The folders that LOCKSTEP_KEEP and LOCKSTEP_FINDINGS name, or NULL: nothing is to be kept. */
const char *keep_folder(void);
const char *keep_findings(void);

/* Writes `size` bytes to folder/reason/name, or folder/name where `reason` is NULL, making the folders if
 * need be, whole or not at all. True: it is there, or was already. False with errno set. */
bool keep_bytes(const char *folder, const char *reason, const char *name, const uint8_t *data, size_t size);

/* A test case with an inconclusive or refused verdict is kept as folder/REASON/NAME, REASON being the name of
 * the verdict's reason and NAME the test's; others are not, and nothing is where `folder` is NULL. False with
 * errno set if it could not be written. */
bool keep_open(const char *folder, const testcase *test, const oracle_result *result);

/* The same for one that differs, as folder/NAME, whatever the folder. */
bool keep_finding(const char *folder, const testcase *test);

#endif

/* What of a processor a program needs: the features without which one of its instructions is #UD. A program
 * that needs what this processor lacks would only test how both executors report SIGILL. */
#ifndef HARNESS_FEATURES_H
#define HARNESS_FEATURES_H

#include "forms/forms.h"

/* A set of features, a bit for each row of features.inc in its order. The numbering is this build's. */
typedef uint64_t feature_set;

unsigned features_count(void);

/* "AVX512F"; `feature` is below features_count(). */
const char *feature_name(unsigned feature);

/* The bytes of an instruction that needs this feature, and else only what the feature rests on. */
const uint8_t *feature_example(unsigned feature, uint8_t *length);

/* What a decoded instruction needs; what that rests on is included. */
feature_set features_needed(const ZydisDecodedInstruction *instruction);

/* The set and all that rests on it: what is gone where the set is. */
feature_set features_without(feature_set set);

/* Reads names, in capitals or not, separated by commas. False: one is no feature's; *at and *length say
 * which. */
bool features_parse(const char *names, feature_set *set, const char **at, size_t *length);

/* "AVX512F", "AVX512F and SHA", "AVX, SHA and TBM": of a set of what is lacking, without what is lacking only
 * because what it rests on is. Returns the length as snprintf does. */
size_t features_print(feature_set lacking, char *text, size_t size);

/* Finds out what this processor has, as far as the system lets guests use it: runs an example of each in a
 * reference executor that has testcase_layout() (two milliseconds). */
ls_status features_probe(ls_executor *reference, feature_set *have, ls_error *error);

#endif

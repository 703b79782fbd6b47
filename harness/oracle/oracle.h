/* The oracle: runs a test case in both executors and gives a verdict. The reference runs first; what it
 * proves about the program decides whether the program is admitted to the thread (docs/INTERNALS.md). */
#ifndef HARNESS_ORACLE_H
#define HARNESS_ORACLE_H

#include "forms/scan.h"
#include "lockstep.h"
#include "oracle/compare.h"
#include "testcase/testcase.h"

typedef enum verdict {
  VERDICT_SAME,
  VERDICT_DIFFERENT,
  VERDICT_INCONCLUSIVE,
  VERDICT_REFUSED,
  VERDICT_SKIPPED, /* not run: this processor lacks what it needs */
  VERDICTS
} verdict;

const char *verdict_name(verdict v); /* "same", "different", "inconclusive", "refused", "skipped" */

/* Why a verdict was given; counted one by one. */
typedef enum oracle_reason {
  REASON_NONE,          /* same, different in its outcome */
  REASON_TIMEOUT,       /* inconclusive: not over in ten times the limit of CPU time */
  REASON_STACK_POINTER, /* inconclusive, of programs that are interrupted on purpose: RSP is not canonical */
  REASON_REFERENCE_UNSTABLE, /* inconclusive: the reference disagrees with itself */
  REASON_THREAD_UNSTABLE,    /* inconclusive: the thread disagrees with itself */
  REASON_REFERENCE_LOST,     /* inconclusive: the child was killed from outside */
  REASON_POLICY,             /* refused: an instruction that the policy excludes */
  REASON_FS_GS,              /* refused: met the poisoned FS or GS base */
  REASON_FOREIGN,            /* refused: met the vsyscall page or the inside of the gate */
  REASON_ADDRESS,            /* refused: the fault's address is mapped in this process */
  REASON_SYSCALL,            /* refused: a system call, and this kernel cannot trap it in thread */
  REASON_PROGRAM,            /* refused: cannot be laid out */
  REASON_STATE,              /* refused: the CPU does not load this state */
  REASON_FEATURE,            /* skipped: an instruction of it is #UD here, for want of a feature */
  REASON_HOST,               /* different: the run in the thread changed what is the host's */
  ORACLE_REASONS
} oracle_reason;

const char *oracle_reason_name(oracle_reason reason);     /* one word: "timeout" */
const char *oracle_reason_sentence(oracle_reason reason); /* for people */

typedef struct oracle oracle;

typedef struct oracle_options {
  ls_vectors vectors;  /* LS_VECTORS_AUTO: all there is */
  uint32_t limit_ms;   /* CPU time of one run; 0 = 200 */
  bool pin;            /* keep the calling thread on one CPU that no other Lockstep process has claimed */
  feature_set without; /* to be treated as if the processor lacked them, and what rests on them */
  /* For tests: called after every run in the thread; may damage the outcome or the memory. */
  void (*tamper)(ls_outcome *thread, ls_executor *thread_executor, void *context);
  void *tamper_context;
} oracle_options;

typedef struct oracle_result {
  verdict verdict;
  oracle_reason reason;
  uint32_t once;          /* bits 1 << reason: a first verdict for that reason, which did not come again */
  const char *detail;     /* more about a refusal or NULL: the policy row's name, an instruction's trouble; or
                             "needs AVX512F, which this CPU lacks"; valid until the next run */
  ls_outcome reference;   /* canonical; meaningful unless refused before it ran */
  ls_outcome thread;      /* canonical; meaningful if same or different */
  comparison differences; /* if different */
  ls_image *image;        /* of the oracle: what ran; valid until the next run */
  const scan_info
      *infos; /* what each instruction is; valid until the next run, not if refused before it ran */
} oracle_result;

typedef struct oracle_counts {
  uint64_t verdicts[VERDICTS];
  uint64_t reasons[ORACLE_REASONS];
  uint64_t once[ORACLE_REASONS]; /* verdicts that did not come again; what came instead is counted above */
  uint64_t stops[LS_STOP_KINDS]; /* of the reference, for same and different */
} oracle_counts;

/* NULL options: the defaults. Where tracing is not possible this fails with LS_ERR_NO_REFERENCE. */
ls_status oracle_create(const oracle_options *options, oracle **out, ls_error *error);
void oracle_destroy(oracle *o);

/* Runs the test in both and compares. Every verdict but `same` is repeated before it is given: a difference
 * must come again in both executors, any other reason in another attempt, a time-out at ten times the limit.
 * What a run in the thread changes of the host's (host.h) is a difference by itself, seen once or more often.
 * A test that needs a feature which this processor lacks is skipped, unless it is marked as one that runs
 * anywhere (TESTCASE_ANYWHERE). Only errors that are not the test's own are returned: no memory, tracing that
 * is not possible any more. */
ls_status oracle_run(oracle *o, const testcase *test, oracle_result *result, ls_error *error);

/* Runs a test that may run in the thread (LS_ERR_ARGUMENT if it may not), `steps` instructions of it in each
 * executor, and says whether the outcomes are equal. Nothing is counted. `reference` and `thread` receive
 * canonical outcomes. An error of either executor counts as a difference at that point and is returned. */
ls_status oracle_step(oracle *o, const testcase *test, uint64_t steps, ls_outcome *reference,
                      ls_outcome *thread, bool *equal, ls_error *error);

const oracle_counts *oracle_counts_of(const oracle *o);
ls_executor *oracle_executor(oracle *o, ls_kind kind);

#endif

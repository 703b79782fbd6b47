/* The oracle's verdicts: that it agrees where executors agree, names exactly what differs where one is
 * tampered with, and refuses what must not run in this process. */
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

#include "child.h"
#include "oracle/oracle.h"
#include "oracle/report.h"

static oracle *the_oracle;
static testcase test;
static oracle_result result;

/* ---- Tampering ---- */

typedef struct damage {
  piece piece;
  uint32_t row, bit;       /* of a register; with PIECE_STOP_PLACE, bit 1: the part */
  uint32_t window, offset; /* of memory */
} damage;

static damage to_do;
static int damaging;

static void tamper(ls_outcome *thread, ls_executor *executor, void *context) {
  (void)context;
  if (!damaging)
    return;
  size_t count;
  switch (to_do.piece) {
  case PIECE_STOP_KIND:
    thread->stop.kind = LS_STOP_FUEL;
    break;
  case PIECE_STOP_PLACE:
    if (to_do.bit)
      thread->stop.part = thread->stop.part == LS_PART_NEXT ? LS_PART_JUMP : LS_PART_NEXT;
    else
      thread->stop.instruction ^= 1;
    break;
  case PIECE_SIGNAL:
    thread->stop.signal ^= 1;
    break;
  case PIECE_CODE:
    thread->stop.code ^= 1;
    break;
  case PIECE_ADDRESS:
    thread->stop.address ^= 1;
    break;
  case PIECE_NUMBER:
    thread->stop.number ^= 1;
    break;
  case PIECE_REGISTER:
    ((uint8_t *)&thread->state)[ls_registers(&count)[to_do.row].offset + to_do.bit / 8] ^=
        (uint8_t)(1u << to_do.bit % 8);
    break;
  case PIECE_MEMORY:
    ((uint8_t *)ls_executor_memory(executor, to_do.window))[to_do.offset] ^= 0x10;
    break;
  case PIECE_HOST: /* test_host_watch.c */
    break;
  }
}

/* Each test begins with an oracle of its own: cmocka puts handlers of its own in place around every test,
 * over those of an executor that was made before. */
static ls_status fresh_oracle(void (*damage_by)(ls_outcome *, ls_executor *, void *), ls_error *error) {
  const oracle_options options = {.tamper = damage_by};
  oracle_destroy(the_oracle);
  the_oracle = NULL;
  return oracle_create(&options, &the_oracle, error);
}

static void begin(void) {
  ls_error error = {0};
  if (fresh_oracle(tamper, &error) != LS_OK)
    fail_msg("%s", error.text);
}

static void judge(void) {
  ls_error error = {0};
  if (oracle_run(the_oracle, &test, &result, &error) != LS_OK)
    fail_msg("%s", error.text);
}

/* One broken piece must come out as one difference, of that piece. */
static const difference *judge_damaged(damage d) {
  to_do = d;
  damaging = 1;
  judge();
  damaging = 0;
  assert_string_equal(verdict_name(result.verdict), "different");
  assert_int_equal(result.differences.count, 1);
  assert_int_equal(result.differences.list[0].piece, d.piece);
  return &result.differences.list[0];
}

/* A program of one instruction, RSI in the middle of the data. */
static void one(const char *bytes, uint8_t length) {
  testcase_init(&test);
  test.instructions[0] = (ls_instruction){.next = LS_NONE, .jump = LS_NONE, .length = length};
  memcpy(test.instructions[0].bytes, bytes, length);
  test.state.gpr[LS_RSI] = testcase_layout()->windows[TESTCASE_DATA].address + 0x1000;
}

static void each_stop_piece_is_named(void **unused) {
  (void)unused;
  begin();
  for (piece p = PIECE_STOP_KIND; p <= PIECE_NUMBER; p++) {
    one("\x90", 1);
    judge_damaged((damage){.piece = p});
  }
  judge_damaged((damage){.piece = PIECE_STOP_PLACE, .bit = 1}); /* the part alone */
}

/* What the table says is dropped, of a state without a pending x87 exception: these bits must not count. */
static bool is_dropped(const ls_register *row, unsigned bit) {
  enum { NULL_SELECTOR_BITS = 2 };
  if (row->rule == LS_RULE_X87_PENDING)
    return true;
  return row->rule == LS_RULE_SELECTOR ? bit < NULL_SELECTOR_BITS : bit < 64 && !(row->mask >> bit & 1);
}

static void each_bit_of_each_register_is_named(void **unused) {
  (void)unused;
  begin();
  size_t count;
  const ls_register *table = ls_registers(&count);
  one("\x90", 1);
  for (uint32_t row = 0; row < count; row++)
    for (unsigned bit = 0; bit<8u * table[row].size; bit += table[row].size> 8 ? 37 : 1) {
      if (is_dropped(&table[row], bit))
        continue;
      if (strcmp(table[row].name, "fsw") == 0 && bit == 7)
        continue; /* ES brings the pointers into play: more than one difference */
      const difference *d = judge_damaged((damage){.piece = PIECE_REGISTER, .row = row, .bit = bit});
      assert_int_equal(d->row, row);
      assert_int_equal(d->a[bit / 8] ^ d->b[bit / 8], 1 << bit % 8);
    }
}

static void dropped_bits_do_not_count(void **unused) {
  (void)unused;
  begin();
  size_t count;
  const ls_register *table = ls_registers(&count);
  one("\x90", 1);
  for (uint32_t row = 0; row < count; row++)
    for (unsigned bit = 0; bit < 8u * table[row].size; bit++) {
      if (!is_dropped(&table[row], bit))
        continue;
      to_do = (damage){.piece = PIECE_REGISTER, .row = row, .bit = bit};
      damaging = 1;
      judge();
      damaging = 0;
      assert_string_equal(verdict_name(result.verdict), "same");
    }
}

static void each_window_is_compared_to_its_ends(void **unused) {
  (void)unused;
  begin();
  const ls_layout *layout = testcase_layout();
  for (uint32_t window = TESTCASE_DATA; window < TESTCASE_WINDOWS; window++) {
    const uint32_t offsets[] = {0, (uint32_t)layout->windows[window].size / 2 + 1,
                                (uint32_t)layout->windows[window].size - 1};
    for (size_t i = 0; i < sizeof offsets / sizeof *offsets; i++) {
      one("\x90", 1);
      const difference *d =
          judge_damaged((damage){.piece = PIECE_MEMORY, .window = window, .offset = offsets[i]});
      assert_int_equal(d->window, window);
      assert_int_equal(d->offset, offsets[i]);
      assert_int_equal(d->length, 1);
    }
  }
}

static void a_difference_is_reported_in_full(void **unused) {
  (void)unused;
  begin();
  size_t count;
  char *text;
  size_t size;
  one("\x48\x89\x06", 3); /* mov [rsi], rax */
  const ls_register *zmm5 = ls_register_find("zmm5");
  to_do = (damage){.piece = PIECE_REGISTER, .row = (uint32_t)(zmm5 - ls_registers(&count)), .bit = 130};
  damaging = 1;
  judge();
  FILE *to = open_memstream(&text, &size);
  report_difference(to, &test, &result, the_oracle);
  fclose(to);
  damaging = 0;
  assert_non_null(strstr(text, "zmm5[191:128]"));
  assert_non_null(strstr(text, "0x0000000000000004"));
  assert_non_null(strstr(text, "=> 0x"));
  assert_non_null(strstr(text, "mov qword ptr"));
  assert_non_null(strstr(text, "at the start"));
  assert_null(strstr(text, "zmm4"));
  free(text);
}

/* ---- What is not the executors' doing ---- */

static unsigned turn;

static void tamper_every_other(ls_outcome *thread, ls_executor *executor, void *context) {
  (void)executor;
  (void)context;
  thread->state.gpr[LS_RAX] += turn++;
}

static void what_does_not_repeat_is_inconclusive(void **unused) {
  (void)unused;
  ls_error error = {0};
  assert_int_equal(fresh_oracle(tamper_every_other, &error), LS_OK);
  turn = 1;
  one("\x90", 1);
  judge();
  assert_string_equal(verdict_name(result.verdict), "inconclusive");
  assert_string_equal(oracle_reason_name(result.reason), "thread-unstable");
  assert_int_equal(oracle_counts_of(the_oracle)->reasons[REASON_THREAD_UNSTABLE], 1);
}

static unsigned thread_runs, bad_runs;

static void tamper_at_first(ls_outcome *thread, ls_executor *executor, void *context) {
  (void)executor;
  (void)context;
  if (thread_runs++ < bad_runs)
    thread->state.gpr[LS_RAX] += thread_runs;
}

/* Both runs of the first attempt disagree, and so does the first run of each that follows. */
static void an_inconclusive_verdict_must_come_again(void **unused) {
  (void)unused;
  ls_error error = {0};
  assert_int_equal(fresh_oracle(tamper_at_first, &error), LS_OK);
  thread_runs = 0, bad_runs = 2;
  one("\x90", 1);
  judge();
  assert_string_equal(verdict_name(result.verdict), "same");
  assert_int_equal(result.once, 1u << REASON_THREAD_UNSTABLE);
  const oracle_counts *counts = oracle_counts_of(the_oracle);
  assert_int_equal(counts->once[REASON_THREAD_UNSTABLE], 1);
  assert_int_equal(counts->reasons[REASON_THREAD_UNSTABLE], 0);
  assert_int_equal(counts->verdicts[VERDICT_SAME], 1);
  judge();
  assert_int_equal(result.once, 0);
}

static void tamper_time_out(ls_outcome *thread, ls_executor *executor, void *context) {
  (void)executor;
  (void)context;
  if (thread_runs++ < bad_runs) {
    thread->stop = (ls_stop){.kind = LS_STOP_TIMEOUT, .instruction = LS_NONE};
    thread->state.gpr[LS_RCX] += thread_runs;
  }
}

/* A thread that does not end where the reference does is a difference, wherever the time-outs strike; but not
 * if ten times the limit is enough. */
static void a_thread_that_does_not_end_differs(void **unused) {
  (void)unused;
  ls_error error = {0};
  for (bad_runs = 1; bad_runs < 4; bad_runs += 2) {
    assert_int_equal(fresh_oracle(tamper_time_out, &error), LS_OK);
    thread_runs = 0;
    one("\x90", 1);
    judge();
    assert_string_equal(verdict_name(result.verdict), bad_runs == 1 ? "same" : "different");
    assert_int_equal(oracle_counts_of(the_oracle)->once[REASON_TIMEOUT], 1);
  }
}

/* A verdict for one instruction, with RAX given. */
static void check_verdict(const char *bytes, uint8_t length, uint64_t rax, verdict v, oracle_reason reason) {
  one(bytes, length);
  test.state.gpr[LS_RAX] = rax;
  judge();
  assert_string_equal(verdict_name(result.verdict), verdict_name(v));
  assert_string_equal(oracle_reason_name(result.reason), oracle_reason_name(reason));
}

static int ours;

static void dangerous_programs_are_refused(void **unused) {
  (void)unused;
  begin();
  int before = ours = 0x5a;
  check_verdict("\x0f\x31", 2, 0, VERDICT_REFUSED, REASON_POLICY);                       /* rdtsc */
  check_verdict("\x64\x48\x8b\x04\x25\0\0\0\0", 9, 0, VERDICT_REFUSED, REASON_POLICY);   /* mov rax, fs:[0] */
  check_verdict("\x8e\xe0", 2, 0, VERDICT_REFUSED, REASON_POLICY);                       /* mov fs, eax */
  check_verdict("\xf3\x48\x0f\xae\xd0", 5, 1, VERDICT_REFUSED, REASON_POLICY);           /* wrfsbase rax */
  check_verdict("\x88\x00", 2, (uint64_t)&ours, VERDICT_REFUSED, REASON_ADDRESS);        /* mov [rax], al */
  check_verdict("\x88\x00", 2, 0x10, VERDICT_SAME, REASON_NONE);                         /* to page 0 */
  check_verdict("\x88\x00", 2, UINT64_C(0x8000000000000000), VERDICT_SAME, REASON_NONE); /* non-canonical */
  assert_int_equal(ours, before);
}

/* Prefixes of FS in memory that is not executed are data. */
static void jumps_into_data_are_compared(void **unused) {
  (void)unused;
  begin();
  uint64_t data = testcase_layout()->windows[TESTCASE_DATA].address;
  one("\xc7\x00\x64\x64\x64\x64\xff\xe0", 8); /* mov dword ptr [rax], 0x64646464; jmp rax */
  test.state.gpr[LS_RAX] = data;
  judge();
  assert_string_equal(oracle_reason_name(result.reason), "none");
  assert_string_equal(verdict_name(result.verdict), "same");
  assert_int_equal(result.reference.stop.address, data);
}

/* Two bytes of one instruction's immediate are another instruction, reached by a jump that no link shows. */
static void hidden_instructions_do_no_harm(void **unused) {
  (void)unused;
  begin();
  one("\xeb\x01\xb8\x8e\xe0\x90\x90", 7); /* jmp +1; (mov eax, …) mov fs, eax; nop; nop */
  judge();
  assert_string_equal(verdict_name(result.verdict), "refused");
}

/* The same behind `mov rax, imm64`: a branch that no link shows leads to RDFSBASE in its immediate, */
static void literal_branches_are_followed(void **unused) {
  (void)unused;
  begin();
  one("\xeb\x02\x48\xb8\xf3\x48\x0f\xae\xc0\x90\x90\x90", 12);
  judge();
  assert_string_equal(verdict_name(result.verdict), "refused");
  assert_string_equal(result.detail, "fs-gs");
}

/* and a return does. Only a run shows that; the executors then differ for a reason that is not theirs. */
static void returns_are_looked_into_when_they_matter(void **unused) {
  (void)unused;
  static const ls_instruction in[] = {
      {.next = 1,
       .jump = LS_NONE,
       .length = 5,
       .bytes = {0x68, 0x08, 0x00, 0x01, 0x20}}, /* push 0x20010008 */
      {.next = LS_NONE, .jump = LS_NONE, .length = 1, .flags = LS_NEVER_FALLS_THROUGH, .bytes = {0xc3}},
      {.next = LS_NONE,
       .jump = LS_NONE,
       .length = 10,
       .bytes = {0x48, 0xb8, 0xf3, 0x48, 0x0f, 0xae, 0xc0, 0x90, 0x90, 0x90}},
  };
  begin();
  testcase_init(&test);
  test.count = 3;
  memcpy(test.instructions, in, sizeof in);
  judge();
  if (result.reference.stop.kind == LS_STOP_FAULT)
    return; /* RDFSBASE is undefined here: both say so */
  assert_string_equal(verdict_name(result.verdict), "refused");
  assert_string_equal(result.detail, "fs-gs");
}

/* No processor but Knights Corner has this one: KAND k1, k2. */
static void what_is_lacking_is_skipped(void **unused) {
  (void)unused;
  begin();
  one("\xc4\xe1\x78\x41\xca", 5);
  judge();
  assert_string_equal(verdict_name(result.verdict), "skipped");
  assert_string_equal(oracle_reason_name(result.reason), "feature");
  assert_string_equal(result.detail, "needs KNC, which this CPU lacks");
  test.cpu |= TESTCASE_ANYWHERE;
  judge();
  assert_string_equal(verdict_name(result.verdict), "same");
  assert_int_equal(result.reference.stop.signal, SIGILL);
  one("\x90\xc4\xe1\x78\x41\xca", 6); /* behind a NOP that seems to be all */
  judge();
  assert_string_equal(verdict_name(result.verdict), "skipped");
  assert_string_equal(result.detail, "needs KNC, which this CPU lacks");
  assert_int_equal(oracle_counts_of(the_oracle)->verdicts[VERDICT_SKIPPED], 2);
}

/* time() in the vsyscall page writes where RDI says, in whichever process it is called. */
static void vsyscalls_are_refused(void **unused) {
  (void)unused;
  begin();
  one("\xff\xd0", 2); /* call rax */
  test.state.gpr[LS_RAX] = UINT64_C(0xffffffffff600400);
  test.state.gpr[LS_RDI] = (uint64_t)&ours;
  ours = 0x5a;
  judge();
  assert_int_equal(ours, 0x5a);
  assert_true(result.verdict == VERDICT_REFUSED || result.reference.stop.kind == LS_STOP_FAULT);
}

/* All that a guest can see of the gate is the same in both: its page, its other pages, jumps into it. */
static void the_gate_is_the_same_in_both(void **unused) {
  (void)unused;
  static const uint32_t offsets[] = {0, 1, 2, 6, 8, 16, 0xfff, 0x1000, 0x2000, 0xffff};
  begin();
  for (size_t i = 0; i < sizeof offsets / sizeof *offsets; i++) {
    uint64_t at = testcase_layout()->gate + offsets[i];
    check_verdict("\x8a\x00", 2, at, VERDICT_SAME, REASON_NONE); /* mov al, [rax] */
    check_verdict("\x88\x00", 2, at, VERDICT_SAME, REASON_NONE); /* mov [rax], al */
    check_verdict("\xff\xe0", 2, at, VERDICT_SAME, REASON_NONE); /* jmp rax */
  }
}

static void endless_loops_are_inconclusive(void **unused) {
  (void)unused;
  begin();
  check_verdict("\xeb\xfe", 2, 0, VERDICT_INCONCLUSIVE, REASON_TIMEOUT); /* raw bytes: no link, no fuel */
}

static void system_calls_stop(void **unused) {
  (void)unused;
  begin();
  one("\x0f\x05", 2);
  test.state.gpr[LS_RAX] = 231; /* exit_group: if it were made, this test would end here */
  judge();
  if (ls_executor_stops_syscalls(oracle_executor(the_oracle, LS_SIGNAL))) {
    assert_string_equal(verdict_name(result.verdict), "same");
    assert_int_equal(result.thread.stop.kind, LS_STOP_SYSCALL);
    assert_int_equal(result.thread.stop.number, 231);
  } else {
    assert_string_equal(oracle_reason_name(result.reason), "syscall");
  }
}

static void lost_children_are_replaced(void **unused) {
  (void)unused;
  begin();
  for (int i = 0; i < 3; i++) {
    check_verdict("\x90", 1, 0, VERDICT_SAME, REASON_NONE);
    kill(only_child(), SIGKILL);
  }
  check_verdict("\x90", 1, 0, VERDICT_SAME, REASON_NONE);
}

int main(void) {
  ls_error error = {0};
  ls_status status = fresh_oracle(tamper, &error);
  if (status) {
    printf("%s: %s\n", ls_status_name(status), error.text);
    return 1;
  }
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(each_stop_piece_is_named),
      cmocka_unit_test(each_bit_of_each_register_is_named),
      cmocka_unit_test(dropped_bits_do_not_count),
      cmocka_unit_test(each_window_is_compared_to_its_ends),
      cmocka_unit_test(a_difference_is_reported_in_full),
      cmocka_unit_test(what_does_not_repeat_is_inconclusive),
      cmocka_unit_test(an_inconclusive_verdict_must_come_again),
      cmocka_unit_test(a_thread_that_does_not_end_differs),
      cmocka_unit_test(dangerous_programs_are_refused),
      cmocka_unit_test(jumps_into_data_are_compared),
      cmocka_unit_test(hidden_instructions_do_no_harm),
      cmocka_unit_test(literal_branches_are_followed),
      cmocka_unit_test(returns_are_looked_into_when_they_matter),
      cmocka_unit_test(what_is_lacking_is_skipped),
      cmocka_unit_test(vsyscalls_are_refused),
      cmocka_unit_test(the_gate_is_the_same_in_both),
      cmocka_unit_test(endless_loops_are_inconclusive),
      cmocka_unit_test(system_calls_stop),
      cmocka_unit_test(lost_children_are_replaced),
  };
  int failed = cmocka_run_group_tests(tests, NULL, NULL);
  oracle_destroy(the_oracle);
  return failed;
}

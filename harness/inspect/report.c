/* A finding as text. */
#include <inttypes.h>
#include <string.h>

#include "inspect/inspect_inner.h"
#include "oracle/listing.h"
#include "words.h"

enum { SHOWN = 3 };

static void print_stop(FILE *to, const char *who, const ls_stop *s) {
  fprintf(to, "%s: %s, instruction %d, part %s, id 0x%" PRIx64, who, ls_stop_kind_name(s->kind),
          (int)s->instruction, word_of_part(s->part), s->id);
  if (s->kind == LS_STOP_FAULT)
    fprintf(to, ", %s, %s, address 0x%" PRIx64, word_of_signal(s->signal), text_of_code(s->signal, s->code),
            s->address);
  if (s->kind == LS_STOP_SYSCALL)
    fprintf(to, ", number %" PRIu64, s->number);
  fputc('\n', to);
}

static void print_differences(FILE *to, const ls_state *want, const ls_state *got) {
  size_t count;
  const ls_register *table = ls_registers(&count);
  ls_state a = *want, b = *got;
  subject_canonicalise(&a);
  subject_canonicalise(&b);
  for (size_t row = 0; ls_state_difference(&a, &b, &row); row++) {
    char x[256], y[256];
    ls_register_print(&table[row], &a, x, sizeof x);
    ls_register_print(&table[row], &b, y, sizeof y);
    fprintf(to, "    %-8s %s   %s\n", table[row].name, x, y);
  }
}

static void print_memory(FILE *to, const inspect_ending *want, const inspect_ending *got) {
  enum { ROW = 8 };
  for (uint32_t w = TESTCASE_DATA; w < TESTCASE_WINDOWS; w++) {
    const ls_window *window = &testcase_layout()->windows[w];
    for (size_t at = 0; at < window->size; at += ROW) {
      uint64_t a, b;
      memcpy(&a, want->memory[w] + at, sizeof a);
      memcpy(&b, got->memory[w] + at, sizeof b);
      if (a != b)
        fprintf(to, "    [0x%08" PRIx64 "] 0x%016" PRIx64 "   0x%016" PRIx64 "\n", window->address + at, a,
                b);
    }
  }
}

/* The states of the trace that stand nearest to it: those of the same instruction. */
static void print_candidates(FILE *to, inspector *i, const look *l) {
  static ls_state state;
  const trace t = reference_trace(i->reference);
  ls_state seen = l->state;
  subject_canonicalise(&seen);
  uint64_t number = reference_segment(&i->subject, &seen);
  uint32_t index = subject_index(&i->subject, l->position.id), shown = 0;
  if (number == UINT64_MAX) {
    fprintf(to, "  no iteration has this counter\n");
    return;
  }
  const trace_segment segment = t.segment(t.context, number);
  fprintf(to, "  iteration %" PRIu64 " of %" PRIu64 ": %u %s, end %d\n", number, i->subject.iterations,
          segment.count, word_for(segment.count, "state", "states"), (int)segment.end);
  for (uint32_t n = 0; n < segment.count; n++)
    fprintf(to, "%s#%d%s", n ? " " : "  ", (int)segment.entries[n].instruction,
            segment.entries[n].hash == reference_hash(&seen) ? "!" : "");
  fputc('\n', to);
  for (uint32_t n = 0; n < segment.count && shown < SHOWN; n++) {
    if (segment.entries[n].instruction != index || !reference_state(i->reference, number, n, &state))
      continue;
    fprintf(to, "  the reference there, entry %u (reference, seen):\n", n);
    print_differences(to, &state, &l->state);
    shown++;
  }
}

static const char *relation_name(sight_relation r) {
  static const char *const names[] = {
      "", "as in ", "steps after ", "runs on from ", "no steps after ", "does not come to it from "};
  return names[r];
}

static void print_look(FILE *to, const inspector *i, const look *l) {
  static const char *const activities[] = {"idle", "running", "paused"};
  uint32_t number = 0;
  while (l < crew_journal(i->crew, number)->looks || l >= crew_journal(i->crew, number)->looks + LOOKS_MAX)
    number++;
  fprintf(to,
          "  thread %u, look %d, request %d [%" PRIu64 " to %" PRIu64 "]: %s at #%d (id 0x%" PRIx64
          ", index %d, part %d), rip 0x%" PRIx64,
          number, (int)(l - crew_journal(i->crew, number)->looks), (int)l->request, l->begin, l->end,
          activities[l->position.activity], (int)subject_index(&i->subject, l->position.id), l->position.id,
          (int)l->position.instruction, (int)l->position.part, l->state.rip);
  if (l->relation != SIGHT_FREE)
    fprintf(to, ", %" PRIu64 " %slook %d (target #%d)", l->count, relation_name(l->relation), (int)l->from,
            (int)l->target);
  fputc('\n', to);
}

static void print_sights(FILE *to, const inspector *i) {
  fprintf(to, "what was seen:\n");
  for (uint32_t n = 0; n < i->count; n++) {
    print_look(to, i, i->looks[n]);
    if (i->sights[n].known)
      fprintf(to, "      entry %" PRIu64 " of iteration %" PRIu64 "%s\n", i->sights[n].offset,
              i->sights[n].segment, i->sights[n].between ? ", between repetitions" : "");
  }
}

void inspector_report(FILE *to, inspector *i) {
  const subject *s = &i->subject;
  ls_program program = subject_program(s);
  uint32_t index = i->at ? subject_index(s, i->at->position.id) : LS_NONE;
  fprintf(to, "DIFFERENT: %s\n", i->trouble);
  if (i->at) {
    print_look(to, i, i->at);
    print_candidates(to, i, i->at);
  }
  print_stop(to, "reference ", &i->expected.stop);
  print_stop(to, "controller", &i->got.stop);
  fprintf(to, "  at the end (reference, controller):\n");
  print_differences(to, &i->expected.state, &i->got.state);
  print_memory(to, &i->expected, &i->got);
  fprintf(to,
          "%u %s from #%u, %" PRIu64 " %s counted in register %d, loop from #%d, fuel "
          "%" PRIu64 ", flags %u, %s, code %s\n",
          s->count, word_for(s->count, "instruction", "instructions"), s->entry, s->iterations,
          word_for(s->iterations, "iteration", "iterations"), (int)s->counter, (int)s->loop, s->fuel,
          s->flags, s->movable ? "movable" : "fixed", i->plan.moves ? "moves" : "stays");
  crew_print(to, i->crew);
  print_sights(to, i);
  listing_print(to, reference_image(i->reference), &program,
                index == LS_NONE ? 0 : ls_image_address(reference_image(i->reference), index));
  fflush(to);
}

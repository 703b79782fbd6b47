/* A guest counts in RAX for ever. Watch it from another thread, halve what it has counted, give it other code
 * while it runs, and end it:
 *
 *     cc example.c $(pkg-config --cflags --libs lockstep) -o example && ./example */
#include <inttypes.h>
#include <lockstep.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

static void check(ls_status status, const ls_error *error) {
  if (status == LS_OK)
    return;
  fprintf(stderr, "%s: %s\n", ls_status_name(status), error->text);
  exit(EXIT_FAILURE);
}

/* The guest's thread: ls_execute returns when the guest has stopped. */
static void *run(void *controller) {
  ls_error error;
  ls_stop stop;
  check(ls_execute(controller, 1, NULL, &stop, &error), &error);
  printf("it stopped: %s, at instruction %" PRIu64 "\n", ls_stop_kind_name(stop.kind), stop.id);
  return NULL;
}

static void wait_until_it_runs(ls_controller *controller) {
  ls_error error;
  ls_position position;
  do
    check(ls_get_state(controller, NULL, &position, &error), &error);
  while (position.activity == LS_IDLE);
}

static void watch(ls_controller *controller) {
  ls_error error;
  ls_state state;
  ls_position position;
  for (int i = 0; i < 3; i++) {
    check(ls_get_state(controller, &state, &position, &error), &error);
    printf("  rax %10" PRIu64 ", before instruction %" PRIu64 "\n", state.gpr[LS_RAX], position.id);
  }
}

/* Called while the guest waits: it goes on with what is left in *state. */
static int halve(ls_state *state, ls_position *position, void *context) {
  (void)position;
  uint64_t *before = context;
  *before = state->gpr[LS_RAX];
  state->gpr[LS_RAX] /= 2;
  return 0;
}

int main(void) {
  /* Each instruction has an id, its bytes, and the indexes of those that follow it. */
  ls_instruction count = {.id = 1, .length = 3, .bytes = {0x48, 0xff, 0xc0}, .next = 1, .jump = LS_NONE};
  ls_instruction back = {.id = 2, .length = 2, .bytes = {0xeb}, .next = LS_NONE, .jump = 0};
  back.flags = LS_NEVER_FALLS_THROUGH;
  back.field = LS_FIELD_BRANCH; /* the byte behind 0xeb says how far it jumps */
  back.field_offset = back.field_size = 1;
  ls_instruction loop[] = {count, back};
  const ls_program program = {.instructions = loop, .count = 2};

  ls_controller *controller;
  ls_error error;
  check(ls_controller_create(LS_SIGNAL, NULL, &controller, &error), &error); /* or LS_PTRACE */
  check(ls_update_code(controller, &program, &error), &error);

  pthread_t thread;
  if (pthread_create(&thread, NULL, run, controller))
    return EXIT_FAILURE;
  wait_until_it_runs(controller);
  printf("it counts (inc rax):\n");
  watch(controller);

  uint64_t before;
  check(ls_change_state(controller, halve, &before, &error), &error);
  printf("%" PRIu64 " was halved:\n", before);
  watch(controller);

  loop[0].bytes[2] = 0xc8; /* the same ids: wherever the guest is, it goes on there */
  check(ls_update_code(controller, &program, &error), &error);
  printf("it counts down (dec rax):\n");
  watch(controller);

  check(ls_cancel(controller, &error), &error);
  pthread_join(thread, NULL);
  ls_controller_destroy(controller);
  return EXIT_SUCCESS;
}

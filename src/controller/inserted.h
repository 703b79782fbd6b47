/* Code that the emitter inserted, carried out on a state in memory: so that a guest interrupted in the middle
 * of it is seen, and goes on, at an instruction of its program. Internal. */
#ifndef LOCKSTEP_INSERTED_H
#define LOCKSTEP_INSERTED_H

#include "../executor.h"

/* Where the guest stands afterwards. */
typedef enum inserted_end {
  INSERTED_BODY, /* not in inserted code, or not any more */
  INSERTED_LEFT  /* at the gate, state->rip too: it took the exit point that control->exit names */
} inserted_end;

/* Carries out what was inserted from state->rip on, up to an instruction of the program or the gate, with the
 * guest's RCX and `control`, the cells of this image's layout, as the CPU would. At most a handful of
 * instructions, even if the image's bytes are not the emitter's.
 *
 * Nothing is changed, and the end is INSERTED_BODY, where the guest is
 *   - at a body, or outside the image: at the gate or inside it too, since executors report an exit there;
 *   - where no inserted instruction begins: it jumped there itself, and shall have what comes of it;
 *   - stepping itself (RFLAGS.TF): each inserted instruction traps. */
inserted_end inserted_carry_out(const ls_image *image, control_cells *control, ls_state *state);

#endif

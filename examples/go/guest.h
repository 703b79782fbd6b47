/* What Go cannot do by itself: programs and options point to one another, and memory of Go's that does may
 * not be given to C. */
#include <lockstep.h>

/* A controller whose program is these instructions, one after the other; lengths[count]. The last one leaves
 * the program unless it is a jump. NULL: error says why. */
ls_controller *guest_create(const uint8_t *bytes, const uint8_t *lengths, uint32_t count, ls_error *error);

/* Runs it from its first instruction, for `limit_ms` of CPU time (0: as long as it takes). */
ls_status guest_run(ls_controller *guest, uint32_t limit_ms, ls_stop *stop, ls_error *error);

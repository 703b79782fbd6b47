/* Where guests are, in short: for the one test program that includes it and sets `layout`. */
#ifndef TESTS_PLACES_H
#define TESTS_PLACES_H

#include "lockstep.h"

enum { CODE, DATA, CONSTANTS, STACK }; /* windows of the default layouts */

static ls_layout layout;

#define D     (layout.windows[DATA].address)
#define D_END (D + layout.windows[DATA].size)
#define C     (layout.windows[CONSTANTS].address)
#define C_TF  (C + 64) /* where some put an RFLAGS image with TF */
#define S     (layout.windows[STACK].address)
#define X     (layout.windows[CODE].address)
#define X_END (X + layout.windows[CODE].size)
#define G     (layout.gate)

#endif

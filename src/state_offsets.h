/* Byte offsets in ls_state for assembly; checked against the C type in state.c. */
#ifndef LOCKSTEP_STATE_OFFSETS_H
#define LOCKSTEP_STATE_OFFSETS_H

#define STATE_ZMM    0
#define STATE_K      2048
#define STATE_GPR    2112
#define STATE_RIP    2240
#define STATE_RFLAGS 2248
#define STATE_CS     2256
#define STATE_SS     2258
#define STATE_DS     2260
#define STATE_ES     2262
#define STATE_FS     2264
#define STATE_GS     2266
#define STATE_FX     2272
#define STATE_FCW    2272
#define STATE_MXCSR  2296
#define STATE_ST     2304
#define STATE_SIZE   2432

/* The part of a state that FXSAVE and FXRSTOR share with it, from STATE_FX on. */
#define STATE_FX_SIZE 160

#endif

/* Bits of RFLAGS (SDM vol. 1, 3.4.3). Internal; used from assembly too. */
#ifndef LOCKSTEP_FLAGS_H
#define LOCKSTEP_FLAGS_H

#define RFLAGS_CF    0x1
#define RFLAGS_FIXED 0x2
#define RFLAGS_PF    0x4
#define RFLAGS_AF    0x10
#define RFLAGS_ZF    0x40
#define RFLAGS_SF    0x80
#define RFLAGS_TF    0x100
#define RFLAGS_IF    0x200
#define RFLAGS_DF    0x400
#define RFLAGS_OF    0x800
#define RFLAGS_IOPL  0x3000
#define RFLAGS_NT    0x4000
#define RFLAGS_RF    0x10000
#define RFLAGS_AC    0x40000
#define RFLAGS_ID    0x200000

/* What a program has that has just started. */
#define RFLAGS_CLEAN 0x202

/* The bits that user code can change, and that a start state may hold. */
#define RFLAGS_USER                                                                                          \
  (RFLAGS_CF | RFLAGS_PF | RFLAGS_AF | RFLAGS_ZF | RFLAGS_SF | RFLAGS_TF | RFLAGS_DF | RFLAGS_OF |           \
   RFLAGS_NT | RFLAGS_AC | RFLAGS_ID)

#endif

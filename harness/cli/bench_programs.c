#include "bench_programs.h"

#include <stdlib.h>
#include <string.h>

#include "bench_rows.h"

ls_instruction bench_plain(uint32_t index, const void *bytes, uint8_t length) {
  ls_instruction in = {.id = index, .next = index + 1, .jump = LS_NONE, .length = length};
  memcpy(in.bytes, bytes, length);
  return in;
}

/* A jump or, with `condition`, jnz, to instruction `to`. */
static ls_instruction jump(uint32_t index, bool condition, uint32_t to) {
  ls_instruction in = {.id = index,
                       .next = condition ? index + 1 : LS_NONE,
                       .jump = to,
                       .flags = condition ? 0 : LS_NEVER_FALLS_THROUGH,
                       .field = LS_FIELD_BRANCH,
                       .field_size = 4};
  static const uint8_t jmp[] = {0xe9}, jnz[] = {0x0f, 0x85};
  in.field_offset = condition ? sizeof jnz : sizeof jmp;
  in.length = (uint8_t)(in.field_offset + in.field_size);
  memcpy(in.bytes, condition ? jnz : jmp, in.field_offset);
  return in;
}

uint32_t bench_endless(ls_instruction *in) {
  static const uint8_t increment[] = {0x48, 0xff, 0x07};
  in[0] = bench_plain(0, increment, sizeof increment);
  in[1] = jump(1, false, 0);
  return BENCH_ENDLESS;
}

uint32_t bench_nops(ls_instruction *in) {
  static const uint8_t nop[] = {BENCH_NOP}, decrement[] = {0x48, 0xff, 0xce};
  for (uint32_t i = 0; i < FLOOR_ROUND - 2; i++)
    in[i] = bench_plain(i, nop, sizeof nop);
  in[FLOOR_ROUND - 2] = bench_plain(FLOOR_ROUND - 2, decrement, sizeof decrement);
  in[FLOOR_ROUND - 1] = jump(FLOOR_ROUND - 1, true, 0);
  in[FLOOR_ROUND - 1].next = LS_NONE;
  return FLOOR_ROUND;
}

/* Every eighth of those behind is a branch back. */
ls_program bench_large(uint32_t count, bool shift) {
  static const uint8_t move[] = {0x48, 0x8b, 0x47, 0x40}, longer[] = {0x48, 0x8b, 0x44, 0x27, 0x40};
  ls_instruction *in = malloc(count * sizeof *in);
  if (!in)
    bench_give_up("programs", "no memory");
  uint32_t i = bench_endless(in);
  if (shift)
    in[i] = bench_plain(i, longer, sizeof longer), i++;
  for (; i < count; i++)
    in[i] = i % 8 == 7 ? jump(i, true, i - 5) : bench_plain(i, move, sizeof move);
  in[count - 1] = bench_plain(count - 1, move, sizeof move);
  in[count - 1].next = LS_NONE;
  return (ls_program){in, count, 0};
}

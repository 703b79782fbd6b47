# What fuzz_run reported (its log) to one line for each difference: "differs REGISTERS… in MNEMONIC", where a register
# of eight bytes or less stands with the bits that differ: rflags^0x3000. The instruction is the one that differs when
# stepped, or, where none does, "at MNEMONIC": that at which both stopped.
function differing(a, b,    i, s, x) {
  sub(/^0x/, "", a); sub(/^0x/, "", b)
  for (i = 1; i <= length(a); i++) {
    x = xor4(index("0123456789abcdef", substr(a, i, 1)) - 1, index("0123456789abcdef", substr(b, i, 1)) - 1)
    s = s substr("0123456789abcdef", x + 1, 1)
  }
  sub(/^0+/, "", s)
  return "^0x" (s ? s : "0")
}
function xor4(a, b,    i, bit, x) {
  x = 0
  for (bit = 8; bit >= 1; bit /= 2) if (int(a / bit) % 2 != int(b / bit) % 2) x += bit
  return x
}
function mnemonic_of(first,    i) {
  for (i = first; i <= NF && $i ~ /^[0-9a-f][0-9a-f]$/; i++);
  return $i == "lock" || $i ~ /^rep/ ? $(i + 1) : $i
}
function flush() {
  if (in_report) print "differs" what (marked ? " in " marked : " at " (stopped ? stopped : "?"))
  in_report = 0
}
/^DIFFERENT/ { flush(); in_report = 1; what = marked = stopped = ""; number = "none" }
in_report && /^(reference|thread): / {
  stop = $0; sub(/^[a-z]*: */, "", stop)
  if (/^reference/) {
    reference_stop = stop
    if (stop ~ /in instruction #[0-9]+$/) { number = stop; sub(/.*#/, "", number) }
  } else if (stop != reference_stop) what = what " stop(" reference_stop " / " stop ")"
}
in_report && /^  [a-z0-9]+ +0x[0-9a-f]+ +0x[0-9a-f]+( +0x[0-9a-f]+)?$/ { what = what " " $1 differing($2, $3); next }
in_report && /^  host: .* 0x[0-9a-f]+ +0x[0-9a-f]+$/ {
  item = $0; sub(/ *0x.*/, "", item); sub(/^ */, "", item)
  what = what " " item; next
}
in_report && /^  [a-z]+[0-9]+ +0x[0-9a-f_]+ / { what = what " " $1 }
in_report && /^=> / { marked = mnemonic_of(3) }
in_report && $0 ~ "; #" number "( |$)" { stopped = mnemonic_of(/^=>/ ? 3 : 2) }
in_report && /^==[0-9]+==/ { flush() }
END { flush() }

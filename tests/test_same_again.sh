#!/bin/sh
# Whatever else the machine does, the same seed gives the same programs, and the list of forms is the same.
# Usage: test_same_again.sh LOCKSTEP [TIMES]. CTest does it a few times; 300 are a proof:
#   tests/test_same_again.sh build/dev/bin/lockstep 300
set -eu
lockstep=$(realpath "$1") times=${2:-5}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT
cd "$work"

programs() {
  rm -rf made
  "$lockstep" generate -s 1 -n 40 -o made >/dev/null
  (cd made && sha256sum -- *)
}

forms() {
  "$lockstep" forms --list
}

differing=0
for what in programs forms; do
  $what >"$what.first"
  [ -s "$what.first" ] || { echo "$what: nothing came"; exit 1; }
  count=1
  while [ "$count" -lt "$times" ]; do
    count=$((count + 1))
    $what >again
    cmp -s "$what.first" again && continue
    differing=$((differing + 1))
    echo "$what: call $count of $times gave something else:"
    diff "$what.first" again | head -n 20
  done
  echo "$what: $times calls"
done
echo "$differing calls differed"
[ "$differing" -eq 0 ]

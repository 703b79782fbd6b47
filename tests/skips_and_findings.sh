#!/bin/sh
# What `lockstep run` and the replayed fuzz target do with what a processor lacks, with what is no entry, and with a
# difference (LOCKSTEP_DRILL makes one). Usage: skips_and_findings.sh LOCKSTEP SOURCE_DIRECTORY
set -u
bin=$(cd "$(dirname "$1")" && pwd) corpus=$(cd "$2" && pwd)/corpus
scratch=$(mktemp -d) || exit 1
trap 'rm -rf "$scratch"' EXIT
cd "$scratch" || exit 1
PATH=$bin:$PATH
export PATH
failed=0

# expect STATUS LINE [TEXT]: the shell line ends with it, and what it prints has the text.
expect() {
  sh -c "$2" >out 2>&1 </dev/null
  status=$?
  [ $status = "$1" ] && { [ $# = 2 ] || grep -qF -e "$3" out; } && return
  echo "FAIL: $2: exit status $status, expected $1${3:+, and '$3'}"
  tail -n 20 out
  failed=1
}

lockstep generate -n 1 -s 1 >out 2>&1
if [ $? = 3 ]; then
  echo "SKIPPED: $(cat out)"
  exit 77
fi

# No machine has KNC but Knights Corner; every x86-64 runs NOP, and PABSB with xmm where it has SSSE3.
echo c4e17841ca | lockstep import --no-run -o lacking - >out
echo 90 | lockstep import --no-run -o nop - >out
echo 660f381cc8 | lockstep import --no-run -o pabsb - >out
lacking=$(echo lacking/*) nop=$(echo nop/*)
expect 77 "lockstep run lacking" "skipped      $lacking: needs KNC, which this CPU lacks"
expect 77 "lockstep run lacking" "1 entry: 0 same, 0 different, 0 inconclusive, 0 refused, 1 skipped"
expect 0 "lockstep run lacking nop" "1 same, 0 different, 0 inconclusive, 0 refused, 1 skipped"
expect 0 "lockstep run -q lacking nop" "1 skipped: needs KNC, which this CPU lacks"
expect 77 "lockstep run --json lacking" '"reason": "feature"'
expect 77 "lockstep run --json lacking" '"detail": "needs KNC, which this CPU lacks"'
expect 77 "lockstep run --json lacking" '"skipped": 1'
expect 77 "lockstep run --json lacking" '"needs KNC, which this CPU lacks": 1'
expect 77 "lockstep run --without ssse3 pabsb" "needs SSSE3, which this CPU lacks"
expect 2 "lockstep run --without ssse4 pabsb" "'ssse4' is no feature; there are SSE3 SSSE3 "
expect 0 "lockstep run --list same,skipped lacking nop" "$lacking"
expect 2 "lockstep run --list equal lacking" "not 'equal'"
expect 0 "[ \$(lockstep run --list same lacking nop) = $nop ]"
expect 77 "replay_fuzz_run lacking" "1 skipped: needs KNC, which this CPU lacks"
expect 77 "LOCKSTEP_WITHOUT=ssse3 replay_fuzz_run pabsb" "0 inputs ran, 1 was skipped"
expect 3 "LOCKSTEP_WITHOUT=ssse4 replay_fuzz_run pabsb" "'ssse4' is no feature"
expect 0 "replay_fuzz_run nop lacking" "1 input ran, 1 was skipped"

# An entry that is about what is lacking is run.
echo c4e17841ca | lockstep import --no-run --anywhere -o about - >out
expect 0 "lockstep run about" "fault SIGILL"
expect 0 "lockstep show about/*" "runs anywhere"
expect 0 "[ \$(ls about) = \$(ls lacking) ]" # it is the same test

# What belongs to other targets.
programs=$(ls "$corpus/fuzz_program" | wc -l) inspections=$(ls "$corpus/fuzz_inspect" | wc -l)
expect 0 "lockstep run -q nop $corpus/fuzz_program" "$programs files skipped: they are inputs of fuzz_program, not entries"
expect 4 "lockstep run $corpus/fuzz_inspect/" "$inspections files skipped: they are inputs of fuzz_inspect, not entries"
expect 0 "lockstep run --json nop $corpus/fuzz_program" "\"fuzz_program\": $programs"
expect 4 "cd $corpus/fuzz_program && lockstep run \$(ls | head -n 1)" "1 file skipped: it is an input of fuzz_program, not an entry"

# A difference is kept under the name of the test, reported, and the next input runs.
mkdir mixed
cp lacking/* pabsb/* nop/* mixed
expect 1 "LOCKSTEP_DRILL=nop lockstep run -q mixed" "DIFFERENT: test case $(basename "$nop")"
expect 1 "LOCKSTEP_DRILL=nop LOCKSTEP_FINDINGS=found replay_fuzz_run mixed" "FINDING found/$(basename "$nop")"
expect 0 "cmp $nop found/$(basename "$nop")"
expect 0 "lockstep run found"
expect 134 "LOCKSTEP_DRILL=nop LOCKSTEP_FINDINGS=$nop replay_fuzz_run mixed" "could not be kept in $nop: Not a directory"
expect 3 "LOCKSTEP_DRILL=nope replay_fuzz_run mixed" "is no mnemonic"
expect 2 "LOCKSTEP_DRILL=nope lockstep run mixed" "is no mnemonic"
expect 1 "LOCKSTEP_DRILL=nop LOCKSTEP_FINDINGS=found LOCKSTEP_STATS=account replay_fuzz_run mixed"
expect 1 "lockstep stats account" "different       1"

# What is inconclusive or refused is kept with its reason.
printf '\017\061' >rdtsc
expect 5 "LOCKSTEP_KEEP=kept lockstep run --any rdtsc nop lacking" "1 refused"
expect 0 "[ \$(ls kept) = policy ]"
expect 5 "lockstep run kept" "time"
expect 4 "LOCKSTEP_KEEP=$nop lockstep run --any rdtsc" "nothing more is kept there: Not a directory"
expect 0 "LOCKSTEP_KEEP=kept2 replay_fuzz_run rdtsc mixed && diff -r kept kept2"

[ $failed = 0 ] && echo "all is as expected"
exit $failed

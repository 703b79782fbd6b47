#!/bin/sh
# Runs every example of every help text, as it stands there, where the corpus is and the commands are found.
# Usage: help_examples.sh LOCKSTEP SOURCE_DIRECTORY
set -u
bin=$(cd "$(dirname "$1")" && pwd) source=$2
scratch=$(mktemp -d) || exit 1
trap 'rm -rf "$scratch"' EXIT
cp -r "$source/corpus" "$scratch" && cd "$scratch" || exit 1
PATH=$bin:$PATH
export PATH

lockstep run corpus/fuzz_program >reference 2>&1
if [ $? = 3 ]; then
  echo "SKIPPED: $(cat reference)"
  exit 77
fi

# A help text breaks lines; an empty one ends the example.
example_of() {
  lockstep $1 --help | awk '/^Example: /{on = 1; sub("Example: ", "")} /^$/{on = 0} on {printf "%s ", $0}'
}

failed=0 count=0
try() {
  example=$(example_of "$1")
  if [ -z "$example" ]; then
    echo "FAIL: lockstep $1 --help has no example"
    failed=1
    return
  fi
  count=$((count + 1))
  echo "\$ $example"
  sh -c "$example" >out 2>err </dev/null
  status=$?
  [ $status = 0 ] && return
  echo "FAIL: exit status $status"
  tail -n 5 out err
  failed=1
}

try ""
for command in $(lockstep --help | awk '/^Commands/{on = 1; next} /^$/{on = 0} on && $1 != "help" {print $1}'); do
  try "$command"
done
echo "$count examples were run"
[ $count -gt 6 ] && exit $failed
exit 1

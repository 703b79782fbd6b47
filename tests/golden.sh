#!/bin/sh
# golden.sh LOCKSTEP SOURCE: an entry that is checked in reads as it always did.
"$1" show "$2/tests/golden/every_register" | diff -u "$2/tests/golden/every_register.txt" -

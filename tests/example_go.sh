#!/bin/sh
# examples/go: a Go program beside whose scheduler and profiler guests run. Usage: example_go.sh SOURCE LIBRARY
set -eu
source=$1 library=$2
work=$(mktemp -d)
trap 'chmod -R u+w "$work"; rm -rf "$work"' EXIT
cp "$source"/examples/go/* "$work"
cd "$work"
export GOCACHE="$work/cache" GOFLAGS=-mod=mod GOPROXY=off CGO_ENABLED=1
export CGO_CFLAGS="-I$source/src" CGO_LDFLAGS="-L$(dirname "$library")"
go build -o host .
./host

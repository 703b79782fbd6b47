#!/bin/sh
# What is installed can be used by others: by CMake's find_package, by pkg-config, from C11 and from C++17.
# Usage: test_install.sh CMAKE BUILD_DIR CC GENERATOR find_package|cxx|pkg_config [SANITIZERS]
set -eu
cmake=$1 build=$2 cc=$3 generator=$4 part=$5
flags=${6:+-fsanitize=$6}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
moved=$work/moved

# Moved after installing: no path of the place where it first was may remain in the packages.
"$cmake" --install "$build" --prefix "$work/prefix" >"$work/log" || { cat "$work/log"; exit 1; }
mv "$work/prefix" "$moved"
mkdir "$work/user"
cd "$work/user"

cat >main.c <<'END'
#include <lockstep.h>
#include <stdio.h>

/* mov eax, 42 in this thread. */
int main(void) {
  ls_instruction body = {.bytes = {0xb8, 42}, .length = 5, .next = LS_NONE, .jump = LS_NONE};
  ls_program program = {.instructions = &body, .count = 1};
  ls_layout layout;
  ls_state state;
  ls_outcome outcome;
  ls_executor *executor = NULL;
  ls_image *image = ls_image_create();
  ls_error error = {0};
  ls_run run = {.state = &state};
  ls_state_init(&state);
  ls_layout_default(&layout, 0);
  if (image == NULL || ls_image_build(image, &program, &layout, &error) ||
      ls_executor_create(LS_SIGNAL, &layout, NULL, &executor, &error) ||
      ls_executor_load(executor, image, &error) || ls_executor_run(executor, &run, &outcome, &error)) {
    fprintf(stderr, "%s\n", error.text);
    return 1;
  }
  ls_executor_destroy(executor);
  ls_image_destroy(image);
  return outcome.stop.kind == LS_STOP_EXIT && outcome.state.gpr[LS_RAX] == 42 ? 0 : 1;
}
END
cat >CMakeLists.txt <<'END'
cmake_minimum_required(VERSION 3.16)
project(user LANGUAGES C)
find_package(lockstep 0.1 REQUIRED)
add_executable(user main.c)
target_link_libraries(user PRIVATE Lockstep::lockstep)
END

uses_find_package() {
  { "$cmake" -S . -B build -G "$generator" -DCMAKE_PREFIX_PATH="$moved" -DCMAKE_C_COMPILER="$cc" \
      -DCMAKE_C_FLAGS="$flags" &&
    "$cmake" --build build; } >"$work/log" 2>&1 || { cat "$work/log"; exit 1; }
  build/user
}

# The header alone, in the oldest C and C++ that it promises.
is_strict() {
  echo '#include <lockstep.h>' >"alone.$1"
  "$2" "$3" -Wall -Wextra -Wpedantic -Werror -fsyntax-only -I"$moved/include" "alone.$1"
}

uses_pkg_config() {
  pc=$(find "$moved" -name lockstep.pc)
  PKG_CONFIG_PATH=$(dirname "$pc") && export PKG_CONFIG_PATH
  "$cc" -std=c11 $flags main.c $(pkg-config --cflags --libs lockstep) -o user
  ./user
}

case $part in
find_package) is_strict c "$cc" -std=c11 && uses_find_package ;;
cxx) is_strict cpp "${CXX:-c++}" -std=c++17 ;;
pkg_config) uses_pkg_config ;;
*) echo "no part $part"; exit 2 ;;
esac

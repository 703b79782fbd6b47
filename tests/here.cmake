# Read by ctest before it runs anything: asks machine_has what this machine has, and makes the list of tests.
# What needs something that is not here is not run; the reason stands in its name, and so in the summary.
# `machine_has` is the program's path.

cmake_policy(VERSION 3.25)
execute_process(COMMAND "${machine_has}" OUTPUT_VARIABLE answers RESULT_VARIABLE result ERROR_QUIET)
if(NOT result STREQUAL "0") # half an answer is none
  set(answers)
endif()
string(REGEX REPLACE "[];[]" "," answers "${answers}")
string(REGEX MATCHALL "[^\n]+" answers "${answers}")
set(known)
foreach(answer IN LISTS answers)
  if(answer MATCHES "^([a-z0-9_]+) (yes|no) *(.*)$")
    list(APPEND known ${CMAKE_MATCH_1})
    set(${CMAKE_MATCH_1}_is_here ${CMAKE_MATCH_2})
    set(${CMAKE_MATCH_1}_reason "${CMAKE_MATCH_3}")
  endif()
endforeach()

# If machine_has cannot tell, nothing is left out, and it fails as a test itself.
function(test_here name needs properties)
  set(reasons)
  foreach(need IN LISTS needs)
    if(known AND NOT need IN_LIST known)
      message(FATAL_ERROR "${name} needs ${need}, of which machine_has knows nothing")
    elseif(known AND NOT ${need}_is_here)
      list(APPEND reasons "${${need}_reason}")
    endif()
  endforeach()
  if(reasons)
    list(JOIN reasons "; " reasons)
    string(APPEND name " (${reasons})")
    list(APPEND properties DISABLED TRUE)
  endif()
  add_test("${name}" ${ARGN})
  set_tests_properties("${name}" PROPERTIES TIMEOUT 300 ${properties})
endfunction()

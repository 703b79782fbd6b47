# What ctest printed and then its JUnit file, to lines: "passed TEST", "skipped TEST: reason", "failed TEST CASE" for each
# case of cmocka's that failed, "failed TEST CASE (how)" for one that did not end, "failed TEST - (how)" where no case is
# to blame.
function text(s) {
  gsub(/&lt;/, "<", s); gsub(/&gt;/, ">", s); gsub(/&quot;/, "\"", s); gsub(/&apos;/, "'", s); gsub(/&amp;/, "\\&", s)
  return s
}
function quoted(key, s) {
  return match(s, key "=\"[^\"]*\"") ? text(substr(s, RSTART + length(key) + 2, RLENGTH - length(key) - 3)) : ""
}
/^ *[0-9]+\/[0-9]+ Test +#[0-9]+: .*\*\*\*/ {
  how = $0
  sub(/.*\*\*\*/, "", how); sub(/ +[0-9.]+ sec$/, "", how)
  name = $0
  sub(/.*#[0-9]+: */, "", name); sub(/[ .].*/, "", name)
  ended[name] = how
}
/<testcase / {
  name = quoted(" name", $0); status = quoted("status", $0); how = ended[name]; running = ""; reason = ""; blamed = 0
}
{
  line = text($0)
  sub(/^[ \t]*<system-out>/, "", line)
}
line ~ /^\[ RUN +\] / { running = line; sub(/^\[ RUN +\] /, "", running) }
line ~ /^\[ +(OK|SKIPPED) +\] / { running = "" }
line ~ /^\[  FAILED  \] [a-zA-Z_0-9]+$/ && running != "" && status == "fail" {
  print "failed", name, running
  blamed = 1; running = ""
}
line !~ /^\[/ && line ~ /[a-z]/ && line !~ /^[ \t]*</ && reason == "" { reason = line }
/<\/testcase>/ {
  if (status == "run") print "passed", name
  else if (status == "notrun" || status == "disabled") print "skipped " name (name ~ /\(/ ? "" : ": " (reason ? reason : "no reason given"))
  else if (running != "") print "failed", name, running, "(" how ")"
  else if (!blamed) print "failed", name, "-", "(" how ")"
}

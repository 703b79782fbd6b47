# Names of skipped tests, each with its reason, "NAME (REASON)" or "NAME: REASON", to one line for each reason.
{
  reason = $0
  if (!sub(/^[^ ]* \(/, "", reason)) sub(/^[^:]*: /, "", reason)
  sub(/\)$/, "", reason)
  if (!(reason in count)) order[++reasons] = reason
  count[reason]++
  if (count[reason] <= 2) names[reason] = names[reason] (names[reason] ? ", " : "") $1
}
END {
  for (i = 1; i <= reasons; i++) {
    r = order[i]
    printf "  skipped: %d test%s (%s%s): %s\n", count[r], (count[r] == 1 ? "" : "s"), names[r], (count[r] > 2 ? ", …" : ""), r
  }
}

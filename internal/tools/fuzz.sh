#!/bin/sh
# fuzz.sh runs every Fuzz function of the tree for the given time each. They
# are found by asking the test binaries, so a new one needs no entry anywhere.
# One that finds something does not keep the others from running; in the end it
# says what each has done, and fails if any has found something.
set -eu

fuzztime=${1:?usage: fuzz.sh TIME [PACKAGE...]}
shift
[ $# -gt 0 ] || set -- ./...

echo "$fuzztime" | grep -Eq '^([0-9]+(\.[0-9]+)?(ms|s|m|h))+$|^[0-9]+x$' || {
	echo "fuzz.sh: FUZZTIME is a time such as 30s, or a number of executions such as 1000x, not $fuzztime" >&2
	exit 1
}
listing=$(go test -list '^Fuzz' "$@")
targets=$(printf '%s\n' "$listing" | awk '
	/^Fuzz/ { name[++n] = $1 }
	/^ok/   { for (i = 1; i <= n; i++) print $2, name[i]; n = 0 }')
if [ -z "$targets" ]; then
	echo "no Fuzz function in $*" >&2
	exit 1
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
count=0
failed=0
total=$(printf '%s\n' "$targets" | wc -l)
printf '%s\n' "$targets" >"$work/targets"
while read -r pkg name; do
	count=$((count + 1))
	echo "== $count/$total $pkg $name, $fuzztime"
	verdict=ok
	go test -run '^$' -fuzz "^$name\$" -fuzztime "$fuzztime" "$pkg" </dev/null >"$work/out" 2>&1 || {
		verdict=FOUND
		failed=$((failed + 1))
	}
	cat "$work/out"
	# The last line of progress: fuzz: elapsed: 30s, execs: 12345 (411/sec), new interesting: 3 (total: 17)
	awk -v what="${pkg#*/*/*/} $name" -v verdict="$verdict" '
		/^fuzz: elapsed: .*execs:/ { gsub(",", ""); elapsed = $3; execs = $5 }
		/new interesting:/ { match($0, /total: [0-9]+/); corpus = substr($0, RSTART + 7, RLENGTH - 7) }
		END { printf "%-44s %8s %12d %8d  %s\n", what, elapsed, execs, corpus, verdict }' "$work/out" >>"$work/table"
done <"$work/targets"

printf '\n%-44s %8s %12s %8s  %s\n' function time executions corpus found
cat "$work/table"
awk -v failed="$failed" '{ n += $4 } END { printf "%d functions, %d executions, %d with a finding\n", NR, n, failed }' "$work/table"
[ "$failed" -eq 0 ]

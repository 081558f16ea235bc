#!/bin/sh
# fuzz.sh runs every Fuzz function of the tree for the given time each. They
# are found by asking the test binaries, so a new one needs no entry anywhere.
set -eu

fuzztime=${1:?usage: fuzz.sh TIME [PACKAGE...]}
shift
[ $# -gt 0 ] || set -- ./...

listing=$(go test -list '^Fuzz' "$@")
targets=$(printf '%s\n' "$listing" | awk '
	/^Fuzz/ { name[++n] = $1 }
	/^ok/   { for (i = 1; i <= n; i++) print $2, name[i]; n = 0 }')
if [ -z "$targets" ]; then
	echo "no Fuzz function in $*" >&2
	exit 1
fi

count=0
total=$(printf '%s\n' "$targets" | wc -l)
printf '%s\n' "$targets" | while read -r pkg name; do
	count=$((count + 1))
	echo "== $count/$total $pkg $name, $fuzztime"
	go test -run '^$' -fuzz "^$name\$" -fuzztime "$fuzztime" "$pkg" </dev/null
done

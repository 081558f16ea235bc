#!/bin/sh
# check-generated.sh generates the code of proto/ anew in a scratch directory
# and fails if what is committed differs from it by one byte, lacks a file or
# has one too many.
set -eu

buf=${1:?usage: check-generated.sh BUF}
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

"$buf" generate --output "$tmp"

(cd "$tmp/proto" && find . -name "*.pb.go" | sed "s|^./||" | sort) >"$tmp/want"
(cd proto && find . -name "*.pb.go" | sed "s|^./||" | sort) >"$tmp/got"

bad=0
if ! diff -u "$tmp/got" "$tmp/want"; then
	echo "proto/: the set of generated files differs (-: in the tree, +: generated anew)" >&2
	bad=1
fi
while read -r f; do
	if [ -f "proto/$f" ] && ! cmp -s "proto/$f" "$tmp/proto/$f"; then
		diff -u "proto/$f" "$tmp/proto/$f" | head -20 >&2 || true
		echo "proto/$f is not what its .proto generates" >&2
		bad=1
	fi
done <"$tmp/want"

if [ "$bad" -ne 0 ]; then
	echo "run 'make generate' and commit the result" >&2
	exit 1
fi
echo "proto/: $(wc -l <"$tmp/want") generated files, reproduced byte for byte"

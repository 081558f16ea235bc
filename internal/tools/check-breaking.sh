#!/bin/sh
# check-breaking.sh compares the contracts in proto/ with an earlier state and
# fails on a change that breaks whoever was built against that state: clients
# (api/v1), files on disk (record/v1), nodes of the previous release (peer/v1).
#
# The earlier state is $BREAKING_AGAINST if set; else the last release, the
# newest tag v* that leads here; else, before the first release, the commit
# that this tree stands on: HEAD while proto/ has uncommitted changes, its
# parent otherwise. Where there is no such commit, or it has no proto/, there
# is nothing to break, and it says so.
set -eu

buf=${1:?usage: check-breaking.sh BUF}

base=${BREAKING_AGAINST:-}
if [ -z "$base" ]; then
	base=$(git describe --tags --abbrev=0 --match 'v[0-9]*' 2>/dev/null || true)
fi
if [ -z "$base" ]; then
	if [ -n "$(git status --porcelain -- proto buf.yaml)" ]; then
		base=HEAD
	else
		base=HEAD^
	fi
	if ! git rev-parse --quiet --verify "$base^{commit}" >/dev/null; then
		echo "proto/: no release and no earlier commit to compare with: nothing can break"
		exit 0
	fi
fi

commit=$(git rev-parse --verify "$base^{commit}")
if ! git ls-tree -r --name-only "$commit" -- proto | grep -q '\.proto$'; then
	echo "proto/: $base ($commit) has no contracts yet: nothing can break"
	exit 0
fi

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
git archive --format=tar -o "$tmp/base.tar" "$commit" buf.yaml proto
"$buf" breaking --against "$tmp/base.tar"
echo "proto/: breaks nothing that stood at $base ($commit)"

#!/bin/sh
# check-systemd.sh has systemd itself read the unit in deploy/systemd: no
# warning is accepted, and the exposure level must stay within the limit.
# systemd wants the program to exist, so a copy of the unit names the one that
# was just built.
set -eu

unit=deploy/systemd/rookeryd.service
program=${1:?usage: check-systemd.sh PROGRAM LIMIT}
limit=${2:?usage: check-systemd.sh PROGRAM LIMIT} # tenths: 15 is an exposure of 1.5

command -v systemd-analyze >/dev/null || {
	echo "systemd-analyze is missing: install systemd" >&2
	exit 1
}
[ -x "$program" ] || {
	echo "$program is missing: run 'make build'" >&2
	exit 1
}

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
case $program in /*) ;; *) program=$PWD/$program ;; esac
sed "s|^ExecStart=/usr/bin/rookeryd|ExecStart=$program|" "$unit" >"$tmp/rookeryd.service"
grep -q "^ExecStart=$program" "$tmp/rookeryd.service"

systemd-analyze verify "$tmp/rookeryd.service" >"$tmp/out" 2>&1 || {
	cat "$tmp/out" >&2
	exit 1
}
if [ -s "$tmp/out" ]; then
	cat "$tmp/out" >&2
	echo "$unit: systemd-analyze verify has something to say" >&2
	exit 1
fi
systemd-analyze security --offline=true --threshold="$limit" "$tmp/rookeryd.service" >"$tmp/out" || {
	cat "$tmp/out" >&2
	echo "$unit: its exposure is above $limit tenths" >&2
	exit 1
}
tail -1 "$tmp/out"
mkdir "$tmp/root"
systemd-sysusers --dry-run --root="$tmp/root" "$PWD/deploy/systemd/rookeryd.sysusers.conf" >"$tmp/out" 2>&1 || {
	cat "$tmp/out" >&2
	exit 1
}
echo "$unit: systemd-analyze verify is silent"

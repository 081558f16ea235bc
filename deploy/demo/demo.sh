#!/usr/bin/env bash
# demo.sh BIN LISTS: three nodes on loopback with certificates of a CA made for
# the occasion. It imports the mailbox lists of a small murder, shows a route
# and a LIST, kills the leader while four writers are at work, shows that
# nothing acknowledged was lost, and leaves the nodes running until ^C.
#
# Everything it makes is in a directory that goes with it. DEMO_ONCE=1 ends it
# after the proof; DEMO_PORT is the first of nine ports (default 7911).
set -euo pipefail

bin=$(cd "${1:?usage: demo.sh BIN LISTS}" && pwd)
lists=$(cd "${2:?usage: demo.sh BIN LISTS}" && pwd)
port=${DEMO_PORT:-7911}
dir=$(mktemp -d "${TMPDIR:-/tmp}/rookery-demo.XXXXXX")
declare -A pid=()
writers=()

finish() {
	trap - EXIT INT TERM
	for p in "${writers[@]}" "${pid[@]}"; do kill "$p" 2>/dev/null || true; done
	wait 2>/dev/null || true
	rm -rf "$dir"
}
trap finish EXIT
trap 'echo; say "stopped, nothing is left behind"; exit 0' INT TERM

say() { printf '\n\033[1m%s\033[0m\n' "== $*"; }
show() { printf '\033[2m$ %s\033[0m\n' "rookeryctl $*"; ctl "$@"; }
ctl() { "$bin/rookeryctl" "$@"; }
fail() {
	echo "demo: $*" >&2
	tail -n 5 "$dir"/n?.log >&2 || true
	exit 1
}

client() { echo "127.0.0.1:$((port + $1 * 3))"; }
peer() { echo "127.0.0.1:$((port + $1 * 3 + 1))"; }
http() { echo "127.0.0.1:$((port + $1 * 3 + 2))"; }

start() { # start NUMBER
	"$bin/rookeryd" --name "n$1" --data "$dir/n$1" --site "room-$1" \
		--listen-client "$(client "$1")" --listen-peer "$(peer "$1")" --listen-http "$(http "$1")" \
		--initial-cluster "n0=$(peer 0),n1=$(peer 1),n2=$(peer 2)" \
		--tls-cert "$dir/pki/node-n$1.crt" --tls-key "$dir/pki/node-n$1.key" --tls-ca "$dir/pki/ca.crt" \
		--ballast 0 2>>"$dir/n$1.log" &
	pid[$1]=$!
}

# settled waits until the cluster has a leader and says so.
settled() {
	for _ in $(seq 100); do
		ctl status -o json >"$dir/status.json" 2>/dev/null || true
		grep -q '"leader": *"n' "$dir/status.json" && return
		sleep 0.1
	done
	fail "no leader was elected in 10 s"
}

leader() { sed -n 's/.*"leader": *"n\([0-9]\)".*/\1/p' "$dir/status.json" | head -1; }

say "a certificate authority, a certificate for each node, one for the operator"
ctl cert ca --dir "$dir/pki"
for n in 0 1 2; do ctl cert node "n$n" --dir "$dir/pki" --host 127.0.0.1; done
ctl cert operator demo --dir "$dir/pki"
export ROOKERY_TLS_CERT=$dir/pki/operator-demo.crt ROOKERY_TLS_KEY=$dir/pki/operator-demo.key ROOKERY_TLS_CA=$dir/pki/ca.crt
export ROOKERY_ENDPOINTS=$(client 0),$(client 1),$(client 2)

say "three nodes"
for n in 0 1 2; do start "$n"; done
settled
show status || true

say "the mailbox lists of two Cyrus backends"
show import cyrus --server be1.murder.test "$lists/cyrus-3.6.1-be1.json"
show import cyrus --server be2.murder.test "$lists/cyrus-3.6.1-be2.json"

say "where is a mailbox, and what does a user see"
show where user.alice
show list --user alice -o imap '*'

# Each writer notes a name only after it was told that it is done.
write() { # write NUMBER
	local i=0
	while [ ! -e "$dir/enough" ]; do
		i=$((i + 1))
		if ctl assert "user.demo$1.f$i" --server be1.murder.test >/dev/null 2>>"$dir/writer$1.log"; then
			echo "user.demo$1.f$i" >>"$dir/acked$1"
		fi
	done
}

settled
old=$(leader)
say "four writers, and after two seconds kill -9 of the leader, n$old"
for w in 0 1 2 3; do
	write "$w" &
	writers+=($!)
done
sleep 2
before=$(cat "$dir"/acked? | wc -l)
kill -9 "${pid[$old]}"
wait "${pid[$old]}" 2>/dev/null || true
sleep 3
settled
touch "$dir/enough"
wait "${writers[@]}"
writers=()
sort "$dir"/acked? >"$dir/acked"
ctl find user.demo -o json | grep -o '"mailbox": *"user\.demo[^"]*"' | cut -d'"' -f4 | sort -u >"$dir/found"
lost=$(comm -23 "$dir/acked" "$dir/found" | wc -l)
echo "n$old is dead, n$(leader) leads; $before writes were acknowledged before, $(wc -l <"$dir/acked") in all, $lost of them lost"
[ "$lost" = 0 ] || fail "acknowledged writes are missing"
[ "$(wc -l <"$dir/acked")" -gt "$before" ] || fail "nothing was written after the leader died"

say "n$old comes back and catches up"
start "$old"
for _ in $(seq 100); do
	ctl status >"$dir/status.txt" 2>&1 && break
	sleep 0.1
done
show status || true

[ -z "${DEMO_ONCE:-}" ] || exit 0
say "the cluster stays up until ^C; in another terminal:"
cat <<END
export ROOKERY_ENDPOINTS=$ROOKERY_ENDPOINTS
export ROOKERY_TLS_CERT=$ROOKERY_TLS_CERT ROOKERY_TLS_KEY=$ROOKERY_TLS_KEY ROOKERY_TLS_CA=$ROOKERY_TLS_CA
$bin/rookeryctl status
END
wait

#!/bin/bash
# down.sh [NAME]: stop that proxy; with no NAME, every proxy and PostgreSQL. Data stays in $LITELLM_RIG.
set -u
RIG=$(cd "${LITELLM_RIG:-${TMPDIR:-/tmp}/litellm-rig}" 2>/dev/null && pwd -P) || exit 0
# a process id left in a file may be someone else's by now
ours() { tr '\0' ' ' 2>/dev/null <"/proc/$1/cmdline" | grep -qF "$2"; }
gone() { for _ in $(seq 40); do kill -0 "$1" 2>/dev/null || return 0; sleep .25; done; return 1; }
for f in "$RIG"/run/${1:-*}/pid; do
  [ -f "$f" ] || continue
  P=$(cat "$f")
  if ours "$P" "$RIG/venv-"; then kill "$P"; gone "$P" || kill -9 "$P"; fi
  rm -f "$f"
done
[ -z "${1:-}" ] || exit 0
P=$(head -1 "$RIG/pg/data/postmaster.pid" 2>/dev/null) || exit 0
if ours "$P" "$RIG/pg/data"; then kill -INT "$P"; gone "$P"; fi
exit 0

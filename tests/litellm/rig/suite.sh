#!/bin/bash
# suite.sh [VERSION [PORT [VERSION ...]]]: the proxies that tests/litellm asks for: three of the first VERSION on PORT,
# PORT+1 and PORT+2, one of each further VERSION on the ports behind them, and behind those one of the first VERSION and of
# 1.110.2, if that is among them, with the sanitizer in its own process; prints the lines that export their addresses.
set -euo pipefail
V=${1:-1.83.13} PORT=${2:-4180} MORE=("${@:3}") HERE=$(cd "$(dirname "$0")" && pwd)
export LITELLM_MASTER_KEY=${LITELLM_MASTER_KEY:-sk-1234}
unset LITELLM_CONFIG LITELLM_APP SERVER_ROOT_PATH
JOBS=()
up() { "$HERE/up.sh" "$@" >&2 & JOBS+=($!); }
up "$V" "$PORT" "$V"
# these two learn `allowed_ips` from the tests, hence proxies of their own
SERVER_ROOT_PATH=/litellm up "$V" $((PORT + 1)) "$V-root-path"
LITELLM_CONFIG=$HERE/config-forwarded.yaml up "$V" $((PORT + 2)) "$V-forwarded"
RELEASES="$V=http://127.0.0.1:$PORT" NEXT=$((PORT + 3))
for release in ${MORE[@]+"${MORE[@]}"}; do
  up "$release" "$NEXT" "$release"
  RELEASES+=" $release=http://127.0.0.1:$NEXT" NEXT=$((NEXT + 1))
done
WRAPPED=
up_wrapped() { # of a release that is installed anyway it costs its start only
  LITELLM_APP=tests.litellm.wrapped:app up "$1" "$NEXT" "$1-wrapped"
  WRAPPED+="${WRAPPED:+ }$1=http://127.0.0.1:$NEXT" NEXT=$((NEXT + 1))
}
up_wrapped "$V"
if [ "$V" != 1.110.2 ] && [[ " ${MORE[*]-} " == *" 1.110.2 "* ]]; then up_wrapped 1.110.2; fi
FAILED=0
for job in "${JOBS[@]}"; do wait "$job" || FAILED=1; done # all of them: what is left running would be in nobody's hands
[ "$FAILED" = 0 ] || exit 1
cat <<VARIABLES
export LITELLM_URL=http://127.0.0.1:$PORT
export LITELLM_RELEASES="$RELEASES"
export LITELLM_WRAPPED="$WRAPPED"
export LITELLM_MASTER_KEY=$LITELLM_MASTER_KEY
export LITELLM_ROOT_PATH_URL=http://127.0.0.1:$((PORT + 1))/litellm
export LITELLM_ALLOWED_IPS_URL=http://127.0.0.1:$((PORT + 1))
export LITELLM_ALLOWED_IPS_FORWARDED_URL=http://127.0.0.1:$((PORT + 2))
VARIABLES

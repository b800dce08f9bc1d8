#!/bin/sh
# Locks what the image installs to the newest releases that pyproject.toml admits: names, versions, hashes, no addresses.
set -eu
cd "$(dirname "$0")/../.."
lock() { uv pip compile -q --upgrade --universal --python-version 3.11 --generate-hashes --no-annotate --no-header --no-emit-index-url "$@"; }
lock pyproject.toml -o deploy/image/requirements.lock
lock deploy/image/build.in -o deploy/image/build.lock

#!/bin/sh
# base.sh SUITE FILE [PACKAGE...]: a base for the image where no image registry is reached: a release of Debian, its Python,
# and the packages named.
set -eu
SUITE=$1 FILE=$2
shift 2
exec mmdebstrap --variant=minbase --include="python3-minimal python3-venv ca-certificates $*" \
  --aptopt='Acquire::Languages "none"' --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
  "$SUITE" "$FILE"

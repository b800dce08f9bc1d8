#!/bin/sh
# base.sh FILE: a base for the image where no image registry is reached: this Debian release, its Python, nothing more.
set -eu
. /etc/os-release
exec mmdebstrap --variant=minbase --include=python3-minimal,python3-venv,ca-certificates \
  --aptopt='Acquire::Languages "none"' --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
  "$VERSION_CODENAME" "$1"

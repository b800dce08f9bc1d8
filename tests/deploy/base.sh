#!/bin/sh
# base.sh FILE [PACKAGE...]: a base for the image where no image registry is reached: this Debian release, its Python, and
# the packages named. The image's builder takes gcc, libc6-dev and python3-dev.
set -eu
. /etc/os-release
FILE=$1
shift
exec mmdebstrap --variant=minbase --include="python3-minimal python3-venv ca-certificates $*" \
  --aptopt='Acquire::Languages "none"' --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
  "$VERSION_CODENAME" "$FILE"

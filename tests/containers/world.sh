#!/bin/sh
# world.sh FOLDER: namespaces for containers: process ids, mounts with a copy of /run, and a network, /run/bridged. Nothing
# of them is left behind. It prints "ready", and ends when its standard input is closed, which also happens when the program
# that started it ends in any way. Then it removes its containers, and FOLDER.
set -eu
export FOLDER=$1
unshare --mount --pid --fork --kill-child --mount-proc sh -euc '
  mkdir "$FOLDER/changed" "$FOLDER/work"
  mount -t overlay -o "lowerdir=/run,upperdir=$FOLDER/changed,workdir=$FOLDER/work" overlay /run
  # no timers of systemd for health checks: it would run them outside
  rm -f /run/systemd/private /run/dbus/system_bus_socket
  touch /run/bridged
  unshare --net=/run/bridged ip link set lo up
  echo ready
  cat >/dev/null
  exec nsenter --net=/run/bridged sh -c "podman pod rm --all --force --time 0; podman rm --all --force --time 0" >/dev/null
' || true
exec rm -rf "$FOLDER"

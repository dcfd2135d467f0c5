#!/usr/bin/env bash
# setup WORK: fetches the client into WORK and builds the suite.   run WORK URI: runs the table of assertions against a broker.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
case "$1" in
  setup) cd "$here" && GOMODCACHE="$2/modules" GOFLAGS="-modcacherw -mod=readonly" go build -o "$2/suite" . ;;
  run) exec "$2/suite" "$3" ;;
esac

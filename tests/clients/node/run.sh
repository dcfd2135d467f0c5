#!/usr/bin/env bash
# setup WORK: installs the client into WORK.   run WORK URI: runs the table of assertions against a broker.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
case "$1" in
  setup)
    cp "$here/package.json" "$here/package-lock.json" "$2/"
    cd "$2" && npm ci --silent --no-audit --no-fund
    ;;
  run)
    # Modules are looked for beside the files that use them.
    cp "$here"/*.mjs "$2/"
    exec node "$2/suite.mjs" "$3"
    ;;
esac

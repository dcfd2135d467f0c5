#!/usr/bin/env bash
# setup WORK: installs the client into WORK.   run WORK URI: runs the table of assertions against a broker.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
case "$1" in
  setup)
    [ -x "$2/venv/bin/python" ] || python3 -m venv "$2/venv"
    "$2/venv/bin/pip" install --quiet --disable-pip-version-check -r "$here/requirements.txt"
    ;;
  run) exec "$2/venv/bin/python" "$here/suite.py" "$3" ;;
esac

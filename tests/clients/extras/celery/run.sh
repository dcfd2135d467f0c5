#!/usr/bin/env bash
# setup WORK: installs Celery into WORK.   run WORK URI: prints a line for each name of expected.txt.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
case "$1" in
  setup)
    [ -x "$2/venv/bin/python" ] || python3 -m venv "$2/venv"
    "$2/venv/bin/pip" install --quiet --disable-pip-version-check -r "$here/requirements.txt"
    ;;
  run) cd "$2" && PYTHONDONTWRITEBYTECODE=1 exec "$2/venv/bin/python" "$here/suite.py" "$3" ;;
esac

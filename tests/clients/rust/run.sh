#!/usr/bin/env bash
# setup WORK: builds the suite into WORK.   run WORK URI: runs the table of assertions against a broker.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
case "$1" in
  setup) CARGO_TARGET_DIR="$2/target" cargo build --quiet --locked --manifest-path "$here/Cargo.toml" ;;
  run) exec "$2/target/debug/client-suite-rust" "$3" ;;
esac

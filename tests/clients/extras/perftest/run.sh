#!/usr/bin/env bash
# RabbitMQ's PerfTest, unchanged: each run must end by itself, without an error, and must have consumed something.
# setup WORK: fetches it into WORK.   run WORK URI: prints a line for each name of expected.txt.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
failed=0

# perftest NAME [OPTION...]: 5 seconds with these options.
perftest() {
  local name=$1 rate log="$work/$1.log"
  shift
  if ! timeout 60 java -cp "$work/lib/*" com.rabbitmq.perf.PerfTest -h "$uri" -z 5 "$@" >"$log" 2>&1; then
    echo "not ok $name did not end well: $(tail -n 1 "$log")"
    failed=1
    return
  fi
  rate=$(sed -n 's/.*receiving rate avg: \([0-9]*\) .*/\1/p' "$log")
  if [ "${rate:-0}" -gt 0 ]; then
    echo "ok $name"
  else
    echo "not ok $name consumed nothing: $(tail -n 1 "$log")"
    failed=1
  fi
}

work=$2
case "$1" in
  setup) mvn -B -q -f "$here/pom.xml" dependency:copy-dependencies -DincludeScope=runtime -DoutputDirectory="$work/lib" ;;
  run)
    uri=$3
    perftest perftest_defaults
    perftest perftest_confirms --confirm 100
    exit $failed
    ;;
esac

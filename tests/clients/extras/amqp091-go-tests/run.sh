#!/usr/bin/env bash
# The integration tests that ship with amqp091-go: all but those of skips.txt.
# setup WORK: copies and builds them in WORK.   run WORK URI: prints a line for each name of expected.txt.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
module=github.com/rabbitmq/amqp091-go
names() { sed '/^#/d; s/ .*//' "$@" | LC_ALL=C sort; }

case "$1" in
  setup)
    export GOMODCACHE="$2/modules" GOFLAGS="-modcacherw -mod=mod"
    rm -rf "$2/src" && mkdir -p "$2/src"
    cp "$here/go.mod" "$here/go.sum" "$2/"
    cd "$2" && go mod download "$module"
    cp -r "$(go list -m -f '{{.Dir}}' "$module")/." "$2/src"
    # Three of them do nothing, and leave a connection open, unless the server's product is RabbitMQ: here it is Longshore.
    sed -i 's/\(product.(string)\|server\) == "RabbitMQ"/\1 == "Longshore"/' "$2/src/integration_test.go"
    grep -c '== "Longshore"' "$2/src/integration_test.go" | grep -qx 2
    cd "$2/src" && go test -c -tags integration -o "$2/tests" .
    # A test of a later version that is in neither list must be noticed.
    grep -l '^//go:build integration' ./*_test.go | xargs sed -n 's/^func \(Test[A-Za-z0-9_]*\)(.*/\1/p' | LC_ALL=C sort |
      diff - <(names "$here/expected.txt" "$here/skips.txt")
    ;;
  run)
    cd "$2/src"
    AMQP_URL="$3/" "$2/tests" -test.v -test.timeout 240s -test.run "^($(names "$here/expected.txt" | paste -sd '|'))\$" 2>&1 |
      tee "$2/tests.log" | sed -n 's/^--- PASS: \([^ ]*\) .*/ok \1/p; s/^--- \(FAIL\|SKIP\): \([^ ]*\) .*/not ok \2 \1, see tests.log/p'
    ;;
esac

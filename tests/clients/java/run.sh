#!/usr/bin/env bash
# setup WORK: fetches the client into WORK and compiles the suite.   run WORK URI: runs the table of assertions against a broker.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
case "$1" in
  setup)
    mvn -B -q -f "$here/pom.xml" dependency:copy-dependencies -DoutputDirectory="$2/lib"
    javac -Xlint:all,-try -Werror -cp "$2/lib/*" -d "$2/classes" "$here"/*.java
    ;;
  run) exec java -cp "$2/classes:$2/lib/*" Suite "$3" ;;
esac

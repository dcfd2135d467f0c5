"""Celery, unchanged: a worker answers a ping (a fanout exchange and a reply queue), runs tasks and returns their results.

`suite.py URI`, in a folder where the worker may write. Celery uses prefetch, heartbeats, mingle and gossip besides.
"""

import os
import signal
import subprocess
import sys
import time

os.environ["BROKER_URI"] = sys.argv[1]
import tasks  # reads the address from the environment, as the worker does

# How long the worker may take to start, and all tasks to end, in seconds.
PATIENCE = 60


def celery_ping():
    end = time.monotonic() + PATIENCE
    while not (replies := tasks.app.control.ping(timeout=1)):
        assert time.monotonic() < end, "the worker does not answer"
    assert [list(reply.values()) for reply in replies] == [[{"ok": "pong"}]], replies


def celery_tasks():
    results = [tasks.add.delay(n, n) for n in range(100)]
    sums = [result.get(timeout=PATIENCE) for result in results]
    assert sums == [2 * n for n in range(100)], sums


def main():
    here = os.path.dirname(os.path.abspath(__file__))
    command = [sys.executable, "-m", "celery", "--workdir", here, "-A", "tasks", "worker", "--loglevel", "INFO"]
    failed = False
    with open("worker.log", "w") as log:
        environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
        worker = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        try:
            for test in [celery_ping, celery_tasks]:
                try:
                    test()
                    print("ok", test.__name__, flush=True)
                except Exception as error:  # reported, whatever it met
                    failed = True
                    print("not ok", test.__name__, type(error).__name__, str(error)[:300], flush=True)
        finally:
            worker.send_signal(signal.SIGTERM)  # Celery's warm shutdown
            try:
                worker.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                worker.kill()
                failed = True
    sys.exit(1 if failed else 0)


main()

"""The application that the worker serves: everything but the broker's address and the result backend is Celery's default."""

import os

from celery import Celery

app = Celery("suite", broker=os.environ["BROKER_URI"], backend="rpc://")


@app.task
def add(x, y):
    return x + y

"""A Celery application that runs no hub and publishes to one: ``celery --app tasks worker``."""

from __future__ import annotations

import os
import sys

from celery import Celery

from backchannel import Publisher

URL = os.environ.get("BROKER", "redis://localhost:6379/0")
FOLDER = os.environ.get("TASKS", "/tmp/tasks")

app = Celery("tasks", broker="filesystem://")
app.conf.update(
    broker_transport_options={
        "data_folder_in": FOLDER,
        "data_folder_out": FOLDER,
        "processed_folder": FOLDER + "/done",
        "control_folder": FOLDER + "/control",
    },
    broker_connection_retry_on_startup=True,
)
publisher = Publisher(URL, "site")
if os.environ.get("TASKS_WORKER"):
    publisher.broadcast("room:start", "the worker is there")  # before it forks


@app.task
def say(room: str, text: str) -> None:
    """Tell everyone in a room, and one user, from whatever process of the worker."""
    publisher.broadcast(f"room:{room}", {"text": text, "worker": os.getpid()})
    publisher.user("ana").send(f"psst {text}")


if __name__ == "__main__":  # what a view would do: hand tasks to the worker
    for text in sys.argv[1:]:
        app.send_task("tasks.say", args=("lobby", text))

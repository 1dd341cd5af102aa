"""Programs that publish through one engine: a node, a Django or Flask site beside it, and a script."""

from __future__ import annotations

import os
import sys
from typing import Any

NAME = "site"
URL = os.environ.get("BROKER", "redis://localhost:6379/0")


def node() -> Any:
    """The hub; ``uvicorn --factory publishing:node``."""
    from backchannel import Hub, Listener

    hub = Hub(
        broker=URL,
        name=NAME,
        authenticate=lambda request: request.query.get("user"),
        broker_timeout=1.0,
    )
    hub.rule("room:{name}", history=100)
    hub.add("/ws/{room}", Listener, channel="room:{room}")
    return hub


def site() -> Any:
    """A Django site that runs no hub, as a WSGI app."""
    import django
    from django.conf import settings
    from django.core.wsgi import get_wsgi_application
    from django.http import HttpRequest, JsonResponse
    from django.urls import path

    from backchannel import Publisher

    settings.configure(
        SECRET_KEY="only for tests", ALLOWED_HOSTS=["*"], ROOT_URLCONF=__name__, MIDDLEWARE=[]
    )
    django.setup()
    publisher = Publisher(URL, NAME)
    publisher.broadcast("room:start", "the site is there")  # with --preload: before the fork

    def say(request: HttpRequest, room: str) -> JsonResponse:
        sent = publisher.broadcast(f"room:{room}", request.GET["text"])
        reached = publisher.user("ana").send(f"psst {request.GET['text']}").reached
        return JsonResponse(
            {"position": str(sent.position), "reached": reached, "worker": os.getpid()}
        )

    globals()["urlpatterns"] = [path("say/<room>", say)]
    return get_wsgi_application()


def flask_site() -> Any:
    """The same site with Flask."""
    from flask import Flask, request

    from backchannel import Publisher

    app = Flask(__name__)
    publisher = Publisher(URL, NAME)
    publisher.broadcast("room:start", "the site is there")  # with --preload: before the fork

    @app.get("/say/<room>")
    def say(room: str) -> dict[str, Any]:
        sent = publisher.broadcast(f"room:{room}", request.args["text"])
        reached = publisher.user("ana").send(f"psst {request.args['text']}").reached
        return {"position": str(sent.position), "reached": reached, "worker": os.getpid()}

    return app


def script() -> None:
    """What a worker or a cron job would be: says each of its arguments, and ends."""
    from backchannel import Publisher

    with Publisher(URL, NAME) as publisher:
        for text in sys.argv[1:]:
            sys.stdout.write(f"{publisher.broadcast('room:lobby', text).position}\n")
        publisher.user("ana").close(4100, "enough")


if __name__ == "__main__":
    script()

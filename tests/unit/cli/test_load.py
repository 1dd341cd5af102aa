"""What `backchannel run` finds in a file, where it needs no server."""

from __future__ import annotations

import sys

import pytest

from backchannel.cli.load import find
from backchannel.cli.mounts import mounted_at


@pytest.fixture
def found(tmp_path, monkeypatch):
    """Write a file and return what is found in it: (label without its folder, note)."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "place", raising=False)
    monkeypatch.chdir(tmp_path)

    def look(text, target="place.py"):
        (tmp_path / "place.py").write_text("from backchannel import Hub\nhub = Hub()\n" + text)
        return find(target)

    return look


APPS = {
    "Starlette, mounted": (
        "from starlette.applications import Starlette\n"
        "from starlette.routing import Mount\n"
        "app = Starlette(routes=[Mount('/deep', routes=[Mount('/live', hub)])])\n"
    ),
    "FastAPI, mounted": "from fastapi import FastAPI\napp = FastAPI()\napp.mount('/live', hub)\n",
    "FastAPI's own door, by lifespan": (
        "from fastapi import FastAPI\napp = FastAPI(lifespan=hub.lifespan)\n"
    ),
    "FastAPI's own door": (
        "from fastapi import FastAPI, WebSocket\napp = FastAPI()\n"
        "@app.websocket('/ws')\n"
        "async def door(websocket: WebSocket):\n    await hub.serve(websocket, object)\n"
    ),
    "Litestar, mounted": (
        "from litestar import Litestar, asgi\n"
        "app = Litestar([asgi('/live', is_mount=True, copy_scope=False)(hub)])\n"
    ),
    "wrapped": "async def site(scope, receive, send): ...\napp = hub.wrap(site)\n",
    "middleware around it": (
        "from starlette.applications import Starlette\n"
        "from starlette.middleware.sessions import SessionMiddleware\n"
        "inner = Starlette()\ninner.mount('/live', hub)\n"
        "app = SessionMiddleware(inner, 'secret')\n"
    ),
    "a function that calls it": (
        "async def app(scope, receive, send):\n    await hub(scope, receive, send)\n"
    ),
    "an object that calls it": (
        "class App:\n"
        "    async def __call__(self, scope, receive, send):\n"
        "        await hub(scope, receive, send)\n"
        "app = App()\n"
    ),
    "a hub of another name": (
        "live, hub = hub, None\nasync def site(scope, receive, send): ...\napp = live.wrap(site)\n"
    ),
    "beside a second app": ("async def other(scope, receive, send): ...\napp = hub.wrap(other)\n"),
}


@pytest.mark.parametrize("text", APPS.values(), ids=APPS)
def test_the_app_that_has_the_hub_in_it_is_served(found, text):
    it = found(text)
    assert it.label == "place.py:app"
    assert "app" in it.note
    assert "backchannel run place.py:" in it.note
    assert len(it.hubs) == 1
    assert it.app not in it.hubs


MOUNTS = {
    "Starlette, mounted": "/deep/live",
    "FastAPI, mounted": "/live",
    "Litestar, mounted": "/live",
    "wrapped": "",
    "middleware around it": "/live",
    "a function that calls it": None,
    "an object that calls it": None,
    "a hub of another name": "",
    "at two places": None,
    "at the root": "",
    "beside another mount": "/live",
    "beside another mount, wrapped": "",
    "below a router": "/api/live",
}

MORE = {
    "at two places": (
        "from fastapi import FastAPI\napp = FastAPI()\n"
        "app.mount('/one', hub)\napp.mount('/two', hub)\n"
    ),
    "at the root": "from fastapi import FastAPI\napp = FastAPI()\napp.mount('/', hub)\n",
    "beside another mount": (
        "from fastapi import FastAPI\napp = FastAPI(lifespan=hub.lifespan)\n"
        "app.mount('/static', FastAPI())\napp.mount('/live', hub)\n"
    ),
    "beside another mount, wrapped": (
        "from fastapi import FastAPI\nsite = FastAPI()\nsite.mount('/static', FastAPI())\n"
        "app = hub.wrap(site)\n"
    ),
    "below a router": (
        "from litestar import Litestar, Router, asgi\n"
        "from litestar.types import Receive, Scope, Send\n"
        "@asgi('/live', is_mount=True, copy_scope=True)\n"
        "async def live(scope: Scope, receive: Receive, send: Send) -> None:\n"
        "    await hub(scope, receive, send)\n"
        "app = Litestar([Router('/api', route_handlers=[live])])\n"
    ),
}


@pytest.mark.parametrize("name", MOUNTS)
def test_where_an_app_has_its_hub_is_known_as_far_as_the_app_tells(found, name):
    it = found({**APPS, **MORE}[name])
    (hub,) = it.hubs
    assert mounted_at(it.app, hub) == MOUNTS[name]


def test_a_hub_alone_is_at_its_own_root(found):
    it = found("")
    assert mounted_at(it.app, it.hubs[0]) == ""


ALONE = {
    "no app": "",
    "an app that knows nothing of it": "async def app(scope, receive, send): ...\n",
    "an app that only sends": (
        "from fastapi import FastAPI\napp = FastAPI()\n"
        "@app.post('/say')\nasync def say():\n    hub.broadcast('cars', 'hi')\n"
    ),
    "a helper": "def helper(scope): return hub\n",
    "a class": ("class App:\n    def __init__(self, scope, receive, send): self.hub = hub\n"),
    "two apps, of which neither has the other": (
        "async def site(scope, receive, send): ...\none = hub.wrap(site)\ntwo = hub.wrap(site)\n"
    ),
}


@pytest.mark.parametrize("text", ALONE.values(), ids=ALONE)
def test_else_the_hub_is_served_alone(found, text):
    it = found(text)
    assert it.label == "place.py:hub"
    assert it.app in it.hubs
    assert it.note == ""


def test_of_two_apps_the_one_with_the_usual_name_is_served(found):
    it = found(
        "async def site(scope, receive, send): ...\n"
        "admin = hub.wrap(site)\napplication = hub.wrap(site)\n"
    )
    assert it.label == "place.py:application"
    assert "place.py:admin" in it.left_out


def test_a_hub_that_is_named_is_served_alone_all_the_same(found):
    it = found(APPS["wrapped"], "place.py:hub")
    assert it.label == "place.py:hub"
    assert list(it.left_out) == ["place.py:site", "place.py:app"]


def test_an_app_with_several_hubs_in_it_is_served_with_all(found):
    it = found(
        "admin, hub = hub, None\nlive = Hub()\n"
        "from starlette.applications import Starlette\n"
        "app = Starlette()\napp.mount('/admin', admin)\napp.mount('/live', live)\n"
    )
    assert it.label == "place.py:app"
    assert len(it.hubs) == 2

"""The servers under test, each in its best configuration, which its file in `servers/` explains."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field

import make


@dataclass(frozen=True)
class Peer:
    """A server under test.

    In its command `{port}` becomes the port to listen on. `needs` prepares what it runs on;
    `dialect` is how loadgen has to speak to it; `warm_up` is the least number of seconds before
    anything is measured; `paths` are those that it has elsewhere; `program` is
    what it runs where a scenario wants that instead of a server.
    """

    label: str
    command: tuple[str, ...]
    needs: Callable[[], None]
    dialect: str = "raw"
    warm_up: float = 0
    paths: dict[str, str] = field(default_factory=dict)
    program: tuple[str, ...] = ()


def uvicorn(python: str, app: str, ws: str = "websockets-sansio") -> tuple[str, ...]:
    """One uvicorn process, its settings the same for everything that runs on it."""
    options = (
        f"--host 127.0.0.1 --port {{port}} --ws {ws} --ws-per-message-deflate false "
        "--loop uvloop --http httptools --no-access-log --log-level warning --backlog 4096"
    )
    return (python, "-m", "uvicorn", app, *options.split())


def script(name: str) -> tuple[str, ...]:
    """Start a Python peer that is a program of its own."""
    return (PEERS_PYTHON, name, "{port}")


PEERS_PYTHON = str(make.PYTHON)
NCHAN = (  # its configuration file needs the port; `exec` keeps the process id
    "sed 's#[{{]port}}#{port}#; s#[{{]folder}}#" + str(make.BUILD / "nginx") + "#g' nchan.conf"
    f" > {make.BUILD}/nginx/{{port}}.conf"
    f" && exec {make.nginx()} -e stderr -c {make.BUILD}/nginx/{{port}}.conf"
)
JAVA = (
    # One core: the serial collector has no threads to share it with.
    *("java", "-XX:+UseSerialGC", "-Xms512m", "-Xmx512m", "-cp"),
    ":".join(map(str, [make.JAVA_CLASSES, *make.JARS])),
    *("TomcatApp", "{port}", str(make.JAVA_CLASSES)),
)
PEERS = {
    "limit-send": Peer(
        "C epoll loop, one send a delivery", (str(make.LIMIT), "send", "{port}"), make.limit
    ),
    "limit-coalesce": Peer(
        "C epoll loop, coalescing", (str(make.LIMIT), "coalesce", "{port}"), make.limit
    ),
    "backchannel-native": Peer(
        "**Backchannel, native transport** (uvicorn)",
        uvicorn(sys.executable, "backchannel_app:hub", "backchannel.transport.uvicorn:Protocol"),
        make.own,
        program=(sys.executable, "broker_path.py", "backchannel"),
    ),
    "backchannel-v1": Peer(
        "**Backchannel, native transport**, clients that speak v1",
        uvicorn(sys.executable, "backchannel_app:hub", "backchannel.transport.uvicorn:Protocol"),
        make.own,
        dialect="v1",
    ),
    "backchannel-run-v1": Peer(
        "**Backchannel, `backchannel run`**, clients that speak v1",
        (*f"{sys.executable} -m backchannel run backchannel_app.py --port {{port}}".split(),),
        make.own,
        dialect="v1",
    ),
    "backchannel-v1-brief": Peer(
        "the same with `resume_window=None`",
        (
            *("env", "NO_RESUME=1"),
            *uvicorn(
                sys.executable, "backchannel_app:hub", "backchannel.transport.uvicorn:Protocol"
            ),
        ),
        make.own,
        dialect="v1",
    ),
    "redis-py": Peer(
        "bare redis-py with hiredis",
        (),
        make.own,
        program=(sys.executable, "broker_path.py", "redis-py"),
    ),
    "backchannel-run": Peer(
        "**Backchannel, `backchannel run`**",
        (*f"{sys.executable} -m backchannel run backchannel_app.py --port {{port}}".split(),),
        make.own,
    ),
    "backchannel-spinning": Peer(
        "the same on an event loop that never sleeps, as an experiment",
        uvicorn(sys.executable, "spinning_app:app", "backchannel.transport.uvicorn:Protocol"),
        make.own,
    ),
    "backchannel-asgi": Peer(
        "Backchannel, portable ASGI transport (uvicorn)",
        uvicorn(sys.executable, "backchannel_app:hub"),
        make.own,
    ),
    "socketify": Peer("uWebSockets (socketify)", script("socketify_app.py"), make.python_peers),
    "picows": Peer(
        "picows",
        script("picows_app.py"),
        make.python_peers,
        paths={"/ws/echo-async": "/ws/echo"},  # its handlers are always `def`
    ),
    "aiohttp": Peer("aiohttp", script("aiohttp_app.py"), make.python_peers),
    "websockets": Peer("websockets", script("websockets_app.py"), make.python_peers),
    "starlette": Peer(
        "Starlette (uvicorn)",
        uvicorn(sys.executable, "starlette_app:app"),
        make.own,
        paths={"/ws/echo-async": "/ws/echo"},  # its handlers are always `async def`
    ),
    "starlette-msgspec": Peer(
        "Starlette (uvicorn) with msgspec",
        uvicorn(sys.executable, "starlette_app:app"),
        make.own,
        paths={"/ws/json": "/ws/json-struct"},
    ),
    "python-socketio": Peer(
        "python-socketio (uvicorn)",
        uvicorn(PEERS_PYTHON, "socketio_app:app"),
        make.python_peers,
        dialect="socketio",
        program=(PEERS_PYTHON, "broker_path.py", "python-socketio"),
    ),
    "channels": Peer(
        "Django Channels (uvicorn)",
        uvicorn(PEERS_PYTHON, "channels_app:app"),
        make.python_peers,
        program=(PEERS_PYTHON, "broker_path.py", "channels"),
    ),
    "ws": Peer(
        "Node ws", ("node", "ws_app.js", "{port}", str(make.MODULES)), make.node_peers, warm_up=1
    ),
    "socketio-node": Peer(
        "Socket.IO (Node)",
        ("node", "socketio_app.js", "{port}", str(make.MODULES)),
        make.node_peers,
        dialect="socketio",
        warm_up=1,
        program=("node", "broker_path.js", str(make.MODULES)),
    ),
    "socketio-sharded": Peer(
        "Socket.IO (Node), sharded adapter",
        (),
        make.node_peers,
        program=("node", "broker_path.js", str(make.MODULES)),
    ),
    "socketio-recovery": Peer(
        "Socket.IO (Node), connection state recovery",
        ("env", "RECOVERY=1", "node", "socketio_app.js", "{port}", str(make.MODULES)),
        make.node_peers,
        dialect="socketio",
        warm_up=1,
    ),
    "nchan": Peer("Nchan (nginx)", ("sh", "-c", NCHAN), make.nchan),
    "tomcat": Peer("Tomcat, JSR-356", JAVA, make.tomcat, warm_up=2.5),
}

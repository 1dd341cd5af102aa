"""What is measured: one entry for each scenario. `servers/` has the paths, loadgen the loads."""

from __future__ import annotations

from dataclasses import dataclass

NATIVE = "backchannel-native"
RUN = "backchannel-run"
OURS = (NATIVE, "backchannel-asgi")
SPINNING = "backchannel-spinning"
LIMITS = ("limit-send", "limit-coalesce")
FAST = ("socketify", "picows", "aiohttp", "websockets", "starlette", "ws")
ECHOERS = (*LIMITS, *OURS, *FAST, "tomcat", "socketio-node", "python-socketio", "channels")
EVERYONE = (*ECHOERS, "nchan")
# Those that may be one of several nodes.
CLUSTERS = (NATIVE, "python-socketio", "channels", "socketio-node")
# Several messages in flight take the others minutes.
QUICK = (*LIMITS, NATIVE, *FAST, "tomcat", "nchan")


@dataclass(frozen=True)
class Scenario:
    """A load.

    `kind` says which figures are made of it (figures.py); `load` is loadgen's arguments, `before`
    those of runs on servers of their own, the result of which is kept under its name; `versus`
    names the servers that the others are compared with, round by round. `rounds` and `seconds`
    are its own where the usual ones are wrong for it. With a second node there are two servers and
    a Valkey between them, and half of the clients are at each. A load that begins with ``program``
    is a program of the peer's own, beside a Valkey.
    """

    title: str
    kind: str
    load: str
    peers: tuple[str, ...]
    versus: tuple[str, ...] = ()
    before: tuple[tuple[str, str], ...] = ()
    rounds: int | None = None
    seconds: float | None = None
    nodes: int = 1


def fanout(in_flight: int, peers: tuple[str, ...], rounds: int | None = None) -> Scenario:
    """One sender, a thousand receivers."""
    plural = "message" if in_flight == 1 else "messages"
    return Scenario(
        f"Fan-out 1 → 1,000, 64 bytes, {in_flight} {plural} in flight",
        "delivery",
        f"fanout --path /ws/fanout/bench --clients 1000 --inflight {in_flight}",
        peers,
        ("limit-send", "socketify", "starlette"),
        rounds=rounds,
    )


def dialect(in_flight: int) -> Scenario:
    """The same fan-out to clients that speak v1, and to raw ones."""
    return Scenario(
        f"Fan-out 1 → 1,000 to v1 clients and to raw ones, 64 bytes, {in_flight} in flight",
        "delivery",
        f"fanout --path /ws/fanout/bench --clients 1000 --inflight {in_flight}",
        (NATIVE, "backchannel-v1"),
        (NATIVE,),
        rounds=9,
    )


def echo(path: str, listener: str, peers: tuple[str, ...]) -> Scenario:
    """A hundred clients, each of which waits for its answer."""
    return Scenario(
        f"Echo, 100 clients, 64 bytes, {listener}",
        "message",
        f"echo --path {path} --clients 100",
        peers,
        ("limit-send", "picows", "starlette"),
    )


def latency(rate: int, *peers: str, idle: int = 0) -> Scenario:
    """Deliveries by the clock, whatever the server does."""
    beside = f", beside {idle:,} idle connections" if idle else ""
    load = f"fanout --path /ws/fanout/bench --clients 1000 --rate {rate}"
    if idle:
        load += f" --browser --idle {idle} --extra-path /ws/room/{{n}} --rooms {idle // 10}"
    title = f"Latency at {rate:,} deliveries/s, 1 → 1,000{beside}"
    # At the lowest rate even three seconds are only 60 messages.
    seconds = 3 if rate < 50_000 else None
    return Scenario(title, "latency", load, peers, ("limit-send",), seconds=seconds)


def targeted(path: str, by: str) -> Scenario:
    """One message to one of many connections."""
    load = f"target --path {path} --browser --ask count --clients"
    return Scenario(
        f"Targeted send to 1 of 15,000 connected, by {by}",
        "target",
        f"{load} 15000",
        (NATIVE,),
        before=(("few", f"{load} 15"),),
    )


def memberships(each: int) -> Scenario:
    """A thousand connections in so many channels of their own each."""
    load = f"crowd --path /ws/join/{each} --clients 1000 --timeout 60 --ask count"
    title = f"{each * 1000:,} channels with one subscriber each, on 1,000 connections"
    return Scenario(title, "membership", load, (NATIVE,))


def across(title: str, kind: str, load: str) -> Scenario:
    """Two nodes and a Valkey between them."""
    load = f"fanout --path /ws/fanout/bench {load}"
    return Scenario(title, kind, load, CLUSTERS, CLUSTERS[1:], nodes=2)


def resume(title: str, how: str, *others: str) -> Scenario:
    """5,000 clients in 50 rooms, into which 200 others publish 100 messages a second."""
    title = f"5,000 clients in 50 rooms {title}, beside 200 others"
    peers = ("backchannel-run-v1", "backchannel-v1", *others)
    return Scenario(title, "comeback", f"program comeback {how}", peers, rounds=3)


CROWD = "crowd --browser --path /ws/room/{n} --rooms 1500 --clients"
HANDSHAKES = "handshakes --browser --path /ws/room/{n} --clients"
# The part of a name before its first dash is its group: "fanout" stands for all of them.
SCENARIOS = {
    "fanout-1": fanout(1, EVERYONE, rounds=7),
    "fanout-16": fanout(16, QUICK),
    "fanout-64": fanout(64, QUICK),
    "dialect-1": dialect(1),
    "dialect-16": dialect(16),
    "many-publishers": Scenario(
        "64 publishers, one message in flight each, in one channel of 1,000",
        "delivery",
        "fanout --path /ws/fanout/bench --clients 1000 --publishers 64",
        (*LIMITS, NATIVE, "socketify", "picows", "aiohttp", "websockets", "ws", "nchan"),
        ("limit-send", "socketify"),
    ),
    "many-channels": Scenario(
        "20 publishers in 100 channels, 1,000 clients in 10 of them each",
        "delivery",
        "fanout --path /ws/multi?channels={channels} --clients 1000 --publishers 20 "
        "--channels 100 --per-client 10",
        (*LIMITS, NATIVE, "socketify", "websockets", "ws"),
        ("limit-send", "socketify"),
    ),
    "echo-sync": echo("/ws/echo", "`def` listener", ECHOERS),
    "echo-async": echo(
        "/ws/echo-async", "`async def` listener", ("limit-send", *OURS, "picows", "starlette")
    ),
    "echo-json": Scenario(
        "JSON echo, 100 clients, 64 bytes in an object, msgspec Struct",
        "message",
        "echo --path /ws/json --clients 100 --dialect json",
        (*OURS, "starlette", "starlette-msgspec", "ws"),
        ("starlette", "starlette-msgspec", "ws"),
    ),
    # Each with those that may keep up.
    "latency-20k": latency(20_000, "limit-send", NATIVE, SPINNING, *FAST, "nchan", "socketio-node"),
    "latency-60k": latency(60_000, "limit-send", NATIVE, SPINNING, *FAST, "nchan", "socketio-node"),
    "latency-100k": latency(
        100_000,
        *("limit-send", NATIVE, SPINNING, "socketify", "picows", "aiohttp", "websockets", "ws"),
        "nchan",
    ),
    "latency-idle": latency(
        20_000, "limit-send", NATIVE, "socketify", "picows", "websockets", "ws", idle=10_000
    ),
    "memory": Scenario(
        "Idle memory of 15,000 connections",
        "memory",
        f"{CROWD} 15000",
        ("limit-send", *OURS, *FAST, "socketio-node"),
        # Fewer, since some servers end after five seconds what has not shaken hands.
        before=(("plain", f"{CROWD} 5000 --plain"),),
    ),
    "memory-v1": Scenario(
        "Idle memory of 15,000 connections that speak v1, with sessions that can be resumed",
        "weight",
        f"{CROWD} 15000",
        (NATIVE, "backchannel-v1", "backchannel-v1-brief", "socketio-node"),
        (NATIVE, "socketio-node"),
        rounds=3,
    ),
    "memberships-100k": memberships(100),
    "memberships-1m": memberships(1000),
    "memberships-pairs": Scenario(
        "Coming into a channel and leaving it again, with `on_subscribe`",
        "pairs",
        "echo --path /ws/pairs --clients 10 --ask count",
        (NATIVE,),
    ),
    "target-connection": targeted("/ws/to-connection", "`hub.connection(id)`"),
    "target-user": targeted("/ws/to-user", "`hub.user(name)`"),
    "handshake-1": Scenario(
        "Handshakes, one after the other",
        "handshake",
        f"{HANDSHAKES} 1",
        (*OURS, "starlette"),
        ("starlette",),
    ),
    "handshake-50": Scenario(
        "Handshakes, 50 at a time",
        "handshake",
        f"{HANDSHAKES} 50",
        (*OURS, "starlette"),
        ("starlette",),
    ),
    "storm": Scenario(
        "10,000 handshakes as fast as they come, while 1,000 clients get 20,000 deliveries/s",
        "storm",
        "fanout --path /ws/fanout/bench --clients 1000 --rate 20000 --browser "
        "--storm 10000 --extra-path /ws/room/{n} --rooms 1000",
        (RUN, NATIVE, "starlette"),
        ("starlette",),
    ),
    "cluster-publish": across(
        "Two nodes: one publisher, one receiver on each, 64 messages in flight",
        "publication",
        "--clients 2 --inflight 64",
    ),
    "cluster-fanout": across(
        "Two nodes: fan-out 1 → 2 × 500, 1 message in flight",
        "publication",
        "--clients 1000 --inflight 1",
    ),
    "cluster-latency": across(
        "Two nodes: latency at 5,000 deliveries/s, 1 → 2 × 50",
        "latency",
        "--clients 100 --rate 5000",
    ),
    "cluster-unheard": across(
        "Two nodes: a channel that nobody on the other node listens to, 16 messages in flight",
        "publication",
        "--clients 1 --inflight 16 --idle 50 --extra-path /ws/room/{n} --rooms 50 --browser",
    ),
    "broker-publish": Scenario(
        "Publishing through the broker, to a channel that nobody listens to",
        "path",
        "program publish",
        (*CLUSTERS[:3], "redis-py", "socketio-node"),
        ("redis-py", *CLUSTERS[1:]),
    ),
    "broker-hear": Scenario(
        "Publishing through the broker, heard by the node itself",
        "path",
        "program hear",
        (NATIVE, "redis-py"),
        ("redis-py",),
    ),
    "broker-keep": Scenario(
        "Publishing through the broker, with history", "path", "program keep", (NATIVE,)
    ),
    "broker-channels": Scenario(
        "10,000 channels that the node then hears, entered by 50 connections at a time",
        "subscriptions",
        "program channels",
        (NATIVE, "redis-py", "channels", "socketio-sharded", "python-socketio"),
        ("redis-py", "channels", "socketio-sharded"),
        rounds=3,
    ),
    "broker-catch-up": Scenario(
        "1,000 clients ask at once for what they missed: 100 messages each",
        "catch-up",
        "program catch-up",
        (NATIVE,),
        rounds=3,
    ),
    "broker-recover": Scenario(
        "1,000 clients come back at once with their sessions, and get 100 messages each",
        "catch-up",
        "program recover",
        ("backchannel-v1", "socketio-recovery"),
        ("socketio-recovery",),
        rounds=3,
    ),
    "resume-kill": resume(
        "come back at once when their node was killed", "kill", "socketio-recovery"
    ),
    "resume-jitter": resume("come back within 500 ms when their node was killed", "jitter"),
    "resume-cut": resume("are cut off, and come back to another node after a second", "cut"),
    "resume-kept": Scenario(
        "Sessions of clients that are away, kept in the process",
        "kept",
        "program kept alone",
        ("backchannel-v1",),
        rounds=3,
    ),
    "resume-engine": Scenario(
        "Sessions of clients that are away, kept in Valkey",
        "kept-engine",
        "program kept engine",
        ("backchannel-v1",),
        rounds=3,
    ),
}

"""What the end-to-end tests serve: every kind of endpoint, and HTTP routes that say what happened.

A client names itself with ``?tag=``; what its callbacks saw stands in the diary under that tag.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import sys
import threading
from collections import defaultdict
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from backchannel import Connection, Hub, Listener, Reject, event, threaded

logging.basicConfig(stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
logging.getLogger("backchannel").setLevel("WARNING")


PROC = Path("/proc/self")


class Diary:
    """What the callbacks saw, by tag; a reader can wait for an entry."""

    def __init__(self) -> None:
        self.entries: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
        self.waiting: set[asyncio.Event] = set()

    def write(self, tag: str, callback: str, **facts: Any) -> None:
        self.entries[tag].append({"callback": callback, **facts})
        for waiting in self.waiting:
            waiting.set()

    async def read(self, tag: str, until: str, times: int) -> list[dict[str, Any]]:
        news = asyncio.Event()
        self.waiting.add(news)
        try:
            while until and sum(e["callback"] == until for e in self.entries[tag]) < times:
                news.clear()
                await news.wait()
        finally:
            self.waiting.discard(news)
        return self.entries[tag]


diary = Diary()
gates: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
thread_gates: defaultdict[str, threading.Event] = defaultdict(threading.Event)
totals = {"open": 0, "close": 0}


def who(request: Any) -> str | None:
    return request.query.get("user")


hub = Hub(authenticate=who, **json.loads(os.environ.get("SETTINGS", "{}")))


@hub.endpoint("/ws/echo")
def echo(ws: Connection, message: str | bytes) -> str | bytes:
    return message


@hub.endpoint("/ws/spoken", subprotocols=["chat.v2", "chat.v1"])
def spoken(ws: Connection, message: str) -> str | None:
    return ws.subprotocol


@hub.endpoint("/ws/facts/{name}/{number:int}")
def facts(ws: Connection, message: str) -> dict[str, Any]:
    return {
        "params": dict(ws.params),
        "query": ws.query.getlist("q"),
        "header": ws.headers.get("x-test"),
        "cookies": dict(ws.cookies),
        "user": ws.user,
        "client": ws.client,
        "endpoint": ws.endpoint,
        "latency": ws.latency,
    }


@hub.endpoint("/ws/slash/{name}")
@hub.endpoint("/ws/files/{rest:path}")
def path_params(ws: Connection, message: str) -> dict[str, Any]:
    return dict(ws.params)


@hub.endpoint("/ws/counted")
class Counted(Listener):
    def on_open(self, ws: Connection) -> None:
        totals["open"] += 1
        ws.send("welcome")

    def on_message(self, ws: Connection, message: str) -> str:
        return message

    def on_close(self, ws: Connection, reason: Any) -> None:
        totals["close"] += 1


@hub.endpoint("/ws/chat/{channel}")
class Chat(Listener):
    """Writes down all it sees."""

    def on_first_open(self, hub: Hub) -> None:
        diary.write("chat", "on_first_open")

    def on_last_close(self, hub: Hub) -> None:
        diary.write("chat", "on_last_close")

    def on_channel_open(self, channel: str) -> None:
        diary.write(f"channel {channel}", "on_channel_open")

    def on_channel_close(self, channel: str) -> None:
        diary.write(f"channel {channel}", "on_channel_close")

    def on_handshake(self, request: Any) -> None:
        self.note(request, "on_handshake")

    def on_open(self, ws: Connection) -> None:
        self.note(ws, "on_open", channels=sorted(ws.channels))
        ws.state.greeting = "kept"
        ws.send({"you": ws.id})

    def on_subscribe(self, ws: Connection, channel: str) -> None:
        self.note(ws, "on_subscribe", channel=channel)

    def on_unsubscribe(self, ws: Connection, channel: str) -> None:
        self.note(ws, "on_unsubscribe", channel=channel)

    def on_message(self, ws: Connection, message: dict) -> Any:  # type: ignore[type-arg]
        self.note(ws, "on_message", message=message)

    def on_close(self, ws: Connection, reason: Any) -> None:
        if "log" in ws.query:
            sys.stderr.write(f"LOGGED on_close {reason}\n")
        self.note(
            ws,
            "on_close",
            code=reason.code,
            text=reason.text,
            by=reason.by,
            channels=sorted(ws.channels),
            state=dict(ws.state),
            counted=hub.channels().get(ws.channel, 0),
            is_open=ws.is_open,
        )

    @event("say")
    def say(self, ws: Connection, message: dict) -> None:  # type: ignore[type-arg]
        ws.broadcast({"said": message["text"]})

    @event("others")
    def others(self, ws: Connection, message: dict) -> None:  # type: ignore[type-arg]
        ws.broadcast({"said": message["text"]}, exclude=ws)

    @event("whisper")
    def whisper(self, ws: Connection, message: dict) -> dict[str, Any]:  # type: ignore[type-arg]
        users = [one.removeprefix("user:") for one in message["to"] if one.startswith("user:")]
        ids = [one for one in message["to"] if not one.startswith("user:")]
        to = [*ids, *map(hub.user, users)]
        sent = ws.broadcast({"whispered": message["text"]}, to=to)
        return {"reached": sent.reached}

    @event("close")
    def close(self, ws: Connection, message: dict) -> None:  # type: ignore[type-arg]
        ws.send("last words")
        ws.close(message["code"], message["reason"])

    @event("fail")
    def fail(self, ws: Connection, message: dict) -> None:  # type: ignore[type-arg]
        raise RuntimeError("failed on purpose")

    def note(self, ws: Any, callback: str, **facts: Any) -> None:
        diary.write(ws.query.get("tag") or "", callback, **facts)


@hub.endpoint("/ws/refuse/handshake/{how}")
class RefuseHandshake(Listener):
    def on_handshake(self, request: Any) -> Any:
        how = request.params["how"]
        if how == "false":
            return False
        if how == "raise":
            raise RuntimeError("secret detail")
        raise Reject(int(how), f"no entry: {how}", {"X-Why": "test"})


@hub.endpoint("/ws/refuse/open/{how}", channel="refused:{how}")
class RefuseOpen(Listener):
    async def on_open(self, ws: Connection) -> Any:
        tag = ws.query["tag"]
        diary.write(tag, "on_open")
        ws.send("must not arrive")
        if ws.params["how"] == "raise":
            raise RuntimeError("failed on purpose")
        return False if ws.params["how"] == "false" else Reject(403, "not you")

    def on_subscribe(self, ws: Connection, channel: str) -> None:
        diary.write(ws.query["tag"], "on_subscribe")

    def on_close(self, ws: Connection, reason: Any) -> None:
        diary.write(ws.query["tag"], "on_close", code=reason.code, text=reason.text, by=reason.by)


class Stall(Listener):
    """Waits in one of its callbacks until its gate opens."""

    def __init__(self, where: str):
        self.where = where

    async def come_by(self, callback: str) -> None:
        diary.write(self.where, callback)
        if callback != self.where:
            return
        try:
            await gates[self.where].wait()
        except asyncio.CancelledError:
            diary.write(self.where, "cancelled")
            raise
        diary.write(self.where, "went on")

    async def on_handshake(self, request: Any) -> None:
        await self.come_by("on_handshake")

    async def on_first_open(self, hub: Hub) -> None:
        await self.come_by("on_first_open")

    async def on_open(self, ws: Connection) -> None:
        await self.come_by("on_open")

    async def on_subscribe(self, ws: Connection, channel: str) -> None:
        await self.come_by("on_subscribe")

    async def on_channel_open(self, channel: str) -> None:
        await self.come_by("on_channel_open")

    async def on_message(self, ws: Connection, message: dict) -> None:  # type: ignore[type-arg]
        await self.come_by("on_message")
        if self.where == "on_error":
            raise RuntimeError("failed on purpose")

    @event("typed")
    async def typed(self, ws: Connection) -> None:
        await self.come_by("event")

    async def on_invalid(self, ws: Connection, error: Any) -> None:
        await self.come_by("on_invalid")

    async def on_error(self, ws: Connection | None, error: Exception) -> None:
        await self.come_by("on_error")

    async def on_close(self, ws: Connection, reason: Any) -> None:
        diary.write(self.where, "reason", code=reason.code, by=reason.by)
        await self.come_by("on_close")

    async def on_unsubscribe(self, ws: Connection, channel: str) -> None:
        await self.come_by("on_unsubscribe")

    async def on_channel_close(self, channel: str) -> None:
        await self.come_by("on_channel_close")

    async def on_last_close(self, hub: Hub) -> None:
        await self.come_by("on_last_close")
        diary.write(self.where, "over")


for place in (
    "on_handshake", "on_first_open", "on_open", "on_channel_open", "on_subscribe", "on_message",
    "event", "on_invalid", "on_error", "on_close", "on_unsubscribe", "on_channel_close",
    "on_last_close",
):  # fmt: skip
    hub.add(f"/ws/stall/{place}", Stall(place), channel=f"stall:{place}")


@hub.endpoint("/ws/stall/threaded")
class StallInThread(Listener):
    @threaded
    def on_message(self, ws: Connection, message: str) -> None:
        diary.write("threaded", "on_message")
        thread_gates["threaded"].wait(20)
        hub.broadcast("nobody", "still works from here").result(5)

    def on_close(self, ws: Connection, reason: Any) -> None:
        diary.write("threaded", "on_close", code=reason.code, by=reason.by)


# ── HTTP beside it ────────────────────────────────────────────────────────────────────────────


async def told(request: Request) -> JSONResponse:
    """Return the diary of a tag, once it has an entry; 504 with what there is after 15 s."""
    ask = request.query_params
    tag, until, times = ask["tag"], ask.get("until", ""), int(ask.get("times", 1))
    try:
        return JSONResponse(await asyncio.wait_for(diary.read(tag, until, times), 15))
    except TimeoutError:
        return JSONResponse(diary.entries[tag], 504)


async def broadcast(request: Request) -> JSONResponse:
    ask = await request.json()
    named = {name: ask[name] for name in ("to", "exclude") if name in ask}
    if ask.get("in_thread"):

        def work() -> int | None:
            return hub.broadcast(ask["channel"], ask["message"], **named).result(5).reached

        return JSONResponse({"reached": await asyncio.to_thread(work)})
    sent = await hub.broadcast(ask["channel"], ask["message"], **named)
    return JSONResponse({"reached": sent.reached})


async def flood(request: Request) -> JSONResponse:
    """Broadcast many numbered messages, a turn of the loop after each."""
    ask = await request.json()
    padding = "x" * ask["size"]
    reached = []
    for number in range(ask["count"]):
        reached.append(hub.broadcast(ask["channel"], f"{number} {padding}").reached)
        await asyncio.sleep(ask.get("pause", 0))
    return JSONResponse({"reached": reached})


async def close(request: Request) -> JSONResponse:
    ask = await request.json()
    sent = hub.connection(ask["id"]).close(ask["code"], ask["reason"])
    return JSONResponse({"reached": sent.reached})


async def open_gate(request: Request) -> JSONResponse:
    gates[request.query_params["gate"]].set()
    thread_gates[request.query_params["gate"]].set()
    return JSONResponse({})


async def stats(request: Request) -> JSONResponse:
    """Return what must be the same again when all clients are gone."""
    gc.collect()
    kinds = [type(one).__name__ for one in gc.get_objects()]
    return JSONResponse(
        {
            "connections": hub.health.connections,
            "channels": hub.channels(),
            "problems": hub.health.problems,
            "dispatches": len(hub.dispatches),
            "objects": {name: kinds.count(name) for name in ("Connection", "Dispatch", "Outbox")},
            "tasks": len(asyncio.all_tasks()),
            "fds": descriptors(),
            "rss": rss(),
            "totals": totals,
            "loop": type(asyncio.get_running_loop()).__module__,
        }
    )


def descriptors() -> int:
    """Return how many files and sockets are open; 0 where the system does not tell."""
    return len(list(PROC.glob("fd/*")))


def rss() -> int:
    """Return the bytes of memory in use; 0 where the system does not tell."""
    try:
        return int((PROC / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


inner = Starlette(
    routes=[
        Route("/told", told),
        Route("/broadcast", broadcast, methods=["POST"]),
        Route("/flood", flood, methods=["POST"]),
        Route("/close", close, methods=["POST"]),
        Route("/open-gate", open_gate, methods=["POST"]),
        Route("/stats", stats),
    ]
)
wrapped = hub.wrap(inner)


async def app(scope: Any, receive: Any, send: Any) -> None:
    path = scope.get("path", "")  # the lifespan has none
    if path == "/raw/ping":
        await try_to_ping(receive, send)
    elif path.startswith("/bare/"):
        await hub(scope, receive, send)  # answers what is nothing of its own, too
    else:
        await wrapped(scope, receive, send)


async def try_to_ping(receive: Any, send: Any) -> None:
    """Do what the ASGI specification has no event for."""
    await receive()
    await send({"type": "websocket.accept"})
    try:
        await send({"type": "websocket.ping", "bytes": b""})
    except Exception as error:  # noqa: BLE001 - each server has its own
        await send({"type": "websocket.send", "text": f"can't: {type(error).__name__}"})
    await send({"type": "websocket.close", "code": 1000})

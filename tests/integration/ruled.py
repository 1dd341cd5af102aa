"""An application whose threads not everyone may see."""

from __future__ import annotations

import asyncio
from typing import Any

from backchannel import Connection, Hub, Listener, Reject

hub = Hub(authenticate=lambda request: request.query.get("user"))
members = {"7": {"ana", "bob", "mod"}}


async def may_see(ws: Connection, id: str) -> None:  # noqa: A002 - the pattern's word
    await asyncio.sleep(0)
    if ws.user not in members.get(id, ()):
        raise Reject(f"{ws.user} may not see thread {id}")


hub.rule("thread:{id}", subscribe=may_see)


@hub.endpoint("/ws/thread/{id}", channel="thread:{id}")
@hub.endpoint("/ws/lobby")
class Thread(Listener):
    def on_open(self, ws: Connection) -> None:
        ws.send("welcome")

    async def on_message(self, ws: Connection, message: dict) -> Any:  # type: ignore[type-arg]
        if "join" in message:
            return await ws.subscribe(message["join"])
        if "say" in message:
            return (await hub.broadcast("thread:7", message["say"])).reached
        members["7"].discard(message["revoke"])
        removed = await hub.channel("thread:7").recheck()
        return [(info.user, info.endpoint) for info in removed]

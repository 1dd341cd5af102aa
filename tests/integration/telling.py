"""A listener that tells what it knows of its session, and does with it what it is told."""

from __future__ import annotations

from backchannel import Connection, Listener


class Chat(Listener):
    """Tells what it knows; talks in its channel."""

    def on_open(self, ws: Connection) -> None:
        ws.send({"user": ws.user, "session": dict(ws.session), "id": ws.session.id})

    async def on_message(self, ws: Connection, message: str) -> None:
        command, _, rest = message.partition(" ")
        if command == "refresh":
            exists = await ws.session.refresh()
            ws.send({"exists": exists, "session": dict(ws.session)})
        elif command == "write":
            try:
                ws.session["note"] = rest
                ws.send({"saved": await ws.session.save()})
            except TypeError as error:
                ws.send({"refused": str(error)})
        else:
            ws.broadcast(message)

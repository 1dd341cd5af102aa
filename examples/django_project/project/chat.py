"""The live part: who is signed in may talk in the lobby."""

from typing import Any

from backchannel import Connection, Hub, Listener
from backchannel.session.django import DjangoSessions

sessions = DjangoSessions()
hub = Hub(session=sessions, authenticate=sessions.user, require_user=True)


@hub.endpoint("/ws/chat/{channel}")
class Chat(Listener):
    """A room: ``ws.identity`` is Django's user, ``ws.session`` Django's session."""

    def on_open(self, ws: Connection) -> None:
        ws.broadcast(f"{ws.identity.username} came", exclude=ws)
        ws.send(f"Welcome to {ws.channel}, {ws.identity.username}.")

    async def on_message(self, ws: Connection, message: str) -> None:
        if message.startswith("/color "):
            ws.session["color"] = message.removeprefix("/color ")
            await ws.session.save()  # from now on HTTP sees it
            ws.send(f"Your colour is {ws.session['color']}.")
            return
        await ws.session.refresh()  # HTTP may have changed it
        ws.broadcast(f"{ws.identity.username} ({ws.session.get('color', 'black')}): {message}")

    def on_close(self, ws: Connection, reason: Any) -> None:
        ws.broadcast(f"{ws.identity.username} left")

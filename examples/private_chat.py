"""Public and private messages, and a list of users by connection id.

The server side of the ``wsprivatechat`` demo of cf-websocket-gateway: its page works with this
once its URL says ``ws://localhost:8888/ws/privatechat``.

Run it:  in a clone: python3 dev.py example private_chat
         elsewhere: pip install /path/to/the/clone, and then: backchannel run private_chat.py
Try it:  python -m websockets ws://localhost:8888/ws/privatechat
         {"msgType": "connect", "username": "Ana", "msg": "Ana"}
         {"msgType": "userlist", "username": "Ana"}
         {"msgType": "private", "username": "Ana", "msg": "psst", "destinationWebSocketID": "…"}
"""

from __future__ import annotations

from msgspec import UNSET, Struct, UnsetType, field

from backchannel import CloseReason, Connection, Hub, Listener, event

hub = Hub()


class Incoming(Struct):
    """What a client sends. The demo leaves ``msg`` out when there is nothing to say."""

    username: str
    msg: str | UnsetType = UNSET


class Private(Incoming, kw_only=True):
    """A message for one connection."""

    to: str = field(name="destinationWebSocketID")


class Outgoing(Struct):
    """What a client gets. UNSET fields are left out of the JSON."""

    kind: str = field(name="msgType")
    username: str
    msg: str | dict[str, str] | UnsetType = UNSET


@hub.endpoint("/ws/privatechat", channel="privatechat", tag="msgType")
class PrivateChat(Listener):
    """Everyone is in one channel. The username is what a client says it is, as in the demo."""

    def on_open(self, ws: Connection) -> None:
        ws.meta["username"] = "UNREGISTERED"  # until it says "connect"

    @event("connect")
    def connect(self, ws: Connection, message: Incoming) -> None:
        ws.meta["username"] = message.username
        ws.broadcast(Outgoing("connect", message.username, message.msg))

    @event("public")
    def public(self, ws: Connection, message: Incoming) -> None:
        ws.broadcast(Outgoing("public", message.username, message.msg))

    @event("private")
    def private(self, ws: Connection, message: Private) -> None:
        """Send to the two it concerns: whoever is not in the channel any more is left out."""
        ws.broadcast(Outgoing("private", message.username, message.msg), to=[ws, message.to])

    @event("userlist")
    async def userlist(self, ws: Connection, message: Incoming) -> Outgoing:
        """Answer the sender alone: what a callback returns goes to whoever it heard from."""
        here = await hub.channel("privatechat").connections()
        users = {one.id: one.meta["username"] for one in here}
        return Outgoing("userlist", message.username, users)

    def on_close(self, ws: Connection, reason: CloseReason) -> None:
        ws.broadcast(Outgoing("disconnect", ws.meta["username"]))

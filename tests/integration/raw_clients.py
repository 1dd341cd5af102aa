"""What raw clients talk to: an echo, a channel, and a code to be closed with; with both transports."""

from __future__ import annotations

from backchannel import Hub

hub = Hub()
hub.page("/", "page.html")


@hub.endpoint("/ws/{channel}")
def conversation(ws, message: str | bytes):
    """Echo; what begins with ``all`` goes to the channel, and ``close`` closes."""
    if message == "close":
        ws.close(4321, "that was all")
        return None
    if isinstance(message, str) and message.startswith("all "):
        ws.broadcast(message)
        return None
    return message

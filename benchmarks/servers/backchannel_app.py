"""Backchannel as an ASGI app, written as its users write theirs."""
# ruff: noqa: ARG002 (a callback takes what it is given)

from __future__ import annotations

from backchannel import Hub, Listener

hub = Hub()


@hub.endpoint("/ws/fanout/{channel}")
class Fanout(Listener):
    """Everyone in the channel gets every message."""

    def on_message(self, ws, message: str):
        ws.broadcast(message)


@hub.endpoint("/ws/echo")
class Echo(Listener):
    """The sender gets it back."""

    def on_message(self, ws, message: str) -> str:
        return message


@hub.endpoint("/ws/echo-async")
class EchoAsync(Listener):
    """The same with a coroutine."""

    async def on_message(self, ws, message: str) -> str:
        return message

"""An application for what is special about the native transport."""

from __future__ import annotations

import asyncio
import json
import os
import signal

from backchannel import Connection, Hub, Listener, Request
from backchannel.transport.native import EXTENSION

if os.environ.get("RESET_SIGPIPE"):
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # as some embedding programs do

hub = Hub(**json.loads(os.environ.get("SETTINGS", "{}")))


@hub.endpoint("/ws/echo")
def echo(ws: Connection, message: str | bytes) -> str | bytes:
    return message


@hub.endpoint("/ws/slow")
class Slow(Listener):
    async def on_handshake(self, request: Request) -> None:
        await asyncio.sleep(0.5)  # long enough for what follows the handshake to come

    def on_message(self, ws: Connection, message: str) -> str:
        return message


@hub.endpoint("/ws/flood/{channel}")
class Flood(Listener):
    """Sends what it is told to send: sizes, by ws.send, broadcast or whisper."""

    def on_message(self, ws: Connection, message: dict) -> None:
        for number, size in enumerate(message["sizes"]):
            text = f"{number} ".ljust(size, "x")
            if number % 3 == 0:
                ws.send(text)
            elif number % 3 == 1:
                ws.broadcast(text)
            else:
                ws.broadcast(text, to=ws.id)


@hub.endpoint("/ws/busy")
class Busy(Listener):
    """Is so slow with its messages that reading stops for longer than a ping may take."""

    async def on_message(self, ws: Connection, message: str) -> str:
        if message == "first":
            await asyncio.sleep(1.2)
        return message


@hub.endpoint("/ws/gone")
class Gone(Listener):
    """Its client has gone by the time the handshake is answered; nothing has told uvicorn yet."""

    def on_handshake(self, request: Request) -> None:
        request.scope["extensions"][EXTENSION].transport.abort()

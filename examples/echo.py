"""The smallest endpoint: what comes in goes back.

Run it:  backchannel run examples/echo.py
Try it:  new WebSocket("ws://localhost:8888/ws/echo") in a browser's console
"""

from __future__ import annotations

from backchannel import Connection, Hub

hub = Hub()


@hub.endpoint("/ws/echo")
def echo(ws: Connection, message: str | bytes) -> str | bytes:
    """Send a message back as it came."""
    return message

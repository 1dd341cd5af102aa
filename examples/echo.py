"""The smallest endpoint: what comes in goes back.

Run it:  in a clone: python3 dev.py example echo
         elsewhere: pip install /path/to/the/clone, and then: backchannel run echo.py
Try it:  open http://localhost:8888/ (its 404 will do: a page of another origin is refused), and in
         its console: ws = new WebSocket("ws://localhost:8888/ws/echo"); ws.onmessage = console.log
         then: ws.send("hello")
"""

from __future__ import annotations

from backchannel import Connection, Hub

hub = Hub()


@hub.endpoint("/ws/echo")
def echo(ws: Connection, message: str | bytes) -> str | bytes:
    """Send a message back as it came."""
    return message

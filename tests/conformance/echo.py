"""What the conformance suite talks to: an echo, with room for its largest messages."""

from __future__ import annotations

from typing import Any

from backchannel import Connection, Hub


def make_hub(path: str, **settings: Any) -> Hub:
    """Return a hub that echoes, compressing all."""
    hub = Hub(
        max_message=1 << 25, max_outbox=1 << 26, compress_above=1, slow_callback=10.0, **settings
    )

    @hub.endpoint(path)
    def echo(ws: Connection, message: str | bytes) -> str | bytes:
        return message

    return hub


# A client that wants a window of 512 bytes is served uncompressed where the hub's is larger.
app = make_hub("/ws/echo").wrap(make_hub("/ws/narrow", deflate_window=9))

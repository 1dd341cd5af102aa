"""The same app on an event loop that never sleeps, and so is never woken: what that alone gains."""

from __future__ import annotations

import asyncio

from backchannel_app import hub


def spin(loop: asyncio.AbstractEventLoop) -> None:
    """Let the loop have something to do in each of its turns."""
    loop.call_soon(spin, loop)


async def app(scope, receive, send):
    """Begin to spin with the server."""
    if scope["type"] == "lifespan":
        spin(asyncio.get_running_loop())
    await hub(scope, receive, send)

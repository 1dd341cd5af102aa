"""A hub inside a FastAPI app: a plain HTTP POST reaches everyone who listens on a channel.

Needs:   fastapi
Run it:  in a clone: python3 dev.py example fastapi_app
         elsewhere: pip install fastapi /path/to/the/clone
         and then: backchannel run fastapi_app.py:app
Listen:  python -m websockets ws://localhost:8888/live/ws/orders
Send:    curl localhost:8888/channels/orders -H "Content-Type: application/json" \
              -d '{"text": "Number 42 is ready"}'
"""

from __future__ import annotations

from typing import Annotated

from fastapi import FastAPI, Path
from pydantic import BaseModel, Field

from backchannel import Connection, Hub, Listener

hub = Hub()


class News(BaseModel):
    """What is posted, and what listeners get: the same model on both sides."""

    text: Annotated[str, Field(min_length=1, max_length=2000)]


@hub.endpoint("/ws/{channel}")
class Live(Listener):
    """Being connected is enough: {channel} in the URL subscribes."""

    def on_open(self, ws: Connection) -> None:
        ws.send({"listening": ws.channel})


app = FastAPI(title="Live news", lifespan=hub.lifespan)  # the hub starts and stops with the app
app.mount("/live", hub)  # its endpoints are below /live: /live/ws/orders


@app.post("/channels/{channel}")
async def publish(
    channel: Annotated[str, Path(pattern=r"^[\w-]{1,60}$")], news: News
) -> dict[str, int | None]:
    """Send news to everyone in a channel; say how many connections that are.

    In a plain def, which FastAPI runs in a thread, say `.result()` instead of `await`.
    """
    sent = await hub.broadcast(channel, news)
    return {"reached": sent.reached}


@app.get("/channels")
async def channels() -> dict[str, int]:
    """Return the channels that someone listens to, with how many do."""
    return hub.channels()

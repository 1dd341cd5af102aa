"""A hub that knows people by tokens: what the browser's client renews them with."""

from __future__ import annotations

import os
from pathlib import Path

from backchannel import Hub, Listener
from backchannel.auth import JWT

hub = Hub(authenticate=JWT(os.environ["KEY"], algorithms=["HS256"]))
hub.page("/", str(Path(__file__).with_name("client_page.html")))


@hub.endpoint("/ws/main")
class Main(Listener):
    def on_message(self, ws, message):
        return ws.user

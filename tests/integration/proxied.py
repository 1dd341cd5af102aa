"""A hub that stands behind a proxy, for test_proxies.py."""

from __future__ import annotations

from backchannel import Connection, Hub, Listener

hub = Hub(trusted_proxies=["127.0.0.1"], ping_interval=0.5, ping_timeout=5)
rarely = Hub(trusted_proxies=["127.0.0.1"], ping_interval=60)
untrusting = Hub()


@untrusting.endpoint("/ws/where/{channel}")
@rarely.endpoint("/ws/where/{channel}")
@hub.endpoint("/ws/where/{channel}")
class Where(Listener):
    """Tells what it knows of its client, then echoes."""

    def on_open(self, ws: Connection) -> None:
        host, port = ws.client or ("", 0)
        ws.send({"host": host, "port": port, "asked": ws.headers.get("host")})

    def on_message(self, ws: Connection, message: str) -> str:
        return message

"""The peer: uWebSockets, the C++ library, through socketify.

Best configuration: its own topics and publish(), which coalesces what one turn of its loop has for
a client; no compression; enough room for what waits, since it drops what is over the limit.
"""
# ruff: noqa: ARG001 (a callback takes what it is given)

from __future__ import annotations

import sys

from socketify import App, CompressOptions, OpCode

SETTINGS = {
    "compression": CompressOptions.DISABLED,
    "max_payload_length": 1 << 20,
    "max_backpressure": 64 << 20,
    "idle_timeout": 120,
}
app = App()


def upgrade(res, req, context) -> None:
    data = {
        "channel": req.get_url(),
        "channels": (req.get_query("channels") or "").split(","),
        "user": req.get_cookie("user"),
    }
    key = req.get_header("sec-websocket-key")
    res.upgrade(key, None, None, context, data)


def join(ws) -> None:
    ws.subscribe(ws.get_user_data()["channel"])


def join_many(ws) -> None:
    for channel in ws.get_user_data()["channels"]:
        ws.subscribe(channel)


def fanout(ws, message, opcode) -> None:
    app.publish(ws.get_user_data()["channel"], message, OpCode.TEXT)


def multi(ws, message, opcode) -> None:
    app.publish(message[:4], message, OpCode.TEXT)


def echo(ws, message, opcode) -> None:
    ws.send(message, OpCode.TEXT)


app.ws("/ws/fanout/*", {**SETTINGS, "upgrade": upgrade, "open": join, "message": fanout})
app.ws("/ws/multi", {**SETTINGS, "upgrade": upgrade, "open": join_many, "message": multi})
app.ws("/ws/room/*", {**SETTINGS, "upgrade": upgrade, "open": join, "message": echo})
app.ws("/ws/echo", {**SETTINGS, "message": echo})
app.listen({"host": "127.0.0.1", "port": int(sys.argv[1])})
app.run()

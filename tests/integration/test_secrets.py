"""Tokens of sessions stand in no log, whatever server shows its frames at debug level."""

from __future__ import annotations

import json

import pytest
from websockets.asyncio.client import connect

NAME = "backchannel.v1.json"
PLAIN = "uvicorn spoken:hub --port {port} --log-level debug"
COMMANDS = {
    "run": "backchannel run spoken.py --port {port} --log-level debug",
    "portable": "backchannel run spoken.py --port {port} --log-level debug --transport portable",
    "websockets": f"{PLAIN} --ws websockets",
    "sansio": f"{PLAIN} --ws websockets-sansio",
    "wsproto": f"{PLAIN} --ws wsproto",
    "hypercorn": "hypercorn spoken:hub --bind 127.0.0.1:{port} --log-level debug",
}


@pytest.mark.parametrize("command", list(COMMANDS))
async def test_no_token_stands_in_the_log(start_once, command):
    server = start_once(f"secrets-{command}", COMMANDS[command])
    url = f"ws://127.0.0.1:{server.port}/ws/a"
    tokens = []
    for _ in range(2):
        async with connect(url, subprotocols=[NAME]) as ws:
            hello = {"resume": tokens[-1]} if tokens else {}
            await ws.send(json.dumps({"type": "hello", **hello}))
            greeting = json.loads(await ws.recv())
            assert greeting["resumed"] is bool(tokens)
            tokens.append(greeting["resume"])
            secret = "OPAQUE-s3cret-token"
            await ws.send(json.dumps({"type": "renew", "id": 1 + len(tokens), "token": secret}))
            while json.loads(await ws.recv())["type"] not in {"error", "renewed"}:
                pass
            ws.transport.abort()
    told = server.printed()
    assert not [line for line in told.splitlines() if secret in line]
    for token in tokens:
        assert token[:12] not in told
    if "sansio" in command or command == "websockets":
        assert '"resume"' in told  # its frames stand there; else this would prove nothing

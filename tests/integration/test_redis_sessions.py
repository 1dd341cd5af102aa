"""Sessions in a real redis-compatible server, which goes away and comes back."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

TRANSPORTS = {
    "portable": "uvicorn redis_apps:{app} --port {{port}} --ws websockets-sansio",
    "native": "uvicorn redis_apps:{app} --port {{port}} "
    "--ws backchannel.transport.uvicorn:Protocol",
}


@pytest.fixture(params=["own", "starsessions", "flask"])
def app(request):
    return request.param


@pytest.fixture(params=TRANSPORTS)
def served(request, app, start, redis_server):
    return start(app, TRANSPORTS[request.param].format(app=app), env=(("REDIS", redis_server.url),))


async def login(server):
    """Sign in; returns the headers of who has."""
    async with httpx.AsyncClient(base_url=server.http, trust_env=False, timeout=30) as http:
        answer = await http.post("/login")
        assert answer.is_success, answer.text
        return {"Cookie": "; ".join(f"{c.name}={c.value}" for c in http.cookies.jar)}


async def ask(socket, message):
    await socket.send(message)
    return json.loads(await asyncio.wait_for(socket.recv(), 10))


async def test_a_session_lives_while_messages_come_and_ends_when_they_stop(served):
    """Real time is the subject."""
    async with served.connect("/ws", additional_headers=await login(served)) as socket:
        for _ in range(20):  # 4 seconds, and a session lives for 3
            assert await ask(socket, "hello") == {"user": "ana"}
            await asyncio.sleep(0.2)
        assert await ask(socket, "refresh") == {"exists": True, "user": "ana"}
        with pytest.raises(ConnectionClosed) as closed:
            await asyncio.wait_for(socket.recv(), 10)
        assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (4004, "session ended")


async def test_while_it_is_down_handshakes_get_503_and_open_connections_live_on(
    served, redis_server
):
    headers = await login(served)
    async with served.connect("/ws", additional_headers=headers) as socket:
        assert await ask(socket, "hello") == {"user": "ana"}
        redis_server.stop()
        with pytest.raises(InvalidStatus) as refused:
            async with served.connect("/ws", additional_headers=headers):
                pass
        response = refused.value.response
        assert (response.status_code, response.headers["Retry-After"]) == (503, "5")
        assert response.body.decode() == (
            "Sessions can't be read at the moment. Try again in a few seconds."
        )
        for _ in range(3):
            assert await ask(socket, "hello") == {"user": "ana"}
        redis_server.start()
        async with served.connect("/ws", additional_headers=await login(served)) as back:
            assert await ask(back, "hello") == {"user": "ana"}
        # What the server had in memory is gone, the first one's session too.
        with pytest.raises(ConnectionClosed) as closed:
            await asyncio.wait_for(socket.recv(), 20)
        assert closed.value.rcvd.code == 4004

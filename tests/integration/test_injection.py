"""What clients send makes up no header of a response and no line of the log."""

from __future__ import annotations

import re

import pytest

SERVERS = {
    "portable": "uvicorn injected:hub --port {port} --ws websockets-sansio",
    "native": "uvicorn injected:hub --port {port} --ws backchannel.transport.uvicorn:Protocol",
    "hypercorn": "hypercorn injected:hub --bind 127.0.0.1:{port}",
}
LINE = "%0D%0AERROR%20backchannel.hub:%20made%20up"


@pytest.fixture(params=SERVERS)
def server(request, start):
    return start(f"injected-{request.param}", SERVERS[request.param])


async def head(make_raw, server, path, *headers):
    async with make_raw(server, path, headers=headers) as client:
        return (await client.read_until(b"\r\n\r\n")).decode("latin-1")


@pytest.mark.parametrize("field", ["next", "say"])
async def test_no_header_of_a_response_is_made_up(server, make_raw, field):
    got = await head(make_raw, server, f"/ws/room/x?{field}=/a%0D%0AX-Made-Up:%201")
    assert not re.search("^x-made-up", got, re.IGNORECASE | re.MULTILINE), got
    assert f" {500 if field == 'next' else 403} " in got.splitlines()[0]
    if field == "next":
        assert "a header's value has no control characters" in server.printed()


async def test_no_line_of_the_log_is_made_up(server, make_raw):
    async with make_raw(server, f"/ws/room/x?user=ana{LINE}") as client:
        await client.opened()
        await client.send("one\nERROR backchannel.hub: made up")
        await client.frame()
        await client.close(4000, "bye\nERROR backchannel.hub: made up")
        await client.close_code()
    for path, headers in (
        (f"/ws/nowhere{LINE}", ()),
        (f"/ws/room/x{LINE}", ()),
        ("/ws/room/x", ("Origin: https://evil.example/\x0bERROR",)),
    ):
        assert " 101 " not in (await head(make_raw, server, path, *headers)).splitlines()[0]
    server.process.wait_for_output(" ended by the ")
    assert "made up" in server.printed()
    assert not re.search("^ERROR", server.printed(), re.MULTILINE), server.printed()

"""The ways to one engine: TLS, a socket of the file system, a user with a password, a database."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from urllib.parse import quote

import pytest
import trustme

from backchannel import Hub, Listener
from backchannel.errors import BrokerUnavailable

PASSWORD = "p@s:s/?#%"
QUOTED = quote(PASSWORD, safe="")
WAYS = [
    ("rediss://localhost:{tls}/0?ssl_ca_certs={ca}", "default", "0"),
    (f"rediss://chat:{QUOTED}@localhost:{{tls}}/3?ssl_ca_certs={{ca}}", "chat", "3"),
    ("rediss://localhost:{tls}/0?ssl_cert_reqs=none", "default", "0"),
    ("unix://{socket}", "default", "0"),
    (f"unix://chat:{QUOTED}@{{socket}}?db=2", "chat", "2"),
    (f"redis://chat:{QUOTED}@localhost:{{port}}/0", "chat", "0"),
    (f"redis://localhost:{{port}}?username=chat&password={QUOTED}&db=1", "chat", "1"),
    ("redis://localhost:{port}/4", "default", "4"),
]
"""URLs, whom the engine then takes us for, and in which database."""


@pytest.fixture(scope="module")
def engine(new_redis_server):
    server = new_redis_server()
    server.start()
    with server.client as client:
        rights = ("~*", "&*", "+@all")
        client.execute_command("ACL", "SETUSER", "chat", "on", f">{PASSWORD}", *rights)
    yield server
    server.stop()


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture
async def places(engine, authority, tmp_path):
    """What stands in URLs; the engine is also behind TLS, and at a socket of the file system."""
    port = int(engine.url.rpartition(":")[2].partition("/")[0])
    serving = set()

    async def serve(reader, writer):
        serving.add(asyncio.current_task())
        there, away = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(carry(reader, away), carry(there, writer))

    async def carry(reader, writer):
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                writer.write(data)
        writer.transport.abort()

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(context)
    ca, socket = tmp_path / "ca.pem", tmp_path / "engine.sock"
    authority.cert_pem.write_to_path(ca)
    secure = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    local = await asyncio.start_unix_server(serve, socket)
    tls = secure.sockets[0].getsockname()[1]
    yield {"port": port, "tls": tls, "socket": socket, "ca": ca}
    for server in (secure, local):
        server.close()
    if serving:
        await asyncio.wait(serving)


@pytest.fixture
async def hub():
    made = []

    def make(url):
        hub = Hub(
            broker=url,
            name="outside",  # as ``make`` has it
            authenticate=lambda request: request.query.get("user"),
            broker_timeout=2,
        )
        hub.rule("kept:{name}", history=10, presence=True)
        hub.add("/ws/{channel}", Listener)
        made.append(hub)
        return hub

    yield make
    for hub in made:
        await hub.stop()


@pytest.mark.parametrize(("url", "user", "database"), WAYS)
async def test_a_hub_and_publishers_take_each_way_to_the_engine(
    engine, places, hub, make, url, user, database
):
    url = url.format(**places)
    with engine.client as client:
        strangers = {one["id"] for one in client.client_list()}
        node, publisher = hub(url), make(url)
        await node.start()
        async with node.test_client("/ws/kept:cars?user=ana") as member:
            large = "x" * 300_000  # several parts of TLS
            sent = await node.broadcast("kept:cars", large)
            assert await member.receive() == large
            assert (await publisher.user("ana").send("to ana")).reached == 1
            assert await member.receive() == "to ana"
            later = await publisher.broadcast("kept:cars", "kept")
            assert await member.receive() == "kept"
            assert later.position == (sent.position.epoch, sent.position.offset + 1)
            assert await publisher.everyone.count() == 1
            assert await node.channel("kept:cars").users() == ["ana"]
            kept = await publisher.channel("kept:cars").history(since=sent.position)
            assert [one.message for one in kept] == ["kept"]
            ours = [one for one in client.client_list() if one["id"] not in strangers]
            assert len(ours) >= 3  # the hub's, and the publisher's of either kind
            assert {(one["user"], one["db"]) for one in ours} == {(user, database)}


async def test_who_is_behind_tls_has_to_have_a_certificate_that_is_trusted(places, hub, make):
    url = "rediss://localhost:{tls}/0".format(**places)
    with pytest.raises(BrokerUnavailable, match=r"can't be reached: .*CERTIFICATE_VERIFY_FAILED"):
        await hub(url).start()
    with pytest.raises(BrokerUnavailable, match="CERTIFICATE_VERIFY_FAILED"):
        await make(url).broadcast("cars", "x")

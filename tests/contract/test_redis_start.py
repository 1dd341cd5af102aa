"""What is said of an engine, or of its URL, that will not do: one line, and no password in it."""

from __future__ import annotations

import asyncio
import contextlib
import re
import traceback

import pytest

from backchannel import AsyncPublisher, Hub, Publisher
from backchannel.errors import BrokerUnavailable, BrokerUnusable, BrokerUrlError
from backchannel.session.server import ServerSessions
from backchannel.urls import hidden


@contextlib.asynccontextmanager
async def scripted(*replies, asked=None):
    """A server that says what it is told to: one reply for each that it is asked."""
    serving = set()

    async def serve(reader, writer):
        serving.add(asyncio.current_task())
        with contextlib.suppress(OSError):
            for reply in replies:
                data = await reader.read(1000)
                if asked is not None:
                    asked.append(data)
                writer.write(reply)
            await reader.read()
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    server.close()
    if serving:
        await asyncio.wait(serving)


def bulk(text):
    return f"${len(text)}\r\n{text}\r\n".encode()


# ── who answers ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "words",
    [
        b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"\x15\x03\x03\x00\x02\x02\x46",  # what TLS says to what is none
        b"+OK\r\n+OK\r\n+OK\r\n",
    ],
)
async def test_who_speaks_something_else_is_told_of_in_one_line(caplog, words):
    async with scripted(words) as place:
        with pytest.raises(BrokerUnavailable) as caught:
            await Hub(broker=f"redis://{place}", name="start").start()
    text = str(caught.value)
    assert text.startswith(f"redis://{place} can't be reached: what answers there is neither Redis")
    assert f"it says {words.splitlines()[0]!r}" in text
    assert "\n" not in text
    assert caplog.records == []


async def test_who_speaks_something_else_to_sentinels_clients_is_told_of_in_one_line(caplog):
    async with scripted(b"HTTP/1.1 400 Bad Request\r\n\r\n") as place:
        with pytest.raises(BrokerUnavailable, match="neither Redis nor Valkey"):
            await Hub(broker=f"redis+sentinel://{place}/chat", name="start").start()
    assert caplog.records == []


async def test_tls_where_none_is_spoken_is_told_of(redis_server, caplog):
    place = redis_server.url.partition("//")[2]
    hub = Hub(broker=f"rediss://{place}", name="start", broker_timeout=0.5)
    with pytest.raises(BrokerUnavailable, match=r"in 0.5 s, or does not speak TLS, as rediss://"):
        await hub.start()
    assert caplog.records == []


async def test_an_engine_that_loses_its_mind_later_is_told_of_in_one_line(cable, caplog):
    hub = Hub(broker=cable.url, name="start")
    await hub.start()
    cable.writers[0].write(b"HTTP/1.1 200 OK\r\n\r\n")
    async with asyncio.timeout(10):
        while len(cable.writers) < 4 or not hub.health.ready:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    lost = [one.getMessage() for one in caplog.records if one.levelname == "ERROR"]
    assert len(lost) == 1
    assert re.match(rf"{cable.url} is lost: what answers .* connections stay open", lost[0])
    await hub.stop()


# ── an engine that is too old ─────────────────────────────────────────────────────────────────

UNKNOWN = b"-ERR unknown command `HELLO`, with args beginning with: `3`, \r\n"


@pytest.mark.parametrize(
    ("url", "more", "asked"),
    [
        ("redis://{}", [], [b"INFO"]),
        ("redis://:opensesame@{}", [b"+OK\r\n"], [b"AUTH", b"INFO"]),
    ],
)
async def test_an_engine_that_knows_no_hello_is_told_its_version(url, more, asked):
    """Redis before 6, of which none can be had: this one says what it says."""
    heard = []
    info = bulk("# Server\r\nredis_version:5.0.14\r\nredis_mode:standalone\r\n")
    async with scripted(UNKNOWN, *more, info, asked=heard) as place:
        with pytest.raises(
            BrokerUnusable, match=rf"{place} is Redis 5\.0\.14: 6\.2 or newer is needed"
        ):
            await Hub(broker=url.format(place), name="start").start()
    for data, command in zip(heard[1:], asked, strict=True):
        assert command in data
    if more:
        assert heard[1] == b"*2\r\n$4\r\nAUTH\r\n$10\r\nopensesame\r\n"


@pytest.mark.parametrize("reply", [b"-NOAUTH Authentication required.\r\n", b"what?\r\n"])
async def test_an_engine_that_knows_no_hello_and_tells_no_version_is_too_old(reply):
    async with scripted(UNKNOWN, reply) as place:
        with pytest.raises(BrokerUnusable, match=r"is too old: Redis 6\.2 or Valkey 7\.2"):
            await Hub(broker=f"redis://{place}", name="start").start()


# ── its URL ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("make", [lambda url: Hub(broker=url), lambda url: Publisher(url, hub="x")])
@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("redis://localhost:6379/0?foo=bar", "'foo' is no option; there are db, password, user"),
        ("redis://localhost?foo", "'foo' is no option"),
        ("redis://localhost?socket_timeout=abc", "'socket_timeout' is no option"),
        ("rediss://localhost?ssl_foo=1", "'ssl_foo' is no option; there are db, password, ssl_ca"),
        ("redis://localhost?ssl_cert_reqs=none", "ssl_cert_reqs is an option of rediss://"),
        ("redis://localhost?sentinel_password=x", "'sentinel_password' is no option"),
        ("redis+cluster://localhost?foo=bar", "'foo' is no option"),
        ("redis+sentinel://localhost/chat?foo=bar", "there are db, password, sentinel_password"),
        ("unix:///tmp/redis.sock?foo=bar", "'foo' is no option"),
        ("redis://localhost:99999", "no host with a port from 1 to 65535"),
        ("redis+cluster://localhost:99999", "no host with a port from 1 to 65535"),
        ("redis+sentinel://localhost:x/chat", "no host with a port from 1 to 65535"),
        ("redis://[::1", "it can't be read"),
    ],
)
def test_what_is_wrong_with_a_url_is_named(make, url, name):
    with pytest.raises(ValueError, match=re.escape(name)) as caught:
        make(url)
    assert hidden(url) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_options_that_can_not_be_used_are_told_of():
    with pytest.raises(BrokerUrlError, match=r"ssl_cert_reqs|SSL"):
        Hub(broker="rediss://localhost?ssl_cert_reqs=nonsense")
    with pytest.raises(BrokerUrlError, match="No such file"):
        Hub(broker="rediss://localhost?ssl_ca_certs=/no/such/file")


PASSWORDS = [
    "geheim/wort", "geheim@wort", "geheim#wort", "geheim?wort", "geheim?wort=1", "geheim:wort",
    "geheim[wort", "geheim/wort@geheim", "geheim%wort", "geheim//wort", "1/geheim", "1?geheim=wort",
    "geheim&wort", "geheim wort",
]  # fmt: skip


@pytest.mark.parametrize("user", ["", "ana"])
@pytest.mark.parametrize("password", PASSWORDS)
@pytest.mark.parametrize(
    "url",
    [
        "redis://{}@localhost:x/0", "redis://{}@localhost/abc", "redis://{}@localhost:1/0?foo=bar",
        "rediss://{}@localhost:99999", "redis+sentinel://{}@h/x/0/z", "redis+cluster://{}@h:1/5",
        "redis+cluster://{}@h:x", "redis+sentinel://{}@h", "http://{}@localhost", "redis:{}@h",
        "//{}@localhost", "{}@localhost", "unix://{}@/tmp/none.sock?foo=bar",
    ],
)  # fmt: skip
def test_no_part_of_a_password_stands_in_an_error(url, password, user):
    """Nor in the errors that it came from, which tracebacks show too; nor where it is shown else."""
    url = url.format(f"{user}:{password}")
    makers = (
        lambda: Hub(broker=url).health.broker,
        lambda: repr(Publisher(url, hub="x")),
        lambda: repr(AsyncPublisher(url, hub="x")),
        lambda: repr(ServerSessions(secret="x" * 40, store=url)),
    )
    for make in makers:
        try:
            shown = make()
        except ValueError as error:
            shown = "".join(traceback.format_exception(error))
        assert "geheim" not in shown
        assert "wort" not in shown


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://localhost:6379/0", "redis://localhost:6379/0"),
        ("redis://:secret@localhost/0", "redis://:…@localhost/0"),
        ("redis://ana:secret@localhost/0", "redis://ana:…@localhost/0"),
        ("redis://ana:se@cret@localhost/0", "redis://ana:…@localhost/0"),
        ("redis://a/b:secret@localhost/0", "redis://:…@localhost/0"),
        ("redis://secret@localhost/0", "redis://:…@localhost/0"),
        ("redis://h/0?password=secret", "redis://h/0?password=…"),
        ("redis://h/0?password=se@cret&db=1", "redis://…"),
        ("redis://:secret@h/0?password=se@cret&db=1", "redis://:…@h/0?password=…&db=1"),
        ("redis+sentinel://:secret@h:1,i:2/c?sentinel_password=secret",
         "redis+sentinel://:…@h:1,i:2/c?sentinel_password=…"),
    ],
)  # fmt: skip
def test_a_url_is_shown_without_its_passwords(url, shown):
    assert hidden(url) == shown


@pytest.mark.parametrize("store", ["redis://:geheim/wort@localhost:1", "redis://localhost:x"])
def test_where_sessions_are_kept_is_read_when_they_are_made(store):
    with pytest.raises(ValueError, match=r"ServerSessions\(store=") as caught:
        ServerSessions(secret="x" * 40, store=store)
    assert "geheim" not in str(caught.value)


# ── the server ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("is_wrapped", [False, True])
async def test_a_server_that_raises_when_it_is_told_shows_no_traceback_of_ours(
    free_port, caplog, is_wrapped
):
    """As hypercorn does."""

    async def app(scope, receive, send):
        raise ValueError("it has no lifespan")

    async def receive():
        return {"type": "lifespan.startup"}

    async def send(event):
        raise RuntimeError(event["message"])

    hub = Hub(broker=f"redis://127.0.0.1:{free_port}", name="start")
    served = hub.wrap(app) if is_wrapped else hub
    with pytest.raises(RuntimeError, match="can't be reached") as caught:
        await served({"type": "lifespan"}, receive, send)
    assert caught.value.__context__ is None
    assert [one.exc_info for one in caplog.records] == [None]

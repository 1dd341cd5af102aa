"""Traffic keeps a Django session alive, in each of its engines that keep it on the server."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from importlib import import_module

import django
import pytest
from asgiref.sync import sync_to_async
from django.conf import settings
from django.core.management import call_command
from django.db import connections
from django.test import override_settings
from django.utils import timezone
from shared import request_with

from backchannel import Hub, Listener
from backchannel.errors import HandshakeRefused
from backchannel.session import touch
from backchannel.session.django import DjangoSessions

ENGINES = ["db", "cached_db", "cache", "file"]


class Room(Listener):
    def on_message(self, ws, message: str):
        return message


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("django")
    database = {"ENGINE": "django.db.backends.sqlite3", "NAME": str(folder / "db.sqlite3")}
    settings.configure(
        SECRET_KEY="the secret of the tests",
        DATABASES={"default": database},
        INSTALLED_APPS=["django.contrib.sessions"],
        SESSION_FILE_PATH=str(folder),
        USE_TZ=True,
    )
    django.setup()
    call_command("migrate", verbosity=0)


@pytest.fixture(params=ENGINES)
async def engine(project, request):
    """One of Django's engines, with sessions that live for two seconds."""
    name = f"django.contrib.sessions.backends.{request.param}"
    with override_settings(SESSION_ENGINE=name, SESSION_COOKIE_AGE=2):
        yield import_module(name).SessionStore
    await sync_to_async(connections.close_all)()


async def begin(engine, **values):
    """Begin a session as a view does; returns it and what the hub finds by its cookie."""
    session = engine()
    await session.aupdate({"name": "ana", **values})
    await session.asave()
    return session, await DjangoSessions().find(request_with({"sessionid": session.session_key}))


async def talk(client, seconds):
    """Send messages for a while."""
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    while loop.time() < end:
        await client.send("hello")
        assert await client.receive() == "hello"
        await asyncio.sleep(0.1)


async def test_a_session_lives_while_messages_come_and_ends_when_they_stop(engine, monkeypatch):
    """Real time is the subject."""
    monkeypatch.setattr(touch, "TOUCH_EVERY", 0.3)
    view, _ = await begin(engine)
    hub = Hub(session=DjangoSessions(), session_check=0.2)
    hub.add("/ws", Room)
    async with hub.test_client("/ws", cookies={"sessionid": view.session_key}) as client:
        await talk(client, 2.6)
        assert await client.connection.session.refresh()
        with pytest.raises(Exception, match="closed with 4004 session ended"):
            await client.receive(timeout=10)
    await hub.stop()


async def test_a_session_ends_at_its_time_where_traffic_does_not_count(engine):
    """Real time is the subject."""
    view, _ = await begin(engine)
    hub = Hub(session=DjangoSessions(), session_check=0.2, touch_session=False)
    hub.add("/ws", Room)
    async with hub.test_client("/ws", cookies={"sessionid": view.session_key}) as client:
        with pytest.raises(Exception, match="closed with 4004 session ended"):
            await talk(client, 10)
    await hub.stop()


async def test_a_touch_brings_back_no_session_that_was_deleted(engine):
    view, session = await begin(engine)
    assert await session.touch()
    await view.adelete()
    assert not await session.touch()
    assert not await session.refresh()
    assert not await engine().aexists(view.session_key)


async def test_a_touch_leaves_what_http_writes_at_the_same_time(engine):
    view, session = await begin(engine)
    for number in range(10):
        await view.aset("name", number)
        await asyncio.gather(view.asave(), *(session.touch() for _ in range(3)))
        assert await session.refresh()
        assert session["name"] == number


async def test_a_session_with_a_time_to_end_at_is_not_extended(engine):
    view, session = await begin(engine)
    end = timezone.now() + timedelta(seconds=60)
    await view.aset_expiry(end)
    await view.asave()
    assert await session.touch()
    if hasattr(engine, "get_model_class"):
        row = await engine.get_model_class().objects.aget(session_key=view.session_key)
        assert row.expire_date == end
    elif hasattr(engine, "cache_key_prefix"):
        expires = view._cache._expire_info[view._cache.make_key(view.cache_key)]
        assert expires == pytest.approx(end.timestamp(), abs=2)


@pytest.mark.parametrize("engine", ["db", "cached_db"], indirect=True)
async def test_a_session_with_a_length_of_its_own_keeps_it(engine):
    view, session = await begin(engine)
    await view.aset_expiry(600)
    await view.asave()
    assert await session.touch()
    row = await engine.get_model_class().objects.aget(session_key=view.session_key)
    left = (row.expire_date - timezone.now()).total_seconds()
    assert 590 < left <= 600


async def test_while_the_database_is_away_handshakes_get_503_and_connections_live_on(project):
    """Its table has gone for a while, as far as a view can see."""

    def rename(before, after):
        with connections["default"].cursor() as cursor:
            cursor.execute(f"ALTER TABLE {before} RENAME TO {after}")

    engine = import_module("django.contrib.sessions.backends.db").SessionStore
    hub = Hub(session=DjangoSessions(), session_check=None)
    hub.add("/ws", Room)
    with override_settings(SESSION_ENGINE="django.contrib.sessions.backends.db"):
        session, _ = await begin(engine)
        cookies = {"sessionid": session.session_key}
        async with hub.test_client("/ws", cookies=cookies) as client:
            await sync_to_async(rename)("django_session", "away")
            try:
                with pytest.raises(HandshakeRefused) as refused:
                    await hub.test_client("/ws", cookies=cookies).connect()
                assert refused.value.status == 503
                await client.send("still here")
                assert await client.receive() == "still here"
            finally:
                await sync_to_async(rename)("away", "django_session")
            async with hub.test_client("/ws", cookies=cookies) as again:
                assert again.connection.session["name"] == "ana"
    await hub.stop()
    await sync_to_async(connections.close_all)()

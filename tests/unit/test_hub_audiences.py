"""Audiences: channels, users, sessions, connections, everyone; `to=` and `exclude=`."""

from __future__ import annotations

import pytest
from shared import Room, heard, to_all

from backchannel import (
    Hub,
)

# ── audiences ─────────────────────────────────────────────────────────────────────────────────


async def test_broadcast_reaches_everyone_in_the_channel_and_nobody_else(hub, room):
    assert hub.broadcast("cars", "hi").reached == 3
    assert heard(room) == to_all("ana1 bob anonymous")
    assert hub.broadcast("nobody-here", "hi").reached == 0


async def test_each_audience_sends_to_its_own(hub, room):
    expected = {
        hub.channel("cars"): "ana1 bob anonymous",
        hub.user("ana"): "ana1 ana2",
        hub.session("s1"): "ana1 bob",
        hub.connection(room["ana2"].id): "ana2",
        hub.everyone: "ana1 ana2 bob anonymous",
        hub.user("unknown"): "",
        hub.session("unknown"): "",
        hub.connection("unknown"): "",
        hub.channel("unknown"): "",
    }
    for audience, names in expected.items():
        assert audience.send("hi").reached == len(names.split())
        assert heard(room) == to_all(names)
        assert await audience.count() == len(names.split())
        assert [info.id for info in await audience.connections()] == [
            room[name].id for name in names.split()
        ]


async def test_users_are_each_once_and_without_the_anonymous(hub, room):
    assert await hub.everyone.users() == ["ana", "bob"]
    assert await hub.channel("cars").users() == ["ana", "bob"]
    assert await hub.session("s2").users() == ["ana"]


async def test_infos_tell_what_anyone_may_know(hub, room):
    room["ana1"].connection.meta["device"] = "phone"
    (info, _) = await hub.user("ana").connections()
    ws = room["ana1"].connection
    assert (info.id, info.user, info.endpoint, info.node) == (
        ws.id,
        "ana",
        "/ws/{channel}",
        hub.node,
    )
    assert info.opened_at == ws.opened_at
    assert info.meta == {"device": "phone"}
    ws.meta["device"] = "changed later"
    assert info.meta == {"device": "phone"}


@pytest.mark.parametrize(
    ("to", "names"),
    [
        (lambda hub, room: room["bob"].connection, "bob"),
        (lambda hub, room: room["bob"].id, "bob"),
        (lambda hub, room: hub.connection(room["bob"].id), "bob"),
        (lambda hub, room: hub.user("ana"), "ana1"),
        (lambda hub, room: hub.user("bob"), "bob"),
        (lambda hub, room: hub.session("s1"), "ana1 bob"),
        (lambda hub, room: [room["ana1"].id, hub.user("bob")], "ana1 bob"),
        (lambda hub, room: (room["ana1"].connection, room["bob"].connection), "ana1 bob"),
        (lambda hub, room: {room["ana1"].connection}, "ana1"),
        (lambda hub, room: (c.id for c in room.values()), "ana1 bob anonymous"),
        (lambda hub, room: [room["bob"].id, hub.user("bob"), room["bob"].connection], "bob"),
        (lambda hub, room: room["ana2"].connection, ""),
        (lambda hub, room: ["unknown", hub.user("unknown")], ""),
        (lambda hub, room: "", ""),
        (lambda hub, room: "ana", ""),
        (lambda hub, room: [], ""),
        (lambda hub, room: hub.everyone, "ana1 bob anonymous"),
    ],
    ids=range(17),
)
async def test_to_narrows_to_those_of_the_channel_each_once(hub, room, to, names):
    sent = hub.broadcast("cars", "hi", to=to(hub, room))
    assert heard(room) == to_all(names)
    assert sent.reached == len(names.split())


@pytest.mark.parametrize(
    ("exclude", "names"),
    [
        (lambda hub, room: room["bob"].connection, "ana1 anonymous"),
        (lambda hub, room: room["bob"].id, "ana1 anonymous"),
        (lambda hub, room: hub.user("ana"), "bob anonymous"),
        (lambda hub, room: hub.session("s1"), "anonymous"),
        (lambda hub, room: [room["ana1"].connection, hub.user("bob")], "anonymous"),
        (lambda hub, room: [], "ana1 bob anonymous"),
        (lambda hub, room: "unknown", "ana1 bob anonymous"),
        (lambda hub, room: hub.everyone, ""),
    ],
    ids=range(8),
)
async def test_exclude_leaves_out_in_all_forms(hub, room, exclude, names):
    assert hub.broadcast("cars", "hi", exclude=exclude(hub, room)).reached == len(names.split())
    assert heard(room) == to_all(names)
    hub.channel("cars").send("hi", exclude=exclude(hub, room))
    assert heard(room) == to_all(names)


async def test_to_and_exclude_go_together(hub, room):
    hub.broadcast("cars", "hi", to=hub.session("s1"), exclude=hub.user("bob"))
    assert heard(room) == to_all("ana1")


async def test_an_info_addresses_its_connection(hub, room):
    (info,) = await hub.user("bob").connections()
    hub.broadcast("cars", "hi", to=info)
    assert heard(room) == to_all("bob")
    hub.broadcast("cars", "hi", exclude=await hub.user("bob").connections())
    assert heard(room) == to_all("ana1 anonymous")


@pytest.mark.parametrize(
    "nobody", [None, 42, b"id", {"id": 1}, [None], [["id"]], [42], ...], ids=repr
)
@pytest.mark.parametrize("argument", ["to", "exclude"])
async def test_what_addresses_nobody_raises_and_nothing_is_sent(hub, room, argument, nobody):
    with pytest.raises(TypeError, match=argument):
        hub.broadcast("cars", "hi", **{argument: nobody})
    with pytest.raises(TypeError):
        room["bob"].connection.broadcast("hi", **{argument: nobody})
    assert heard(room) == {}


@pytest.mark.parametrize("wrong", [None, True, 1.5, b"ana", ["ana"]], ids=repr)
async def test_what_is_no_user_raises(hub, wrong):
    with pytest.raises(TypeError):
        hub.user(wrong)


async def test_what_names_nobody_raises(hub):
    for wrong in (lambda: hub.user(""), lambda: hub.session("")):
        with pytest.raises(ValueError, match="empty"):
            wrong()
    for wrong in (lambda: hub.session(None), lambda: hub.connection(None), lambda: hub.channel(7)):
        with pytest.raises(TypeError):
            wrong()


async def test_a_user_by_number_is_the_user_by_text(hub):
    hub.add("/ws", Room)
    async with hub.test_client("/ws", user=42) as ws:
        assert ws.connection.user == "42"
        assert hub.user(42).send("hi").reached == hub.user("42").send("hi").reached == 1


async def test_an_audience_closes_its_connections(hub, room):
    assert hub.user("ana").close(4100, "signed out").reached == 2
    await room["ana1"].settled()
    assert [room[n].closed and room[n].closed.code for n in room] == [4100, 4100, None, None]
    with pytest.raises(ValueError, match="1005"):
        hub.everyone.close(1005)
    assert room["bob"].closed is None


@pytest.mark.parametrize(
    "name", ["", "a" * 256, "ä" * 128, "with\nnewline", "\x7f", "$presence", "\ud800"], ids=ascii
)
async def test_a_channel_name_that_can_not_be_raises_everywhere(hub, room, name):
    ws = room["bob"].connection
    for act in (
        lambda: hub.broadcast(name, "hi"),
        lambda: hub.channel(name),
        lambda: ws.subscribe(name),
        lambda: ws.unsubscribe(name),
        lambda: ws.broadcast("hi", channel=name),
        lambda: hub.everyone.subscribe(name),
        lambda: hub.everyone.unsubscribe(name),
    ):
        with pytest.raises(ValueError, match="channel name"):
            act()
    assert heard(room) == {}


@pytest.mark.parametrize("name", ["a", "ä" * 127, "a b", "日本", "a:b/c", "x$"])
async def test_any_other_channel_name_will_do(hub, room, name):
    assert await room["bob"].connection.subscribe(name)
    assert hub.broadcast(name, "hi").reached == 1
    assert heard(room) == to_all("bob")


async def test_channel_names_keep_their_case_unless_told_otherwise(hub):
    hub.add("/ws/{channel}", Room)
    async with hub.test_client("/ws/Cars"), hub.test_client("/ws/cars"):
        assert hub.channels() == {"Cars": 1, "cars": 1}


async def test_with_casefold_channels_case_makes_no_difference(diary):
    hub = Hub(casefold_channels=True)
    hub.add("/ws/{channel}", diary.listener())
    async with hub.test_client("/ws/CARS") as one, hub.test_client("/ws/cars") as two:
        assert hub.channels() == {"cars": 2}
        assert one.connection.channel == "cars"
        assert hub.broadcast("Cars", "hi").reached == 2
        assert await hub.channel("cARS").count() == 2
        assert two.connection.broadcast("hi", channel="CARs").reached == 2
        assert await one.connection.unsubscribe("cArs")
        assert hub.channels() == {"cars": 1}
    assert diary.count_of("on_channel_open") == diary.count_of("on_channel_close") == 1
    await hub.stop()


async def test_channels_are_those_with_members(hub, room):
    assert hub.channels() == {"cars": 3}
    await room["ana2"].connection.subscribe("boats")
    assert hub.channels() == {"cars": 3, "boats": 1}
    await room["ana2"].close()
    assert hub.channels() == {"cars": 3}

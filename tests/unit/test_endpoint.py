"""Endpoints, the channels they lead into, and the doors that must not be walked round."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backchannel.callbacks import read_listener
from backchannel.endpoint import Endpoint, Endpoints
from backchannel.errors import ListenerError, TemplateError
from backchannel.listener import Listener
from backchannel.template import Template


def made(template, **options):
    """Return an endpoint with a listener of its own."""
    return Endpoint(Template(template), read_listener(Listener()), **options)


def table(*endpoints, **options):
    endpoints_of_hub = Endpoints(**options)
    for endpoint in endpoints:
        endpoints_of_hub.add(endpoint)
    return endpoints_of_hub


# ── one endpoint ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("template", "channel", "pattern"),
    [
        ("/ws/chat/{channel}", None, "{channel}"),
        ("/ws/{room}/{channel}", None, "{channel}"),
        ("/ws/chat/{channel}", "admin:{channel}", "admin:{channel}"),
        ("/ws/support/{room}", "support:{room}", "support:{room}"),
        ("/ws/support/{room}", "lobby", "lobby"),
        ("/ws/chat/{room}", None, None),
        ("/ws/echo", None, None),
    ],
)
def test_the_channel_is_the_urls_own_unless_another_one_is_named(template, channel, pattern):
    endpoint = made(template, channel=channel)
    assert (endpoint.pattern and endpoint.pattern.text) == pattern


def test_a_channel_of_a_variable_that_the_url_lacks_is_refused_with_those_it_has():
    with pytest.raises(TemplateError, match=r"\{rom\} is no variable .* which has room, n"):
        made("/ws/{room}/{n:int}", channel="support:{rom}")


@pytest.mark.parametrize(
    ("spoken", "offered", "chosen"),
    [
        (["v1", "raw"], ["raw", "v1"], "raw"),
        (["v1"], ["raw", "v1"], "v1"),
        ("v1", ["v", "1", "v1"], "v1"),
        (["v1"], ["V1"], None),
        (["v1"], [], None),
        ((), ["v1"], None),
    ],
)
def test_the_clients_first_choice_that_the_endpoint_speaks_is_the_subprotocol(
    spoken, offered, chosen
):
    assert made("/ws", subprotocols=spoken).choose_subprotocol(offered) == chosen


def test_the_tag_names_the_field_that_events_are_chosen_by():
    endpoint = made("/ws", tag="msgType")
    assert endpoint.read_tag('{"type": "a", "msgType": "b"}') == "b"
    assert made("/ws").read_tag('{"type": "a", "msgType": "b"}') == "a"


def test_a_tag_that_is_no_fields_name_is_refused():
    with pytest.raises(ListenerError, match="tag=5 must be the name of a field"):
        made("/ws", tag=5)


def test_an_endpoint_shows_its_template_its_listener_and_where_that_is():
    text = str(made("/ws/echo"))
    assert text.startswith("/ws/echo (Listener, ")
    assert "listener.py:" in text


# ── the table ─────────────────────────────────────────────────────────────────────────────────


def test_a_path_leads_to_its_endpoint_with_the_urls_variables():
    echo, chat = made("/ws/echo"), made("/ws/{channel}")
    endpoints = table(echo, chat)
    assert endpoints.match([["ws", "echo"]]) == (echo, {})
    assert endpoints.match([["ws", "cars"]]) == (chat, {"channel": "cars"})
    assert endpoints.match([["ws"]]) is None
    assert endpoints.match([]) is None
    assert list(endpoints) == list(endpoints.all()) == [echo, chat]
    assert endpoints.get("/ws/echo") is echo
    assert endpoints.get("/ws/none") is None


def test_the_first_reading_of_a_path_that_has_an_endpoint_counts():
    endpoints = table(made("/live/x"), made("/x"))
    endpoint, _ = endpoints.match([["nowhere"], ["x"], ["live", "x"]])
    assert endpoint.template.text == "/x"


def test_near_misses_are_templates():
    assert (
        table(made("/ws/echo"), made("/ws/chat/{channel}")).near_misses("/ws/ecco")[0] == "/ws/echo"
    )


def test_a_template_twice_is_refused_and_the_first_one_stays():
    echo = made("/ws/echo")
    endpoints = table(echo)
    with pytest.raises(TemplateError, match="'/ws/echo' is registered already"):
        endpoints.add(made("/ws/echo"))
    assert list(endpoints) == [echo]


# ── two doors to the same channels ────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (("/a/{channel}", None), ("/b/{channel}", None)),
        (("/a/{channel}", None), ("/b/{room}", "{room}")),
        (("/a/{room}", "{room}"), ("/b/{channel:int}", None)),
        (("/a/{x}", "support:{x}"), ("/b/{y}", "support:{y}")),
        (("/a", "lobby"), ("/b", "lobby")),
    ],
)
def test_a_second_door_to_the_same_channels_is_refused_and_both_are_named(first, second):
    endpoints = table(made(first[0], channel=first[1]))
    with pytest.raises(TemplateError, match="both lead into the channels") as caught:
        endpoints.add(made(second[0], channel=second[1]))
    text = str(caught.value)
    for word in [
        repr(first[0]),
        repr(second[0]),
        "on_subscribe",
        'channel="admin:',
        "share_channels=True",
    ]:
        assert word in text
    assert len(list(endpoints)) == 1


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({}, {"channel": "admin:{channel}"}),
        ({"channel": "a:{channel}"}, {"channel": "b:{channel}"}),
        ({}, {"share_channels": True}),
        ({"share_channels": True}, {}),
        ({"channel": "{{}}{channel}"}, {"channel": "{channel}{channel}"}),
    ],
)
def test_names_of_its_own_or_sharing_on_purpose_make_a_second_door_fine(first, second):
    assert len(list(table(made("/a/{channel}", **first), made("/b/{channel}", **second)))) == 2


def test_one_listener_guards_all_its_doors():
    callbacks = read_listener(Listener())
    doors = [Endpoint(Template(f"/{name}/{{channel}}"), callbacks) for name in "ab"]
    endpoints = table(*doors)
    assert endpoints.guarded_by_another(doors[0], "cars") is None


def test_case_makes_other_channels_unless_the_hub_ignores_it():
    def doors():
        return [made("/a/{x}", channel="Chat:{x}"), made("/b/{X}", channel="chat:{X}")]

    assert len(list(table(*doors()))) == 2
    with pytest.raises(TemplateError, match="both lead into"):
        table(*doors(), casefold=True)


def test_a_frameworks_own_route_is_made_once_and_seen_with_the_others():
    endpoints, calls = table(made("/ws/echo")), []

    def make():
        calls.append(1)
        return made("/live/{id}")

    first = endpoints.served((Listener, "/live/{id}"), make)
    assert endpoints.served((Listener, "/live/{id}"), make) is first
    assert calls == [1]
    assert list(endpoints.all())[1:] == [first]
    assert first not in list(endpoints)


def test_two_routes_of_one_listener_share_its_instance_and_its_channels():
    endpoints = table()
    one = endpoints.served((Listener, "/a"), lambda: made("/a/{channel}"))
    two = endpoints.served((Listener, "/b"), lambda: made("/b/{channel}"))
    assert one.callbacks is two.callbacks


def test_a_frameworks_route_is_no_second_door_either():
    endpoints = table(made("/ws/{channel}"))
    with pytest.raises(TemplateError, match="both lead into"):
        endpoints.served((Listener, "/live/{channel}"), lambda: made("/live/{channel}"))
    assert len(list(endpoints.all())) == 1


# ── one door must not lead past another's guard ───────────────────────────────────────────────


@pytest.mark.parametrize(
    ("channel", "guarded"),
    [("admin:x", True), ("admin:", False), ("admin", False), ("Admin:x", False), ("cars", False)],
)
def test_a_wide_door_does_not_lead_into_the_channels_of_a_narrower_one(channel, guarded):
    wide, narrow = made("/ws/{channel}"), made("/admin/{room}", channel="admin:{room}")
    for endpoints in (table(wide, narrow), table(narrow, wide)):
        assert endpoints.guarded_by_another(wide, channel) is (narrow if guarded else None)
        assert endpoints.guarded_by_another(narrow, channel) is None


def test_a_channel_with_a_fixed_name_is_guarded_too():
    wide, lobby = made("/ws/{channel}"), made("/lobby", channel="lobby")
    endpoints = table(wide, lobby)
    assert endpoints.guarded_by_another(wide, "lobby") is lobby
    assert endpoints.guarded_by_another(wide, "lobby2") is None


def test_a_frameworks_route_guards_its_channels_too():
    wide = made("/ws/{channel}")
    endpoints = table(wide)
    narrow = endpoints.served(
        (Listener, "/admin"), lambda: made("/admin/{room}", channel="admin:{room}")
    )
    assert endpoints.guarded_by_another(wide, "admin:x") is narrow


def test_who_shares_its_channels_leaves_its_door_open():
    wide = made("/ws/{channel}")
    narrow = made("/admin/{room}", channel="admin:{room}", share_channels=True)
    assert table(wide, narrow).guarded_by_another(wide, "admin:x") is None


def test_who_shares_its_own_channels_does_not_get_into_those_of_others():
    wide = made("/ws/{channel}", share_channels=True)
    narrow = made("/admin/{room}", channel="admin:{room}")
    assert table(wide, narrow).guarded_by_another(wide, "admin:x") is narrow


def test_shared_doors_of_one_shape_lead_in_both():
    first, second = made("/a/{channel}"), made("/b/{channel}", share_channels=True)
    endpoints = table(first, second)
    assert endpoints.guarded_by_another(first, "cars") is None
    assert endpoints.guarded_by_another(second, "cars") is None


def test_where_two_patterns_are_as_specific_neither_leads_into_what_both_could_make():
    left, right = made("/a/{x}", channel="ab:{x}"), made("/b/{y}", channel="{y}:cd")
    endpoints = table(left, right)
    assert endpoints.guarded_by_another(left, "ab:x:cd") is right
    assert endpoints.guarded_by_another(right, "ab:x:cd") is left
    assert endpoints.guarded_by_another(left, "ab:x") is None
    assert endpoints.guarded_by_another(right, "x:cd") is None


def test_an_endpoint_without_channels_asks_nobody():
    echo = made("/ws/echo")
    assert table(echo, made("/ws/chat/{channel}")).guarded_by_another(echo, "cars") is None


def test_ignoring_case_opens_no_way_round_a_guard():
    wide, narrow = made("/ws/{channel}"), made("/admin/{Room}", channel="ADMIN:{Room}")
    endpoints = table(wide, narrow, casefold=True)
    assert endpoints.guarded_by_another(wide, "admin:x") is narrow
    assert narrow.pattern.fill({"Room": "x"}) == "admin:x"


PATTERNS = st.sampled_from(["{x}", "a{x}", "{x}a", "a{x}a", "aa{x}", "a", "aa", "b{x}"])


@given(PATTERNS, PATTERNS, st.text("ab", min_size=1, max_size=4))
def test_no_channel_can_be_entered_past_a_guard_by_either_of_two_doors(first, second, channel):
    """Each channel has at most one way in, unless neither pattern makes it."""
    one, two = made("/1/{x}", channel=first), made("/2/{x}", channel=second)
    try:
        endpoints = table(one, two)
    except TemplateError:
        assert first == second
        return
    doors = [
        door
        for door in (one, two)
        if door.pattern.matches(channel) and endpoints.guarded_by_another(door, channel) is None
    ]
    makers = [door for door in (one, two) if door.pattern.matches(channel)]
    assert len(doors) <= 1
    if len(makers) == 1:
        assert doors == makers


def test_a_way_to_deal_with_slow_clients_that_is_none():
    with pytest.raises(
        ValueError, match="'close', 'drop_oldest', 'drop_newest', 'latest', not 'x'"
    ):
        made("/ws", slow_client="x")

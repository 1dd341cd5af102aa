"""Publishers have the hub's calls; those that they don't have make no sense without a hub."""

from __future__ import annotations

import inspect

import pytest

from backchannel import AsyncPublisher, Audience, Hub, Publisher
from backchannel.publisher.awaiting import AsyncPublisherAudience
from backchannel.publisher.blocking import PublisherAudience

OWN_NODE = "makes and runs a node, which a publisher is not"
CONNECTIONS = "is about what is connected to this very node; to a publisher nothing is"
INTERNAL = "is what the package's own parts need of each other"

HUBS_ALONE = {
    "add": OWN_NODE,
    "endpoint": OWN_NODE,
    "replace": OWN_NODE,
    "page": OWN_NODE,
    "wrap": OWN_NODE,
    "lifespan": OWN_NODE,
    "serve": OWN_NODE,
    "start": OWN_NODE,
    "stop": OWN_NODE,
    "debug": OWN_NODE,
    "test_client": OWN_NODE,
    "health": OWN_NODE,
    "is_running": OWN_NODE,
    "is_leaving": OWN_NODE,
    "spawn": "runs in the hub's event loop",
    "rule": "says what holds at nodes, which write it to the engine",
    "may_publish": "is asked by a node, about one of its clients",
    "on_join": "is called by a node",
    "on_leave": "is called by a node",
    "on_user_online": "is called by a node",
    "on_user_offline": "is called by a node",
    "remember": "gives an id to the session of a request: the engine has no part in it",
    "ticket": "lets a client in, as authenticate does, which is the hub's; others sign tokens",
    "channels": CONNECTIONS,
    "info": CONNECTIONS,
    "watch": CONNECTIONS,
    "grace": INTERNAL,
    "change_all": INTERNAL,
    "change_since": INTERNAL,
    "check_channel": INTERNAL,
    "publish": INTERNAL,
    "read_history": INTERNAL,
    "recheck": INTERNAL + "; audiences have it",
}
"""What a hub has and a publisher has not, and why."""

PUBLISHERS_ALONE = {
    Publisher: {"close": "closes its connections to the engine"},
    AsyncPublisher: {"aclose": "closes its connections to the engine"},
}

NOT_GIVEN = {("history", "reader"): "is a connection of the hub's own node"}
"""Arguments of a hub's audience that a publisher's has not, and why."""


def public(kind):
    return {name for name in dir(kind) if not name.startswith("_")}


def arguments(kind, name):
    """Return a call's arguments: names, defaults, kinds and types."""
    called = getattr(kind, name)
    if not callable(called):
        return "no call"
    return [
        (one.name, one.default, one.kind, one.annotation)
        for one in inspect.signature(called).parameters.values()
        if (name, one.name) not in NOT_GIVEN
    ]


@pytest.mark.parametrize("kind", [PublisherAudience, AsyncPublisherAudience])
def test_an_audience_has_all_calls_of_the_hubs(kind):
    assert public(kind) == public(Audience)
    for name in public(Audience):
        assert arguments(kind, name) == arguments(Audience, name), name


@pytest.mark.parametrize("kind", [PublisherAudience, AsyncPublisherAudience])
def test_what_is_awaited_of_the_hub_returns_the_same(kind):
    awaited = {n for n in public(Audience) if inspect.iscoroutinefunction(getattr(Audience, n))}
    assert awaited == {
        "count", "count_users", "users", "connections", "history", "recheck"
    }  # fmt: skip
    for name in awaited:
        theirs = inspect.signature(getattr(Audience, name)).return_annotation
        assert inspect.signature(getattr(kind, name)).return_annotation == theirs, name
        assert inspect.iscoroutinefunction(getattr(kind, name)) == (kind is not PublisherAudience)


@pytest.mark.parametrize("kind", [Publisher, AsyncPublisher])
def test_a_publisher_has_all_calls_of_the_hub_that_need_no_node(kind):
    assert public(Hub) - public(kind) == set(HUBS_ALONE)
    assert public(kind) - public(Hub) == set(PUBLISHERS_ALONE[kind])
    for name in public(kind) & public(Hub):
        assert arguments(kind, name) == arguments(Hub, name), name


def test_arguments_that_are_not_given_are_there_at_the_hub():
    for name, argument in NOT_GIVEN:
        assert argument in inspect.signature(getattr(Audience, name)).parameters

"""The reference page has what there is, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import backchannel
from backchannel import AsyncPublisher, Audience, Connection, Hub, Publisher, Request, Sent
from backchannel.client import Client, Subscription
from backchannel.client import blocking as blocking_client
from backchannel.publisher.awaiting import AsyncPublisherAudience
from backchannel.publisher.blocking import PublisherAudience
from backchannel.runtime import Health

PAGE = (Path(__file__).resolve().parents[2] / "docs/reference.md").read_text()
# What the package's own parts need of each other.
INTERNAL = {
    Hub: {"change", "change_all", "change_since", "read_history", "check_channel", "grace", "info"}
    | {"publish", "recheck", "watch"},
    Audience: {"belongs_to", "target"},
}
SECTIONS = {
    "Hub": Hub,
    "ws: Connection": Connection,
    "request: Request": Request,
    "Audience": Audience,
}


def rows(section):
    """Return the first column of a section's tables."""
    text = PAGE.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    return re.findall(r"^\| (`.+?) \|", text, re.MULTILINE)


@pytest.mark.parametrize("section", SECTIONS)
def test_every_public_member_has_its_line_and_every_line_its_member(section):
    kind = SECTIONS[section]
    named = [
        re.match(r"(?:await )?(\w+)", code)[1]
        for row in rows(section)
        for code in re.findall("`(.+?)`", row)
    ]
    there = {name for name in dir(kind) if not name.startswith("_")} - INTERNAL.get(kind, set())
    assert sorted(named) == sorted(there)


@pytest.mark.parametrize(
    ("kind", "closes"),
    [
        (Publisher, {"close"}),
        (AsyncPublisher, {"aclose"}),
        (PublisherAudience, {"close"}),
        (AsyncPublisherAudience, {"close"}),
    ],
)
def test_publishers_have_what_their_section_says(kind, closes):
    codes = [
        code for row in rows("Publisher, AsyncPublisher") for code in re.findall("`(.+?)`", row)
    ]
    named = {re.match(r"(?:await )?(\w+)", code)[1] for code in codes} - {
        "close",
        "aclose",
    } | closes
    there = {name for name in dir(kind) if not name.startswith("_")} - {"belongs_to", "target"}
    assert there <= named
    assert named - there <= {"channel", "user", "session", "connection", "everyone", "broadcast"} | {
        "send", "subscribe", "unsubscribe", "count", "users", "connections", "history",
        "count_users", "recheck",
    }  # fmt: skip


def test_clients_have_what_their_section_says():
    codes = [code for row in rows("Client") for code in re.findall("`(.+?)`", row)]
    named = {re.match(r"(?:await )?(\w+)", code)[1] for code in codes}
    there = {
        kind: {name for name in dir(kind) if not name.startswith("_")}
        for kind in (Client, Subscription, blocking_client.Client, blocking_client.Subscription)
    }
    assert set().union(*there.values()) <= named
    made = {"state", "id", "user", "resumed", "channel", "position", "Subscription", "async"}
    kinds = {"Publication", "Lost", "Snapshot", "Join", "Leave", "Unsubscribed", "Event", "Member"}
    assert named - made - kinds <= there[Client] | there[Subscription]
    assert there[Client] - there[blocking_client.Client] == {"on_message"}
    assert there[Subscription] <= there[blocking_client.Subscription]


def test_every_name_that_the_package_exports_is_there():
    for name in (*backchannel.__all__, *backchannel.client.__all__):
        assert re.search(rf"\b{name}\b", PAGE), name


@pytest.mark.parametrize(
    ("kind", "word"),
    [
        (Health, "health"),
        (Sent, "Sent"),
        (backchannel.Info, "Info"),
        (backchannel.CloseReason, "CloseReason"),
    ],
)
def test_the_fields_of_a_small_class_stand_in_its_line(kind, word):
    line = re.search(rf"^\| `{word}` .*$", PAGE, re.MULTILINE)[0]
    for name in dir(kind):
        if not name.startswith("_"):
            assert re.search(rf"`\.?{name}\b", line), name

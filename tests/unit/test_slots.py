"""What nodes of a cluster say of their slots."""

from __future__ import annotations

import hiredis
import pytest

from backchannel.broker.redis.slots import (
    Redirect,
    Served,
    read_cluster,
    read_slots,
    url_of_node,
)
from backchannel.errors import BrokerUrlError


@pytest.mark.parametrize(
    ("text", "redirect"),
    [
        ("MOVED 3999 10.0.0.1:6381", Redirect("MOVED", ("10.0.0.1", 6381))),
        ("MOVED 3999 fe80::1:6381", Redirect("MOVED", ("fe80::1", 6381))),
        ("MOVED 3999 :6381", Redirect("MOVED", ("asked", 6381))),  # it knows no name of its own
        ("ASK 3999 ?:6381", Redirect("ASK", ("asked", 6381))),
        ("TRYAGAIN Multiple keys request during rehashing of slot", Redirect("TRYAGAIN")),
        ("CLUSTERDOWN The cluster is down", Redirect("CLUSTERDOWN")),
        ("READONLY You can't write against a read only replica.", Redirect("READONLY")),
        ("ERR unknown command", None),
        ("NOSCRIPT No matching script.", None),
    ],
)
def test_what_turns_a_command_back_is_told_from_other_errors(text, redirect):
    assert Redirect.read(hiredis.ReplyError(text), "asked") == redirect


def test_slots_are_read_in_their_order_with_their_masters():
    reply = [
        [8192, 16383, [None, 7001, b"id", []], [b"10.0.0.9", 7009, b"id", []]],
        [0, 8191, [b"10.0.0.1", 7000, b"id", []]],
    ]
    assert read_slots(reply, "asked") == [
        Served(0, 8191, ("10.0.0.1", 7000)),
        Served(8192, 16383, ("asked", 7001)),
    ]


def test_a_url_names_nodes_and_how_they_are_spoken_to():
    url = "rediss+cluster://ana:se%40cret@a:7000,b,[::1]:7002?ssl_cert_reqs=none"
    assert read_cluster(url, "here") == (
        (("a", 7000), ("b", 6379), ("::1", 7002)),
        "rediss://ana:se%40cret@a:7000/0?ssl_cert_reqs=none",
    )


def test_an_error_in_a_url_says_where_and_what():
    with pytest.raises(BrokerUrlError, match=r"^here: '' is no host and port; it looks like redis"):
        read_cluster("redis+cluster://a:1,", "here")


@pytest.mark.parametrize(
    ("given", "address", "url"),
    [
        ("redis+cluster://a,b", ("10.0.0.1", 7000), "redis://10.0.0.1:7000/0"),
        (
            "rediss+cluster://ana:se%40cret@a:1?ssl_cert_reqs=none",
            ("b.example", 2),
            "rediss://ana:se%40cret@b.example:2/0?ssl_cert_reqs=none",
        ),
        ("redis+cluster://:secret@[::1]:1", ("fe80::1", 2), "redis://:secret@[fe80::1]:2/0"),
    ],
)
def test_a_node_is_spoken_to_like_the_one_that_was_named(given, address, url):
    _, first = read_cluster(given, "here")
    assert url_of_node(first, address) == url

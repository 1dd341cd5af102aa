"""Which node of a cluster has which slots: its URL, and what it says of that itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import parse_qs, urlsplit

from backchannel.errors import BrokerUrlError
from backchannel.urls import port_of

if TYPE_CHECKING:
    import hiredis

__all__ = [
    "SCHEMES",
    "SLOTS",
    "Address",
    "Redirect",
    "Served",
    "read_cluster",
    "read_slots",
    "url_of_node",
]

SCHEMES: Final = {"redis+cluster": "redis", "rediss+cluster": "rediss"}
"""What such URLs begin with, and what that of one node does."""

SLOTS: Final = 16384

Address = tuple[str, int]
"""Host and port."""


class Served(NamedTuple):
    """Slots of one master.

    Args:
        first: the first of them.
        last: the last one.
        address: where the master is.
    """

    first: int
    last: int
    address: Address


class Redirect(NamedTuple):
    """Why a node did not do what it was asked to, where another one might, or the same one later.

    Args:
        kind: ``"MOVED"`` the slot is another's; ``"ASK"`` the key is, already; ``"TRYAGAIN"`` not
            all keys are yet; ``"CLUSTERDOWN"`` and ``"READONLY"`` there is no master just now.
        address: whose it is, where that is known.
    """

    kind: str
    address: Address = ("", 0)

    @classmethod
    def read(cls, error: hiredis.ReplyError, asked: str) -> Redirect | None:
        """Read an error.

        Args:
            error: it.
            asked: the host that was asked, which a node that knows no name of its own means.

        Returns:
            None where it is another error.
        """
        kind, _, rest = str(error).partition(" ")
        if kind in {"MOVED", "ASK"}:
            host, _, port = rest.partition(" ")[2].rpartition(":")
            return cls(kind, (asked if host in {"", "?"} else host, int(port)))
        return cls(kind) if kind in {"TRYAGAIN", "CLUSTERDOWN", "READONLY"} else None


def read_slots(reply: list[Any], asked: str) -> list[Served]:
    """Read what CLUSTER SLOTS answers, in the order of the slots.

    Args:
        reply: it.
        asked: the host that was asked, which a node that knows no name of its own means.
    """
    found: list[Served] = []
    for first, last, master, *_ in reply:
        host = (master[0] or b"").decode()
        address = (asked if host in {"", "?"} else host, int(master[1]))
        found.append(Served(first, last, address))
    return sorted(found)


def read_cluster(url: str, where: str) -> tuple[tuple[Address, ...], str]:
    """Read ``redis+cluster://user:password@host:7000,host:7001``.

    Args:
        url: it.
        where: how it was given, for the error.

    Returns:
        Nodes to ask first; and the URL of the first one as redis-py reads it.

    Raises:
        BrokerUrlError: it is no such URL.
    """
    parts = urlsplit(url)
    user, at, hosts = parts.netloc.rpartition("@")
    try:
        addresses = tuple(_address(host) for host in hosts.split(","))
    except ValueError as error:
        raise BrokerUrlError(f"{where}: {error}; {_LOOKS}") from None
    named = [parts.path.strip("/") or "0", *parse_qs(parts.query).get("db", ())]
    if set(named) != {"0"}:
        raise BrokerUrlError(f"{where}: a cluster has no database but 0; {_LOOKS}")
    host = hosts.partition(",")[0]
    return addresses, f"{SCHEMES[parts.scheme]}://{user}{at}{host}/0?{parts.query}"


def url_of_node(url: str, address: Address) -> str:
    """Return the URL of a node.

    Args:
        url: that of another node, as ``read_cluster`` returns it.
        address: where the node is.
    """
    parts = urlsplit(url)
    user, at, _ = parts.netloc.rpartition("@")
    host = f"[{address[0]}]" if ":" in address[0] else address[0]
    return parts._replace(netloc=f"{user}{at}{host}:{address[1]}").geturl()


_LOOKS: Final = "it looks like redis+cluster://10.0.0.1:6379,10.0.0.2:6379"


def _address(text: str) -> Address:
    host, port = port_of(text)
    return host, port or 6379

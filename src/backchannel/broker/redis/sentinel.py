"""Where the master of a replicated engine is: what Redis Sentinel's processes say."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import parse_qs, unquote, urlencode, urlsplit

import hiredis

from backchannel.broker.redis.link import Link
from backchannel.errors import BrokerUnavailable, BrokerUrlError
from backchannel.urls import port_of

if TYPE_CHECKING:
    import ssl

__all__ = ["SCHEMES", "Sentinels", "read_sentinels"]

SCHEMES: Final = {"redis+sentinel": "redis", "rediss+sentinel": "rediss"}
"""What such URLs begin with, and what that of the master does."""

PATIENCE: Final = 1.0
"""Seconds that one of them may take before the next is asked."""


class Sentinels(NamedTuple):
    """The processes that know the master.

    Args:
        addresses: (host, port) of each.
        service: what the master is called there.
        password: theirs, which need not be the master's; None where they want none.
        tls: how they are spoken to; None is in the clear.
    """

    addresses: tuple[tuple[str, int], ...]
    service: str
    password: str | None
    tls: ssl.SSLContext | None = None

    async def find(self) -> tuple[str, int]:
        """Return where the master is, as the first of them says that answers.

        Raises:
            BrokerUnavailable: none of them answers, or knows it.
        """
        problems: list[str] = []
        for host, port in self.addresses:
            try:
                async with asyncio.timeout(PATIENCE):
                    return await self._ask(host, port)
            except TimeoutError:
                problems.append(f"{host}:{port} did not answer in {PATIENCE:g} s")
            except (OSError, BrokerUnavailable, hiredis.ReplyError) as error:
                problems.append(f"{host}:{port}: {error}")
        raise BrokerUnavailable(f"no sentinel tells the master: {'; '.join(problems)}")

    async def _ask(self, host: str, port: int) -> tuple[str, int]:
        name = host if self.tls is not None else None
        connecting = asyncio.get_running_loop().create_connection(
            lambda: Link(_nothing), host, port, ssl=self.tls, server_hostname=name
        )
        _, link = await connecting
        try:
            if self.password is not None:
                await link.call("AUTH", self.password)
            found = await link.call("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.service)
        finally:
            link.close()
            await link.lost
        if found is None:
            raise BrokerUnavailable(f"it knows no {self.service!r}")
        return found[0].decode(), int(found[1])


def read_sentinels(url: str, where: str) -> tuple[Sentinels, str]:
    """Read ``redis+sentinel://user:password@host:26379,host:26379/service/0?sentinel_password=…``.

    Args:
        url: it.
        where: how it was given, for the error.

    Returns:
        The sentinels; and the URL of the master as redis-py reads it, with a host that is no one's.

    Raises:
        BrokerUrlError: it is no such URL.
    """
    parts = urlsplit(url)
    user, at, hosts = parts.netloc.rpartition("@")
    service, _, db = parts.path.strip("/").partition("/")
    try:
        addresses = tuple(_address(host) for host in hosts.split(","))
    except ValueError as error:
        raise BrokerUrlError(f"{where}: {error}; {_LOOKS}") from None
    if not service:
        raise BrokerUrlError(f"{where}: the path is what sentinels call the master; {_LOOKS}")
    query: dict[str, Any] = parse_qs(parts.query)
    password = query.pop("sentinel_password", [None])[0]
    rest = urlencode(query, doseq=True)
    master = f"{SCHEMES[parts.scheme]}://{user}{at}master.invalid/{db or 0}?{rest}"
    return Sentinels(addresses, unquote(service), password), master


_LOOKS: Final = "it looks like redis+sentinel://10.0.0.1:26379,10.0.0.2:26379/mymaster/0"


def _address(text: str) -> tuple[str, int]:
    host, port = port_of(text)
    return host, port or 26379


def _nothing(topic: bytes, data: bytes) -> None:
    """Hear nothing: sentinels are only asked."""

"""Opening connections to the engine: where it is, who we are, and whether it will do."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import re
import ssl
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import urlsplit

import hiredis
from redis.asyncio.connection import SSLConnection, parse_url
from redis.exceptions import RedisError

from backchannel.broker.redis import slots
from backchannel.broker.redis.link import Link
from backchannel.broker.redis.sentinel import SCHEMES, Sentinels, read_sentinels
from backchannel.errors import BrokerUnavailable, BrokerUnusable, BrokerUrlError
from backchannel.urls import hidden, port_of, problem_of, problem_of_options

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "Door",
    "IsReplica",
    "NoShards",
    "Opened",
    "Whereabouts",
    "check_mode",
    "check_version",
    "facts_of",
    "read_url",
    "role_of",
]

KNOWN: Final = ("redis", "rediss", "unix", *SCHEMES, *slots.SCHEMES)
"""What URLs of engines begin with."""

_LOOKS: Final = "it looks like redis://localhost:6379/0"
_NEEDED: Final = {"Redis": (6, 2), "Valkey": (7, 2)}
_NEEDED_FOR_SHARDS: Final = {"Redis": (7, 0), "Valkey": (7, 2)}
"""The first ones with topics of shards."""


class NoShards(BrokerUnusable):
    """An engine does not have the topics of shards that it is to have."""


class IsReplica(BrokerUnavailable):
    """An engine is not to be published at: who is at its master would not hear it.

    Args:
        shown: where it is, for people.
        role: see ``role_of``.
    """

    def __init__(self, shown: str, role: str):
        super().__init__(f"{shown} can't be used: it is {role}")
        self.role = role


class Whereabouts(NamedTuple):
    """Where an engine is.

    Args:
        url: the engine's; of a master that sentinels know its host is no one's.
        shown: as it was given, without passwords, for people.
        options: what redis-py reads in it.
        sentinels: who knows where the master is; None where the URL says it.
        nodes: of a cluster, host and port of some; empty where it is none.
    """

    url: str
    shown: str
    options: dict[str, Any]
    sentinels: Sentinels | None
    nodes: tuple[slots.Address, ...] = ()

    @property
    def database(self) -> int:
        """The number of its database."""
        return self.options.get("db") or 0

    @property
    def is_tls(self) -> bool:
        """It is spoken to with TLS."""
        return self.options.get("connection_class") is SSLConnection


class Opened(NamedTuple):
    """A connection that can be used.

    Args:
        link: it.
        run: names the engine's unbroken run of data: its replication id, which is another one after
            a restart and after a failover.
        before: the name of the run that it goes on from, maybe without all of its data; or of none.
        age: seconds that the run has lasted at least.
    """

    link: Link
    run: str
    before: str
    age: int


class Door:
    """Where an engine is.

    Args:
        url: ``redis://user:password@host:6379/0``, ``rediss://…`` for TLS, ``unix:///path?db=0``;
            ``redis+sentinel://host:26379,host:26379/service/0`` for the master that sentinels know;
            ``redis+cluster://host:6379,host:6379`` for a cluster, by some of its nodes.

    Attributes:
        shown: the URL without its password, for people.
        host: the machine, where it has no path.
        in_cluster: it is a node of a cluster; see ``of_node``.
        is_sharded: in a cluster, topics are those of shards, which their slot's master has alone.
        nodes: of a cluster, the ones that its URL names.
        database: the number of its database.

    Raises:
        BrokerUrlError: it is no such URL.
    """

    def __init__(self, url: str):
        found = read_url(url, "Hub(broker={})")
        _, self.shown, options, sentinels, self.nodes = found
        try:
            self._tls = _tls(options)
        except (RedisError, OSError, ValueError) as error:
            raise BrokerUrlError(f"Hub(broker={self.shown!r}): {error}") from error
        self._sentinels = sentinels and sentinels._replace(tls=self._tls)
        self._master: slots.Address | None = None  # as they said last
        self.in_cluster = self.is_sharded = False
        self._path: str | None = options.get("path")
        self.host: str = options.get("host") or "localhost"
        self._port: int = options.get("port") or 6379
        self.database = found.database
        self._user: str | None = options.get("username")
        self._password: str | None = options.get("password")

    def of_node(self, address: slots.Address) -> Door:
        """Return where a node of a cluster is that is spoken to like this one."""
        door = copy.copy(self)
        door.host, door._port = address
        scheme = "redis" if self._tls is None else "rediss"
        door.shown = f"{scheme}://{address[0]}:{address[1]}"
        door.in_cluster = True
        return door

    @property
    def address(self) -> slots.Address:
        """Host and port."""
        return self.host, self._port

    async def open(
        self, hear: Callable[[bytes, bytes], None], seconds: float, *, anyone: bool = False
    ) -> Opened:
        """Open a connection.

        Args:
            hear: called with what its subscriptions hear.
            seconds: it may take.
            anyone: a replica will do too.

        Raises:
            IsReplica: who answers is one.
            BrokerUnavailable: nobody answers there.
            BrokerUnusable: who answers will not do.
        """
        link = None
        try:
            async with asyncio.timeout(seconds):
                link = await self._connect(hear)
                return Opened(link, *await self._greet(link, anyone=anyone))
        except TimeoutError as error:
            self._close(link)
            what = f"{self.shown} did not answer in {seconds:g} s"
            raise BrokerUnavailable(what + self._tls_hint(link)) from error
        except IsReplica:
            self._close(link)
            raise
        except (OSError, BrokerUnavailable) as error:
            self._close(link)
            what = f"{self.shown} can't be reached: {error}"
            raise BrokerUnavailable(what + self._tls_hint(link)) from error
        except BaseException:
            self._close(link)
            raise

    async def has_moved(self) -> bool:
        """Tell whether sentinels name another master than the one that was connected to last.

        That one may go on as a master for ten seconds more, of nobody who asks from now on.
        """
        if self._sentinels is None:
            return False
        try:
            return await self._sentinels.find() != self._master
        except BrokerUnavailable:  # nobody knows better
            return False

    def _tls_hint(self, link: Link | None) -> str:
        if self._tls is None or link is not None:
            return ""
        return ", or does not speak TLS, as rediss:// says"

    @staticmethod
    def _close(link: Link | None) -> None:
        if link is not None:
            link.close()

    async def _connect(self, hear: Callable[[bytes, bytes], None]) -> Link:
        loop = asyncio.get_running_loop()

        def make() -> Link:
            return Link(hear)

        if self._path is not None:
            return (await loop.create_unix_connection(make, self._path))[1]
        host, port = self.host, self._port
        if self._sentinels is not None:
            host, port = self._master = await self._sentinels.find()
        name = host if self._tls is not None else None
        connecting = loop.create_connection(make, host, port, ssl=self._tls, server_hostname=name)
        return (await connecting)[1]

    async def _greet(self, link: Link, *, anyone: bool) -> tuple[str, str, int]:
        """Say who we are; return what names the engine's run of data, the one before, its age."""
        try:
            await link.call("HELLO", "3", *self._credentials())
        except hiredis.ReplyError as error:
            if _is_unknown(error):
                await self._check_old(link)
            raise BrokerUnusable(self._unwelcome(error)) from error
        if self.database:
            await self._ask(link, "SELECT", self.database)
        facts = facts_of(await self._ask(link, "INFO", "server"))
        facts |= facts_of(await self._ask(link, "INFO", "replication"))
        check_version(facts, self.shown, is_sharded=self.is_sharded)
        check_mode(facts, self.shown, in_cluster=self.in_cluster, is_tls=self._tls is not None)
        if (role := role_of(facts)) and not anyone:
            raise IsReplica(self.shown, role)
        run = facts.get("master_replid") or facts.get("run_id") or ""
        before = facts.get("master_replid2", "")
        # Who goes on from another run does not say since when.
        age = 0 if before.strip("0") else int(facts.get("uptime_in_seconds", 0))
        return run, before, age

    def _credentials(self) -> tuple[str, ...]:
        if self._password is None:
            return ()
        return ("AUTH", self._user or "default", self._password)

    def _unwelcome(self, error: Exception) -> str:
        text = str(error)
        if text.startswith(("NOAUTH", "WRONGPASS", "ERR AUTH")):
            what = "wants a password" if text.startswith("NOAUTH") else "refuses this password"
            return f"{self.shown} {what}: redis://:password@host:port, or user:password ({text})"
        if _is_unknown(error):
            return f"{self.shown} is too old: Redis 6.2 or Valkey 7.2 is needed ({text})"
        return f"{self.shown} answers {text!r}"

    async def _check_old(self, link: Link) -> None:
        """Raise BrokerUnusable with the version of one that knows no HELLO, if it tells it."""
        if (credentials := self._credentials()[1:]) and self._user is None:
            credentials = credentials[1:]  # users came with HELLO
        with contextlib.suppress(hiredis.ReplyError, BrokerUnavailable):
            if credentials:
                await link.call("AUTH", *credentials)
            facts = facts_of(await link.call("INFO", "server"))
            check_version(facts, self.shown)

    async def _ask(self, link: Link, *command: str | int) -> Any:
        try:
            return await link.call(*command)
        except hiredis.ReplyError as error:
            raise BrokerUnusable(f"{self.shown} answers {str(error)!r}") from error


def check_version(facts: dict[str, str], shown: str, *, is_sharded: bool = False) -> None:
    """Check that an engine is new enough.

    Args:
        facts: what it says of itself.
        shown: where it is, for people.
        is_sharded: it is to have topics of shards.

    Raises:
        NoShards: it is, but has no topics of shards.
        BrokerUnusable: it is not.
    """
    kind = "Valkey" if "valkey_version" in facts else "Redis"
    have = facts.get("valkey_version") or facts.get("redis_version") or "0"
    numbers = tuple(int(number) for number in re.findall(r"\d+", have)[:2])
    if numbers < _NEEDED[kind]:
        raise BrokerUnusable(f"{shown} is {kind} {have}: {_least(_NEEDED[kind])}")
    if is_sharded and numbers < _NEEDED_FOR_SHARDS[kind]:
        raise NoShards(
            f"{shown} is {kind} {have}: {_least(_NEEDED_FOR_SHARDS[kind])}, since the hub's nodes "
            "use topics of shards there"
        )


def _least(needed: tuple[int, int]) -> str:
    return ".".join(map(str, needed)) + " or newer is needed"


def check_mode(facts: dict[str, str], shown: str, *, in_cluster: bool, is_tls: bool) -> None:
    """Check that an engine is a node of a cluster, or that it is none.

    Args:
        facts: what it says of itself.
        shown: where it is, for people.
        in_cluster: it is to be a node of a cluster.
        is_tls: it is spoken to with TLS.

    Raises:
        BrokerUnusable: it is not what it is to be.
    """
    mode = facts.get("redis_mode") or facts.get("server_mode")
    scheme = "rediss" if is_tls else "redis"
    if mode == "cluster" and not in_cluster:
        raise BrokerUnusable(f"{shown} is a node of a cluster: write {scheme}+cluster://host:port")
    if mode != "cluster" and in_cluster:
        raise BrokerUnusable(f"{shown} is no node of a cluster: write {scheme}://host:port")


def read_url(url: str, call: str) -> Whereabouts:
    """Read where an engine is.

    Args:
        url: see ``Door``.
        call: how it was given, with ``{}`` for the URL, for the error.

    Raises:
        BrokerUrlError: it is no such URL.
    """
    shown, sentinels = hidden(url), None
    where = call.format(repr(shown))
    nodes: tuple[slots.Address, ...] = ()
    scheme = url.partition("://")[0]
    problem = problem_of(url)
    if problem is None and scheme in KNOWN:
        problem = problem_of_options(url, *(("sentinel_password",) if scheme in SCHEMES else ()))
    if problem is not None:
        raise BrokerUrlError(f"{where}: {problem}")
    if scheme in SCHEMES:
        sentinels, url = read_sentinels(url, where)
    elif scheme in slots.SCHEMES:
        nodes, url = slots.read_cluster(url, where)
    elif scheme not in KNOWN:
        raise BrokerUrlError(f"{where}: {_no_scheme(url)}; {_LOOKS}")
    elif scheme != "unix":
        _check_place(url, where)
    try:
        options: dict[str, Any] = dict(parse_url(url))
    except ValueError:  # its text may have a part of the password
        raise BrokerUrlError(f"{where}: can't be read; {_LOOKS}") from None
    parts = urlsplit(url)
    path = parts.path.strip("/")  # redis-py takes 1/2 for 12
    if parts.scheme != "unix" and path and ("db" not in options or "/" in path):
        raise BrokerUrlError(f"{where}: the path is the number of a database, such as /0")
    return Whereabouts(url, shown, options, sentinels, nodes)


def _no_scheme(url: str) -> str:
    """Tell what is wrong with how a URL begins."""
    kind, _, rest = url.partition(":")
    if kind in KNOWN:
        return f"{kind!r} is followed by ://"
    near = get_close_matches(kind, KNOWN, 1) if rest.startswith("//") else ()
    hint = "".join(f": did you mean {name}://?" for name in near)
    return f"begins with none of {', '.join(f'{one}://' for one in KNOWN)}{hint}"


def _check_place(url: str, where: str) -> None:
    place = urlsplit(url).netloc.rpartition("@")[2]
    try:
        port_of(place or "localhost")
    except ValueError as error:
        raise BrokerUrlError(f"{where}: {error}; {_LOOKS}") from None


def _tls(options: dict[str, Any]) -> ssl.SSLContext | None:
    if options.get("connection_class") is not SSLConnection:
        return None
    wanted = {name: value for name, value in options.items() if name.startswith("ssl_")}
    connection: Any = SSLConnection(**wanted)
    context: ssl.SSLContext = connection.ssl_context.get()
    return context


def facts_of(info: Any) -> dict[str, str]:
    """Read what INFO answers."""
    lines = bytes(info).decode(errors="replace").splitlines()
    return dict(line.split(":", 1) for line in lines if ":" in line)


def role_of(facts: dict[str, str]) -> str:
    """Return whose replica an engine is, by what it says of itself; empty where it is a master."""
    if facts.get("role") in {"master", None}:
        return ""
    return f"a replica of {facts.get('master_host')}:{facts.get('master_port')}"


def _is_unknown(error: Exception) -> bool:
    text = str(error)
    return "unknown command" in text.lower() or text.startswith("NOPROTO")

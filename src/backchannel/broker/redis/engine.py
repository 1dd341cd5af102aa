"""Staying connected to the engine: scripts, topics, signs of life, and coming back."""

from __future__ import annotations

import asyncio
import random
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Final, Protocol

import hiredis

from backchannel.broker.redis.door import IsReplica, facts_of, role_of
from backchannel.errors import BrokerUnavailable, BrokerUnusable
from backchannel.observe import BROKER

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from backchannel.broker.redis.door import Door
    from backchannel.broker.redis.link import Link

__all__ = ["Engine", "Owner"]

BACK_OFF: Final = (0.05, 2.0)
"""Seconds before the second attempt to connect, and at most between two."""

BEAT: Final = 2.0
"""Seconds between two signs of life that the engine is asked for."""

PATIENCE: Final = 10
"""How often the engine gets that time once more, while it is still answering what came before."""

_SCRIPTS: Final = {
    name: files("backchannel.broker.redis").joinpath(f"{name}.lua").read_text()
    for name in ("publish", "history", "presence", "ask")
}


class Owner(Protocol):
    """Who is told what becomes of the connection."""

    @property
    def topics(self) -> Iterable[bytes]:
        """What is to be heard."""
        ...

    def connected(self, *, again: bool) -> None:
        """Take note that all topics are heard and all may be said."""
        ...

    def disconnected(self) -> None:
        """Take note that nothing is heard."""
        ...

    def failed(self, text: str, error: Exception) -> None:
        """Take note of a bug."""
        ...

    def dropped(self, topic: bytes) -> None:
        """Take note that a topic is not heard here any more, or can't be."""
        ...


class Engine:
    """Redis or Valkey, somewhere, which may go and come back.

    Args:
        door: where it is, and whether topics are those of shards.
        timeout: seconds that it has to answer.
        hear: called with topic and payload of what its topics hear.
        owner: told what becomes of the connection.

    Attributes:
        link: the connection; None while it is away.
        shown: its URL without the password.
        role: while it is away, what else it is by now, for people: a replica; or empty.
        run: names its unbroken run of data.
        before: names the run that this one goes on from, maybe without all of its data.
        run_since: when the run is known to have been there already, by the loop's clock.
        scripts: by which hash each is called.
    """

    def __init__(
        self, door: Door, timeout: float, hear: Callable[[bytes, bytes], None], owner: Owner
    ):
        self._door = door
        self._timeout = timeout
        self._hear = hear
        self._owner = owner
        self._staying: asyncio.Task[None] | None = None
        self._asked = 0.0  # for a sign of life, by the loop's clock; 0 is answered
        self.link: Link | None = None
        self.shown = self._door.shown
        self.role = ""
        self.run: str = ""
        self.before: str = ""
        self.run_since = 0.0
        self.scripts: dict[str, str] = {}

    @property
    def silence(self) -> float:
        """Seconds since a sign of life was asked for that has not come; 0 where it has."""
        return asyncio.get_running_loop().time() - self._asked if self._asked else 0.0

    async def start(self) -> None:
        """Connect for the first time, and stay connected from then on.

        Raises:
            BrokerUnavailable: nobody answers there.
            BrokerUnusable: who answers will not do.
        """
        await self._connect(again=False)
        self.stay()

    def stay(self) -> None:
        """Connect as soon as it can be done, and stay connected from then on."""
        self._staying = asyncio.create_task(self._stay_connected())

    async def stop(self) -> None:
        """Disconnect, once what was said has left."""
        if self.link is not None:
            await self._gives_sign_of_life(self.link, 1.0)
        if self._staying is not None:
            self._staying.cancel()
            await asyncio.wait({self._staying})
        if self.link is not None:
            self.link.close()
            await self.link.lost
            self.link = None

    async def _stay_connected(self) -> None:
        """Connect again whenever the connection is lost."""
        while True:
            try:
                await self._watch()
                await self._connect_again()
            except Exception as error:  # noqa: BLE001 - a bug must not end this for good
                self._owner.failed(f"staying connected to the broker failed: {error!r}", error)
                await asyncio.sleep(BACK_OFF[1])

    async def _watch(self) -> None:
        """Return when the connection is lost, the engine gives no sign of life, or is a replica."""
        while (link := self.link) is not None:
            reasons = {link.lost, link.refused}
            await asyncio.wait(reasons, timeout=BEAT, return_when=asyncio.FIRST_COMPLETED)
            if not link.lost.done():
                info = link.call("INFO", "replication")  # answered before the sign of life
                info.add_done_callback(_read)
                lives = await self._gives_sign_of_life(link, self._timeout)
                self.role = _role(info, link)
                if self.role:
                    link.problem = f"it is {self.role} by now"
                elif lives and await self._door.has_moved():
                    link.problem = "another one is the master now"
                elif lives:
                    continue
            link.close()
            await link.lost
            self.link = None
            why = f": {link.problem}" if link.problem else ""
            BROKER.error("%s is lost%s; connections stay open", self.shown, why)
            self._owner.disconnected()

    async def _gives_sign_of_life(self, link: Link, seconds: float) -> bool:
        """Tell whether the engine answers; it has more time while it answers something else."""
        answer, seen = link.call("PING"), -1
        self._asked = asyncio.get_running_loop().time()
        for _ in range(PATIENCE):
            if answer.done() or link.progress == seen:
                break
            seen = link.progress
            await asyncio.wait({answer}, timeout=seconds)
        self._asked = 0.0
        return answer.done() and answer.exception() is None

    async def _connect_again(self) -> None:
        wait, longest = BACK_OFF
        problem = ""
        while self.link is None:
            try:
                await self._connect(again=True)
            except (BrokerUnavailable, BrokerUnusable) as error:
                self.role = error.role if isinstance(error, IsReplica) else ""
                if str(error) != problem:
                    problem = str(error)
                    BROKER.warning("still away: %s", problem)
                await asyncio.sleep(random.uniform(0, wait))  # noqa: S311 - full jitter
                wait = min(2 * wait, longest)
        BROKER.info("%s is back", self.shown)

    async def _connect(self, *, again: bool) -> None:
        link, run, before, age = await self._door.open(self._hear, self._timeout)
        link.dropped = self._owner.dropped
        try:
            async with asyncio.timeout(self._timeout):
                for name, script in _SCRIPTS.items():
                    self.scripts[name] = (await link.call("SCRIPT", "LOAD", script)).decode()
                await self._listen_to_all(link)
        except (TimeoutError, hiredis.ReplyError, BrokerUnavailable) as error:
            link.close()
            raise BrokerUnavailable(f"{self.shown} can't be used: {error!r}") from error
        except BaseException:
            link.close()
            raise
        if run != self.run:
            self.run_since = asyncio.get_running_loop().time() - age
        self.run, self.before, self.link, self.role = run, before, link, ""
        self._owner.connected(again=again)

    def reload(self) -> None:
        """Load the scripts again, which the engine was told to forget (SCRIPT FLUSH)."""
        if self.link is not None:
            for script in _SCRIPTS.values():
                self.link.call("SCRIPT", "LOAD", script)

    async def evaluate(self, name: str, *words: str | bytes | float, asking: bool = False) -> Any:
        """Run a script; return its reply.

        Args:
            name: of the script.
            words: its keys, how many these are before them, and its arguments.
            asking: of a slot that is only on its way here.

        Raises:
            BrokerUnavailable: the engine is away.
            hiredis.ReplyError: it refused.
        """
        for may_reload in (True, False):
            if (link := self.link) is None:
                break
            if asking:
                link.call("ASKING")
            try:
                return await link.call("EVALSHA", self.scripts[name], *words)
            except hiredis.ReplyError as error:
                if not (may_reload and str(error).startswith("NOSCRIPT")):
                    raise
                self.reload()
        raise BrokerUnavailable(f"{self.shown} is away")

    def hear(self, topic: bytes) -> asyncio.Future[Any] | None:
        """Hear what is published to a topic from now on; None where the engine is away."""
        verb = "SSUBSCRIBE" if self._door.is_sharded else "SUBSCRIBE"
        return None if self.link is None else self.link.call(verb, topic)

    def leave(self, topic: bytes) -> None:
        """Hear no more of it."""
        if self.link is None:
            return
        if self._door.is_sharded:
            self.link.leave(topic)
        else:
            self.link.call("UNSUBSCRIBE", topic)

    async def _listen_to_all(self, link: Link) -> None:
        """Listen to what is to be heard, and to what becomes so meanwhile."""
        verb = "SSUBSCRIBE" if self._door.is_sharded else "SUBSCRIBE"
        heard: set[bytes] = set()
        while todo := [topic for topic in self._owner.topics if topic not in heard]:
            for topic, confirmed in [(topic, link.call(verb, topic)) for topic in todo]:
                try:
                    await confirmed
                except hiredis.ReplyError:
                    if not self._door.is_sharded:
                        raise
                    self._owner.dropped(topic)  # it is another node's by now
            heard.update(todo)


def _read(info: asyncio.Future[Any]) -> None:
    """Look at a reply that nobody may wait for any more."""
    if not info.cancelled():
        info.exception()


def _role(info: asyncio.Future[Any], link: Link) -> str:
    """Return what an engine is where it has become a replica, which publishes to nobody else.

    Args:
        info: what it says of itself, unless it refuses to.
        link: the connection to it.
    """
    is_known = info.done() and info.exception() is None
    role = role_of(facts_of(info.result())) if is_known else ""
    if not role and link.refused.done():
        return "a replica, or was one just now"  # what it refused waits for the next connection
    return role

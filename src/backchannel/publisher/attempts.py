"""Getting things done by the one engine there is, where that can't do them twice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from time import monotonic
from typing import Any, Final

from redis.exceptions import NoScriptError, ResponseError

from backchannel.errors import BrokerUnavailable, BrokerUnusable
from backchannel.publisher.steps import Command, InRun, Listen, Lost, NotSent, Pause, Work

__all__ = ["SCRIPTS", "Attempts", "Errand"]

BACK_OFF: Final = (0.05, 1.0)
"""Seconds before the second attempt, and at most between two."""

SCRIPTS: Final = {
    name: files("backchannel.broker.redis").joinpath(f"{name}.lua").read_text()
    for name in ("publish", "history", "presence", "ask")
}


@dataclass(slots=True)
class Errand:
    """Something to get done.

    Args:
        words: makes the command, each time that it is sent; is given this.
        key: what it is about, key or topic.
        deadline: until when, by ``monotonic``.
        may_repeat: it may be sent again after it was sent and not answered.
        changes: it publishes something, so that an error has to say whether it did.
        whole: it looks at more keys than ``key``: not while only some of them are there.

    Attributes:
        lost: how it was first sent and not answered: it may have been done already.
        runs: words about other engines' runs of data from which the key came, whole.
        is_early: it was done by a node that does not have the slot yet.
    """

    words: Callable[[Errand], tuple[Any, ...]]
    key: bytes
    deadline: float
    may_repeat: bool = True
    changes: bool = True
    whole: bool = False
    lost: Lost | None = None
    runs: tuple[Any, ...] = ()
    is_early: bool = False

    @property
    def left(self) -> float:
        """Seconds that there are left, or hardly any."""
        return max(0.001, self.deadline - monotonic())


class Attempts:
    """The way to one engine.

    Args:
        shown: where it is, for people.
        hub: the hub's name.
        patience: seconds that connecting may take.

    Attributes:
        is_sharded: in a cluster, the hub's nodes use topics of shards, as far as it is known.
    """

    is_sharded = False

    def __init__(self, shown: str, hub: str, patience: float):
        self._shown = shown
        self._hub = hub
        self._patience = patience
        self._hashes: dict[str, str] = {}

    @property
    def verb(self) -> str:
        """The command that publishes."""
        return "SPUBLISH" if self.is_sharded else "PUBLISH"

    def told(self, *, is_sharded: bool) -> None:
        """Take note of which topics the hub's nodes use, where there is a choice."""

    def do(self, errand: Errand) -> Work[Any]:
        """Send a command until it is answered; return the reply.

        Raises:
            BrokerUnavailable: the engine does not answer.
            BrokerUnusable: there is something else in it.
        """

        def make() -> Command:
            return Command(errand.words(errand), errand.left)

        return (yield from self._repeat(make, errand))

    def listen(self, topic: bytes, deadline: float) -> Work[Any]:
        """Hear a topic from now on; return the inbox that hears it. Raises as ``do`` does."""
        errand = Errand(_nothing, topic, deadline, changes=False)
        return (yield from self._repeat(lambda: Listen(topic, errand.left), errand))

    def loaded(self, name: str, deadline: float) -> Work[str]:
        """Return by which hash a script is called, which the engine has been told."""
        if name not in self._hashes:
            load = ("SCRIPT", "LOAD", SCRIPTS[name])
            reply = yield from self.do(Errand(lambda _: load, b"", deadline, changes=False))
            self._hashes[name] = reply.decode()
        return self._hashes[name]

    def again(self, errand: Errand) -> int | InRun:
        """Return what ``publish.lua`` is told of earlier attempts."""
        # An attempt in another run of data than this one may be in what that has lost.
        return 0 if errand.lost is None else InRun((errand.lost.run,), 3, 1)

    def _repeat(self, make: Callable[[], Command | Listen], errand: Errand) -> Work[Any]:
        wait, longest = BACK_OFF
        while True:
            try:
                return (yield from self._go(make, errand))
            except NotSent as error:
                problem: Exception = error
            except Lost as error:
                if not errand.may_repeat:
                    raise BrokerUnavailable(self._unsure()) from error
                problem, errand.lost = error, errand.lost or error
            except NoScriptError:  # the engine has been restarted, or is another one
                self._hashes.clear()
                for name in SCRIPTS:
                    yield from self.loaded(name, errand.deadline)
                continue
            except ResponseError as error:
                raise self._refused(error) from error
            if monotonic() + wait + self._patience > errand.deadline:
                may_be = errand.lost is not None and errand.changes
                text = self._unsure() if may_be else f"{self._shown} is away: {problem}"
                raise BrokerUnavailable(text) from problem
            yield Pause(wait)
            wait = min(2 * wait, longest)

    def _go(self, make: Callable[[], Command | Listen], errand: Errand) -> Work[Any]:  # noqa: ARG002
        """Take a step where it belongs."""
        return (yield make())

    def _refused(self, error: ResponseError) -> Exception:
        text = str(error)
        if text.startswith("UNSURE"):
            return BrokerUnavailable(self._unsure())
        if text.startswith("WRONGTYPE"):
            return BrokerUnusable(
                f"{self._shown} has data of something else under the name of hub "
                f"{self._hub!r}: {text}"
            )
        return BrokerUnavailable(f"{self._shown} refused it: {text}")

    def _unsure(self) -> str:
        return (
            f"{self._shown} did not answer, or the connection to it was lost: this may have been "
            "published, or not"
        )


def _nothing(errand: Errand) -> tuple[Any, ...]:  # noqa: ARG001 - nothing is sent
    return ()

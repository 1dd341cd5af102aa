"""What publishing asks of a connection to the engine, one step at a time.

What there is to do is written once, as generators that yield steps; blocking and async publishers
take the steps each in its own way.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

if TYPE_CHECKING:
    from backchannel.broker.redis.slots import Address

__all__ = ["RUN", "Command", "Hear", "InRun", "Leave", "Listen", "Lost", "NotSent", "Pause", "Work"]

T = TypeVar("T")

RUN: Final = object()
"""Among a command's words: what names the run of data of the engine that it is sent to."""


class InRun(NamedTuple):
    """Among a command's words: one that depends on the run of data of who it is sent to.

    Args:
        runs: the names of some.
        word: the word in one of these.
        otherwise: the word in any other.
    """

    runs: tuple[str, ...]
    word: Any
    otherwise: Any


class Command(NamedTuple):
    """Send a command and return the engine's reply.

    Raises NotSent, Lost, or redis.ResponseError where the engine refuses it.

    Args:
        words: the command.
        seconds: that the reply may take.
        at: to which node of a cluster; None is to the one engine there is.
        asking: of a slot that is only on its way to that node.
        is_sharded: the node is to have topics of shards.
    """

    words: tuple[Any, ...]
    seconds: float
    at: Address | None = None
    asking: bool = False
    is_sharded: bool = False


class Listen(NamedTuple):
    """Hear a topic from now on; return the inbox that hears it. Raises as ``Command`` does.

    Args:
        topic: its name.
        seconds: that the confirmation may take.
        at: at which node of a cluster; None is at the one engine there is.
        is_sharded: it is a topic of a shard.
    """

    topic: bytes
    seconds: float
    at: Address | None = None
    is_sharded: bool = False


class Hear(NamedTuple):
    """Return the next that an inbox hears; None in time or where its connection is lost.

    Args:
        inbox: what ``Listen`` returned.
        seconds: that it may take.
    """

    inbox: Any
    seconds: float


class Leave(NamedTuple):
    """Give an inbox back; raises nothing.

    Args:
        inbox: what ``Listen`` returned.
    """

    inbox: Any


class Pause(NamedTuple):
    """Wait before another attempt.

    Args:
        seconds: how long.
    """

    seconds: float


class NotSent(Exception):  # noqa: N818 - what happened
    """There was no connection: the engine has nothing of it."""


class Lost(Exception):  # noqa: N818
    """It was sent and not answered: the engine may have done it, or not.

    Args:
        text: how it was lost.
        run: names the run of data of who it was sent to.
    """

    def __init__(self, text: str, run: str = ""):
        super().__init__(text)
        self.run = run


Work = Generator[Command | Listen | Hear | Leave | Pause, Any, T]
"""What there is to do: yields steps, is sent what they return or thrown what they raise."""

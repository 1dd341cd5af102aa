"""A node that keeps what it hears, for tests of brokers."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Collection, Coroutine
from typing import Any, Final, TypeVar

import pytest

from backchannel.contracts import Broker, Publication, Receipt, Target
from backchannel.errors import BrokerUnusable
from backchannel.history import Page, Position, Retention
from backchannel.sent import Outcome

__all__ = [
    "BOATS", "CARS", "KEPT", "Nodes", "RecordingNode", "frames", "needed", "started", "until",
]  # fmt: skip

CARS: Final = Target("channel", "cars")
BOATS: Final = Target("channel", "boats")
KEPT: Final = Retention(5, 3600.0)

T = TypeVar("T")


class RecordingNode:
    """A node that keeps what it hears.

    Args:
        broker: its broker.

    Attributes:
        heard: publications, with their positions.
        interruptions: how often it was told that something may have been missed.
        problems: what it was told to report.
        dropped: from where it was told of something that no node says.
        answers: what it answers to the first word of a question; a callable is called.
        here: the devices it has of a user in a channel; ``come`` and ``go`` announce them.
        settling: channels in which joins wait for the moment.
        told: channel, user and True for a join, in the order it was told.
        says: what it tells of its hub.
        takes: what else it takes for what nodes of its hub say.
    """

    def __init__(self, broker: Broker):
        self.id = secrets.token_hex(4)
        self.broker = broker
        self.heard: asyncio.Queue[tuple[Publication, Position | None]] = asyncio.Queue()
        self.interruptions = 0
        self.problems: list[str] = []
        self.dropped: list[str] = []
        self.answers: dict[str, Any] = {}
        self.kept: dict[str, Retention] = {}
        self.keeps_presence = False
        self.here: dict[tuple[str, str], bytes] = {}
        self.settling: set[str] = set()
        self.told: asyncio.Queue[tuple[str, str, bool]] = asyncio.Queue()
        self.says = b"a recording node"
        self.takes: set[bytes] = set()
        self._interrupted: Counter[Target | None] = Counter()
        self._tasks: set[asyncio.Task[Any]] = set()
        broker.bind(self)

    def deliver(self, publication: Publication, position: Position | None) -> int:
        """Keep it; it reached one."""
        self.heard.put_nowait((publication, position))
        return 1

    def answer(self, asker: str, target: Target, words: list[Any]) -> Any:  # noqa: ARG002
        """Answer as it was told to."""
        answer = self.answers.get(words[0])
        return answer(*words[1:]) if callable(answer) else answer

    def interrupted(self, targets: Collection[Target] | None = None) -> None:
        """Count."""
        self.interruptions += 1
        self._interrupted.update([None] if targets is None else targets)

    def keeping(self, channel: str) -> Retention | None:
        """Keep as it was told to."""
        return self.kept.get(channel)

    def about(self) -> bytes:
        """Return what it says."""
        return self.says

    def check_about(self, found: bytes) -> None:
        """Take only what one of its kind wrote."""
        if found not in {self.says, *self.takes}:
            raise BrokerUnusable(f"is {found!r}, and not {self.says!r}")

    def outcome(self) -> Outcome:
        """Return one that reports nothing."""
        return Outcome(lambda _error: None)

    def keep(self, work: Coroutine[Any, Any, Any]) -> None:
        """Run it."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def report(self, text: str, error: BaseException | None = None) -> None:  # noqa: ARG002
        """Keep it."""
        self.problems.append(text)

    def drop(self, source: str, text: str, *words: object) -> None:  # noqa: ARG002
        """Keep where it was heard."""
        self.dropped.append(source)

    def attending(self) -> list[tuple[str, str]]:
        """Name what it has."""
        return list(self.here)

    def devices(self, channel: str, user: str) -> bytes:
        """Describe what it has."""
        return self.here.get((channel, user), b"")

    def settles(self, channel: str) -> bool:
        """Let joins wait as it was told to."""
        return channel in self.settling

    def tell_of(self, channel: str, user: str, done: Callable[[], None], *, joined: bool) -> None:
        """Keep it."""
        self.told.put_nowait((channel, user, joined))
        done()

    # ── what tests do with it ─────────────────────────────────────────────────────────────────

    async def next(self, seconds: float = 5) -> Publication:
        """Return the next publication that it hears."""
        return (await asyncio.wait_for(self.heard.get(), seconds))[0]

    async def texts(self, count: int) -> list[Any]:
        """Return the frames of the next publications that it hears."""
        return [(await self.next()).frame for _ in range(count)]

    async def publish(
        self, target: Target, frame: str | bytes, keep: Retention | None = None, **audience: Any
    ) -> Receipt:
        """Publish, and wait until the broker has it."""
        done = self.broker.publish(Publication(target, frame, **audience), keep)
        return await done if isinstance(done, Outcome) else done

    async def listen(self, *targets: Target) -> None:
        """Listen, and wait until that is so."""
        for target in targets:
            if (confirmed := self.broker.listen(target)) is not None:
                await confirmed

    def come(self, channel: str, user: str, devices: bytes = b"phone") -> None:
        """Have a user's devices in a channel, and announce it."""
        self.here[channel, user] = devices
        self.broker.announce(channel, user)

    def go(self, channel: str, user: str) -> None:
        """Have a user's devices in a channel no more, and announce it."""
        del self.here[channel, user]
        self.broker.announce(channel, user)

    def interruptions_of(self, target: Target) -> int:
        """Return how often it was told that some of a target may have been missed."""
        return self._interrupted[None] + self._interrupted[target]

    async def next_told(self, seconds: float = 5) -> tuple[str, str, bool]:
        """Return what it is told next of who joined and left."""
        return await asyncio.wait_for(self.told.get(), seconds)


def frames(page: Page[Publication]) -> list[Any]:
    """Return the frames of a page."""
    return [publication.frame for _, publication in page.entries]


Nodes = Callable[[int], Coroutine[Any, Any, list[RecordingNode]]]


@contextlib.asynccontextmanager
async def started(make_broker: Callable[[], Broker]) -> AsyncGenerator[Nodes]:
    """Have something that starts nodes; they are stopped at the end.

    Of a broker that is not shared there is one, however many are asked for.
    """
    async with contextlib.AsyncExitStack() as stack:

        async def start(count: int) -> list[RecordingNode]:
            nodes: list[RecordingNode] = []
            for _ in range(count):
                node = RecordingNode(make_broker())
                await node.broker.start()
                stack.push_async_callback(node.broker.stop)
                nodes.append(node)
                if not node.broker.shared:
                    break
            return nodes

        yield start


def needed(hook: T | None, name: str) -> T:
    """Return a hook of the suite's; skip the test where there is none."""
    if hook is None:
        pytest.skip(f"needs the hook {name}: see backchannel.testing.broker.BrokerContract")
    return hook


async def until(is_so: Callable[[], bool], seconds: float) -> None:
    """Wait for what nothing tells of."""
    async with asyncio.timeout(seconds):
        while not is_so():  # noqa: ASYNC110
            await asyncio.sleep(0.01)

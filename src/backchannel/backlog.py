"""What waits for a slow client, and what of it is dropped. Pure."""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Final, Generic, Literal, TypeVar, get_args

F = TypeVar("F", str, bytes, str | bytes)

__all__ = ["SLOW_CLIENT", "Backlog", "Dropping", "SlowClient", "new_backlog"]

SlowClient = Literal["close", "drop_oldest", "drop_newest", "latest"]
"""What is done about a client that reads slower than it is sent to."""

SLOW_CLIENT: Final[tuple[str, ...]] = get_args(SlowClient)


class Backlog(Generic[F]):
    """A queue that loses nothing: its client goes when there is too much.

    Attributes:
        size: bytes that wait.
        dropped: messages that were dropped since the queue was empty.
    """

    __slots__ = ("_waiting", "dropped", "size")

    def __init__(self) -> None:
        self.size = 0
        self.dropped = 0
        self._waiting: deque[F] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, frame: F, channel: str | None) -> None:  # noqa: ARG002
        """Add a frame, and the channel it was sent to, where there was one."""
        self._waiting.append(frame)
        self.size += len(frame)

    def take(self) -> F:
        """Take the oldest.

        Raises:
            IndexError: nothing waits.
        """
        frame = self._waiting.popleft()
        self.size -= len(frame)
        return frame

    def clear(self) -> None:
        """Drop all."""
        self._waiting.clear()
        self.size = 0

    def trim(self, limit: int) -> bool:
        """Drop what is too much, where something may be dropped; one frame always fits.

        Args:
            limit: bytes that may wait.

        Returns:
            False when there is still too much.
        """
        return self.size <= limit or len(self) <= 1


class Dropping(Backlog[F]):
    """A queue that drops messages instead of its client.

    Args:
        policy: ``drop_oldest``; ``drop_newest``; or ``latest``, where of each channel only the
            latest message waits, and the oldest of all go when that is still too much.
    """

    __slots__ = ("_count", "_entries", "_policy")

    def __init__(self, policy: SlowClient):
        super().__init__()
        self._policy = policy
        self._count = 0
        # Keys are channels where there is one message of each, else numbers.
        self._entries: OrderedDict[str | int, F] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def put(self, frame: F, channel: str | None) -> None:
        """Add a frame; with ``latest`` it takes the place of its channel's last one."""
        key: str | int
        if self._policy == "latest" and channel is not None:
            key = channel
            if (old := self._entries.pop(key, None)) is not None:
                self._drop(old)
        else:
            self._count += 1
            key = self._count
        self._entries[key] = frame
        self.size += len(frame)

    def take(self) -> F:
        """Take the oldest; see ``Backlog.take``."""
        if not self._entries:
            raise IndexError("nothing waits")
        frame = self._entries.popitem(last=False)[1]
        self.size -= len(frame)
        if not self._entries:
            self.dropped = 0
        return frame

    def clear(self) -> None:
        """Drop all."""
        self._entries.clear()
        self.size = 0

    def trim(self, limit: int) -> bool:
        """Drop the oldest or the newest until there is not too much; see ``Backlog.trim``."""
        while self.size > limit and len(self._entries) > 1:
            self._drop(self._entries.popitem(last=self._policy == "drop_newest")[1])
        return True

    def _drop(self, frame: F) -> None:
        self.size -= len(frame)
        self.dropped += 1


def new_backlog(policy: SlowClient) -> Backlog[str | bytes]:
    """Return a queue for a client of an endpoint with this policy."""
    return Backlog() if policy == "close" else Dropping(policy)

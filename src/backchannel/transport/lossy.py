"""The native transport for endpoints that would rather lose messages than slow clients."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from backchannel.backlog import Dropping, SlowClient
from backchannel.observe import CONNECTION
from backchannel.transport.native import NativeSocket, Taken

if TYPE_CHECKING:
    from backchannel.app import Hub
    from backchannel.messages import Frame

__all__ = ["LossySocket", "new_socket"]

_CHUNK: Final = 64 * 1024
"""Bytes that are joined for one write; what was handed to the kernel can't be dropped any more."""


class LossySocket(NativeSocket):
    """A socket that keeps what its client does not take, and drops of it what is too much.

    It never shares lanes: which of its messages waits is its own affair.
    """

    __slots__ = ("_backlog", "_limit")

    def __init__(self, taken: Taken, hub: Hub, policy: SlowClient, *, deflates: bool):
        super().__init__(taken, hub, deflates=deflates)
        self._backlog = Dropping[bytes](policy)
        self._limit = hub.settings.max_outbox

    def push(self, frame: Frame, channel: str | None = None) -> bool:
        """Queue a message for the end of the turn."""
        if self._closing:
            return False
        self._fanout.due(self)
        self._backlog.put(self._fanout.encoder.encode(frame, self.deflates), channel)
        return True

    def rejoin(self) -> None:
        """Stay apart."""

    def flush(self) -> None:
        """Write what the kernel takes, and before a close all; drop what is too much."""
        backlog = self._backlog
        while backlog and (self._closing or not self._has_backlog):
            chunk, size = [backlog.take()], 0
            while backlog and (size := size + len(chunk[-1])) < _CHUNK:
                chunk.append(backlog.take())
            self.write(b"".join(chunk))
        before = backlog.dropped
        backlog.trim(self._limit)
        if backlog.dropped and not before:
            CONNECTION.info("%s reads slower than it is sent to: messages are dropped", self.ws)
        super().flush()

    def resume_writing(self) -> None:
        """Go on with what waits."""
        super().resume_writing()
        if self._backlog:
            self._fanout.due(self)


def new_socket(taken: Taken, hub: Hub, policy: SlowClient, *, deflates: bool) -> NativeSocket:
    """Return a socket for an endpoint with this policy."""
    if policy == "close":
        return NativeSocket(taken, hub, deflates=deflates)
    return LossySocket(taken, hub, policy, deflates=deflates)

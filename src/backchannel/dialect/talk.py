"""What a connection that speaks v1 remembers of its conversation. Pure bookkeeping."""

from __future__ import annotations

import asyncio
from time import time
from typing import TYPE_CHECKING, Any, Final

from backchannel.resume import Record

if TYPE_CHECKING:
    from backchannel.history import Position

__all__ = ["Talk"]

NOTHING_DURABLE: Final[frozenset[str]] = frozenset()

REFUSED: Final = 1024
"""Refusals that are remembered, for clients whose connection was lost before they heard of them."""


class Talk:
    """One conversation.

    Attributes:
        greeted: the client has said hello.
        welcomed: so has the server; until then nothing else is taken.
        is_in: on_open is over, and the client in the channel of its URL.
        resumed: it goes on with an earlier session.
        keys: what the session is kept under: by the token that the client was given; and by the one
            it came with, until it is known that the newer one has arrived.
        timer: ends the connection of a client that says no hello.
        positions: the last ones that the client had of channels, until it is back in them.
        returning: channels that the session was in, until it is known whether it is back in them.
        opened: channels that on_open put it in; False are those that only an earlier one did.
        asked: the ids of the frames that asked to enter or leave channels, until that is done.
        last: the last id of a frame of the client.
        pending: ids of acknowledged frames that are not done.
        refused: ids of those that were answered with an error, the newest, with its code.
        turn: how often the session was resumed.
        began: when the session began, in seconds since 1970; 0 where that is not known.
        unsure: the session was resumed as it was some time before its end: what is sent again may
            have been done. Until the client sends something new.
        stays: others that resume the session find this connection until it has closed.
        calls: what waits for the client's answers.
        queued: ids of the client's calls that wait for their turn, with what ends them.
        acknowledges: the callback runs whose end the client wants to know of.
        running: id of the client's call whose callback runs.
        stopped: how that was stopped; empty where it was not.
    """

    __slots__ = (
        "acknowledges", "asked", "began", "calls", "greeted", "is_in", "keys", "last", "number",
        "opened", "pending", "positions", "queued", "refused", "resumed", "returning", "running",
        "stays", "stopped", "timer", "turn", "unsure", "welcomed",
    )  # fmt: skip

    def __init__(self) -> None:
        self.greeted = False
        self.welcomed = False
        self.is_in = False
        self.resumed = False
        self.returning: set[str] = set()
        self.opened: dict[str, bool] = {}
        self.keys: tuple[bytes, ...] = ()
        self.timer: asyncio.TimerHandle | None = None
        self.positions: dict[str, Position] = {}
        self.asked: dict[str, int] = {}
        self.last = 0
        self.pending: set[int] = set()
        self.refused: dict[int, str] = {}
        self.turn = 0
        self.began = time()
        self.unsure = False
        self.stays = False
        self.calls: dict[int, asyncio.Future[Any]] | None = None
        self.acknowledges = False
        self.number = 0
        self.queued: dict[int, asyncio.TimerHandle | None] = {}
        self.running = 0
        self.stopped = ""

    def stop_timer(self) -> None:
        """Wait for no hello any more."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    def go_on(self, record: Record) -> None:
        """Take up what an earlier connection of the session remembered."""
        self.resumed = True
        self.last = record.last
        self.pending = set(record.pending)
        self.refused = dict(record.refused)
        self.turn = record.turn
        self.unsure = record.unsure
        self.began = record.began
        self.returning = set(record.channels)
        self.opened = dict.fromkeys(record.opened, False)

    def done(self, id_: int, code: str = "") -> None:
        """Take note that an acknowledged frame was done, or answered with an error.

        Args:
            id_: its id.
            code: the error's; empty where there is none.
        """
        if id_ in self.pending:
            self.pending.discard(id_)
            if code:
                self.refused[id_] = code
                if len(self.refused) > REFUSED:
                    del self.refused[next(iter(self.refused))]

    def takes(self, id_: int, *, again: bool, acknowledged: bool) -> bool | None:
        """Tell what to do with a frame that has an id.

        Returns:
            True: do it. None: it was done already. False: its id can't be.
        """
        if id_ <= self.last:
            if not again:
                return False
            return True if id_ in self.pending else None
        self.last = id_
        if acknowledged:
            self.pending.add(id_)
        return True

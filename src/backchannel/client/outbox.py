"""What a client has to say: what waits for a connection, what waits for an answer; pure."""

from __future__ import annotations

from asyncio import Future
from collections import deque
from collections.abc import Callable
from enum import Enum, auto
from typing import TYPE_CHECKING, Any

from backchannel.client.errors import OutcomeUnknown, QueueExpired, QueueFull, ServerError
from backchannel.client.frames import OVERHEAD, Body, Incoming, pack
from backchannel.client.streams import LOG
from backchannel.errors import UnsendableMessage

if TYPE_CHECKING:
    from backchannel.client.subscription import Subscription

__all__ = ["Kind", "Outbox", "Request"]


class Kind(Enum):
    """What becomes of a request when the connection is lost."""

    PLAIN = auto()
    """It has no answer, and is sent at most once."""
    KEPT = auto()
    """It is sent again with the same id in the same session, and then done once."""
    ASKED = auto()
    """It does no harm twice: it is sent as new."""
    CALL = auto()
    """It is not sent again: it fails."""
    ENTERING = auto()
    """It asks to enter a channel: whoever keeps the list of them asks again."""
    BOUND = auto()
    """It means something on this connection only: it is forgotten."""


class Request:
    """One frame on its way, and who waits for it.

    Args:
        kind: what becomes of it when the connection is lost.
        fields: the frame's fields but id and data; a callable is asked when it is sent.
        data: what it carries.
        done: who waits for its answer, or until it was written where it has none; may be None.
        retry: KEPT: send it as new where nothing says whether it was done.
        is_lasting: it may wait for a connection for ever, and needs no room.
        owner: ENTERING: whose channel it is.

    Attributes:
        id: its id since it was sent; None before, and where it has no answer.
        expires_at: on the event loop's clock, until when it may wait to be sent; None is for ever.
        size: bytes that it takes while it waits.
    """

    __slots__ = (
        "data",
        "done",
        "expires_at",
        "fields",
        "id",
        "is_lasting",
        "kind",
        "owner",
        "retry",
        "size",
    )

    def __init__(
        self,
        kind: Kind,
        fields: dict[str, Any] | Callable[[], dict[str, Any]],
        data: Body | None = None,
        done: Future[Any] | None = None,
        *,
        retry: bool = False,
        is_lasting: bool = False,
        owner: Subscription[Any] | None = None,
    ):
        self.kind, self.fields, self.data, self.done = kind, fields, data, done
        self.retry, self.owner = retry, owner
        self.is_lasting = is_lasting or kind in {Kind.ENTERING, Kind.BOUND}
        self.id: int | None = None
        self.expires_at: float | None = None
        self.size = OVERHEAD + (0 if data is None else len(memoryview(data)))

    @property
    def has_answer(self) -> bool:
        """The server answers it, by its id."""
        return self.kind not in {Kind.PLAIN, Kind.BOUND}

    def succeed(self, result: Any = None) -> None:
        """Tell who waits."""
        if self.done is not None and not self.done.done():
            self.done.set_result(result)

    def fail(self, error: Exception) -> bool:
        """Tell who waits; False where nobody does."""
        if self.done is None or self.done.done():
            return False
        self.done.set_exception(error)
        return True


class Outbox:
    """What a client has to say, in order.

    Args:
        messages: requests that may wait while there is no connection.
        size: bytes of them.

    Attributes:
        max_message: bytes of the largest frame that the server takes; None while it is not known.
    """

    def __init__(self, messages: int, size: int):
        self.max_message: int | None = None
        self._messages, self._bytes = messages, size
        self._queue: deque[Request] = deque()
        self._again: deque[Request] = deque()
        self._sent: dict[int, Request] = {}
        self._waiting = 0
        self._last_id = 0

    def __len__(self) -> int:
        return len(self._queue) + len(self._again)

    @property
    def is_awaited(self) -> bool:
        """Somebody waits for an answer."""
        return any(request.done and not request.done.done() for request in self._sent.values())

    def check(self, request: Request) -> None:
        """See whether one more request may wait for a connection.

        Raises:
            QueueFull: there is no room for it.
        """
        if len(self._queue) >= self._messages:
            raise QueueFull(
                f"there is no connection, and {len(self._queue)} requests wait for one already: "
                "wait until client.state is open, or raise queue_messages"
            )
        if self._waiting + request.size > self._bytes and self._queue:
            raise QueueFull(
                f"there is no connection, and {self._waiting} bytes wait for one already: "
                "wait until client.state is open, or raise queue_bytes"
            )

    def add(self, request: Request) -> None:
        """Put a request behind the others."""
        self._queue.append(request)
        self._waiting += request.size

    def remove(self, request: Request) -> bool:
        """Take a request out that was not sent yet; False where it was."""
        try:
            self._queue.remove(request)
        except ValueError:
            return False
        self._waiting -= request.size
        return True

    def next(self) -> tuple[Request, bytes, bool] | None:
        """Return the next request to be written, with its frame and whether that is text.

        One that is too large for the server fails and is left out.
        """
        while self._again or self._queue:
            again = bool(self._again)
            request = self._again.popleft() if again else self._queue.popleft()
            if not again:
                self._waiting -= request.size
            frame, is_text = self._frame(request, again=again)
            if self.max_message is not None and len(frame) > self.max_message:
                self._sent.pop(request.id or 0, None)
                error = self._too_large(len(frame))
                if not request.fail(error):
                    LOG.warning("a frame was not sent: %s", error)
                continue
            if request.has_answer and request.id is not None:
                self._sent[request.id] = request
            return request, frame, is_text
        return None

    def _frame(self, request: Request, *, again: bool) -> tuple[bytes, bool]:
        fields = dict(request.fields() if callable(request.fields) else request.fields)
        if request.has_answer:
            if request.id is None:
                request.id = self.next_id()
            fields["id"] = request.id
        if again:
            fields["again"] = True
        return pack(fields, request.data)

    def _too_large(self, size: int) -> UnsendableMessage:
        return UnsendableMessage(
            "$",
            f"makes a frame of {size} bytes, and the server takes {self.max_message}: "
            "send less at once, or raise the hub's max_message",
        )

    def check_size(self, request: Request) -> None:
        """Refuse at once what the server is known not to take.

        Raises:
            UnsendableMessage: it is larger than that.
        """
        if self.max_message is not None and request.size - OVERHEAD > self.max_message:
            raise self._too_large(request.size - OVERHEAD)

    def answered(self, id_: int | None) -> Request | None:
        """Return the request that an answer is for, which is over; None where there is none."""
        return self._sent.pop(id_ or 0, None)

    def refused(self, request: Request, frame: Incoming) -> bool:
        """Fail a request that an error is for; False where nobody waits for it."""
        text = frame.text or ""
        if frame.code == "unsure":
            return request.fail(OutcomeUnknown(f"it may have been published, or not: {text}"))
        return request.fail(ServerError(frame.code, text, frame.field))

    def next_id(self) -> int:
        """Return an id that is greater than all before, in whatever connection."""
        self._last_id += 1
        return self._last_id

    def disconnected(self, expires_at: float | None) -> None:
        """Take note that the connection was lost: fail what is not sent again, forget what is moot.

        Args:
            expires_at: until when those may wait that were to be sent by then.
        """
        self._again.clear()
        moot = {Kind.ENTERING, Kind.BOUND}
        for request in [request for request in self._queue if request.kind in moot]:
            self.remove(request)
        asked = [request for request in self._sent.values() if request.kind is Kind.ASKED]
        for request in list(self._sent.values()):
            if request.kind is Kind.CALL:
                request.fail(
                    OutcomeUnknown(
                        "the connection was lost before the reply: it may have been done"
                    )
                )
            if request.kind is not Kind.KEPT and request.id is not None:
                del self._sent[request.id]
        for request in reversed(asked):
            if request.done is None or not request.done.done():
                self._renew(request)
        for request in self._queue:
            if request.kind is Kind.PLAIN:
                request.succeed()  # it waits as those do that are sent without a connection
            if request.expires_at is None and not request.is_lasting:
                request.expires_at = expires_at

    def _renew(self, request: Request) -> None:
        request.id = None
        self._queue.appendleft(request)
        self._waiting += request.size

    def greeted(self, *, resumed: bool) -> None:
        """Take note of a new connection: what has to be sent again comes first.

        Args:
            resumed: the server knows what it has done of it. Where it does not, who waits is told.
        """
        kept = [self._sent[id_] for id_ in sorted(self._sent)]
        if resumed:
            self._again.extend(kept)
            return
        self._sent.clear()
        for request in reversed(kept):
            if request.retry and request.done is not None and not request.done.done():
                self._renew(request)
                continue
            request.fail(
                OutcomeUnknown(
                    "the connection was lost, and the server does not know the session any more: "
                    "it may have been done, or not"
                )
            )

    def first(self, requests: list[Request]) -> None:
        """Put requests before all others that wait, but for what is to leave channels."""
        lasting = [r for r in self._queue if r.is_lasting]
        for request in lasting:
            self.remove(request)
        for request in reversed(lasting + requests):
            self._renew(request)

    def expire(self, now: float) -> list[Request]:
        """Fail what has waited for too long; return those that nobody waits for."""
        over = [r for r in self._queue if r.expires_at is not None and r.expires_at <= now]
        silent: list[Request] = []
        for request in over:
            self.remove(request)
            error = QueueExpired("it waited for a connection as long as it may; it was not sent")
            if not request.fail(error):
                silent.append(request)
        return silent

    def next_expiry(self) -> float | None:
        """Return when the first of them will have waited for too long."""
        times = [r.expires_at for r in self._queue if r.expires_at is not None]
        return min(times, default=None)

    def fail_awaited(self, error: Exception) -> None:
        """Fail what waits for an answer; the answers are ignored when they come."""
        for request in self._sent.values():
            request.fail(error)

    def close(self, error: Callable[[bool], Exception]) -> None:
        """Fail all that waits, but what leaves a channel: there is nothing to leave any more.

        Args:
            error: makes the error, of whether it was sent.
        """
        for is_sent, requests in ((True, self._sent.values()), (False, self._queue)):
            for request in requests:
                if request.is_lasting:
                    request.succeed()
                else:
                    request.fail(error(is_sent))
        self._sent.clear()
        self._queue.clear()
        self._again.clear()
        self._waiting = 0

"""What the client raises.

BackchannelError
└── ClientError
    ├── NotAdmitted           also HandshakeRefused: the server's HTTP status, for good
    ├── Unreachable           also ConnectionError: no first connection in the time for it
    ├── Closed                also ConnectionClosed: it has ended, for good
    ├── ServerError           the server answered with an error: .code, .text, .field
    ├── CallTimeout           also TimeoutError: a call was not answered in time
    ├── OutcomeUnknown        it may have been done, or not
    ├── QueueFull             too much waits for a connection
    ├── QueueExpired          it waited too long for one
    ├── NotRead               the answer is behind what the application does not read
    └── NotUnderstood         the other side does not speak this protocol
"""

from __future__ import annotations

from typing import Final

from backchannel.codes import meaning_of
from backchannel.errors import BackchannelError, ConnectionClosed, HandshakeRefused

__all__ = [
    "CallTimeout",
    "ClientError",
    "Closed",
    "NotAdmitted",
    "NotRead",
    "NotUnderstood",
    "OutcomeUnknown",
    "QueueExpired",
    "QueueFull",
    "ServerError",
    "Unreachable",
]

_ADVICE: Final = {
    400: "it may not know this version of the protocol",
    401: "pass a token that is valid, connect(token=…)",
    403: "this user may not connect here",
    404: "see the path of the URL",
}


class ClientError(BackchannelError):
    """The root of all errors of the client."""


class NotAdmitted(ClientError, HandshakeRefused):  # noqa: N818
    """The server answered the handshake with an HTTP status that says not to try again.

    Args:
        status: the HTTP status.
        text: the response's body.
    """

    def __str__(self) -> str:
        advice = _ADVICE.get(self.status)
        return f"HTTP {self.status}: {self.text}" + (f" ({advice})" if advice else "")


class Unreachable(ClientError, ConnectionError):  # noqa: N818
    """There was no first connection in the seconds for it; what failed last is the cause."""


class Closed(ClientError, ConnectionClosed):  # noqa: N818
    """The client has ended and does not come back.

    Args:
        code: the close code (see ``backchannel.codes``).
        reason: the reason that came with it, maybe empty.
    """

    def __str__(self) -> str:
        said = f": {self.reason}" if self.reason else ""
        return f"closed with {self.code}, {meaning_of(self.code)}{said}"


class ServerError(ClientError):
    """The server answered with an error; the connection is kept.

    Args:
        code: one word for programs, from the protocol's table: ``"refused"``, ``"invalid"`` …
        text: what the server says about it.
        field: the path of what was wrong, such as ``$.data.age``, where it is known.
    """

    def __init__(self, code: str, text: str = "", field: str | None = None):
        super().__init__(code, text, field)
        self.code = code
        self.text = text
        self.field = field

    def __str__(self) -> str:
        where = f"{self.field}: " if self.field else ""
        return f"{self.code}: {where}{self.text}" if self.text else self.code


class CallTimeout(ClientError, TimeoutError):  # noqa: N818
    """A call was not answered in the seconds for it; it may have been carried out."""


class OutcomeUnknown(ClientError):  # noqa: N818
    """The connection was lost before the answer, and nothing says whether it was done.

    Sending it again may do it twice. Where that does no harm say so, ``retry=True``.
    """


class QueueFull(ClientError):  # noqa: N818
    """There is no connection, and what waits for one is as much as may wait; it was not sent."""


class QueueExpired(ClientError):  # noqa: N818
    """It waited for a connection as long as it may; it was not sent."""


class NotRead(ClientError):  # noqa: N818
    """So much waits to be read that the client reads no more, and the answer is behind it.

    It may have been done. Read streams in tasks of their own, not between a request and its answer.
    """


class NotUnderstood(ClientError):  # noqa: N818
    """The other side does not speak this protocol, or not as it is specified."""

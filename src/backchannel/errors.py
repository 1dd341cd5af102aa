"""Everything Backchannel raises, and what a listener raises to refuse.

Exception
└── BackchannelError
    ├── InvalidMessage        a client's message; handed to ``on_invalid``
    ├── UnsendableMessage     also TypeError: what was to be sent has no JSON form
    ├── TemplateError         also ValueError: a URL template or channel pattern
    ├── ListenerError         also TypeError: a listener or rule that can't be registered
    ├── SessionReadOnly       also TypeError: a session that a socket can't write
    ├── SessionUnavailable    the store of the web sessions does not answer
    ├── BrokerUnavailable     the broker does not answer, or can't take any more
    ├── BrokerUnusable        the broker answers, and will not do: too old, wrong password
    ├── BrokerUrlError        also ValueError: no URL of a broker
    ├── CallFailed            a call to the other side of a v1 connection has no answer
    ├── HandshakeRefused      the test client was not let in
    └── ConnectionClosed      the test client's connection has ended
└── Reject                    raised or returned by a callback to refuse
    ├── InvalidToken          a token that is not accepted: 401
    └── TryLater              what is needed for it does not answer: 503, 1013
"""

from __future__ import annotations

import re
from typing import Final

__all__ = [
    "BackchannelError",
    "BrokerUnavailable",
    "BrokerUnusable",
    "BrokerUrlError",
    "CallFailed",
    "ConnectionClosed",
    "HandshakeRefused",
    "InvalidMessage",
    "InvalidToken",
    "ListenerError",
    "Reject",
    "SessionReadOnly",
    "SessionUnavailable",
    "TemplateError",
    "TryLater",
    "UnsendableMessage",
]


class BackchannelError(Exception):
    """The root of all errors that Backchannel raises."""


class InvalidMessage(BackchannelError):  # noqa: N818 - the field's word, and public
    """A client sent something that the listener's annotation does not admit.

    Args:
        text: what is wrong, safe to show to the client.
        field: JSON path of what is wrong or missing, such as ``$.age``; ``$`` is the whole message.
            None where no JSON was expected.
        code: a short word for programs: ``"invalid_message"`` or ``"unknown_type"``.
    """

    def __init__(self, text: str, *, field: str | None = None, code: str = "invalid_message"):
        super().__init__(text)
        self.text = text
        self.field = field
        self.code = code


class UnsendableMessage(BackchannelError, TypeError):  # noqa: N818
    """A message has no valid JSON form; nothing was sent to anyone.

    Args:
        path: JSON path of the value that can't be sent, such as ``$.users[3]``.
        problem: what is wrong with it.
    """

    def __init__(self, path: str, problem: str):
        super().__init__(f"can't send this message: {path} {problem}")
        self.path = path
        self.problem = problem


class TemplateError(BackchannelError, ValueError):
    """A URL template or channel pattern is malformed, a duplicate, or ambiguous."""


class ListenerError(BackchannelError, TypeError):
    """A listener or function can't serve as an endpoint, or as what a rule asks."""


class SessionReadOnly(BackchannelError, TypeError):  # noqa: N818
    """This web session can't be written from a socket."""


class SessionUnavailable(BackchannelError):  # noqa: N818
    """The store of the web sessions does not answer.

    A handshake is answered with 503 and Retry-After; connections that are open live on.
    """


class BrokerUnavailable(BackchannelError):  # noqa: N818
    """The broker does not answer, or can't take any more; nobody got what was to be published.

    Connections that are open live on.

    Args:
        text: what is wrong.
        unsure: it may have been published all the same, which the text says too.
    """

    def __init__(self, text: str, *, unsure: bool = False):
        super().__init__(text)
        self.unsure = unsure


class BrokerUnusable(BackchannelError):  # noqa: N818
    """The broker answers and will not do: too old, another password, another's data."""


class BrokerUrlError(BackchannelError, ValueError):
    """What is to say where the broker is says it nowhere; the password is not in the text."""


class CallFailed(BackchannelError):  # noqa: N818
    """A call to the other side has no answer.

    Args:
        code: a short word for programs: what the other side said, such as ``"unknown_type"``;
            ``"invalid"`` also where its answer can't be read; ``"closed"`` where the connection
            has ended.
        text: why, for people.
    """

    def __init__(self, code: str, text: str):
        super().__init__(f"{code}: {text}" if text else code)
        self.code = code
        self.text = text


class HandshakeRefused(BackchannelError):  # noqa: N818
    """The server answered the test client's handshake with an HTTP status other than 101.

    Args:
        status: the HTTP status.
        text: the response's body.
    """

    def __init__(self, status: int, text: str):
        super().__init__(f"HTTP {status}: {text}")
        self.status = status
        self.text = text


class ConnectionClosed(BackchannelError):  # noqa: N818
    """The connection has ended.

    Args:
        code: the close code (see ``backchannel.codes``).
        reason: the reason that came with it, maybe empty.
    """

    def __init__(self, code: int, reason: str):
        super().__init__(f"closed with {code} {reason}".rstrip())
        self.code = code
        self.reason = reason


_HEADER_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE: Final = re.compile("[\t\x20-\x7e\x80-\xff]*")


class Reject(Exception):  # noqa: N818 - not an error: an answer
    """Refuse, with a word to the client. Returning one and raising one are the same.

    In ``on_handshake`` and ``authenticate`` it becomes the HTTP response; in ``on_open`` and for
    the automatic subscription the connection is closed with 1008 and the text; in a later
    ``on_subscribe`` it refuses the subscription. In rules it does what it does in ``on_subscribe``.

    Args:
        status: HTTP status from 300 to 599, used before the 101 only. A str is taken as the text.
        text: what the client is told: the response's body, or the close reason (cut to 123 bytes).
        headers: more response headers, used before the 101 only.

    Raises:
        ValueError: the status is no HTTP status of a refusal, or a header could not be sent as one:
            a client's text with a line break in it would make up headers of its own.
    """

    def __init__(
        self, status: int | str = 403, text: str = "", headers: dict[str, str] | None = None
    ):
        number, said = (403, status) if isinstance(status, str) else (status, text)
        if not 300 <= number <= 599:
            raise ValueError(
                f"Reject's status must be an HTTP status from 300 to 599, not {number}"
            )
        for name, value in (headers or {}).items():
            if not _HEADER_NAME.fullmatch(name):
                raise ValueError(f"Reject's headers: {name!r} is no header's name")
            if not _HEADER_VALUE.fullmatch(value):
                raise ValueError(
                    f"Reject's headers: {name}: {value!r}: a header's value has no control "
                    "characters and only Latin-1; quote what comes from a client, with "
                    "urllib.parse.quote"
                )
        super().__init__(number, said)
        self.status = number
        self.text = said
        self.headers = headers or {}


class TryLater(Reject):
    """Refused for now: a connection that is closed for it is closed with 1013, try again later."""

    def __init__(self, text: str):
        super().__init__(503, text)


class InvalidToken(Reject):
    """A token is not accepted. Raised in a handshake, the answer is 401.

    Args:
        text: why, in general terms, safe to show to the client.
    """

    def __init__(self, text: str):
        super().__init__(401, text, {"WWW-Authenticate": 'Bearer error="invalid_token"'})

    def __str__(self) -> str:
        return self.text

"""Every way a connection can end, in one table: its code, what it means, whether to come back.

RFC 6455 §7.4 and the IANA registry give 1000–1015; 4000–4999 are private use, of which
Backchannel keeps 4000–4099 for itself and leaves 4100–4999 to the application.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

__all__ = ["ENDINGS", "MAX_REASON_BYTES", "Ending", "check_close", "fit_reason", "meaning_of"]

MAX_REASON_BYTES: Final = 123
"""A close frame carries at most 125 bytes, two of which are the code (RFC 6455 §5.5)."""


@dataclass(frozen=True, slots=True)
class Ending:
    """What a close code tells the one who receives it.

    Args:
        code: the close code.
        meaning: what happened, in a few plain words.
        come_back: True when connecting again is the right thing to do, False when it would
            only be refused again, None when the code does not say.
    """

    code: int
    meaning: str
    come_back: bool | None


ENDINGS: Final = {
    ending.code: ending
    for ending in (
        Ending(1000, "normal closure", come_back=False),
        Ending(1001, "server or page is going away", come_back=True),
        Ending(1002, "protocol error", come_back=False),
        Ending(1003, "this kind of data is not accepted", come_back=False),
        Ending(1005, "closed without a code", come_back=None),
        Ending(1006, "connection lost without a close frame", come_back=True),
        Ending(1007, "text was not valid UTF-8", come_back=False),
        Ending(1008, "refused", come_back=False),
        Ending(1009, "message too big", come_back=False),
        Ending(1010, "a required extension is missing", come_back=False),
        Ending(1011, "the listener failed", come_back=True),
        Ending(1012, "server is restarting", come_back=True),
        Ending(1013, "try again later", come_back=True),
        Ending(1014, "bad gateway", come_back=True),
        Ending(4001, "reads slower than it is sent to", come_back=True),
        Ending(4002, "ping was not answered", come_back=True),
        Ending(4003, "too many messages", come_back=True),
        Ending(4004, "signed out", come_back=False),
        Ending(4005, "replaced by a newer connection", come_back=False),
        Ending(4006, "too many bytes", come_back=True),
        Ending(4007, "token expired", come_back=True),
        Ending(4008, "idle", come_back=True),
    )
}


def meaning_of(code: int) -> str:
    """Return what a close code means, in plain words; never raises."""
    if ending := ENDINGS.get(code):
        return ending.meaning
    if 4100 <= code <= 4999:
        return "the application's own code"
    if 3000 <= code <= 3999:
        return "a code registered by a framework or library"
    return "unknown code"


def check_close(code: int, reason: str) -> None:
    """Check what an application wants to close with.

    Args:
        code: 1000–1003, 1007–1014 or 3000–4999 (RFC 6455 §7.4.1 keeps the others out of frames).
        reason: at most 123 bytes of UTF-8.

    Raises:
        TypeError: the code is not an int, or the reason is not a str.
        ValueError: the code can't be sent, or the reason is too long or not encodable.
    """
    if not isinstance(code, int) or isinstance(code, bool):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"close code must be an int, not {code!r}")
    if not isinstance(reason, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"close reason must be a str, not {reason!r}")
    if not (1000 <= code <= 1003 or 1007 <= code <= 1014 or 3000 <= code <= 4999):
        why = " is only ever reported, never sent" if code in {1004, 1005, 1006, 1015} else ""
        raise ValueError(
            f"close code {code}{why or ' is out of range'}: use 1000–1003, 1007–1014 or 3000–4999 "
            "(4100–4999 are the application's own)"
        )
    try:
        size = len(reason.encode())
    except UnicodeEncodeError as error:
        raise ValueError(f"close reason {reason!r} can't be encoded as UTF-8") from error
    if size > MAX_REASON_BYTES:
        raise ValueError(
            f"close reason is {size} bytes of UTF-8; a close frame holds {MAX_REASON_BYTES}: "
            f"{reason[:40]!r}…"
        )


def fit_reason(text: str) -> str:
    """Return the text, cut where needed so that it fits into a close frame."""
    return text.encode(errors="replace")[:MAX_REASON_BYTES].decode(errors="ignore")

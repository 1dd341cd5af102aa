"""What v1 puts around messages: the frames that are made most often, by hand. Pure."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from backchannel.contracts import Publication
    from backchannel.history import Position
    from backchannel.messages import Frame

__all__ = ["Envelopes", "enclose", "in_message", "in_snapshot"]

_MESSAGE = '{"type":"message"'
_encode = msgspec.json.Encoder().encode


def enclose(opening: str, frame: Frame, *, is_json: bool) -> Frame:
    """Return a frame that has a message as its data.

    Args:
        opening: the JSON object as far as it goes without ``data``, and without its end.
        frame: the message.
        is_json: its text is JSON; else it is text as such.
    """
    if type(frame) is bytes:
        return b"%b}\n%b" % (opening.encode(), frame)
    if is_json:
        return f'{opening},"data":{frame}}}'  # type: ignore[str-bytes-safe]
    return f'{opening},"data":{_encode(frame).decode()}}}'


def in_message(frame: Frame, *, is_json: bool) -> Frame:
    """Return the frame for what is sent to a connection, a user, a session or everyone."""
    return enclose(_MESSAGE, frame, is_json=is_json)


def in_snapshot(channel: str, frame: Frame, position: Position, *, is_json: bool) -> Frame:
    """Return the frame for the state of a channel at a position."""
    name = _encode(channel).decode()
    opening = f'{{"type":"snapshot","channel":{name},"position":"{position}"'
    return enclose(opening, frame, is_json=is_json)


@lru_cache(maxsize=256)
def _opening(channel: str) -> str:
    return f'{{"type":"publication","channel":{_encode(channel).decode()}'


class Envelopes:
    """Makes a publication's frame once, however many connections get it one after the other."""

    __slots__ = ("_frame", "_position", "_publication")

    def __init__(self) -> None:
        self._publication: Publication | None = None
        self._position: Position | None = None
        self._frame: Frame = ""

    def of(self, publication: Publication, position: Position | None) -> Frame:
        """Return the frame of a publication, which has a position where its channel has history."""
        if publication is self._publication and position is self._position:
            return self._frame
        is_json = publication.form == "json"
        kind, name = publication.target
        if kind != "channel":
            frame = in_message(publication.frame, is_json=is_json)
        else:
            opening = _opening(name)
            if position is not None:
                opening = f'{opening},"position":"{position.epoch}.{position.offset}"'
            frame = enclose(opening, publication.frame, is_json=is_json)
        self._publication, self._position, self._frame = publication, position, frame
        return frame

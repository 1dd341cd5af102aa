"""What is published to the engine's topics: one letter that says what it is, then that.

``T`` a text frame, ``J`` one that is JSON, ``B`` a binary one: the common case, and as short as it
can be; ``E`` an event for a dialect. ``X`` a
publication with its audience, and maybe with the node that wants to know how many it reached. ``Q``
a question to all who hear the topic, ``A`` an answer. Before it stands ``@epoch.offset `` where the
engine keeps history; the script that keeps it puts that there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

import msgspec

from backchannel.contracts import Form, Publication, Target
from backchannel.history import Page, Position

__all__ = [
    "PAGE_BYTES",
    "Answer",
    "Asking",
    "Heard",
    "Question",
    "command",
    "opening",
    "pack",
    "pack_answer",
    "pack_question",
    "placed",
    "unpack",
    "unpack_page",
]

PAGE_BYTES: Final = 4 * 1024 * 1024
"""Of history that is read at a time, where one publication has not more by itself."""

_msgpack = msgspec.msgpack.Encoder()


class Asking(NamedTuple):
    """Who wants an answer.

    Args:
        node: the id of the node.
        number: what it tells its questions apart by.
    """

    node: str
    number: int


class Question(NamedTuple):
    """Something that each node that hears it answers.

    Args:
        target: whom it is about.
        asking: who asks.
        words: what is asked.
    """

    target: Target
    asking: Asking
    words: list[Any]


class Answer(NamedTuple):
    """What a node answered.

    Args:
        number: of the question.
        words: what it answered.
    """

    number: int
    words: Any


class Heard(NamedTuple):
    """A publication that was heard.

    Args:
        publication: it.
        position: where history is kept.
        asking: who wants to know how many it reached; None is nobody.
    """

    publication: Publication
    position: Position | None
    asking: Asking | None


class _Addressed(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    frame: Any  # str or bytes, which msgspec can't tell apart in an annotation
    to: tuple[Target, ...] | None
    exclude: tuple[Target, ...]
    asking: Asking | None = None
    form: Form = "plain"


class _Event(msgspec.Struct):
    type: str


class _Question(msgspec.Struct, array_like=True):
    target: Target
    asking: Asking
    words: list[Any]


class _Answer(msgspec.Struct, array_like=True):
    number: int
    words: Any


_LETTERS: Final[dict[Form, bytes]] = {"plain": b"T", "json": b"J", "event": b"E"}
_FORMS: Final[dict[bytes, Form]] = {letter: form for form, letter in _LETTERS.items()}
_PLAIN: Final[Form] = "plain"
_check_json = msgspec.json.Decoder(msgspec.Raw).decode  # which is not read, only checked
_check_event = msgspec.json.Decoder(_Event).decode
_addressed = msgspec.msgpack.Decoder(_Addressed)
_question = msgspec.msgpack.Decoder(_Question)
_answer = msgspec.msgpack.Decoder(_Answer)


def pack(publication: Publication, asking: Asking | None = None) -> bytes:
    """Return a publication as it travels."""
    frame, form, to = publication.frame, publication.form, publication.to
    if publication.target.kind == "connection":  # its topic is that of all connections of a node
        to = (publication.target,)
    elif to is None and not publication.exclude and asking is None:
        return _LETTERS[form] + frame.encode() if isinstance(frame, str) else b"B" + frame
    return b"X" + _msgpack.encode(_Addressed(frame, to, publication.exclude, asking, form))


def opening(topic: bytes, verb: bytes = b"PUBLISH") -> bytes:
    """Return how a command begins that publishes to a topic."""
    return b"*3\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n$" % (len(verb), verb, len(topic), topic)


def placed(position: Position, data: bytes) -> bytes:
    """Return what the engine publishes where it keeps what ``pack`` made."""
    return b"@%b %b" % (str(position).encode(), data)


def command(opening: bytes, data: bytes) -> bytes:
    """Return a command that begins like this and publishes what any of these functions made."""
    return b"%b%d\r\n%b\r\n" % (opening, len(data), data)


def pack_question(target: Target, asking: Asking, words: list[Any]) -> bytes:
    """Return a question as it travels."""
    return b"Q" + _msgpack.encode(_Question(target, asking, words))


def pack_answer(number: int, words: Any) -> bytes:
    """Return an answer as it travels."""
    return b"A" + _msgpack.encode(_Answer(number, words))


def unpack(target: Target, data: bytes) -> Publication | Heard | Question | Answer:
    """Read what was heard.

    Args:
        target: whom the topic is of.
        data: what was heard.

    Returns:
        A publication by itself where nothing but its frame travelled.

    Raises:
        ValueError: nothing that any of these functions made.
    """
    kind, rest = data[:1], data[1:]
    if (form := _FORMS.get(kind)) is not None:
        if form is not _PLAIN:
            _check(rest, form)
        return Publication(target, rest.decode(), form=form)
    if kind == b"B":
        return Publication(target, rest)
    if kind == b"@":
        place, _, data = rest.partition(b" ")
        position = Position.parse(place.decode())
        heard = unpack(target, data)
        if isinstance(heard, Publication):
            return Heard(heard, position, None)
        if isinstance(heard, Heard) and heard.position is None:
            return heard._replace(position=position)
        raise ValueError("it is nothing that has a position")
    if kind == b"X":
        return _unpack_addressed(target, rest)
    if kind == b"Q":
        asked = _question.decode(rest)
        return Question(asked.target, asked.asking, asked.words)
    if kind == b"A":
        answered = _answer.decode(rest)
        return Answer(answered.number, answered.words)
    raise ValueError(f"it starts with {kind!r}")


def unpack_page(
    target: Target,
    since: Position | None,
    reply: list[Any],
    drop: Callable[[bytes, Exception], None] | None = None,
) -> Page[Publication]:
    """Read what ``history.lua`` returns.

    What can't be read, of a newer node or of a stranger, is a gap, and nothing else is lost by it.

    Args:
        target: the channel.
        since: after which position was asked; None is for the newest.
        reply: it.
        drop: called with each entry that is nothing any of these functions made, and why.
    """
    epoch, top, lost, *entries = reply
    found: list[tuple[int, Publication]] = []
    unreadable = 0
    for number, data in zip(entries[::2], entries[1::2], strict=True):
        try:
            publication = _unpack_kept(target, data)
        except Exception as error:  # noqa: BLE001 - whatever a stranger put there
            if drop is not None:
                drop(data, error)
            if found and since is not None:
                break  # it is told of where it stands: before the next page
            unreadable = number
        else:
            found.append((number, publication))
    return Page(Position(epoch.decode(), top), tuple(found), bool(lost), unreadable)


def _unpack_kept(target: Target, data: bytes) -> Publication:
    heard = unpack(target, data)
    if isinstance(heard, Heard):
        return heard.publication
    if not isinstance(heard, Publication):
        raise ValueError("it is nothing that is kept")  # noqa: TRY004 - of the data
    return heard


def _check(text: bytes | str, form: Form) -> None:
    """Check what becomes part of a dialect's frames as it is; raises ValueError."""
    if form == "json":
        _check_json(text)
    elif form == "event":
        _check_event(text)


def _unpack_addressed(target: Target, data: bytes) -> Heard:
    found = _addressed.decode(data)
    if not isinstance(found.frame, str | bytes):
        raise ValueError("its frame is neither text nor binary")  # noqa: TRY004 - of the data
    if found.form == "event" or (found.form == "json" and isinstance(found.frame, str)):
        _check(found.frame, found.form)
    publication = Publication(target, found.frame, found.to, found.exclude, found.form)
    return Heard(publication, None, found.asking)

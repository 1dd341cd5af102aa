"""What has changed between two AsyncAPI documents of endpoints, and for whom that breaks."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, cast

from backchannel.schema.shapes import Change, Comparison, Shape, Shapes

__all__ = ["Change", "compare"]

_NARROWER: Final = {"path": 2, "str": 1, "int": 0, "uuid": 0}
"""How much each kind of URL variable admits."""


def compare(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Change]:
    """Compare two documents that ``asyncapi`` made.

    What clients send may be admitted more generously, and the server may send more fields and more
    types of message, but nothing that a client sends, or reads, may go.

    Args:
        old: the one that clients were made for.
        new: what the server is now.

    Raises:
        ValueError: the old one is no such document; the text says where.

    Returns:
        The changes, endpoint by endpoint; descriptions are not compared.
    """
    before, after = _read(old), _read(new)
    changes: list[Change] = []
    rest = list(after)
    for endpoint in before:
        successor = next((one for one in rest if one.is_at(endpoint)), None) or next(
            (one for one in rest if one.is_near(endpoint)), None
        )
        if successor is None:
            changes.append(
                Change(endpoint.address, "the endpoint is gone", breaks="whoever connects there")
            )
        else:
            rest.remove(successor)
            changes += _endpoint_changes(endpoint, successor)
    changes += [Change(one.address, "the endpoint is new") for one in rest]
    return changes


@dataclass(slots=True)
class _Answer:
    """What comes back for one kind of message.

    Args:
        often: ``always``, ``maybe``, ``never``, or empty where nothing is said.
        shapes: what it may be.
    """

    often: str
    shapes: list[Shape]


@dataclass(slots=True)
class _Endpoint:
    """An endpoint, read from a document."""

    address: str
    parameters: dict[str, str]
    told: Mapping[str, Any]
    shapes: Shapes
    takes: list[Shape] = field(default_factory=list[Shape])
    calls: dict[str, list[Shape]] = field(default_factory=dict[str, list[Shape]])
    answers: dict[str, _Answer] = field(default_factory=dict[str, _Answer])
    sends: list[Shape] | None = None

    def is_near(self, other: _Endpoint) -> bool:
        """Tell whether the same URLs lead to both, whatever their variables admit."""
        return _bare(self.address) == _bare(other.address)

    def is_at(self, other: _Endpoint) -> bool:
        """Tell whether exactly the same URLs lead to both."""
        kinds = list(self.parameters.values())
        return self.is_near(other) and kinds == list(other.parameters.values())


def _bare(text: str) -> str:
    return re.sub(r"\{[^{}]*\}", "{}", text)


# ── reading ───────────────────────────────────────────────────────────────────────────────────


def _read(document: Mapping[str, Any]) -> list[_Endpoint]:
    for reference in _references(document):
        _find(document, reference)
    try:
        shapes = Shapes(document.get("components", {}).get("schemas", {}))
        found = {
            f"#/channels/{name}": _Endpoint(
                channel["address"],
                {n: _told(p).get("kind", "str") for n, p in channel.get("parameters", {}).items()},
                _told(channel),
                shapes,
            )
            for name, channel in document["channels"].items()
        }
        for operation in document["operations"].values():
            _take_in(document, found[operation["channel"]["$ref"]], operation)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{type(error).__name__} {error}") from error
    return list(found.values())


def _take_in(document: Mapping[str, Any], endpoint: _Endpoint, operation: Any) -> None:
    told = _told(operation)
    messages = list(_messages(document, endpoint.shapes, operation))
    if operation["action"] == "send":
        if not told.get("complains"):
            endpoint.sends = messages
        return
    if told.get("only_called"):
        endpoint.calls[told["event"]] = messages
    else:
        endpoint.takes += messages
    reply = operation.get("reply", {"messages": []})
    answer = _Answer(told.get("answers", ""), list(_messages(document, endpoint.shapes, reply)))
    endpoint.answers[told.get("event", "on_message")] = answer


def _messages(document: Mapping[str, Any], shapes: Shapes, holder: Any) -> Iterator[Shape]:
    for reference in holder["messages"]:
        message = _find(document, reference["$ref"])
        content = message.get("contentType", "")
        if _told(message).get("any"):
            yield Shape("any", {})
        elif content == "text/plain":
            yield Shape("text", message["payload"])
        elif content == "application/octet-stream":
            yield Shape("bytes", message["payload"])
        else:
            yield from shapes.of(message["payload"])


def _told(holder: Any) -> Mapping[str, Any]:
    return cast("Mapping[str, Any]", holder.get("x-backchannel", {}))


def _references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, one in cast("dict[str, Any]", value).items():
            if key == "$ref" and isinstance(one, str):
                yield one
            else:
                yield from _references(one)
    elif isinstance(value, list):
        for one in cast("list[object]", value):
            yield from _references(one)


def _find(document: Mapping[str, Any], reference: str) -> Any:
    found: Any = document
    for step in reference.removeprefix("#/").split("/"):
        if not isinstance(found, dict) or step not in found:
            raise ValueError(f"{reference} leads nowhere")
        found = cast("dict[str, Any]", found)[step]
    return found


# ── comparing ─────────────────────────────────────────────────────────────────────────────────


def _endpoint_changes(old: _Endpoint, new: _Endpoint) -> Iterable[Change]:
    yield from _url_changes(old, new)
    where = old.address
    if _bare(was := old.told.get("channel", "")) != _bare(now := new.told.get("channel", "")):
        yield Change(where, f"its channel was {was or 'none'} and is {now or 'none'}",
                     breaks="clients that name the channel")  # fmt: skip
    for name in old.told.get("subprotocols", ()):
        if name not in new.told.get("subprotocols", ()):
            yield Change(where, f"the subprotocol {name} is gone", breaks="clients that offer it")
    sent = Comparison("client", "clients that send it", old.shapes, new.shapes)
    sent.compare_all(old.takes, new.takes, where, is_message=True)
    for name, shapes in old.calls.items():
        sent.compare_all(shapes, new.calls.get(name, []), f"{where}: {name}", is_message=False)
    yield from sent.changes
    for name in new.calls.keys() - old.calls.keys():
        yield Change(where, f"{name} can be called too")
    yield from _sent_changes(old, new)
    for name in old.answers.keys() & new.answers.keys():
        yield from _answer_changes(name, old, new)


def _url_changes(old: _Endpoint, new: _Endpoint) -> Iterable[Change]:
    pairs = zip(old.parameters.items(), new.parameters.items(), strict=True)
    for (name, kind), (new_name, new_kind) in pairs:
        where = f"{old.address}: {{{name}}}"
        if name != new_name:
            yield Change(where, f"is called {{{new_name}}} now", breaks="who fills it in by name")
        if kind == new_kind:
            continue
        what = f"was {kind} and is {new_kind}"
        wider = _NARROWER.get(new_kind, 0) > _NARROWER.get(kind, 0)
        yield Change(where, what, breaks="" if wider else "who puts something else there")


def _sent_changes(old: _Endpoint, new: _Endpoint) -> Iterable[Change]:
    where = f"{old.address}: what the server sends"
    if old.sends is None and new.sends is None:
        return
    if old.sends is None:
        yield Change(where, "is said now")
    elif new.sends is None:
        yield Change(where, "is not said any more", breaks="clients that read it")
    else:
        sent = Comparison("server", "clients that read it", old.shapes, new.shapes)
        sent.compare_all(old.sends, new.sends, old.address, is_message=True)
        yield from sent.changes


def _answer_changes(name: str, old: _Endpoint, new: _Endpoint) -> Iterable[Change]:
    was, now = old.answers[name], new.answers[name]
    where = f"{old.address}: the answer to {name}"
    if not was.often or not now.often:
        if was.often:
            yield Change(where, "is not said any more", breaks="clients that read it")
        elif now.often:
            yield Change(where, "is said now")
        return
    if was.often != "never" and now.often == "never":
        yield Change(where, "never comes now", breaks="clients that wait for it")
        return
    if was.often == "never":
        if now.often != "never":
            yield Change(where, "comes now")
        return
    if was.often != now.often:
        what = "may be null, or not come" if now.often == "maybe" else "always comes now"
        yield Change(where, what, breaks="clients that wait for it" if now.often == "maybe" else "")
    answers = Comparison("server", "clients that read it", old.shapes, new.shapes)
    answers.compare_all(was.shapes, now.shapes, where, is_message=False)
    yield from answers.changes

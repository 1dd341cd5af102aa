"""What nodes write about their hub: for those who publish to it without one, and for its nodes."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated, Final, NamedTuple

import msgspec

from backchannel.history import Retention
from backchannel.rules import Rule, Rules
from backchannel.template import NamePattern

__all__ = ["FORMAT", "About", "Mark"]

FORMAT: Final = 4
"""Which version this is of what nodes and publishers write and read: another one where
they would misunderstand each other."""


class _RuleWritten(msgspec.Struct, forbid_unknown_fields=True):
    pattern: str
    history: Annotated[int, msgspec.Meta(ge=1)] | None
    ttl: Annotated[float, msgspec.Meta(gt=0)] | None
    presence: bool


class _Written(msgspec.Struct, forbid_unknown_fields=True):
    backchannel: int
    casefold: bool
    max_publication: Annotated[int, msgspec.Meta(ge=1)]
    named: bool
    endpoints: tuple[str, ...]
    rules: tuple[_RuleWritten, ...]


class _Head(msgspec.Struct):
    backchannel: int


SHOWN: Final = 5
"""Endpoints of a hub that an error names."""


class Mark(NamedTuple):
    """What tells one hub from another that has the same name.

    Args:
        endpoints: the URL templates that lead to it, in order.
        named: its application said ``name=``, and did not leave it at the default.
    """

    endpoints: tuple[str, ...] = ()
    named: bool = False

    def may_be(self, other: Mark) -> bool:
        """Tell whether two may be of one hub.

        Not so where they have none in common, unless both applications gave the name.
        """
        return (self.named and other.named) or not self.has_none_of(other)

    def has_none_of(self, other: Mark) -> bool:
        """Tell whether both have endpoints and none in common, whatever variables are called."""
        if not (self.endpoints and other.endpoints):
            return False
        return {*map(_shape, self.endpoints)}.isdisjoint(map(_shape, other.endpoints))

    def __str__(self) -> str:
        more = len(self.endpoints) - SHOWN
        return ", ".join(self.endpoints[:SHOWN]) + (f" and {more} more" if more > 0 else "")


def _shape(template: str) -> str:
    return re.sub(r"\{[^{}]*\}", "{}", template)


class About:
    """What holds for publications to a hub.

    Args:
        rules: its rules; only their patterns and what is kept by them is written.
        casefold: it ignores the case of channel names.
        max_publication: bytes of the largest message.
        mark: tells it from other hubs.
    """

    def __init__(self, rules: Rules, *, casefold: bool, max_publication: int, mark: Mark):
        self.rules = rules
        self.casefold = casefold
        self.max_publication = max_publication
        self.mark = mark

    def pack(self) -> bytes:
        """Return it as it is written: JSON, for people who look."""
        return msgspec.json.encode(
            _Written(
                FORMAT,
                self.casefold,
                self.max_publication,
                self.mark.named,
                self.mark.endpoints,
                tuple(_written(self.rules)),
            )
        )

    @classmethod
    def read(cls, data: bytes) -> About:
        """Read what ``pack`` made.

        Raises:
            ValueError: it did not, or that of another version did.
        """
        try:
            head = msgspec.json.decode(data, type=_Head)
        except ValueError as error:
            raise ValueError(f"it is {data[:60]!r}") from error
        if head.backchannel != FORMAT:
            raise ValueError(f"it has format {head.backchannel}, and this version knows {FORMAT}")
        try:
            written = msgspec.json.decode(data, type=_Written)
            rules = Rules()
            for one in written.rules:
                pattern = NamePattern(one.pattern, None)
                keep = Retention(one.history, one.ttl) if one.history and one.ttl else None
                rules.add(Rule(pattern, "the hub's", keep=keep, presence=one.presence))
        except ValueError as error:
            raise ValueError(f"it is {data[:60]!r}: {error}") from error
        return cls(
            rules,
            casefold=written.casefold,
            max_publication=written.max_publication,
            mark=Mark(written.endpoints, written.named),
        )


def _written(rules: Rules) -> Iterable[_RuleWritten]:
    for rule in rules:
        size, ttl = rule.keep or (None, None)
        yield _RuleWritten(rule.pattern.text, size, ttl, bool(rule.presence))

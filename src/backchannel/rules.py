"""Rules: what holds for the channels of a pattern, such as who may enter; and which one holds."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, cast

from backchannel.callbacks import Callback, read_callback
from backchannel.channel import check_channel
from backchannel.errors import ListenerError, TemplateError
from backchannel.history import Retention
from backchannel.template import NamePattern

__all__ = ["KeepsPresence", "Rule", "Rules", "astray", "check_call", "read_rule"]

KeepsPresence = bool | Literal["settled"]
"""What ``presence=`` of a rule may be."""

KEPT: Final = 4096
"""Channel names of which it is kept which rule holds for them; then it is found out anew."""


@dataclass(frozen=True, slots=True)
class Rule:
    """What holds for the channels of a pattern.

    Args:
        pattern: of their names.
        where: file and line of its registration.
        subscribe: asked before a connection enters one of them; None lets it pass.
        publish: asked whether a client may publish to one of them; None refuses.
        keep: how much of their history is kept; None keeps nothing.
        replay: publications, the newest ones, that a new member gets first.
        presence: it is kept who is in them, on all nodes; "settled": and of joins it is told only
            when the user has stayed for ``presence_moment``.
        snapshot: makes their state, for those who enter; None where there is none.
    """

    pattern: NamePattern
    where: str
    subscribe: Callback | None = None
    publish: Callback | None = None
    keep: Retention | None = None
    replay: int = 0
    presence: KeepsPresence = False
    snapshot: Callback | None = None

    def __str__(self) -> str:
        return f"{self.pattern.text!r} ({self.where})"


class Rules:
    """The rules of a hub, of which the most specific one that fits a name holds alone.

    The more text of its own a pattern has, the more specific it is, as with the patterns of
    endpoints. Two that have as much and could fit the same name are refused, so that there is
    never a tie.

    Attributes:
        some: there is at least one.
        keep: some keep history.
        presence: some keep who is in their channels.
    """

    __slots__ = ("_found", "_rules", "keep", "presence", "some")

    def __init__(self) -> None:
        self.some = False
        self.keep = False
        self.presence = False
        self._rules: list[Rule] = []  # from the most specific to the least
        self._found: dict[str, Rule | None] = {}

    def __iter__(self) -> Iterator[Rule]:
        """Iterate from the most specific to the least."""
        return iter(self._rules)

    def add(self, rule: Rule) -> None:
        """Add a rule; it holds from now on.

        Raises:
            TemplateError: there is one for the same names, or one that is as specific and could
                fit the same name.
        """
        for other in self._rules:
            if other.pattern.shape == rule.pattern.shape:
                raise TemplateError(
                    f"rules {other} and {rule} are for the same channels: there is one rule for "
                    "each pattern, so put into one what both say"
                )
            if other.pattern.literal_length != rule.pattern.literal_length:
                continue
            if (name := other.pattern.common_name(rule.pattern)) is not None:
                raise TemplateError(
                    f"rules {other} and {rule} both fit a channel such as {name!r}, and with as "
                    "much text of their own neither is the more specific: give one of them more, "
                    "such as a prefix"
                )
        self._rules.append(rule)
        self._rules.sort(key=lambda rule: rule.pattern.literal_length, reverse=True)
        self._found.clear()
        self.some = True
        self.keep = self.keep or rule.keep is not None
        self.presence = self.presence or bool(rule.presence)

    def find(self, name: str) -> Rule | None:
        """Return the rule that holds for a channel, or None."""
        try:
            return self._found[name]
        except KeyError:
            found = None
        for rule in self._rules:
            if rule.pattern.matches(name):
                found = rule
                break
        if len(self._found) >= KEPT:  # clients may choose names: they must not fill the memory
            self._found.clear()
        self._found[name] = found
        return found

    def asking(self, name: str) -> Callback | None:
        """Return what is to be asked before anyone enters a channel, or None."""
        rule = self.find(name)
        return None if rule is None else rule.subscribe

    def keeping(self, name: str) -> Retention | None:
        """Return how much of a channel's history is kept, or None."""
        rule = self.find(name)
        return None if rule is None else rule.keep

    def replaying(self, name: str) -> int:
        """Return how many of the newest publications a new member of a channel gets."""
        rule = self.find(name)
        return 0 if rule is None else rule.replay

    def has_presence(self, name: str) -> bool:
        """Tell whether it is kept who is in a channel."""
        rule = self.find(name) if self.presence else None
        return rule is not None and bool(rule.presence)

    def settles(self, name: str) -> bool:
        """Tell whether joins are told only of users who stay for a moment."""
        rule = self.find(name)
        return rule is not None and rule.presence == "settled"


def read_retention(
    text: str, history: object, ttl: object, replay: object
) -> tuple[Retention | None, int]:
    """Read what a rule says of history.

    Args:
        text: the rule's pattern, for errors.
        history: publications; None keeps nothing.
        ttl: seconds.
        replay: publications.

    Raises:
        TypeError: one of them is no number.
        ValueError: out of range, or to be replayed though it is not kept.
    """
    if history is not None:
        _check_count(text, "history", history, at_least=1)
    _check_count(text, "replay", replay, at_least=0)
    if isinstance(ttl, bool) or not isinstance(ttl, int | float):
        raise TypeError(f"rule {text!r}: ttl= is seconds, not {ttl!r}")
    if not 0 < ttl < math.inf:
        raise ValueError(f"rule {text!r}: ttl= is seconds above 0, not {ttl!r}")
    size, last = cast("int | None", history), cast("int", replay)
    if last > (size or 0):
        what = f"history={size}" if size else "no history"
        raise ValueError(
            f"rule {text!r}: replay={last} of {what}: what is to be replayed has to be kept, as in "
            f'hub.rule("{text}", history={last}, replay={last})'
        )
    return (None if size is None else Retention(size, float(ttl))), last


def _read_presence(text: str, presence: object) -> KeepsPresence:
    if isinstance(presence, bool):
        return presence
    if not isinstance(presence, str):
        raise TypeError(f'rule {text!r}: presence= is True, False or "settled", not {presence!r}')
    if presence != "settled":
        raise ValueError(f'rule {text!r}: presence= is True, False or "settled", not {presence!r}')
    return "settled"


def _check_count(text: str, name: str, value: object, *, at_least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"rule {text!r}: {name}= is a number of publications, not {value!r}")
    if value < at_least:
        raise ValueError(f"rule {text!r}: {name}= is at least {at_least}, not {value}")


ALIKE: Final = 0.8
"""From which likeness on (difflib) a rule was probably meant for the channels of an endpoint."""


def astray(rules: Rules, patterns: Sequence[NamePattern]) -> Iterator[tuple[Rule, NamePattern]]:
    """Find rules that were probably meant for an endpoint's channels, and fit none of them.

    A rule may also be for names that ``ws.subscribe`` will use, so that only those are found which
    look much like the channels of an endpoint that has no rule.

    Args:
        rules: all of them.
        patterns: the channels that endpoints lead into.

    Yields:
        The rule, and the pattern that it looks like.
    """
    bare = [one for one in patterns if not any(one.common_name(rule.pattern) for rule in rules)]
    for rule in rules:
        if any(one.common_name(rule.pattern) for one in patterns):
            continue
        texts = {"{}".join(one.shape).casefold(): one for one in bare}
        text = "{}".join(rule.pattern.shape).casefold()
        if near := difflib.get_close_matches(text, texts, n=1, cutoff=ALIKE):
            yield rule, texts[near[0]]


def check_call(pattern: object, unnamed: Sequence[object], unknown: Mapping[str, object]) -> None:
    """Refuse what ``hub.rule`` was given besides the pattern and what it knows by name.

    Raises:
        TypeError: there is something; the error says how to write it.
    """
    if unnamed:
        name = getattr(unnamed[0], "__name__", "…")
        raise TypeError(
            "hub.rule asks a function before a client subscribes, or before it publishes: say what "
            f"it is for: hub.rule({pattern!r}, subscribe={name}) or publish={name}"
        )
    for name in unknown:
        known = ("subscribe", "publish", "history", "ttl", "replay", "presence", "snapshot")
        near = difflib.get_close_matches(name.removeprefix("on_"), known, n=1)
        hint = f"did you mean {near[0]}=?" if near else "it has subscribe= and publish="
        raise TypeError(f"hub.rule has no {name}=; {hint}")


def read_rule(
    text: str,
    where: str,
    *,
    subscribe: object,
    publish: object,
    history: object = None,
    ttl: object = 3600,
    replay: object = 0,
    presence: object = False,
    snapshot: object = None,
    casefold: bool = False,
) -> Rule:
    """Read a rule and check it thoroughly.

    Args:
        text: the pattern, with ``{name}`` variables.
        where: file and line of its registration.
        subscribe: what is asked before a connection enters; None lets it pass.
        publish: what is asked whether a client may publish; None refuses.
        history: publications that are kept; None keeps nothing.
        ttl: seconds that each of them is kept.
        replay: publications that a new member gets first.
        presence: True keeps who is in them; "settled" tells of joins only once they last.
        snapshot: makes their state.
        casefold: True when the hub ignores the case of channel names.

    Raises:
        TypeError: the pattern is no str, a number is none, or presence is neither bool nor str.
        ValueError: a number is out of range, or presence is another word.
        TemplateError: the pattern is malformed, or no channel's name can fit it.
        ListenerError: what is to be asked can't be called with what rules have to give.
    """
    if not isinstance(text, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(
            f'hub.rule takes a pattern, as in hub.rule("thread:{{id}}", …), not {text!r}'
        )
    pattern = NamePattern(text, None)
    if "ws" in pattern.names or ("channel" in pattern.names and text != "{channel}"):
        taken = "ws" if "ws" in pattern.names else "channel"
        what = "the connection" if taken == "ws" else "the whole name"
        raise TemplateError(
            f"rule {text!r}: what is asked gets {what} as {taken!r}: give {{{taken}}} another name"
        )
    try:
        check_channel(pattern.fill(dict.fromkeys(pattern.names, "x")))
    except ValueError as error:
        raise TemplateError(f"rule {text!r} fits no channel: {error}") from error
    if casefold:
        pattern = pattern.casefolded()
    keep, last = read_retention(text, history, ttl, replay)
    return Rule(
        pattern,
        where,
        _read(subscribe, f"subscribe= of rule {text!r}", pattern),
        _read(publish, f"publish= of rule {text!r}", pattern),
        keep,
        last,
        _read_presence(text, presence),
        _read_snapshot(snapshot, text, pattern, keep),
    )


def _read_snapshot(
    function: Any, text: str, pattern: NamePattern, keep: Retention | None
) -> Callback | None:
    """Read what makes the state of a channel, which is called by name alone."""
    if function is None:
        return None
    label = f"snapshot= of rule {text!r}"
    if keep is None:
        raise ValueError(
            f"{label}: a state belongs to a position, so that history has to be kept, as in "
            f'hub.rule("{text}", history=100, snapshot=…)'
        )
    if not callable(function) or isinstance(function, type):
        raise ListenerError(f"{label} takes a function, not {function!r}")
    known = ("ws", *dict.fromkeys(["channel", *pattern.names]))
    names = _names_wanted(function, label, known, skip=0)
    callback = read_callback(function, label, "", names)

    def make(ws: Any, channel: str) -> Any:
        there = {"ws": ws, "channel": channel, **(pattern.read(channel) or {})}
        return function(**{name: there[name] for name in names})

    return dataclasses.replace(callback, function=make)


def _read(function: Any, label: str, pattern: NamePattern) -> Callback | None:
    if function is None:
        return None
    if not callable(function) or isinstance(function, type):
        raise ListenerError(f"{label} takes a function that is asked, not {function!r}")
    names = _names_wanted(function, label, tuple(dict.fromkeys(["channel", *pattern.names])))
    callback = read_callback(function, label, "ws", names)
    return dataclasses.replace(
        callback, function=_asked_like_on_subscribe(function, pattern, names)
    )


def _names_wanted(
    function: Callable[..., Any], label: str, known: tuple[str, ...], *, skip: int = 1
) -> tuple[str, ...]:
    """Return what a function is to be given by name, of what there is.

    Args:
        function: it.
        label: for errors.
        known: what there is.
        skip: how many parameters are given by position.
    """
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return ()  # read_callback says what is wrong
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    for one in parameters[skip:]:
        if one.name not in known and one.default is one.empty and one.kind not in variadic:
            raise ListenerError(
                f"{label} has a parameter {one.name!r} that rules do not know; it is called with "
                f"{'the connection and, ' * skip}by name, what it names of {', '.join(known)}"
            )
    if any(one.kind is one.VAR_KEYWORD for one in parameters):
        return known
    named = [one.name for one in parameters if one.kind not in variadic]
    return tuple(name for name in known if name in named)


def _asked_like_on_subscribe(
    function: Callable[..., Any], pattern: NamePattern, names: tuple[str, ...]
) -> Callable[[Any, str], Any]:
    """Return a rule's function as one that takes (ws, channel)."""
    if names == ():
        return lambda ws, _channel: function(ws)
    if names == ("channel",):
        return lambda ws, channel: function(ws, channel=channel)

    def ask(ws: Any, channel: str) -> Any:
        there = {"channel": channel, **(pattern.read(channel) or {})}
        return function(ws, **{name: there[name] for name in names})

    return ask

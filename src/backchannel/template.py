"""URL templates and the names made from them. Pure: values in, values out.

``/ws/chat/{channel}`` · ``{n:int}`` · ``{id:uuid}`` · ``{rest:path}`` (last, takes the remainder).
A variable fills a whole segment and is never empty. At each segment, from left to right, an exact
text wins over ``int`` and ``uuid``, these over a plain variable, and that over ``path``
(the order of Jakarta WebSocket 2.1 §3.1.1, with types added).
"""

from __future__ import annotations

import difflib
import re
import string
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Generic, TypeVar
from uuid import UUID

from backchannel.errors import TemplateError

__all__ = ["NamePattern", "Router", "Template", "near_misses"]

_VARIABLE: Final = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)(?::([^}]*))?\}")
_NOT_IN_A_PATH: Final = re.compile(r"[?#]|%[0-9A-Fa-f]{2}")
# As Express, Flask, Django and globs write what is a variable here.
_FOREIGN: Final = re.compile(r":(\w+)|<(?:\w+:)?(\w+)>|\*\*?")
_FOREIGN_IN_A_NAME: Final = re.compile(r"<(?:\w+:)?(\w+)>|\*")
_INTEGER: Final = re.compile(r"-?[0-9]{1,19}", re.ASCII)
_UUID: Final = re.compile(r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}", re.ASCII | re.IGNORECASE)


def _integer(text: str) -> int | None:
    return int(text) if _INTEGER.fullmatch(text) else None


def _uuid(text: str) -> UUID | None:
    return UUID(text) if _UUID.fullmatch(text) else None


def _plain(text: str) -> str | None:
    return text or None


# From the most specific to the least: the order in which a segment tries them.
_CONVERTERS: Final[dict[str, Callable[[str], Any]]] = {
    "int": _integer,
    "uuid": _uuid,
    "str": _plain,
    "path": _plain,
}


@dataclass(frozen=True, slots=True)
class Variable:
    """A ``{name:kind}`` segment."""

    name: str
    kind: str


@dataclass(frozen=True, slots=True)
class Template:
    """A checked URL template.

    Args:
        text: as it was written.

    Raises:
        TemplateError: it is malformed; the error says where and how to write it.
    """

    text: str
    segments: tuple[str | Variable, ...] = field(init=False, compare=False)

    def __post_init__(self) -> None:
        """Parse the text."""
        object.__setattr__(self, "segments", tuple(_parse(self.text)))

    @property
    def variables(self) -> tuple[str, ...]:
        """The names of its variables, from left to right."""
        return tuple(part.name for part in self.segments if isinstance(part, Variable))


def _parse(text: str) -> Iterable[str | Variable]:
    if not isinstance(text, str) or not text.startswith("/"):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TemplateError(
            f'URL template {text!r} must start with "/", as in "/ws/chat/{{channel}}"'
        )
    parts = text[1:].split("/") if text != "/" else []
    seen: set[str] = set()
    for index, part in enumerate(parts):
        last = index == len(parts) - 1
        if not part and not last:
            raise TemplateError(f'URL template {text!r} has an empty segment ("//")')
        if part in {".", ".."}:
            raise TemplateError(
                f"URL template {text!r} has the segment {part!r}, which no URL keeps"
            )
        if "{" not in part and "}" not in part:
            if wrong := _NOT_IN_A_PATH.search(part):
                raise TemplateError(
                    f"URL template {text!r} has {wrong[0]!r}: write the path alone, without query "
                    "and fragment, and with nothing percent-encoded"
                )
            if foreign := _FOREIGN.fullmatch(part):
                name = foreign[1] or foreign[2] or "name"
                raise TemplateError(
                    f"URL template {text!r}: {part!r} would be taken literally: a variable is "
                    f"written {{{name}}}, and {{rest:path}} takes all that is left"
                )
            yield part
            continue
        variable = _variable(text, part)
        if variable.name in seen:
            raise TemplateError(f"URL template {text!r} has the variable {variable.name!r} twice")
        if variable.kind == "path" and not last:
            raise TemplateError(f"URL template {text!r}: {part} must be the last segment")
        seen.add(variable.name)
        yield variable


def _variable(text: str, part: str) -> Variable:
    found = _VARIABLE.fullmatch(part)
    if not found:
        raise TemplateError(
            f"URL template {text!r}: {part!r} must be all text or one variable, such as {{name}}, "
            f"{{name:int}}, {{name:uuid}} or {{rest:path}}"
        )
    name, kind = found[1], "str" if found[2] is None else found[2]
    if kind not in _CONVERTERS:
        known = ", ".join(_CONVERTERS)
        raise TemplateError(
            f"URL template {text!r}: {kind!r} in {part} is unknown; known are {known}"
        )
    return Variable(name, kind)


T = TypeVar("T")


@dataclass(slots=True)
class _Branch(Generic[T]):
    """One segment's place in the tree of templates."""

    exact: dict[str, _Branch[T]] = field(default_factory=dict[str, "_Branch[T]"])
    variable: dict[str, _Branch[T]] = field(default_factory=dict[str, "_Branch[T]"])
    leaf: tuple[Template, T] | None = None


class Router(Generic[T]):
    """Finds what a path belongs to."""

    def __init__(self) -> None:
        self._root = _Branch[T]()
        self._by_text: dict[str, T] = {}

    def __iter__(self) -> Iterator[T]:
        """Iterate over what was added, in that order."""
        return iter(self._by_text.values())

    def get(self, text: str) -> T | None:
        """Return what was added for a template, by its text."""
        return self._by_text.get(text)

    def add(self, template: Template, value: T) -> None:
        """Add a template.

        Raises:
            TemplateError: it is a duplicate, or matches exactly what another one matches.
        """
        branch = self._root
        for part in template.segments:
            if isinstance(part, Variable):
                branch = branch.variable.setdefault(part.kind, _Branch())
            else:
                branch = branch.exact.setdefault(part, _Branch())
        if branch.leaf:
            other = branch.leaf[0].text
            raise TemplateError(
                f"URL template {template.text!r} is registered already"
                if other == template.text
                else f"URL templates {template.text!r} and {other!r} match the same URLs"
            )
        branch.leaf = (template, value)
        self._by_text[template.text] = value

    def match(self, segments: list[str]) -> tuple[T, dict[str, Any]] | None:
        """Find the value for a path.

        Args:
            segments: the path's decoded segments; ``[]`` is ``/``.

        Returns:
            The value and its variables, converted; None when nothing matches.
        """
        found = _walk(self._root, segments, 0)
        if found is None:
            return None
        (template, value), values = found
        return value, dict(zip(template.variables, values, strict=True))


def _walk(
    branch: _Branch[T], segments: list[str], at: int
) -> tuple[tuple[Template, T], list[Any]] | None:
    if at == len(segments):
        return (branch.leaf, []) if branch.leaf else None
    exact = branch.exact.get(segments[at])
    if exact and (found := _walk(exact, segments, at + 1)):
        return found
    for kind, convert in _CONVERTERS.items():
        below = branch.variable.get(kind)
        if below is None:
            continue
        taken = len(segments) if kind == "path" else at + 1
        value = convert("/".join(segments[at:taken]))
        if value is not None and (found := _walk(below, segments, taken)):
            return found[0], [value, *found[1]]
    return None


def near_misses(path: str, templates: Iterable[str], most: int = 3) -> list[str]:
    """Return the templates that look most like a path that matched none of them."""
    known = list(templates)
    close = difflib.get_close_matches(path, known, n=most, cutoff=0.3)
    return close or known[:most]


class NamePattern:
    """A channel name with variables in it, such as ``support:{room}``.

    Args:
        text: literal text with ``{name}`` variables.
        variables: the names that may be used: those of the URL template. None, for a rule, admits
            any name, each of them once.

    Raises:
        TemplateError: malformed, or with a variable that the template does not have.
    """

    __slots__ = ("_literals", "_variables", "literal_length", "names", "text")

    def __init__(self, text: str, variables: Iterable[str] | None):
        label = f"rule {text!r}" if variables is None else f"channel={text!r}"
        try:
            parts = list(string.Formatter().parse(text))
        except ValueError as error:
            raise TemplateError(f"{label} is malformed: {error}") from error
        self.text = text
        self._variables = None if variables is None else list(variables)
        self.names = tuple(name for _, name, _, _ in parts if name is not None)
        for _, name, spec, conversion in parts:
            if spec or conversion:
                raise TemplateError(
                    f"{label}: {{{name}}} must be the name alone, without '!' and ':'"
                    + ("" if variables is None else "; its kind stands in the URL template")
                )
        self._check_names(label)
        literals = [""]
        for literal, name, *_ in parts:  # an escaped brace ends a part without a variable
            literals[-1] += literal
            if name is not None:
                literals.append("")
        if foreign := next(filter(None, map(_FOREIGN_IN_A_NAME.search, literals)), None):
            raise TemplateError(
                f"{label}: {foreign[0]!r} would be taken literally, and fit no other name: a "
                f"variable is written {{{foreign[1] or 'name'}}}"
            )
        self._literals = tuple(literals)
        self.literal_length = sum(map(len, literals))

    def _check_names(self, label: str) -> None:
        known = self._variables
        for name in self.names:
            if known is not None and name not in known:
                raise TemplateError(
                    f"{label}: {{{name}}} is no variable of the URL template, which has "
                    f"{', '.join(known) or 'none'}"
                )
            if known is None and not name.isidentifier():
                raise TemplateError(
                    f"{label}: {{{name}}} is no name for a variable; write it as in Python, such "
                    "as {id}"
                )
            if known is None and self.names.count(name) > 1:
                raise TemplateError(f"{label} has the variable {{{name}}} twice")

    def fill(self, values: Mapping[str, Any]) -> str:
        """Return the name for a connection's URL variables."""
        return self.text.format_map({name: values[name] for name in self.names})

    @property
    def shape(self) -> tuple[str, ...]:
        """What two patterns share when they make the same names: the text around variables."""
        return self._literals

    def casefolded(self) -> NamePattern:
        """Return the pattern for a hub that ignores the case of channel names."""
        parts = string.Formatter().parse(self.text)
        text = "".join(
            literal.casefold().replace("{", "{{").replace("}", "}}")
            + ("" if name is None else f"{{{name}}}")
            for literal, name, *_ in parts
        )
        return NamePattern(text, self._variables)

    def matches(self, name: str) -> bool:
        """Tell whether the pattern could have made a name."""
        return self.read(name) is not None

    def read(self, name: str) -> dict[str, str] | None:
        """Return the variables of a name; None when the pattern could not have made it.

        Each variable ends where the text after it first occurs; the last one takes what is left.
        So the time it takes grows with the name's length alone, and clients choose names.
        """
        first, *others = self._literals
        if not others:
            return {} if name == first else None
        *between, last = others
        end = len(name) - len(last)
        if not (name.startswith(first) and name.endswith(last)):
            return None
        at, values = len(first), list[str]()
        for literal in between:
            stop = name.find(literal, at + 1, end)
            if stop < 0:
                return None
            values.append(name[at:stop])
            at = stop + len(literal)
        return dict(zip(self.names, [*values, name[at:end]], strict=True)) if at < end else None

    def common_name(self, other: NamePattern) -> str | None:
        """Return a name that both patterns could have made; None when there is none."""
        ours, theirs = self._steps(), other._steps()
        todo, seen = [(0, 0, "")], set[tuple[int, int]]()
        while todo:
            i, j, name = todo.pop()
            if i == len(ours) and j == len(theirs):
                return name
            if i == len(ours) or j == len(theirs) or (i, j) in seen:
                continue
            seen.add((i, j))
            mine, its = ours[i], theirs[j]
            if mine is None or its is None or mine == its:
                name += mine or its or "x"
                # A variable may take one more character, or have had its last.
                ways = [(i + 1, j + 1)]
                ways += [(i, j + 1)] if mine is None else []
                ways += [(i + 1, j)] if its is None else []
                todo += [(*way, name) for way in reversed(ways)]
        return None

    def _steps(self) -> list[str | None]:
        """Return its characters one by one; None stands for a variable."""
        first, *others = self._literals
        return [*first, *(step for literal in others for step in (None, *literal))]

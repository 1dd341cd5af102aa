"""Channel names, and the life of a channel on one node."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backchannel.turn import Occupancy

if TYPE_CHECKING:
    from backchannel.endpoint import Endpoint

__all__ = ["Channel", "Channels", "check_channel"]

MAX_NAME_BYTES = 255


def check_channel(name: str, *, casefold: bool = False) -> str:
    """Check a channel name and return it as the hub keeps it.

    Args:
        name: 1–255 bytes of text without control characters; ``$…`` is Backchannel's own.
        casefold: True makes names that differ only in case the same.

    Raises:
        TypeError: not a str.
        ValueError: empty, too long, with control characters, or starting with ``$``.
    """
    if (
        type(name) is str
        and name
        and name[0] != "$"
        and name.isascii()
        and name.isprintable()
        and len(name) <= MAX_NAME_BYTES
        and not casefold
    ):
        return name  # as almost all are: no need to look further
    if not isinstance(name, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"a channel name is a str, not {name!r}")
    if casefold:
        name = name.casefold()
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        raise ValueError(f"channel name {name!r} has a lone surrogate") from None
    if not 1 <= size <= MAX_NAME_BYTES:
        shown = f"{name[:40]!r}… is {size} bytes long" if size else "is empty"
        raise ValueError(f"channel name {shown}; it must be 1–{MAX_NAME_BYTES} bytes of UTF-8")
    if not name.isprintable() and any(ord(c) < 0x20 or 0x7F <= ord(c) < 0xA0 for c in name):
        raise ValueError(f"channel name {name!r} has a control character")
    if name.startswith("$"):
        raise ValueError(f"channel name {name!r}: names that start with $ are Backchannel's own")
    return name


class Channel(Occupancy, eq=False):
    """A channel's life: open from its first subscriber's coming to its last one's leaving.

    It is held by each member, and by whoever is being asked or told about it.

    Args:
        name: its name.
        opener: the endpoint of the first subscriber; its listener hears of opening and closing.
    """

    name: str
    opener: Endpoint

    def is_plain(self) -> bool:
        """Tell whether nobody has to wait here: neither for a callback nor for their turn."""
        is_free = self._turn is None and self._opening is None
        return is_free and self.opener.callbacks.membership_is_plain


class Channels(dict[str, Channel]):
    """The channels of one node that are held by someone, by their names, which are checked."""

    def hold(self, name: str, endpoint: Endpoint) -> Channel:
        """Return a channel, new if need be. The caller enters it before it waits."""
        channel = self.get(name)
        if channel is None:
            channel = self[name] = Channel(name, endpoint)
        elif not channel.holders and not channel.is_open:
            channel.opener = endpoint
        return channel

    def drop_if_free(self, channel: Channel) -> None:
        """Forget a channel that nobody holds any more."""
        if not channel.holders and channel.is_calm:
            self.pop(channel.name, None)

"""Limits as arithmetic: how much may come, from whom, and what is said of it. Pure.

The time is handed in, in seconds of a clock that never goes back.
"""

from __future__ import annotations

import ipaddress
import math
from collections import OrderedDict
from collections.abc import Hashable
from typing import Final, NamedTuple

__all__ = ["MINUTE", "OTHERS", "Bucket", "Line", "Offenders", "Rates", "network_of"]

MINUTE: Final = 60.0
"""Seconds in which one offender is worth one line of the log."""

OTHERS: Final = "others"
"""Stands for offenders that are too many to be told apart."""

_MOST_ADDRESSES: Final = 65_536
_MOST_OFFENDERS: Final = 1000
_AT_ONCE: Final = 8
"""Addresses that are looked at, and maybe forgotten, when one comes: more than come."""

_PREFIX: Final = 64
"""Bits that tell IPv6 clients apart; the rest of its address each chooses as it likes."""


class Bucket:
    """What came from one client: it leaks at a rate, and must not run over.

    Args:
        rate: how much leaks in a second.
        burst: how much it holds.
    """

    __slots__ = ("_at", "_burst", "_level", "_rate")

    def __init__(self, rate: float, burst: float):
        self._rate = rate
        self._burst = burst
        self._level = 0.0
        self._at = 0.0

    def take(self, amount: float, now: float) -> bool:
        """Take what came; False leaves it as it was, since it would run over."""
        level = self._level_at(now) + amount
        if level > self._burst:
            return False
        self._level, self._at = level, now
        return True

    def wait(self, amount: float, now: float) -> float:
        """Return the seconds until there is room for so much."""
        return max(0.0, self._level_at(now) + amount - self._burst) / self._rate

    def excuse(self, seconds: float, now: float) -> None:
        """Let more come at once for a while in which nothing could: it may all have come then.

        In the long run no more comes than the rate allows.

        Args:
            seconds: how long that was, until now.
            now: the time.
        """
        leaked = self._level - max(0.0, now - self._at) * self._rate
        self._level, self._at = max(leaked, -seconds * self._rate), now

    def is_empty(self, now: float) -> bool:
        """Tell whether it is as good as new."""
        return self._level_at(now) <= 0.0

    def _level_at(self, now: float) -> float:
        # Below zero it stays: that is what was excused.
        return max(min(0.0, self._level), self._level - max(0.0, now - self._at) * self._rate)


class Rates:
    """A bucket for each address, kept only as long as something is in it.

    Whoever scans from many addresses costs memory for those of the last moment alone, and for
    never more than ``most``: then the one that was quiet for longest is forgotten.

    Args:
        rate: how many a second may come from one address.
        most: addresses that are kept.
    """

    __slots__ = ("_buckets", "_burst", "_most", "_rate")

    def __init__(self, rate: float, most: int = _MOST_ADDRESSES):
        self._rate = rate
        self._burst = max(1.0, rate)
        self._most = most
        self._buckets: OrderedDict[str, Bucket] = OrderedDict()  # in the order of their last use

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, address: str, now: float) -> float:
        """Count one of an address.

        Returns:
            0.0 when it may come, else the seconds until one may; then it was not counted.
        """
        bucket = self._buckets.get(address)
        if bucket is None:
            bucket = self._buckets[address] = Bucket(self._rate, self._burst)
        else:
            self._buckets.move_to_end(address)
        may_come = bucket.take(1, now)
        self._forget(now)
        return 0.0 if may_come else bucket.wait(1, now)

    def _forget(self, now: float) -> None:
        """Forget who was quiet for long, beginning with whom that is likeliest of."""
        for _ in range(_AT_ONCE):
            address, bucket = next(iter(self._buckets.items()))
            if len(self._buckets) <= self._most and not bucket.is_empty(now):
                return
            del self._buckets[address]


class Line(NamedTuple):
    """What is to be logged.

    Args:
        who: the offender; OTHERS when they are too many.
        further: how often the same happened since the last line, which said nothing of it.
    """

    who: str
    further: int


class Offenders:
    """Who went over a limit: each is worth one line a minute.

    Args:
        most: offenders that are told apart in a minute; what the log gets is bounded, too.
    """

    __slots__ = ("_most", "_told")

    def __init__(self, most: int = _MOST_OFFENDERS):
        self._most = most
        # In the order of their lines: when that was, and how many it would have been since.
        self._told: OrderedDict[Hashable, tuple[float, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._told)

    def note(self, setting: str, who: str, now: float) -> Line | None:
        """Note that someone went over a limit.

        Returns:
            What to log; None when the offender had a line within the last minute.
        """
        key = setting, who
        if key not in self._told and len(self._told) >= self._most and not self._forget(now):
            who = OTHERS
            key = setting, who
        at, further = self._told.get(key, (-math.inf, 0))
        if now - at < MINUTE:
            self._told[key] = at, further + 1
            return None
        self._told[key] = now, 0
        self._told.move_to_end(key)
        return Line(who, further)

    def _forget(self, now: float) -> bool:
        """Forget the one whose line is oldest, unless it is of this minute."""
        key, (at, _) = next(iter(self._told.items()))
        if now - at < MINUTE:
            return False
        del self._told[key]
        return True


def network_of(client: tuple[str, int] | None) -> str | None:
    """Return what the clients of one address have in common.

    Args:
        client: (address, port), as the server or a trusted proxy says; proxies may write the port,
            as in ``192.0.2.1:5123`` and ``[2001:db8::1]:5123``.

    Returns:
        The IPv4 address, or the /64 network of an IPv6 one; None for what is none, such as the
        path of a Unix socket.
    """
    host = client[0] if client else ""
    if host.startswith("["):
        host = host[1:].partition("]")[0]
    elif host.count(":") == 1:
        host = host.partition(":")[0]
    try:
        parsed = ipaddress.ip_address(host)
    except ValueError:
        return None
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    network = int(parsed) >> (128 - _PREFIX) << (128 - _PREFIX)
    return f"{ipaddress.IPv6Address(network)}/{_PREFIX}"

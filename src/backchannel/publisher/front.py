"""What blocking and async publishers have in common: what they are made with, what they check."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

from backchannel.addressing import Addressees, targets
from backchannel.channel import check_channel
from backchannel.connection import ABSENT
from backchannel.contracts import Publication, Target
from backchannel.messages import encode, form_of

if TYPE_CHECKING:
    from backchannel.broker.redis.door import Whereabouts
    from backchannel.publisher.plan import Plan

__all__ = ["Front"]


class Front:
    """A publisher to one hub.

    Args:
        url: the engine that the hub's nodes have as their broker.
        hub: the hub's name, ``Hub(name=…)``.
        timeout: seconds that a call may take.
        max_connections: of each kind, those that publish and those that wait for answers.

    Raises:
        ImportError: redis and hiredis are not installed.
        TypeError, ValueError: no such URL, name or number.
    """

    def __init__(self, url: str, hub: str, timeout: float, max_connections: int):
        self._name = type(self).__name__
        if not isinstance(url, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"{self._name} takes a URL, as redis://localhost:6379/0, not {url!r}")
        self._check(hub, timeout, max_connections)
        try:
            from backchannel.broker.redis.door import read_url  # noqa: PLC0415 - an extra
            from backchannel.publisher.plan import Plan  # noqa: PLC0415
        except ImportError as error:
            raise ImportError(
                f'{self._name} needs redis and hiredis: pip install "backchannel[redis]" ({error})'
            ) from error
        self._address: Whereabouts = read_url(url, f"{self._name}({{}})")
        self._hub = hub
        self._patience = min(timeout / 2, 2.0)
        self._plan: Plan = Plan(self._address, hub, timeout, self._patience)

    def _check(self, hub: object, timeout: object, max_connections: object) -> None:
        if not isinstance(hub, str) or not re.fullmatch(r"[\w.-]{1,64}", hub):
            raise ValueError(
                f"{self._name}(hub=…) is the name that the hub has, Hub(name=…): 1 to 64 letters, "
                f"digits, dots, dashes and underscores, not {hub!r}"
            )
        if isinstance(timeout, bool) or not isinstance(timeout, int | float):
            raise TypeError(f"{self._name}(timeout=…) is seconds, not {timeout!r}")
        if not 0 < timeout < math.inf:  # also NaN
            raise ValueError(f"{self._name}(timeout=…) is seconds above 0, not {timeout!r}")
        if isinstance(max_connections, bool) or not isinstance(max_connections, int):
            raise TypeError(f"{self._name}(max_connections=…) is a number, not {max_connections!r}")
        if max_connections < 1:
            raise ValueError(
                f"{self._name}(max_connections=…) is at least 1, not {max_connections!r}"
            )

    def _publication(
        self, target: Target, message: Any, to: Addressees, exclude: Addressees
    ) -> Publication:
        """Read what is to be sent, as ``Hub`` does."""
        return Publication(
            target,
            encode(message),
            None if to is ABSENT else targets(self, to, "to"),
            () if exclude is ABSENT else targets(self, exclude, "exclude"),
            form_of(message),
        )

    @staticmethod
    def _channel_target(name: str) -> Target:
        return Target("channel", check_channel(name))

    def __repr__(self) -> str:
        return f"<{self._name} to hub {self._hub!r} at {self._address.shown}>"

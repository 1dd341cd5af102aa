"""Who a web framework has found out that it is: by its session, or by Starlette's middleware."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from backchannel.observe import HANDSHAKE
from backchannel.session.web import NO_SESSIONS

if TYPE_CHECKING:
    from backchannel.request import Request

__all__ = ["StarletteUser", "session_user", "starlette_user"]

_ABSENT: Final = object()


def session_user(key: str = "user_id") -> Callable[[Request], Any]:
    """Return an ``authenticate`` that finds the user's id in the web session.

    Args:
        key: the session's key for it; where it is missing or None, the client is anonymous.
    """
    has_warned = False

    def find(request: Request) -> Any:
        nonlocal has_warned
        if request.session is NO_SESSIONS and not has_warned:
            has_warned = True
            HANDSHAKE.warning(
                "session_user(%r) found no session in the scope, so everybody is anonymous: put "
                "the session middleware around the app that the hub is mounted in, or say which "
                "sessions: Hub(session=…)",
                key,
            )
        return request.session.get(key)

    return find


@dataclass(frozen=True, slots=True, eq=False)
class StarletteUser:
    """Who Starlette's AuthenticationMiddleware says it is.

    Args:
        id: the user's ``identity``.
        user: Starlette's own user object.
        scopes: what the credentials permit (``AuthCredentials.scopes``).
    """

    id: Any
    user: Any = field(repr=False)
    scopes: tuple[str, ...] = ()

    @property
    def expires_at(self) -> Any:
        """Until when it holds, where Starlette's user says so."""
        return getattr(self.user, "expires_at", None)


def starlette_user() -> Callable[[Request], StarletteUser | None]:
    """Return an ``authenticate`` that takes Starlette's AuthenticationMiddleware at its word.

    An unauthenticated user is anonymous. The id is ``user.identity``; where that is not
    implemented, ``display_name``, then ``username``.
    """

    def find(request: Request) -> StarletteUser | None:
        user = request.scope.get("user", _ABSENT)
        if user is _ABSENT:
            raise LookupError(
                "starlette_user() found no user in the scope: put Starlette's "
                "AuthenticationMiddleware around the app that the hub is mounted in"
            )
        if not getattr(user, "is_authenticated", False):
            return None
        scopes = getattr(request.scope.get("auth"), "scopes", ())
        return StarletteUser(_name_of(user), user, tuple(scopes))

    return find


def _name_of(user: object) -> Any:
    for name in ("identity", "display_name", "username"):
        try:
            value = getattr(user, name, _ABSENT)
        except NotImplementedError:
            continue
        if value is None or value == "":
            break
        if value is not _ABSENT:
            return value
    kind = type(user).__qualname__
    raise TypeError(f"starlette_user(): a {kind} that is authenticated has no identity")

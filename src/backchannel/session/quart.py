"""Quart's sessions, which live in a signed cookie.

from backchannel.session.quart import QuartSessions

hub = Hub(session=QuartSessions(app), authenticate=lambda r: r.session.get("user"))
application = hub.wrap(app)
"""

from __future__ import annotations

from collections.abc import MutableMapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from backchannel.session.web import NO_SESSION, CookieJar, Session, asked, end_of_signed, named

if TYPE_CHECKING:
    from backchannel.request import Request

__all__ = ["QuartSessions"]


class QuartSessions:
    """Finds the Quart session of a handshake by its cookie. ``Hub(session=…)`` takes it.

    Args:
        app: the Quart app, with its configuration.
    """

    def __init__(self, app: Any):
        self._app = app

    async def find(self, request: Request) -> Session:
        """Return the session of a handshake, empty where there is none or it has expired.

        Raises:
            SessionUnavailable: another session interface than Quart's own raised.
        """
        header = ";".join(request.headers.getlist("cookie"))  # as Quart has them in a view
        cookies = import_module("werkzeug.sansio.http").parse_cookie(header)
        interface = self._app.session_interface
        found = await asked(interface.open_session(self._app, CookieJar(cookies)))
        if not found:
            return NO_SESSION
        end = None
        if hasattr(interface, "get_signing_serializer"):
            loads = interface.get_signing_serializer(self._app).loads
            age = int(self._app.permanent_session_lifetime.total_seconds())
            end = end_of_signed(loads, cookies.get(interface.get_cookie_name(self._app), ""), age)
        return Session(dict(found), ends_at=end)

    @staticmethod
    def remember(session: MutableMapping[str, Any]) -> str:
        """Give ``quart.session`` a new random id and return it, for ``hub.session(id)``.

        Call it at login, in a view.
        """
        return named(session)

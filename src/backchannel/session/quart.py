"""Quart's sessions, which live in a signed cookie.

from backchannel.session.quart import QuartSessions

hub = Hub(session=QuartSessions(app), authenticate=lambda r: r.session.get("user"))
application = hub.wrap(app)
"""

from __future__ import annotations

from collections.abc import MutableMapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from backchannel.session.web import NO_SESSION, CookieJar, Session, asked, named

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
        opening = self._app.session_interface.open_session(self._app, CookieJar(cookies))
        found = await asked(opening)
        return Session(dict(found)) if found else NO_SESSION

    @staticmethod
    def remember(session: MutableMapping[str, Any]) -> str:
        """Give ``quart.session`` a new random id and return it, for ``hub.session(id)``.

        Call it at login, in a view.
        """
        return named(session)

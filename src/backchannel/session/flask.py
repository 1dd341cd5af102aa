"""Flask's sessions: its signed cookie, and Flask-Session's on the server.

    from backchannel.session.flask import FlaskSessions, close_on_logout

    sessions = FlaskSessions(app)
    hub = Hub(session=sessions, authenticate=lambda request: request.session.get("user"))
    close_on_logout(hub, app)  # where Flask-Login signs people in and out
    application = hub.wrap(WSGIMiddleware(app))  # a2wsgi's

What Flask-Session asks its server runs in a worker thread, in the app's context.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, MutableMapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from backchannel.session.web import (
    NO_SESSION,
    REMEMBERED,
    CookieJar,
    Session,
    asked,
    end_of_signed,
    named,
)
from backchannel.threads import call_in_thread

if TYPE_CHECKING:
    from backchannel.hub import HubCore
    from backchannel.request import Request

__all__ = ["FlaskSessions", "close_on_logout"]


class FlaskSessions:
    """Finds the Flask session of a handshake by its cookie. ``Hub(session=…)`` takes it.

    Args:
        app: the Flask app, with its configuration.
    """

    def __init__(self, app: Any):
        self._app = app

    async def find(self, request: Request) -> Session:
        """Return the session of a handshake, empty where there is none or it has expired.

        Raises:
            SessionUnavailable: the server that keeps it does not answer.
        """
        interface = self._app.session_interface
        cookies = _cookies(request)
        cookie = cookies.get(interface.get_cookie_name(self._app))
        if not cookie:
            return NO_SESSION
        if hasattr(interface, "get_signing_serializer"):  # all of it lives in the cookie
            found = interface.open_session(self._app, CookieJar(cookies))
            if not found:
                return NO_SESSION
            loads = interface.get_signing_serializer(self._app).loads
            age = int(self._app.permanent_session_lifetime.total_seconds())
            return Session(dict(found), ends_at=end_of_signed(loads, cookie, age))
        store = _Store(self._app, cookie)
        found = await asked(call_in_thread(store.open))
        return NO_SESSION if found is None else Session(dict(found), id=found.sid, store=store)

    @staticmethod
    def remember(session: MutableMapping[str, Any]) -> str:
        """Give ``flask.session`` a new id and return it, for ``hub.session(id)``.

        Call it at login, in a view, when the session says who it is. One that lives in a cookie
        gets a random one. Flask-Session moves the session to the new id, so that who knew the old
        one, or planted it, has nothing of it.
        """
        if not hasattr(session, "sid"):
            return named(session)
        app = import_module("flask").current_app
        app.session_interface.regenerate(session)
        key: str = getattr(session, "sid")  # noqa: B009 - Flask-Session's own class has it
        return key


def _cookies(request: Request) -> Mapping[str, str]:
    """Return the cookies as a view of Flask's has them; WSGI joins several headers by commas."""
    header = ",".join(request.headers.getlist("cookie"))
    cookies: Mapping[str, str] = import_module("werkzeug.sansio.http").parse_cookie(header)
    return cookies


class _Store:
    """The server-side session of one cookie, by Flask's own interface for it."""

    __slots__ = ("_app", "_cookie")

    def __init__(self, app: Any, cookie: str):
        self._app = app
        self._cookie = cookie

    @property
    def extends(self) -> bool:
        """Flask-Session keeps it in Redis, and does not leave its end where it is on purpose."""
        kinds = [kind.__name__ for kind in type(self._app.session_interface).__mro__]
        in_redis = "RedisSessionInterface" in kinds
        return in_redis and bool(self._app.config["SESSION_REFRESH_EACH_REQUEST"])

    def open(self) -> Any:
        """Return the session as Flask-Session has it now; None when it does not exist."""
        interface = self._app.session_interface
        jar = CookieJar({interface.get_cookie_name(self._app): self._cookie})
        with self._app.app_context():
            session = interface.open_session(self._app, jar)
        # For one that it does not find it makes another, with an id of its own.
        return session if session is not None and self._cookie.startswith(session.sid) else None

    def change(self, changed: Mapping[str, Any], removed: Collection[str]) -> bool:
        """Change some keys; False when the session does not exist any more."""
        session = self.open()
        if session is None:
            return False
        session.update(changed)
        for name in removed:
            session.pop(name, None)
        with self._app.app_context():
            response = self._app.response_class()  # for a cookie that nobody needs
            self._app.session_interface.save_session(self._app, session, response)
        return True

    async def load(self, key: str) -> Mapping[str, Any] | None:  # noqa: ARG002 - the cookie has it
        """Return what the session holds; None when it has expired or was deleted."""
        session = await call_in_thread(self.open)
        return None if session is None else dict(session)

    async def save(
        self,
        key: str,  # noqa: ARG002 - the cookie has it
        changed: Mapping[str, Any],
        removed: Collection[str],
    ) -> bool:
        """Change some keys of the session; False when it does not exist any more."""
        exists: bool = await call_in_thread(self.change, changed, removed)
        return exists

    async def touch(self, key: str) -> bool:
        """Let the session live for PERMANENT_SESSION_LIFETIME from now on."""
        interface = self._app.session_interface
        seconds = int(self._app.permanent_session_lifetime.total_seconds())
        place = interface._get_store_id(key)
        return bool(await call_in_thread(interface.client.expire, place, seconds))


def close_on_logout(hub: HubCore, app: Any) -> None:
    """Close a session's connections with 4004 when its user signs out by Flask-Login: in every tab.

    A session that lives in a cookie gets an id for it when someone signs in. Call it once for each
    hub. Flask itself has no signal for signing out.

    Args:
        hub: whose connections are closed.
        app: the Flask app whose users they are; another one's leave them alone.
    """
    signals = import_module("flask_login.signals")
    flask = import_module("flask")

    def name(_: Any, **__: Any) -> None:
        if not hasattr(flask.session, "sid") and REMEMBERED not in flask.session:
            named(flask.session)

    def close(_: Any, **__: Any) -> None:
        session = flask.session
        key = getattr(session, "sid", None) or session.pop(REMEMBERED, None)
        if key is not None:
            hub.session(key).close(4004, "signed out")

    signals.user_logged_in.connect(name, sender=app, weak=False)
    signals.user_logged_out.connect(close, sender=app, weak=False)

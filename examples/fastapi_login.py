"""A FastAPI app with a login: the socket knows who signed in, and closes when they sign out.

Needs:   fastapi itsdangerous python-multipart
Run it:  in a clone: python3 dev.py example fastapi_login
         elsewhere: pip install fastapi itsdangerous python-multipart /path/to/the/clone
         and then: backchannel run fastapi_login.py:app
Open:    http://localhost:8888/ in two windows; sign in as ana or bob, password "chat"
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Annotated

from fastapi import FastAPI, Form, Request
from fastapi.responses import FileResponse, RedirectResponse, Response
from starlette.middleware.sessions import SessionMiddleware

from backchannel import Connection, Hub, Listener

PAGE = Path(__file__).with_suffix(".html")
PASSWORDS = {"ana": "chat", "bob": "chat"}  # yours are hashed, and in a database

# The session that Starlette's middleware found is there when authenticate is asked.
hub = Hub(
    authenticate=lambda request: request.session.get("user"), require_user=True, presence_moment=5
)
# What was said is kept for whoever comes back; who comes and who goes is told to those in the room.
hub.rule("{room}", history=1000, presence=True)


@hub.endpoint("/ws/chat/{channel}")
class Chat(Listener):
    """A room for those who have signed in."""

    async def on_message(self, ws: Connection, message: str) -> None:
        await ws.broadcast({"from": ws.user, "text": message[:2000]})


app = FastAPI(lifespan=hub.lifespan)
# With a secret of its own at each start, everyone signs in anew; yours comes from the environment.
app.add_middleware(SessionMiddleware, secret_key=os.environ.get("SECRET", secrets.token_hex()))
app.mount("/live", hub)


@app.get("/")
def page() -> FileResponse:
    """Show the page: a login form, or the chat."""
    return FileResponse(PAGE)


@app.get("/me")
def me(request: Request) -> dict[str, str | None]:
    """Tell the page who has signed in."""
    return {"user": request.session.get("user")}


@app.post("/login")
async def login(
    request: Request, name: Annotated[str, Form()], password: Annotated[str, Form()]
) -> Response:
    """Sign in."""
    known = PASSWORDS.get(name, secrets.token_hex())
    if not secrets.compare_digest(known.encode(), password.encode()):  # of str it takes ASCII only
        return RedirectResponse("/?failed", status_code=303)
    if sid := request.session.get("sid"):
        hub.session(sid).close(4004, "signed out")  # tabs of whoever was here before
    request.session.clear()
    request.session["user"] = name
    # The session lives in a cookie: this names it, so that its sockets can be closed.
    request.session["sid"] = await hub.remember(request)
    return RedirectResponse("/", status_code=303)


@app.post("/logout")
async def logout(request: Request) -> Response:
    """Sign out: in every tab of this browser, not on other devices."""
    if sid := request.session.get("sid"):
        hub.session(sid).close(4004, "signed out")
    request.session.clear()
    return RedirectResponse("/", status_code=303)

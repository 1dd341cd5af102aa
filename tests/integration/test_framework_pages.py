"""The pages of docs/frameworks: their own code, as real servers, with people who sign in and out."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from importlib.metadata import version
from pathlib import Path

import httpx
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

PAGES = Path(__file__).parents[2] / "docs" / "frameworks"
FILE = re.compile(
    r"```(?:python|html)\n(?:# |<!-- )([\w./]+\.\w+)(, at its end)?(?: -->)?\n(.*?)```", re.DOTALL
)
BLOCK = re.compile(r"```(python|html)\n")
CONSOLE = re.compile(r"```console\n(.*?)```", re.DOTALL)
SERVERS = ("backchannel", "uvicorn", "hypercorn", "waitress-serve")
PREPARE = ("python -m django", "python manage.py", "DJANGO_")
APPS = {  # page, and the target that its commands name
    "fastapi": "app:app",
    "starlette": "starlette_app:app",
    "django": "mysite.asgi:application",
    "flask": "app:application",
    "flask-session": "on_the_server:application",
    "flask-login": "with_flask_login:application",
    "quart": "app:application",
    "litestar": "app:app",
}
FOLDERS = {"starlette": "fastapi", "flask-session": "flask", "flask-login": "flask"}
LIVE = {"fastapi": "/live", "starlette": "/live", "litestar": "/live"}
LIVES_IN_A_COOKIE = ["fastapi", "starlette", "flask", "flask-login", "quart", "litestar"]


def commands(page):
    """Return the commands of a page, each on one line."""
    text = "".join(CONSOLE.findall(page)).replace("\\\n", " ")
    return [line[2:] for line in text.splitlines() if line.startswith("$ ")]


def serving(app):
    """Return the commands of an app's page that serve it, by kind, and the portable one."""
    page = (PAGES / f"{FOLDERS.get(app, app)}.md").read_text()
    found = {}
    for command in commands(page):
        words = [word for word in command.split() if not re.match("[A-Z_]+=", word)]
        if words[0] in SERVERS and APPS[app] in words[1:]:
            found["native" if words[0] == "uvicorn" else words[0]] = " ".join(words)
        elif words[:2] == ["backchannel", "run"] and app not in FOLDERS:
            found["run"] = " ".join(words)
    return {**found, "portable": f"uvicorn {APPS[app]} --ws websockets-sansio"}


CASES = [(app, kind) for app in APPS for kind in serving(app)]


def lay_out(name, folder):
    """Write the files of a page, and do what it says to do before it is served."""
    page = (PAGES / f"{name}.md").read_text()
    say = {
        **os.environ,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
    }

    def run(command):
        done = subprocess.run(
            command, shell=True, cwd=folder, env=say, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"

    preparing = [command for command in commands(page) if command.startswith(PREPARE)]
    for command in preparing:
        if command.startswith("python -m django"):
            run(command)
    for path, at_its_end, text in FILE.findall(page):
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(file.read_text() + text if at_its_end else text)
    for command in preparing:
        if not command.startswith("python -m django"):
            run(command)
    return folder


@pytest.fixture(scope="session")
def laid_out(tmp_path_factory):
    """Return the folder with a page's files."""
    done = {}

    def find(name):
        if name not in done:
            done[name] = lay_out(name, tmp_path_factory.mktemp(f"page-{name}"))
        return done[name]

    return find


@pytest.fixture
def serve(start_once, laid_out):
    """Start an app as its page says, once: ``serve("fastapi", "native")``."""

    def find(app, kind, env=()):
        command = serving(app)[kind]
        where = "--bind 127.0.0.1:{port}" if kind == "hypercorn" else "--port {port}"
        folder = laid_out(FOLDERS.get(app, app))
        name = f"page-{app}-{kind}{'-'.join('' for _ in env)}"
        return start_once(name, f"{command} {where}", cwd=folder, env=env)

    return find


class Form(HTMLParser):
    """The form of a page: its fields, those that are filled in with their values."""

    def __init__(self, page):
        super().__init__()
        self.action, self.fields = "", {}
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        if tag == "form":
            self.action = values.get("action", "")
        elif tag == "input" and "name" in values:
            self.fields[values["name"]] = values.get("value", "")


class Browser:
    """A browser: it keeps the cookies of its server, and fills in the forms it is shown."""

    def __init__(self, server, mount):
        self.server, self.mount, self.cookies, self.set_cookie = server, mount, {}, []

    async def __aenter__(self):
        self.http = httpx.AsyncClient(base_url=self.server.http, trust_env=False, timeout=30)
        return self

    async def __aexit__(self, *_):
        await self.http.aclose()

    @property
    def cookie(self):
        return "; ".join(f"{name}={value}" for name, value in self.cookies.items())

    async def ask(self, method, path, data=None):
        """Ask for a page; goes where it is sent, as a browser does."""
        while True:
            self.http.cookies.clear()
            headers = {"Cookie": self.cookie} if self.cookies else {}
            answer = await self.http.request(method, path, data=data, headers=headers)
            for line in answer.headers.get_list("set-cookie"):
                self.set_cookie.append(line)
                name, _, value = line.partition(";")[0].partition("=")
                gone = re.search(r"max-age=0|expires=thu, 01[ -]jan[ -]1970", line, re.IGNORECASE)
                if gone or value in {"", '""', "null"}:
                    self.cookies.pop(name, None)
                else:
                    self.cookies[name] = value
            if not answer.is_redirect:
                assert answer.status_code == 200, f"{path}: {answer.status_code} {answer.text}"
                return answer
            method, path, data = "GET", answer.headers["location"], None

    async def sign_in(self, name, password="chat"):
        """Sign in by the app's own page; returns the page it shows then."""
        page = await self.ask("GET", "/")
        form = Form(page.text)
        assert "password" in form.fields, page.text
        user = next(field for field in form.fields if field.endswith("name"))
        filled = {**form.fields, user: name, "password": password}
        return await self.ask("POST", form.action or "/login", filled)

    async def sign_out(self):
        page = await self.ask("GET", "/")
        form = Form(page.text)
        assert form.action == "/logout", page.text
        answer = await self.ask("POST", form.action, form.fields)
        assert "password" in Form(answer.text).fields
        return answer

    def connect(self, channel="lobby", *, cookie=None, origin=None):
        cookie = self.cookie if cookie is None else cookie
        headers = {"Cookie": cookie} if cookie else {}
        return self.server.connect(
            f"{self.mount}/ws/room/{channel}", additional_headers=headers, origin=origin
        )


@pytest.fixture
async def people(serve):
    """Make browsers of a server's people: ``await people("fastapi", "native", "ana", None)``."""
    open_ones = []

    async def come(app, kind, *names, env=()):
        server = serve(app, kind, env)
        browsers = []
        for name in names:
            browser = await Browser(server, LIVE.get(app, "")).__aenter__()
            open_ones.append(browser)
            if name:
                answer = await browser.sign_in(name)
                assert 'id="log"' in answer.text, "not the chat's page"
            browsers.append(browser)
        return browsers

    yield come
    for browser in open_ones:
        await browser.__aexit__()


async def read(socket):
    return await asyncio.wait_for(socket.recv(), 15)


async def ended(socket):
    try:
        while True:
            await read(socket)
    except ConnectionClosed as closed:
        return closed.rcvd.code, closed.rcvd.reason


async def refused(connecting):
    """Return the status that a handshake is refused with."""
    with pytest.raises(InvalidStatus) as caught:
        async with connecting:
            pass
    return caught.value.response.status_code


@pytest.mark.parametrize(("app", "kind"), CASES)
async def test_people_sign_in_talk_and_sign_out(people, app, kind):
    ana, bob = await people(app, kind, "ana", "bob")
    async with ana.connect() as tab, ana.connect() as other_tab, bob.connect() as bobs:
        for socket, name in ((tab, "ana"), (other_tab, "ana"), (bobs, "bob")):
            assert await read(socket) == f"Welcome to lobby, {name}."
        await tab.send("hello")
        for socket in (tab, other_tab, bobs):
            assert await read(socket) == "ana: hello"
        before = ana.cookie
        await ana.sign_out()
        code, _ = await ended(tab)
        assert (code, (await ended(other_tab))[0]) == (4004, 4004)
        await bobs.send("still here")
        assert await read(bobs) == "bob: still here"
    assert await refused(ana.connect()) == 401
    if app not in LIVES_IN_A_COOKIE:
        assert await refused(ana.connect(cookie=before)) == 401
    assert "Traceback" not in ana.server.printed()
    assert not re.search("ERROR|Warning", ana.server.printed()), ana.server.printed()


@pytest.mark.parametrize(("app", "kind"), CASES)
async def test_who_may_come_in(people, app, kind):
    ana, bob, nobody = await people(app, kind, "ana", "bob", None)
    assert await refused(nobody.connect()) == 401
    for name, password in (("ana", "wrong"), ("nobody", "chat"), ("ána", "pässword")):
        assert 'id="log"' not in (await nobody.sign_in(name, password)).text
        assert await refused(nobody.connect()) == 401
    assert await refused(ana.connect(origin="https://evil.example")) == 403
    async with ana.connect("staff", origin=ana.server.http) as socket:
        assert await read(socket) == "Welcome to staff, ana."
    async with bob.connect("staff") as socket:
        assert (await ended(socket))[0] == 1008


@pytest.mark.parametrize("app", APPS)
async def test_the_client_is_where_the_page_says(people, app):
    page = (PAGES / f"{FOLDERS.get(app, app)}.md").read_text()
    said = re.search(r'`import \{ connect \} from "(\S+)"`, then `connect\("(\S+)"\)`', page)
    (ana,) = await people(app, "native", "ana")
    script = await ana.server.get(said[1])
    assert script.headers["content-type"] == "text/javascript; charset=utf-8"
    assert "connect" in script.text
    async with ana.server.connect(
        said[2],
        additional_headers={"Cookie": ana.cookie},
        subprotocols=["backchannel.v1.json"],
    ) as socket:
        assert socket.subprotocol == "backchannel.v1.json"


@pytest.mark.parametrize("app", [app for app in APPS if app not in {"starlette", "flask-session"}])
async def test_in_production_the_cookie_goes_over_https_only(people, app):
    """By one server: the app writes its cookies, whatever server it runs in."""
    env = (("HTTPS", "1"), ("SECRET_KEY", "x" * 64), ("ALLOWED_HOSTS", "127.0.0.1"))
    (ana,) = await people(app, "native", "ana", env=env)
    name = "sessionid" if app == "django" else "session"
    cookie = next(line.lower() for line in reversed(ana.set_cookie) if line.startswith(f"{name}="))
    for flag in ("httponly", "secure", "samesite=lax"):
        assert flag in cookie, cookie
    async with ana.connect() as socket:
        assert await read(socket) == "Welcome to lobby, ana."


@pytest.mark.parametrize(
    ("page", "target"),
    [
        ("fastapi", "app.py:app"),
        ("django", "mysite/asgi.py:application"),
        ("flask", "on_the_server.py:application"),
    ],
)
async def test_no_sessions_id_and_no_cookie_stands_in_the_log(start, laid_out, page, target):
    command = f"backchannel run {target} --port {{port}} --log-level debug"
    server = start(f"logged-{page}", command, cwd=laid_out(page))
    async with Browser(server, LIVE.get(page, "")) as ana:
        await ana.sign_in("ana")
        secrets = list(ana.cookies.values())
        async with ana.connect() as socket:
            await read(socket)
            await socket.send("hello")
            await read(socket)
            await ana.sign_out()
            assert (await ended(socket))[0] == 4004
        assert await refused(ana.connect(cookie="session=forged; sessionid=forged")) == 401
        secrets += ana.cookies.values()
    printed = server.printed()
    assert "received 'hello'" in printed
    assert secrets
    for secret in secrets:
        assert secret[:16] not in printed
        assert secret[-16:] not in printed


async def test_djangos_view_in_a_thread_reaches_the_room(people):
    (ana,) = await people("django", "native", "ana")
    async with ana.connect() as socket:
        await read(socket)
        form = Form((await ana.ask("GET", "/")).text).fields
        answer = await ana.ask("POST", "/announce", {**form, "text": "lunch"})
        assert answer.json()["reached"] >= 1
        assert await read(socket) == "lunch"


async def test_a_mistyped_url_beside_django_is_answered_404_with_what_is_near(people):
    (ana,) = await people("django", "native", "ana")
    with pytest.raises(InvalidStatus) as caught:
        async with ana.server.connect("/ws/rom/lobby"):
            pass
    assert caught.value.response.status_code == 404
    assert b"/ws/room/" in caught.value.response.body
    assert "Traceback" not in ana.server.printed()


NAMES_ANEW = [
    case
    for case in CASES
    if case[0] in {"fastapi", "starlette", "flask", "flask-session", "quart", "litestar"}
    and case[1] == "native"
]


@pytest.mark.parametrize(("app", "kind"), NAMES_ANEW)
async def test_who_signs_in_as_another_leaves_no_socket_of_the_one_before(people, app, kind):
    (someone,) = await people(app, kind, "ana")
    async with someone.connect() as socket:
        assert await read(socket) == "Welcome to lobby, ana."
        form = Form((await someone.ask("GET", "/login")).text)
        user = next(field for field in form.fields if field.endswith("name"))
        filled = {**form.fields, user: "bob", "password": "chat"}
        await someone.ask("POST", form.action or "/login", filled)
        assert (await ended(socket))[0] == 4004
    async with someone.connect() as socket:
        assert await read(socket) == "Welcome to lobby, bob."


async def test_fastapis_own_door_of_the_page(start, laid_out):
    command = next(c for c in commands((PAGES / "fastapi.md").read_text()) if "rooms:app" in c)
    server = start("page-rooms", f"{command} --port {{port}}", cwd=laid_out("fastapi"))
    async with Browser(server, "") as ana:
        await ana.sign_in("ana")
        assert await refused(server.connect("/rooms/7")) == 403
        async with server.connect("/rooms/7", additional_headers={"Cookie": ana.cookie}) as socket:
            assert await read(socket) == "Welcome to room:7, ana."
            refused_one = await server.request("POST", "/announce/7?text=lunch")
            assert refused_one.status_code == 401
            answer = await ana.ask("POST", "/announce/7?text=lunch")
            assert answer.json() == {"reached": 1}
            assert await read(socket) == "lunch"


async def test_flask_under_waitress_and_the_hub_beside_it(start, laid_out):
    """Two programs on two ports that share cookies, as a browser sees it: localhost."""
    folder = laid_out("flask")
    found = [
        " ".join(c.split()[1:])
        for c in commands((PAGES / "flask.md").read_text())
        if "shop:app" in c or "live:hub" in c
    ]
    shop, live = (re.sub(r"--port \d+", "--port {port}", command) for command in found)
    shop = shop.replace("waitress-serve", "waitress").replace(" shop:app", "") + " shop:app"
    env = {"SECRET_KEY": "x" * 64}
    pages = start("waitress", shop, cwd=folder, env=env)
    hub = start("live", live, cwd=folder, env={**env, "ORIGIN": pages.http})
    async with Browser(pages, "") as ana, Browser(pages, "") as bob:
        await ana.sign_in("ana")
        await bob.sign_in("bob")
        ana.server = bob.server = hub  # as in the page's script: the hub's port
        assert await refused(ana.connect(origin=hub.http.replace("127.0.0.1", "evil"))) == 403
        async with ana.connect(origin=pages.http) as socket, bob.connect() as other:
            assert await read(socket) == "Welcome to lobby, ana."
            assert await read(other) == "Welcome to lobby, bob."
            ana.server = pages
            await ana.sign_out()
            assert await ended(socket) == (4004, "session ended")
            await other.send("still here")
            assert await read(other) == "bob: still here"


@pytest.mark.parametrize("page", sorted(PAGES.glob("*.md")), ids=lambda page: page.stem)
def test_every_block_of_code_is_a_file_and_every_package_it_needs_is_there(page):
    text = page.read_text()
    assert len(FILE.findall(text)) == len(BLOCK.findall(text)), "a block that is no file"
    installing = [c for c in commands(text) if c.startswith("pip install")]
    assert installing
    named = [word.strip('"') for c in installing for word in c.split()[2:]]
    for name in named:
        if not name.startswith("/path"):
            assert version(re.sub(r"\[.*", "", name)), name


def test_each_app_is_served_in_every_way():
    for app in APPS:
        assert {"native", "portable"} <= serving(app).keys(), app
    assert {app for app, kind in CASES if kind == "run"} == APPS.keys() - FOLDERS.keys()

"""A socket has the session that an HTTP view of its framework has, for the same Cookie header."""

from __future__ import annotations

import asyncio
import json
import re

import pytest

SERVERS = {
    "portable": "uvicorn cookie_apps:app --port {port} --ws websockets-sansio",
    "native": "uvicorn cookie_apps:app --port {port} --ws backchannel.transport.uvicorn:Protocol",
    "hypercorn": "hypercorn cookie_apps:app --bind 127.0.0.1:{port}",
}
APPS = [
    "starlette", "starsessions", "django", "flask", "flask-session", "quart", "litestar",
    "litestar-server",
]  # fmt: skip
MOUNTED = {"starlette", "starsessions", "litestar", "litestar-server"}
# "ana" and "bob" are the values of two sessions' cookies; each entry is a Cookie header.
HEADERS = {
    "one": ["session={ana}"],
    "among others": ["a=1; session={ana}; b=2"],
    "none": [],
    "empty header": [""],
    "empty value": ["session="],
    "no value": ["session"],
    "only separators": [";; = ;=x;"],
    "other case": ["Session={ana}"],
    "both cases": ["SESSION={bob}; session={ana}; Session={bob}"],
    "twice, different": ["session={ana}; session={bob}"],
    "twice, the other way round": ["session={bob}; session={ana}"],
    "twice, one broken": ["session={ana}; session=broken"],
    "twice, the other broken": ["session=broken; session={ana}"],
    "twice, one empty": ["session={ana}; session="],
    "equals signs": ["a=b=c==; session={ana}; d=="],
    "equals signs after it": ["session={ana}=="],
    "quoted": ['session="{ana}"'],
    "quoted, others": ['a="b c\\054d\\"e"; session={ana}; f="'],
    "quoted across cookies": ['a="1; session={ana}; b="'],
    "two headers": ["a=1", "session={ana}"],
    "two headers, first": ["session={ana}", "a=1"],
    "two headers, both": ["session={ana}", "session={bob}"],
    "no spaces": ["a=1;session={ana};b=2"],
    "many spaces": ["  a = 1 ;   session = {ana}  ;"],
    "commas": ["a=1, session={ana}"],
    "percent": ["a=%3B%22; session={ana}; b=%zz"],
    "truncated": ["session={half}"],
    "name inside a name": ["xsession={bob}; sessionx={bob}; session.x={bob}; session={ana}"],
    "no text": ["a=\xff\xfe; session={ana}"],
}
PLAIN = ["one", "among others", "none", "other case", "both cases", "equals signs", "no spaces"]
"""Headers of which all read the same."""


@pytest.fixture(params=SERVERS)
def server(request, start_once, tmp_path_factory):
    name = f"cookies-{request.param}"
    folder = tmp_path_factory.getbasetemp() / name
    folder.mkdir(exist_ok=True)
    return start_once(name, SERVERS[request.param], env=(("CACHE", str(folder)),))


async def get(server, app, path, *headers):
    """Ask with exactly these Cookie headers, which client libraries would mend; head and body."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    lines = [f"GET {path} HTTP/1.1", f"Host: {app}.localhost", "Connection: close"]
    lines += [f"Cookie: {header}" for header in headers]
    writer.write("\r\n".join([*lines, "", ""]).encode("latin-1"))
    head, _, body = (await asyncio.wait_for(reader.read(), 15)).partition(b"\r\n\r\n")
    writer.close()
    assert b" 200 " in head.splitlines()[0], head
    return head.decode("latin-1"), body[body.index(b"{") : body.rindex(b"}") + 1]


async def sign_in(server, app, user):
    head, _ = await get(server, app, f"/put?user={user}")
    return re.search(r"session=([^;\r]+)", head)[1]


async def by_http(server, app, headers):
    return json.loads((await get(server, app, "/see", *headers))[1])


async def by_socket(make_raw, server, app, headers):
    path = "/live/ws/see" if app in MOUNTED else "/ws/see"
    async with make_raw(server, path, host=f"{app}.localhost", headers=headers) as socket:
        await socket.opened()
        await socket.send("?")
        opcode, payload = await socket.frame()
        assert opcode == 1
        return json.loads(payload)


@pytest.mark.parametrize("app", APPS)
async def test_a_socket_has_the_session_that_a_view_has(server, make_raw, app):
    values = {"ana": await sign_in(server, app, "ana"), "bob": await sign_in(server, app, "bob")}
    values["half"] = values["ana"][: len(values["ana"]) // 2]
    wrong = {}
    for name, headers in HEADERS.items():
        sent = [re.sub(r"\{(\w+)\}", lambda m: values[m[1]], header) for header in headers]
        view = await by_http(server, app, sent)
        socket = await by_socket(make_raw, server, app, [f"Cookie: {header}" for header in sent])
        if socket["user"] != view["user"]:
            wrong[name] = f"the view has {view['user']}, the socket {socket['user']}"
        if name in PLAIN and socket["cookies"] != view["cookies"]:
            wrong[f"{name}, cookies"] = (socket["cookies"], view["cookies"])
        if name in {"one", "among others", "both cases", "equals signs", "no spaces"}:
            assert view["user"] == "ana", name
    assert not wrong


async def test_what_a_listener_reads_of_cookies_themselves(server, make_raw):
    headers = [
        'Cookie: a=1; A=2; a=3; b=x=y==; c="d e\\054f\\"g"; empty=; alone; =nameless; q="',
        "Cookie: a=4",
    ]
    told = await by_socket(make_raw, server, "starlette", headers)
    assert told["cookies"] == {
        "a": "1", "A": "2", "b": "x=y==", "c": 'd e,f"g', "empty": "", "q": '"'
    }  # fmt: skip
    assert told["all"]["a"] == ["1", "3", "4"]

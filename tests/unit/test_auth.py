"""Ready-made authentication: whom each lets in, and the exact answer to each bad token."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import sys
import time
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import jwt as pyjwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from starlette.authentication import (
    AuthCredentials,
    AuthenticationBackend,
    BaseUser,
    SimpleUser,
    UnauthenticatedUser,
)
from starlette.middleware.authentication import AuthenticationMiddleware

from backchannel import Hub, Listener, Request
from backchannel.auth import JWT, Identity, InvalidToken, session_user, starlette_user
from backchannel.errors import Reject
from backchannel.session.scope import Session
from backchannel.session.web import NO_SESSION
from backchannel.testing import HandshakeRefused

SECRET = "a secret for tests that is long enough for all of them: sixty-four bytes"
ACCEPTS = {"audience": "chat", "issuer": "https://login.example"}


class Room(Listener):
    """Does nothing."""


def claims(**changed):
    """Return what a good token says, changed; None leaves a claim out."""
    said = {
        "sub": "ana",
        "aud": "chat",
        "iss": "https://login.example",
        "exp": int(time.time()) + 600,
        **changed,
    }
    return {name: value for name, value in said.items() if value is not None}


def token(key=SECRET, algorithm="HS256", headers=None, **changed):
    return pyjwt.encode(claims(**changed), key, algorithm, headers)


def base64url(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def by_hand(payload, secret=SECRET, *, header=b'{"alg":"HS256","typ":"JWT"}'):
    """Return a token signed by hand, as no library would make it."""
    body = f"{base64url(header)}.{base64url(payload)}"
    return f"{body}.{base64url(hmac.digest(secret.encode(), body.encode(), hashlib.sha256))}"


def pem(public_key):
    return public_key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    ).decode()


@pytest.fixture(scope="module")
def rsa_key():
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def handshake(**scope):
    """Return a request for authenticators that are called by themselves."""
    scope = {"headers": [], **scope}
    return Request(scope, path="/ws", params={}, session=Session(scope.get("session")))


async def refused(hub, url="/ws", **options):
    with pytest.raises(HandshakeRefused) as error:
        await hub.test_client(url, **options).connect()
    return error.value.status, error.value.text


def bearer(text):
    return {"authorization": f"Bearer {text}"}


# ── where the token is ────────────────────────────────────────────────────────────────────────


@pytest.fixture
async def signed():
    """A hub that wants to know who everyone is."""
    hub = Hub(require_user=True, authenticate=JWT(SECRET, ["HS256"], cookie="token", **ACCEPTS))
    hub.add("/ws", Room)
    hub.add("/ws/spoken", Room, subprotocols=["chat.v2", "chat.v1"])
    yield hub
    await hub.stop()
    assert hub.health.problems == ()


@pytest.mark.parametrize(
    "options",
    [
        lambda good: {"headers": bearer(good)},
        lambda good: {"headers": {"Authorization": f"bearer   {good}  "}},
        lambda good: {"cookies": {"other": "x", "token": good}},
        lambda good: {"cookies": {"token": good}, "headers": {"authorization": "Basic eDp5"}},
        lambda good: {"subprotocols": ["backchannel.jwt", good]},
        lambda good: {"subprotocols": ["chat.v1", "backchannel.jwt", good, "chat.v2"]},
        lambda good: {"headers": bearer(good), "cookies": {"token": "stale"}},
    ],
    ids=["header", "any case", "cookie", "beside Basic", "subprotocol", "among others", "first"],
)
async def test_a_token_is_found(signed, options):
    async with signed.test_client("/ws", **options(token(role="admin"))) as client:
        ws = client.connection
        assert ws.user == "ana"
        assert isinstance(ws.identity, Identity)
        assert ws.identity.claims["role"] == "admin"
        assert ws.identity.expires_at.tzinfo is UTC


@pytest.mark.parametrize(
    ("url", "offered", "answered"),
    [
        ("/ws", ["backchannel.jwt", "TOKEN"], "backchannel.jwt"),
        ("/ws", ["chat.v1", "backchannel.jwt", "TOKEN"], "backchannel.jwt"),
        ("/ws/spoken", ["backchannel.jwt", "TOKEN"], "backchannel.jwt"),
        ("/ws/spoken", ["backchannel.jwt", "TOKEN", "chat.v1", "chat.v2"], "chat.v1"),
        ("/ws/spoken", ["chat.v2", "backchannel.jwt", "TOKEN"], "chat.v2"),
    ],
)
async def test_the_token_is_never_answered_as_the_subprotocol(signed, url, offered, answered):
    good = token()
    offered = [good if name == "TOKEN" else name for name in offered]
    async with signed.test_client(url, subprotocols=offered) as client:
        assert client.connection.subprotocol == answered
        assert client.connection.user == "ana"


async def test_the_subprotocol_is_answered_also_when_the_token_is_elsewhere(signed):
    good = token()
    options = {"headers": bearer(good), "subprotocols": ["backchannel.jwt", good]}
    async with signed.test_client("/ws", **options) as client:
        assert client.connection.subprotocol == "backchannel.jwt"


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"headers": {"authorization": "Basic eDp5"}},
        {"cookies": {"token": ""}},
        {"cookies": {"jwt": "x"}},
        {"subprotocols": ["chat.v1"]},
    ],
    ids=str,
)
async def test_without_a_token_the_client_is_anonymous(signed, options):
    assert await refused(signed, **options) == (401, "Not authenticated.")
    hub = Hub(authenticate=JWT(SECRET, ["HS256"], cookie="token"))
    hub.add("/ws", Room)
    async with hub.test_client("/ws", **options) as client:
        assert client.connection.user is None
        assert client.connection.identity is None
    await hub.stop()


async def test_a_token_in_the_url_is_not_looked_at(signed):
    assert await refused(signed, f"/ws?token={token()}") == (401, "Not authenticated.")


async def test_where_no_subprotocol_is_wanted_none_is_looked_at():
    hub = Hub(authenticate=JWT(SECRET, ["HS256"], subprotocol=None))
    hub.add("/ws", Room)
    async with hub.test_client("/ws", subprotocols=["backchannel.jwt", "x"]) as client:
        assert client.connection.user is None
        assert client.connection.subprotocol is None
    await hub.stop()


async def test_another_claim_may_name_the_user_and_an_int_is_an_id():
    hub = Hub(authenticate=JWT(SECRET, ["HS256"], user="uid", **ACCEPTS))
    hub.add("/ws", Room)
    async with hub.test_client("/ws", headers=bearer(token(uid=42))) as client:
        assert client.connection.user == "42"
    await hub.stop()


async def test_a_number_as_the_subject_is_an_id_as_everywhere_else():
    hub = Hub(authenticate=JWT(SECRET, ["HS256"], **ACCEPTS))
    hub.add("/ws", Room)
    async with hub.test_client("/ws", headers=bearer(token(sub=42))) as client:
        assert client.connection.user == "42"
        assert await hub.user(42).count() == 1
    await hub.stop()


@pytest.mark.parametrize("algorithm", ["RS256", "PS256", "ES256"])
async def test_asymmetric_algorithms(rsa_key, algorithm):
    private = rsa_key if algorithm != "ES256" else ec.generate_private_key(ec.SECP256R1())
    for key in (
        pem(private.public_key()),
        pem(private.public_key()).encode(),
        private.public_key(),
    ):
        assert JWT(key, [algorithm], **ACCEPTS).verify(token(private, algorithm)).id == "ana"


# ── bad tokens, each with its exact answer ────────────────────────────────────────────────────

MALFORMED = "The token is malformed."
FORGED = "The token's signature is not valid."


def tampered(good):
    """Return a token with another payload under the same signature."""
    header, _, signature = good.split(".")
    payload = json.dumps(claims(sub="root")).encode()
    return f"{header}.{base64url(payload)}.{signature}"


BAD = {
    "signed by another": (lambda: token("another secret, of sixty-four bytes as well".ljust(64)), FORGED),
    "payload exchanged": (lambda: tampered(token()), FORGED),
    "signature cut": (lambda: token()[:-3], FORGED),
    "signature empty": (lambda: token().rpartition(".")[0] + ".", FORGED),
    "signature gone": (lambda: token().rpartition(".")[0], MALFORMED),
    "truncated": (lambda: token()[:25], MALFORMED),
    "empty": (lambda: "", MALFORMED),
    "three dots": (lambda: "...", MALFORMED),
    "no base64": (lambda: "é.ü.ö", MALFORMED),
    "five parts, as if encrypted": (lambda: "a.b.c.d.e", MALFORMED),
    "nested too deep": (lambda: by_hand(b"{}", header=b"[" * 100_000), MALFORMED),
    "payload is no object": (lambda: by_hand(b"[1]"), MALFORMED),
    "detached payload": (
        lambda: token(headers={"b64": False, "crit": ["b64"]}),
        MALFORMED,
    ),
    "expired": (lambda: token(exp=int(time.time()) - 1), "The token has expired."),
    "no end": (lambda: token(exp=None), "The token lacks the claim 'exp'."),
    "end is null": (lambda: by_hand(b'{"sub":"a","exp":null}'), "The token lacks the claim 'exp'."),
    "end is no time": (
        lambda: by_hand(b'{"sub":"a","aud":"chat","iss":"https://login.example","exp":[1]}'),
        MALFORMED,
    ),
    "end is endless": (
        lambda: by_hand(b'{"sub":"a","aud":"chat","iss":"https://login.example","exp":1e999}'),
        MALFORMED,
    ),
    "end in milliseconds": (lambda: token(exp=int(time.time() * 1000)), MALFORMED),
    "not yet": (lambda: token(nbf=int(time.time()) + 60), "The token is not valid yet."),
    "issued later": (lambda: token(iat=int(time.time()) + 60), "The token is not valid yet."),
    "other audience": (lambda: token(aud="mail"), "The token is for another audience."),
    "no audience": (lambda: token(aud=None), "The token lacks the claim 'aud'."),
    "other issuer": (lambda: token(iss="https://evil.example"), "The token is of another issuer."),
    "part of the issuer": (lambda: token(iss="https://login"), "The token is of another issuer."),
    "no issuer": (lambda: token(iss=None), "The token lacks the claim 'iss'."),
    "no subject": (lambda: token(sub=None), "The token lacks the claim 'sub'."),
    "subject empty": (lambda: token(sub=""), "The token's claim 'sub' is no user's id."),
    "subject a list": (lambda: token(sub=["ana"]), "The token's claim 'sub' is no user's id."),
    "subject a truth": (lambda: token(sub=True), "The token's claim 'sub' is no user's id."),
    "alg none": (lambda: token(None, "none"), "The token's algorithm is not accepted here."),
    "alg None": (
        lambda: by_hand(json.dumps(claims()).encode(), header=b'{"alg":"None"}'),
        "The token's algorithm is not accepted here.",
    ),
    "alg missing": (
        lambda: by_hand(json.dumps(claims()).encode(), header=b"{}"),
        "The token's algorithm is not accepted here.",
    ),
    "alg a list": (
        lambda: by_hand(json.dumps(claims()).encode(), header=b'{"alg":["HS256"]}'),
        "The token's algorithm is not accepted here.",
    ),
    "another HMAC": (
        lambda: token(algorithm="HS512"),
        "The token's algorithm is not accepted here.",
    ),
}  # fmt: skip


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("way", ["header", "cookie", "subprotocol"])
async def test_a_bad_token_is_answered_with_401_and_why(signed, bad, way):
    make, text = BAD[bad]
    if way == "header":
        options = {"headers": bearer(make())}
    elif way == "cookie":
        options = {"cookies": {"token": make()}}
    else:
        options = {"subprotocols": ["backchannel.jwt", make()]}
    if bad == "empty" and way == "cookie":  # as a page leaves it that takes its cookie back
        text = "Not authenticated."
    assert await refused(signed, **options) == (401, text)
    assert signed.health.connections == 0


@pytest.mark.parametrize("bad", [b"\xff\xff", "\ud800.a.b", None, 7, ["a"]], ids=repr)
def test_verify_takes_anything_that_a_client_may_send(bad):
    with pytest.raises(InvalidToken) as error:
        JWT(SECRET, ["HS256"]).verify(bad)
    assert error.value.text == str(error.value) == MALFORMED


def test_the_answer_names_the_scheme_and_shows_nothing_of_the_token():
    bad = token(exp=1)
    with pytest.raises(Reject) as error:
        JWT(SECRET, ["HS256"], **ACCEPTS)(
            handshake(headers=[(b"authorization", f"Bearer {bad}".encode())])
        )
    assert error.value.status == 401
    assert error.value.headers == {"WWW-Authenticate": 'Bearer error="invalid_token"'}
    assert error.value.__cause__ is None
    assert bad not in repr(error.value)


async def test_an_asymmetric_key_is_not_taken_for_a_secret(rsa_key):
    """HS/RS confusion: signed with the public key, which everybody knows."""
    public = pem(rsa_key.public_key())
    hub = Hub(authenticate=JWT(public, ["RS256"]))
    hub.add("/ws", Room)
    forged = by_hand(json.dumps(claims(aud=None, iss=None)).encode(), public)
    wanted = (401, "The token's algorithm is not accepted here.")
    assert await refused(hub, headers=bearer(forged)) == wanted
    forged = by_hand(
        json.dumps(claims(aud=None, iss=None)).encode(), public, header=b'{"alg":"RS256"}'
    )
    assert await refused(hub, headers=bearer(forged)) == (401, FORGED)
    await hub.stop()


ORDER = (
    "The subprotocol backchannel.jwt wants a token right after it: "
    'new WebSocket(url, ["backchannel.jwt", token]).'
)


@pytest.mark.parametrize(
    ("headers", "offered", "text"),
    [
        ([(b"authorization", b"Bearer a"), (b"authorization", b"Bearer b")], [],
         "There is more than one token."),
        ([], ["backchannel.jwt"], ORDER),
        ([], ["chat.v1", "backchannel.jwt"], ORDER),
        ([], ["a.b.c", "backchannel.jwt"], ORDER),
        ([], ["backchannel.jwt", "chat.v1", "a.b.c"], ORDER),
        ([], ["backchannel.jwt", "backchannel.jwt", "a.b.c"], ORDER),
    ],
)  # fmt: skip
def test_no_token_is_guessed(headers, offered, text):
    with pytest.raises(InvalidToken) as error:
        JWT(SECRET, ["HS256"])(handshake(headers=headers, subprotocols=offered))
    assert error.value.text == text


def test_leeway_is_for_both_ends():
    patient = JWT(SECRET, ["HS256"], leeway=30, **ACCEPTS)
    now = int(time.time())
    assert patient.verify(token(nbf=now + 20)).id == "ana"
    late = patient.verify(token(exp=now - 20))
    assert late.expires_at == datetime.fromtimestamp(now + 10, UTC)
    with pytest.raises(InvalidToken):
        patient.verify(token(exp=now - 31))


def test_a_token_without_an_end_is_admitted_where_that_is_said():
    assert JWT(SECRET, ["HS256"], require=(), **ACCEPTS).verify(token(exp=None)).expires_at is None
    with pytest.raises(InvalidToken, match=r"lacks the claim 'jti'"):
        JWT(SECRET, ["HS256"], require=["jti"], **ACCEPTS).verify(token(exp=None))


def test_what_a_token_says_can_not_be_changed_and_is_not_shown():
    who = JWT(SECRET, ["HS256"], **ACCEPTS).verify(token(mail="ana@example.com"))
    with pytest.raises(TypeError):
        who.claims["sub"] = "root"
    with pytest.raises(AttributeError):
        who.id = "root"
    assert "example.com" not in repr(who)


# ── what can't be made ────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("key", "algorithms", "options", "words"),
    [
        (SECRET, [], {}, "names those that are accepted"),
        (SECRET, ["none"], {}, "nobody has signed"),
        (SECRET, ["HS256", "NONE"], {}, "nobody has signed"),
        (SECRET, ["HS256", "RS256"], {}, "make a JWT"),
        ("PEM", ["ES256", "HS256"], {}, "make a JWT"),
        ("PEM", ["HS256"], {}, "is no secret"),
        ("PEM", ["HS384", "HS512"], {}, "is no secret"),
        (b"ssh-rsa AAAA", ["HS256"], {}, "is no secret"),
        ('{"kty":"RSA","n":"AQAB","e":"AQAB"}'.ljust(64), ["HS256"], {}, "is no key for HS256"),
        (SECRET, ["RS256"], {}, "is no key for RS256"),
        ("PEM", ["ES256"], {}, "is no key for ES256"),
        (None, ["HS256"], {}, "is no key for HS256"),
        ("", ["HS256"], {}, "no key for HS256|0 bytes"),
        ("short", ["HS256"], {}, r"the secret has 5 bytes, and HS256 wants 32 or more: .*token_hex"),
        (SECRET[:40], ["HS256", "HS512"], {}, "the secret has 40 bytes, and HS512 wants 64 or more"),
        (SECRET, ["HS257"], {}, "has not all of HS257"),
        (SECRET, ["HS256"], {"leeway": -1}, "leeway"),
        (SECRET, ["HS256"], {"leeway": float("nan")}, "leeway"),
        (SECRET, ["HS256"], {"cookie": "a b"}, "name of a cookie"),
        (SECRET, ["HS256"], {"subprotocol": "a,b"}, "name of a subprotocol"),
    ],
)  # fmt: skip
def test_what_would_be_insecure_is_refused_when_it_is_made(
    rsa_key, key, algorithms, options, words
):
    key = pem(rsa_key.public_key()) if key == "PEM" else key
    with pytest.raises(ValueError, match=words) as error:
        JWT(key, algorithms, **options)
    assert SECRET not in str(error.value)


def test_one_algorithm_may_be_given_as_a_str_and_means_just_that_one():
    with pytest.raises(InvalidToken, match="algorithm"):
        JWT(SECRET, "HS256", **ACCEPTS).verify(token(algorithm="HS384"))


def test_without_pyjwt_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "jwt", None)
    with pytest.raises(ImportError, match=r"backchannel\[jwt\]"):
        JWT(SECRET, ["HS256"])


def test_the_key_is_not_shown():
    assert repr(JWT(SECRET, ["HS256"])) == "JWT(algorithms=['HS256'])"
    assert SECRET not in repr(Hub(authenticate=JWT(SECRET, ["HS256"])).settings)


# ── sessions and Starlette ────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("authenticate", "session", "user"),
    [
        (session_user(), {"user_id": 7}, "7"),
        (session_user(), {"user_id": None}, None),
        (session_user(), {}, None),
        (session_user(), None, None),
        (session_user("login"), {"login": "ana", "user_id": 7}, "ana"),
    ],
)
async def test_the_sessions_user(authenticate, session, user):
    hub = Hub(authenticate=authenticate)
    hub.add("/ws", Room)
    async with hub.test_client("/ws", session=session) as client:
        assert client.connection.user == user
    await hub.stop()


async def test_a_session_that_names_nobody_in_its_place_fails_closed():
    hub = Hub(authenticate=session_user())
    hub.add("/ws", Room)
    for nobody in ("", True, ["ana"]):
        assert (await refused(hub, session={"user_id": nobody}))[0] == 500
    await hub.stop()


class Old(BaseUser):
    """Without an identity, as Starlette's SimpleUser was for years."""

    is_authenticated = True
    username = "old name"

    @property
    def display_name(self):
        return "Old"


class Nameless(BaseUser):
    is_authenticated = True


@pytest.mark.parametrize(
    ("user", "id_"),
    [
        (SimpleUser("ana"), "ana"),
        (SimpleNamespace(is_authenticated=True, identity=7, display_name="Ana"), 7),
        (Old(), "Old"),
        (SimpleNamespace(is_authenticated=True, username="ana"), "ana"),
    ],
    ids=["simple", "own", "without identity", "no BaseUser"],
)
def test_starlettes_user(user, id_):
    who = starlette_user()(handshake(user=user, auth=AuthCredentials(["chat", "admin"])))
    assert (who.id, who.user, who.scopes) == (id_, user, ("chat", "admin"))
    assert who.expires_at is None


@pytest.mark.parametrize(
    "user",
    [UnauthenticatedUser(), None, SimpleNamespace(identity="ana")],
    ids=lambda user: type(user).__name__,  # its repr has an address in it
)
def test_who_is_not_authenticated_is_anonymous(user):
    assert starlette_user()(handshake(user=user)) is None


@pytest.mark.parametrize(
    ("scope", "error"),
    [
        ({}, LookupError),  # the middleware is missing
        ({"user": Nameless()}, TypeError),
        ({"user": SimpleNamespace(is_authenticated=True, identity="", username="x")}, TypeError),
        ({"user": SimpleNamespace(is_authenticated=True, identity=None, username="x")}, TypeError),
    ],
)
def test_what_starlette_leaves_open_fails_closed(scope, error):
    with pytest.raises(error, match="starlette_user"):
        starlette_user()(handshake(**scope))


class ByHeader(AuthenticationBackend):
    """Believes a header, and an end that comes with it."""

    async def authenticate(self, conn):
        if name := conn.headers.get("x-user"):
            user = SimpleUser(name)
            user.expires_at = time.time() - 1 if name == "late" else None
            return AuthCredentials(["chat"]), user
        return None


async def through(app, **headers):
    """Drive an ASGI app through one handshake; return what it sent first."""
    sent = []
    lines = [(b"host", b"testserver"), *((k.encode(), v.encode()) for k, v in headers.items())]
    scope = {
        "type": "websocket",
        "path": "/ws",
        "root_path": "",
        "headers": lines,
        "query_string": b"",
        "subprotocols": [],
        "extensions": {"websocket.http.response": {}},
    }
    events = iter([{"type": "websocket.connect"}, {"type": "websocket.disconnect", "code": 1000}])

    async def receive():
        return next(events)

    async def send(event):
        sent.append(event)

    await app(scope, receive, send)
    return sent


async def test_with_starlettes_middleware_around_the_hub():
    seen = []

    class Door(Listener):
        def on_open(self, ws):
            seen.append((ws.user, ws.identity.scopes if ws.identity else None))

    hub = Hub(authenticate=starlette_user())
    hub.add("/ws", Door)
    app = AuthenticationMiddleware(hub, backend=ByHeader())
    assert (await through(app, **{"x-user": "ana"}))[0]["type"] == "websocket.accept"
    assert (await through(app))[0]["type"] == "websocket.accept"
    start, body, *_ = await through(app, **{"x-user": "late"})
    assert (start["status"], body["body"]) == (401, b"The token has expired.")
    assert seen == [("ana", ("chat",)), (None, None)]
    await hub.stop()


# ── at an endpoint ────────────────────────────────────────────────────────────────────────────


async def test_an_endpoints_own_authenticate_wins_over_the_hubs():
    asked = []

    def by_hub(request):
        asked.append("hub")
        return "ana"

    def nobody(request):
        asked.append("endpoint")

    async def bob(request):
        asked.append("endpoint")
        return "bob"

    hub = Hub(authenticate=by_hub, require_user=True)
    hub.add("/ws", Room)
    hub.add("/ws/bob", Room, authenticate=bob)
    hub.endpoint("/ws/nobody", authenticate=nobody)(Room)
    async with hub.test_client("/ws") as ana, hub.test_client("/ws/bob") as client:
        assert (ana.connection.user, client.connection.user) == ("ana", "bob")
    assert await refused(hub, "/ws/nobody") == (401, "Not authenticated.")
    assert asked == ["hub", "endpoint", "endpoint"]
    await hub.stop()


async def test_an_endpoint_may_authenticate_where_the_hub_does_not(hub):
    hub.add("/ws", Room)
    hub.add("/ws/signed", Room, authenticate=JWT(SECRET, ["HS256"], **ACCEPTS))
    async with hub.test_client("/ws", headers=bearer("nonsense")) as client:
        assert client.connection.user is None
    assert await refused(hub, "/ws/signed", headers=bearer("nonsense")) == (401, MALFORMED)


async def test_an_endpoints_authenticate_has_its_time_too():
    async def hang(request):
        import asyncio

        await asyncio.Event().wait()

    hub = Hub(handshake_timeout=0.02)
    hub.add("/ws", Room, authenticate=hang)
    assert (await refused(hub))[0] == 503
    await hub.stop()


def test_an_endpoints_authenticate_that_can_not_be_called_is_refused(hub):
    with pytest.raises(TypeError, match="authenticate must be callable, not 'ana'"):
        hub.add("/ws", Room, authenticate="ana")


def test_expires_at_may_not_lie_in_no_time_zone(hub):
    """What a naive datetime means is anybody's guess: the handshake fails closed."""
    from backchannel.identity import expiry_of

    aware = datetime(2030, 1, 1, tzinfo=UTC)
    assert expiry_of(SimpleNamespace(expires_at=aware)) == aware.timestamp()
    assert expiry_of(SimpleNamespace(expires_at=7)) == 7.0
    assert expiry_of(SimpleNamespace(expires_at=None)) is None
    assert expiry_of("ana") is None
    for wrong in (aware.replace(tzinfo=None), "2030-01-01", True, timedelta(1)):
        with pytest.raises(TypeError, match="aware datetime"):
            expiry_of(SimpleNamespace(expires_at=wrong))
    with pytest.raises(ValueError, match="NaN"):
        expiry_of(SimpleNamespace(expires_at=float("nan")))


# ── what a newcomer gets wrong ────────────────────────────────────────────────────────────────


async def handshake_without_middleware(hub):
    """Shake hands as behind a server, where no middleware has put a session into the scope."""
    events = []

    async def receive():
        return {"type": "websocket.connect"} if not events else {"type": "websocket.disconnect"}

    async def send(event):
        events.append(event["type"])

    await hub({"type": "websocket", "path": "/ws", "headers": []}, receive, send)
    assert events[0] == "websocket.accept"


def session_warnings(caplog):
    return [line for line in caplog.messages if "session_user" in line]


async def test_without_any_session_middleware_a_warning_says_so_once(caplog):
    hub = Hub(authenticate=session_user("uid"))
    hub.add("/ws", Room)
    await handshake_without_middleware(hub)
    await handshake_without_middleware(hub)
    await hub.stop()
    (line,) = session_warnings(caplog)
    assert "session_user('uid') found no session in the scope, so everybody is anonymous" in line
    assert "put the session middleware around the app that the hub is mounted in" in line
    assert "Hub(session=…)" in line


async def test_an_anonymous_client_is_no_reason_to_warn(caplog):
    class Nobodys:
        async def find(self, request):
            return NO_SESSION

    behind_middleware = Hub(authenticate=session_user())
    of_its_own = Hub(authenticate=session_user(), session=Nobodys())
    for hub in (behind_middleware, of_its_own):
        hub.add("/ws", Room)
        async with hub.test_client("/ws") as client:
            assert client.connection.user is None
        await hub.stop()
    assert session_warnings(caplog) == []


@pytest.mark.parametrize(
    ("factory", "right"),
    [
        (starlette_user, r"starlette_user\(\)"),
        (session_user, r"session_user\(…\)"),
        (JWT, r"JWT\(…\)"),
    ],
)
def test_a_ready_made_one_that_was_not_called_is_refused(factory, right):
    with pytest.raises(TypeError, match=rf"Hub\(authenticate=…\) got .*write {right}"):
        Hub(authenticate=factory)
    with pytest.raises(TypeError, match=rf"^authenticate got .*write {right}"):
        Hub().add("/ws", Room, authenticate=factory)

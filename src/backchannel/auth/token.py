"""Who a JSON Web Token says that it is, and until when; by PyJWT, an optional extra."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from backchannel.errors import InvalidToken
from backchannel.request import user_id

if TYPE_CHECKING:
    from backchannel.request import Request

__all__ = ["JWT", "Identity"]

_NAME: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
"""What a subprotocol and a cookie may be called (RFC 9110, token)."""


@dataclass(frozen=True, slots=True, eq=False)
class Identity:
    """Whose token it is, what it says, and until when it holds.

    Args:
        id: the user's id.
        claims: all that the token says; read-only.
        expires_at: aware datetime of the moment from which on it is not accepted any more; None
            where it has no end.
    """

    id: str
    claims: Mapping[str, Any] = field(repr=False)
    expires_at: datetime | None


class JWT:
    """An ``authenticate`` that takes a JSON Web Token; needs the extra ``backchannel[jwt]``.

    The token is that of ``Authorization: Bearer …``, else of the cookie, else the one that a
    browser offers as a subprotocol: ``new WebSocket(url, ["backchannel.jwt", token])``, which is
    answered with ``backchannel.jwt``. It is never taken from the URL, which stands in logs. Without
    a token the client is anonymous; a bad one is answered with 401, and the connection ends
    when the token does.

    Args:
        key: the secret of HMAC algorithms, at least as long as its hash (RFC 7518 §3.2), or the
            public key of all others: PEM, or a key object of ``cryptography``.
        algorithms: those that are accepted, such as ``["HS256"]``. "none" is not, nor HMAC beside
            others: then the public key could be taken for a secret.
        audience: the ``aud`` that is asked for, or several; a token for others is not accepted.
        issuer: the ``iss`` that is asked for, or several.
        leeway: seconds that clocks may differ; a token holds so much longer than its ``exp``.
        cookie: name of a cookie that may have the token.
        subprotocol: name of the subprotocol after which a token is offered; None takes none there.
        user: the claim that has the user's id.
        require: claims that a token must have besides; ``()`` admits tokens without an end.

    Raises:
        ImportError: PyJWT is not installed.
        TypeError, ValueError: an argument that would be insecure or that can't work.
    """

    def __init__(
        self,
        key: Any,
        algorithms: Iterable[str],
        *,
        audience: str | Iterable[str] | None = None,
        issuer: str | Iterable[str] | None = None,
        leeway: float = 0,
        cookie: str | None = None,
        subprotocol: str | None = "backchannel.jwt",
        user: str = "sub",
        require: Iterable[str] = ("exp",),
    ):
        for what, name in (("cookie", cookie), ("subprotocol", subprotocol)):
            if name is not None and not _NAME.fullmatch(name):
                raise ValueError(f"JWT({what}=…): {name!r} can't be the name of a {what}")
        if not 0 <= leeway < math.inf:  # also NaN
            raise ValueError(f"JWT(leeway=…) is 0 seconds or more, not {leeway!r}")
        self.algorithms = _texts(algorithms)
        self.cookie = cookie
        self.subprotocol = subprotocol
        self._jwt = _library()
        self._key = self._checked(key)
        self._user = user
        self._leeway = leeway
        self._asked: dict[str, Any] = {
            "algorithms": list(self.algorithms),
            "audience": audience if audience is None else list(_texts(audience)),
            "issuer": issuer if issuer is None else list(_texts(issuer)),
            "leeway": leeway,
            # A number is an id as everywhere else, so that PyJWT's own check of "sub" is off.
            "options": {"require": [user, *_texts(require)], "verify_sub": False},
        }

    def __call__(self, request: Request) -> Identity | None:
        """Return whose token came with a handshake; None when none did.

        Raises:
            InvalidToken: it is not accepted.
        """
        token = self._token(request)
        return None if token is None else self.verify(token)

    def verify(self, token: Any) -> Identity:
        """Return what a token says, when it is accepted; for ``ws.renew`` too.

        Raises:
            InvalidToken: it is not accepted; ``.text`` says why in general terms.
        """
        try:
            claims: dict[str, Any] = self._jwt.decode(token, self._key, **self._asked)
            until = self._until(claims.get("exp"))
        except self._jwt.InvalidTokenError as error:
            raise InvalidToken(self._why(error)) from None
        except (TypeError, ValueError, OverflowError, RecursionError):
            raise InvalidToken("The token is malformed.") from None
        try:
            user = user_id(claims[self._user])
        except (TypeError, ValueError):
            raise InvalidToken(f"The token's claim {self._user!r} is no user's id.") from None
        return Identity(user, MappingProxyType(claims), until)

    def __repr__(self) -> str:
        return f"JWT(algorithms={list(self.algorithms)})"

    def _token(self, request: Request) -> str | None:
        # Whoever offers the subprotocol wants it answered, wherever the token is.
        offered = request.subprotocols
        at = offered.index(self.subprotocol) if self.subprotocol in offered else None
        if at is not None:
            request.subprotocol = self.subprotocol
        split = (line.partition(" ") for line in request.headers.getlist("authorization"))
        bearers = [rest.strip() for scheme, _, rest in split if scheme.lower() == "bearer"]
        if len(bearers) > 1:
            raise InvalidToken("There is more than one token.")
        if bearers:
            return bearers[0]
        if self.cookie is not None and (token := request.cookies.get(self.cookie)):
            return token
        if at is None:
            return None
        after = offered[at + 1 : at + 2]
        looks = [name.count(".") == 2 for name in offered]  # as a JWT
        if not after or (any(looks) and not looks[at + 1]):
            raise InvalidToken(
                f"The subprotocol {self.subprotocol} wants a token right after it: "
                f'new WebSocket(url, ["{self.subprotocol}", token]).'
            )
        return after[0]

    def _until(self, exp: Any) -> datetime | None:
        return None if exp is None else datetime.fromtimestamp(int(exp) + self._leeway, UTC)

    def _why(self, error: Any) -> str:
        raised = self._jwt.exceptions  # the package itself exports not all of them
        if isinstance(error, raised.MissingRequiredClaimError):
            return f"The token lacks the claim {error.claim!r}."
        for kind, text in (
            (raised.ExpiredSignatureError, "The token has expired."),
            (raised.InvalidSignatureError, "The token's signature is not valid."),
            (raised.InvalidAudienceError, "The token is for another audience."),
            (raised.InvalidIssuerError, "The token is of another issuer."),
            (raised.ImmatureSignatureError, "The token is not valid yet."),
            (raised.InvalidAlgorithmError, "The token's algorithm is not accepted here."),
        ):
            if isinstance(error, kind):
                return text
        return "The token is malformed."

    def _checked(self, key: Any) -> Any:
        """Return the key as the algorithms want it, which must be of one kind."""
        names = ", ".join(self.algorithms)
        if not self.algorithms:
            raise ValueError('JWT(algorithms=…) names those that are accepted, such as ["HS256"]')
        if "none" in map(str.lower, self.algorithms):
            raise ValueError('JWT(algorithms=…): "none" would accept what nobody has signed')
        try:
            found = [self._jwt.get_algorithm_by_name(name) for name in self.algorithms]
        except NotImplementedError as error:
            raise ValueError(f"JWT(algorithms=…): PyJWT has not all of {names}") from error
        secret = [isinstance(one, self._jwt.algorithms.HMACAlgorithm) for one in found]
        if any(secret) and not all(secret):
            raise ValueError(
                f"JWT(algorithms=…): {names}: beside HMAC (HS…) no others, since whoever knows the "
                "public key could sign with it as the secret; make a JWT(…) for each"
            )
        if any(secret) and _is_asymmetric(key):
            raise ValueError(
                f"JWT: this is the key of an asymmetric algorithm, which is no secret: as that of "
                f"{names} anybody could sign with it"
            )
        prepared = key
        for name, one in zip(self.algorithms, found, strict=True):
            try:
                prepared = one.prepare_key(key)
            except (self._jwt.PyJWTError, TypeError, ValueError) as error:
                raise ValueError(f"JWT: this is no key for {names}: {error}") from error
            if short := one.check_key_length(prepared):
                raise ValueError(f"JWT: {_too_short(name, prepared) or short}")
        return prepared


def _too_short(name: str, key: Any) -> str:
    """Say that a secret is too short, and how to make one; nothing for what is no secret."""
    if not name.startswith("HS"):
        return ""
    size = int(name[2:]) // 8  # its hash's (RFC 7518 §3.2)
    return (
        f"the secret has {len(key)} bytes, and {name} wants {size} or more: make one with "
        f"python -c 'import secrets; print(secrets.token_hex({size}))', and sign with the same"
    )


def _library() -> Any:
    try:
        import jwt  # noqa: PLC0415 - an optional extra
    except ImportError as error:
        raise ImportError('JWT(…) needs PyJWT: pip install "backchannel[jwt]"') from error
    return jwt


def _texts(value: str | Iterable[str]) -> tuple[str, ...]:
    """Return texts as a tuple; one str is one of them."""
    return (value,) if isinstance(value, str) else tuple(value)


def _is_asymmetric(key: object) -> bool:
    data = key.encode(errors="replace") if isinstance(key, str) else key
    return isinstance(data, bytes) and (b"-----BEGIN " in data or data.startswith(b"ssh-"))

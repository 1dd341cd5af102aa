"""URLs of engines, as people get them wrong: it is said what is wrong, and no password is. Pure."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import parse_qs, urlsplit

__all__ = ["hidden", "port_of", "problem_of", "problem_of_options"]

_OPTIONS: Final = frozenset({"db", "username", "password"})
_OF_TLS: Final = frozenset({
    "ssl_keyfile", "ssl_certfile", "ssl_cert_reqs", "ssl_ca_certs", "ssl_ca_path", "ssl_ca_data",
    "ssl_check_hostname", "ssl_password", "ssl_min_version", "ssl_ciphers",
    "ssl_include_verify_flags", "ssl_exclude_verify_flags",
})  # fmt: skip
_QUOTE: Final = (
    "a user or password with other characters than letters and digits is written as "
    "urllib.parse.quote(password, safe='') does"
)


def hidden(url: str) -> str:
    """Return a URL without what may be a password, for people.

    That is all before the last ``@``, whatever it looks like, but for a user's name.
    """
    shown = re.sub(r"(?<=password=)[^&]*", "…", url)
    if "@" not in url:
        return shown
    found = re.match(r"[\w+.-]*:?//", shown)
    scheme = found[0] if found else ""
    rest = shown.removeprefix(scheme)
    secret, at, place = rest.rpartition("@")
    if not at:  # it is in what looks like an option
        return f"{scheme}…"
    user, colon, _ = secret.partition(":")
    name = user if colon and re.fullmatch(r"[\w.-]*", user) else ""
    return f"{scheme}{name}:…@{place}"


def problem_of(url: str) -> str | None:
    """Tell what is wrong with how a URL is written, without anything that may be a password.

    Returns:
        None where nothing is.
    """
    scheme, _, rest = url.partition("://")
    place = re.split(r"[/?#]", rest, maxsplit=1)[0]
    # A password with a slash in it ends the host, for whoever reads it.
    beyond = re.sub(r"((?:password|username)=)[^&#]*", r"\1", rest[len(place) :])
    if scheme == "unix":
        beyond = beyond.partition("?")[2]  # the path may have one
    if "@" in beyond:
        return f"what is before its last @ has one of / ? # in it: {_QUOTE}"
    try:
        urlsplit(url)
    except ValueError:
        return f"it can't be read: {_QUOTE}"
    return None


def problem_of_options(url: str, *more: str) -> str | None:
    """Tell what is wrong with the options of a URL, of which ``problem_of`` had nothing to say.

    Args:
        url: it.
        more: options besides those that any may have.

    Returns:
        None where nothing is.
    """
    parts = urlsplit(url)
    known = _OPTIONS.union(more, _OF_TLS if parts.scheme.startswith("rediss") else ())
    for name in sorted(parse_qs(parts.query, keep_blank_values=True).keys() - known):
        if name in _OF_TLS:
            return f"{name} is an option of rediss://, which speaks TLS"
        return f"{name!r} is no option; there are {', '.join(sorted(known))}"
    return None


def port_of(text: str) -> tuple[str, int | None]:
    """Return host and port of ``host:port``; None where there is no port.

    Raises:
        ValueError: it is no such thing. The text has what was given.
    """
    try:
        parts = urlsplit(f"//{text}")
        host, port = parts.hostname, parts.port
    except ValueError:
        raise ValueError(f"{text!r} is no host with a port from 1 to 65535") from None
    if not host:
        raise ValueError(f"{text!r} is no host and port")
    return host, port

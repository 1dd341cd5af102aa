"""The sockets that ``backchannel run`` listens at: every address of a host."""

from __future__ import annotations

import errno
import socket

import click

__all__ = ["bind", "listen"]

BACKLOG = 2048
"""Newcomers that the operating system keeps until they are accepted."""


def listen(sockets: list[socket.socket]) -> None:
    """Let newcomers wait at sockets until they are accepted.

    Raises:
        click.ClickException: another program was faster.
    """
    for bound in sockets:
        try:
            bound.listen(BACKLOG)
        except OSError as error:
            host, port = bound.getsockname()[:2]
            raise click.ClickException(_bind_problem(error, host, port)) from error


def bind(host: str, port: int) -> list[socket.socket]:
    """Return sockets bound to every address of a host; ``localhost`` may have two.

    Raises:
        click.ClickException: the host is unknown, or the port is taken or not allowed.
    """
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM,
                                   flags=socket.AI_PASSIVE)  # fmt: skip
    except OSError as error:
        raise click.ClickException(f"--host {host}: {error.strerror}") from error
    sockets: list[socket.socket] = []
    for family, _, _, _, address in sorted(dict.fromkeys(found)):
        chosen = sockets[0].getsockname()[1] if sockets else port
        bound = socket.socket(family, socket.SOCK_STREAM)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            bound.bind((address[0], chosen))
        except OSError as error:
            bound.close()
            if error.errno in {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT} and sockets:
                continue  # a machine without IPv6
            raise click.ClickException(_bind_problem(error, host, chosen)) from error
        sockets.append(bound)
    return sockets


def _bind_problem(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return (
            f"port {port} of {host} is in use by another program: stop that one, or choose "
            f"another port: --port {port + 1}"
        )
    if error.errno == errno.EACCES:
        return f"port {port} needs more rights than yours: choose one above 1023 with --port"
    return f"can't listen on {host} port {port}: {error.strerror}"

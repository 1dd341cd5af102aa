"""uvicorn's door to the native transport: ``--ws backchannel.transport.uvicorn:Protocol``.

``--http backchannel.transport.uvicorn:HttpProtocol`` beside it ends clients that never finish
their request, and keeps a storm of newcomers from holding up those who are connected. Both are
subclasses of uvicorn's own classes. When uvicorn is not as they need it, its own stand here
instead, and hubs are served by the portable transport.
"""

from __future__ import annotations

import asyncio
from importlib.metadata import version
from typing import Any, Final

from uvicorn.protocols.http.auto import AutoHTTPProtocol
from uvicorn.protocols.http.h11_impl import H11Protocol as UvicornsH11
from uvicorn.protocols.websockets.auto import AutoWebSocketsProtocol

from backchannel.observe import HUB

__all__ = ["IS_NATIVE", "TESTED", "H11Protocol", "HttpProtocol", "Protocol", "patient"]

TESTED: Final = ("0.54", "0.54")
"""The oldest and the newest uvicorn that this was tested with."""


def _choose() -> tuple[Any, Any, Any, bool]:
    """Return the classes to serve with, and whether they are ours."""
    try:
        # They import from uvicorn what may not be there.
        from backchannel.transport.rehearsal import rehearse  # noqa: PLC0415
        from backchannel.transport.uvicorn_http import PatientH11, PatientHttp  # noqa: PLC0415
        from backchannel.transport.uvicorn_ws import NativeProtocol  # noqa: PLC0415

        rehearse(NativeProtocol, PatientHttp)
        rehearse(NativeProtocol, PatientH11)
    except Exception as error:  # noqa: BLE001 - whatever another uvicorn does otherwise
        HUB.warning(
            "uvicorn %s is not as the native transport needs it (%s: %s), so the portable one "
            "serves; the native one was tested with uvicorn %s to %s",
            version("uvicorn"), type(error).__name__, error, *TESTED,
        )  # fmt: skip
        return AutoWebSocketsProtocol, AutoHTTPProtocol, UvicornsH11, False
    return NativeProtocol, PatientHttp, PatientH11, True


Protocol: Any
HttpProtocol: Any
H11Protocol: Any
Protocol, HttpProtocol, H11Protocol, IS_NATIVE = _choose()


def patient(header_timeout: float) -> type[asyncio.Protocol]:
    """Return an HttpProtocol for a program that does nothing else.

    Args:
        header_timeout: seconds a client has for the request line and headers of a request.
    """
    own = {"header_timeout": header_timeout, "owns_process": True}
    return type("HttpProtocol", (HttpProtocol,), own)

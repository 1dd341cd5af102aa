"""gunicorn's worker for the native transport, as docs/cluster.md has it."""

from __future__ import annotations

from typing import Any, ClassVar

from uvicorn_worker import UvicornWorker


class NativeWorker(UvicornWorker):
    CONFIG_KWARGS: ClassVar[dict[str, Any]] = {
        "ws": "backchannel.transport.uvicorn:Protocol",
        "http": "backchannel.transport.uvicorn:HttpProtocol",
    }

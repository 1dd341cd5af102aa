"""The server's calls, and who answers them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from inspect import isawaitable
from typing import Any

from backchannel.client.frames import Received, decoded, prepared
from backchannel.client.outbox import Kind, Request
from backchannel.client.streams import LOG
from backchannel.errors import InvalidMessage, Reject

__all__ = ["Answers"]


class Answers:
    """What a client answers when the server calls it.

    Args:
        reply: sends what is answered.
    """

    def __init__(self, reply: Callable[[Request], None]):
        self._reply = reply
        self._functions: dict[str, tuple[Callable[[Any], Any], Any]] = {}
        self._running: dict[int, asyncio.Task[None]] = {}

    def add(self, event: str, function: Callable[[Any], Any], type_: Any) -> None:
        """Answer an event's calls with what a function returns.

        Raises:
            ValueError: the event has a function already.
        """
        if event in self._functions:
            raise ValueError(f"answer({event!r}): calls of this event are answered already")
        self._functions[event] = function, type_

    def begin(self, received: Received) -> None:
        """Answer a call, in a task of its own."""
        frame = received.frame
        if frame.id is None:
            return
        if frame.event not in self._functions:
            self._refuse(frame.id, "unknown_type", f"this client has no answer to {frame.event!r}")
            return
        task = asyncio.create_task(self._answer(frame.id, received))
        self._running[frame.id] = task
        task.add_done_callback(lambda _: self._running.pop(received.frame.id or 0, None))

    def cancel(self, id_: int | None) -> None:
        """Take note that nobody waits for an answer any more."""
        if task := self._running.get(id_ or 0):
            task.cancel()

    def stop(self) -> None:
        """Cancel all: those who waited do so no more."""
        for task in list(self._running.values()):
            task.cancel()

    async def _answer(self, id_: int, received: Received) -> None:
        function, type_ = self._functions[received.frame.event]
        try:
            async with asyncio.timeout(received.frame.timeout):
                answer = function(decoded(received.data, type_))
                data = prepared(await answer if isawaitable(answer) else answer)
        except InvalidMessage as error:
            self._refuse(id_, "invalid", error.text, error.field)
        except Reject as error:
            self._refuse(id_, "refused", error.text)
        except Exception as error:  # noqa: BLE001 - the application's code
            self._fail(id_, received, error)
        else:
            self._reply(Request(Kind.BOUND, {"type": "reply", "id": id_}, data))

    def _fail(self, id_: int, received: Received, error: Exception) -> None:
        LOG.error("answering the server's call %r raised", received.frame.event, exc_info=error)
        self._refuse(id_, "failed", "the client could not answer")

    def _refuse(self, id_: int, code: str, text: str, field: str | None = None) -> None:
        text = text.encode(errors="backslashreplace").decode()  # the application's: maybe no UTF-8
        fields = {"type": "error", "id": id_, "code": code, "text": text}
        self._reply(Request(Kind.BOUND, fields if field is None else {**fields, "field": field}))

"""Whether an open connection stays open: at once, and for as long as one likes to watch."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from websockets.frames import Frame, Opcode
from websockets.protocol import State

from backchannel.cli.findings import clean
from backchannel.codes import ENDINGS, meaning_of

if TYPE_CHECKING:
    from websockets.client import ClientProtocol

__all__ = ["GOODBYE", "Stay"]

SETTLE: Final = 0.5
"""Seconds a fresh connection is watched: one that ends within them was "closed at once"."""
GOODBYE: Final = 1.0
"""Seconds at most for what is only nice to have: the rest of a body, the answer to our close."""
REGULAR: Final = 1.25
"""How much longer than ever before it must have been silent for its end to be due to that."""

_AFTER_CLOSE: Final = {
    1000: "See where the listener calls ws.close().",
    1001: "Connect again in a moment: the server was shutting down.",
    1006: "See whether the server still runs: it raised, crashed, or a proxy cut the connection.",
    1008: "See what `on_open` and `on_subscribe` return: False and Reject refuse.",
    1011: "See the server's log for the traceback: `on_open` or `on_first_open` raised.",
    1012: "Connect again in a moment.",
    1013: "Connect again later, and see which limit was reached.",
    4002: "See what kept the doctor's answer to a ping from the server: a proxy in between?",
    4004: "Sign in again, then connect.",
    4005: "See which other connection of the same user took its place.",
    4007: "Get a new token, then connect.",
    4008: "Let the page send something now and then, or raise the endpoint's `idle_timeout`.",
}

_COME_BACK: Final = {
    True: "A client should come back: connecting again can work.",
    False: "A client should not come back: it would only happen again.",
    None: "Whether to come back, the code does not say.",
}


class Stay:
    """An open connection that is watched.

    Args:
        reader: what comes from the other side.
        writer: what goes there.
        protocol: the client's side of the connection, after the handshake.
        timeout: seconds the other side has to answer a ping.
        values: what the texts of findings are filled in with; more is noted there.
        details: the facts; more are noted there.
    """

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        protocol: ClientProtocol,
        timeout: float,
        values: dict[str, object],
        details: dict[str, str],
    ) -> None:
        self.reader, self.writer, self.protocol, self.timeout = reader, writer, protocol, timeout
        self.values, self.details = values, details
        self.began = self.heard_at = asyncio.get_running_loop().time()
        self.longest = 0.0
        self.pings = 0

    async def watch(self, seconds: float) -> str:
        """See whether the connection stays; measure it, and leave politely.

        Args:
            seconds: how long to be silent after the first ping; 0 leaves at once.

        Returns:
            The row that fits.
        """
        # Only listens at first: writing to a socket that is being closed can lose its last words.
        await self.listen(SETTLE)
        if self.protocol.state is not State.OPEN:
            return self.ending("closed")
        if (taken := await self.ping()) is None:
            return "no pong" if self.protocol.state is State.OPEN else self.ending("closed")
        self.values["rtt"] = self.details["round trip"] = f"{taken * 1000:.1f} ms"
        if seconds and (trouble := await self.stay_silent(seconds)):
            return trouble
        self.protocol.send_close(1000)
        await self.listen(GOODBYE)
        return "ok watched" if seconds else "ok"

    async def stay_silent(self, seconds: float) -> str | None:
        """Say nothing but answers to pings; return the row when the connection does not live on."""
        self.longest, self.pings = 0.0, 0
        self.values["watched"] = self.details["watched for"] = f"{seconds:g} s"
        await self.listen(seconds)
        now = asyncio.get_running_loop().time()
        silence = now - self.heard_at
        every = f"{self.pings}, the longest silence {_shown(max(self.longest, silence))}"
        self.details["pings from the server"] = every if self.pings else "none"
        self.values |= {
            "pings": f"The server pinged {self.pings} times." if self.pings else "No ping came.",
            "after": _shown(now - self.began),
            "silence": _shown(silence),
            # What to set: clearly less than the silence, clearly more than the pings' distance.
            "less": _rounded(silence * 0.4),
            "more": f"{max(75.0, 3 * self.longest):.0f}",
        }
        if self.protocol.state is State.OPEN:
            if await self.ping() is None:
                return "dead" if self.protocol.state is State.OPEN else self.lost(silence)
            return None
        after, last = _shown(now - self.began), _shown(silence)
        self.details["ended after"] = f"{after}, the last {last} silent"
        return self.lost(silence)

    def lost(self, silence: float) -> str:
        """Return the row for a connection that ended while it was watched."""
        if self.protocol.close_rcvd or not isinstance(self.protocol.parser_exc, EOFError):
            return self.ending("closed later")
        self.ending("closed later")
        return "cut" if self.longest * REGULAR > silence else "cut silent"

    async def ping(self) -> float | None:
        """Return the seconds that a ping took to be answered; None when it was not."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        self.protocol.send_ping(b"doctor%d" % self.pings)
        return loop.time() - began if await self.listen(self.timeout, pong=True) else None

    async def listen(self, seconds: float, *, pong: bool = False) -> bool:
        """Exchange frames to the end, for some time, or to a pong if wanted; return if it came."""
        protocol = self.protocol
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while True:
                    self.flush()
                    for event in protocol.events_received():
                        if isinstance(event, Frame) and event.opcode is Opcode.PING:
                            self.pings += 1
                        if pong and isinstance(event, Frame) and event.opcode is Opcode.PONG:
                            return True
                    if protocol.close_rcvd or protocol.parser_exc:
                        return False
                    try:
                        data = await self.reader.read(65536)
                    except OSError:  # a reset is an end like any other
                        data = b""
                    if data:
                        self.hear()
                        protocol.receive_data(data)
                    else:
                        protocol.receive_eof()
        return False

    def hear(self) -> None:
        """Note that something came: until then it was silent."""
        now = asyncio.get_running_loop().time()
        self.longest = max(self.longest, now - self.heard_at)
        self.heard_at = now

    def flush(self) -> None:
        """Write what the protocol has to say."""
        self.writer.write(b"".join(self.protocol.data_to_send()))

    def ending(self, row: str) -> str:
        """Return the row, or another one, for a connection that the other side ended."""
        close, error = self.protocol.close_rcvd, self.protocol.parser_exc
        if not close and not isinstance(error, EOFError):
            self.values["why"] = clean(str(error))
            return "bad frames"
        code, reason = (close.code, clean(close.reason)) if close else (1006, "")
        self.details["close code"] = f"{code} {reason}".rstrip()
        otherwise = "See where the server, or a library of it, closes with this code."
        self.values |= {
            "code": code,
            "meaning": meaning_of(code),
            "why": f"Its reason: “{reason}”." if reason else "It gave no reason.",
            "come_back": _COME_BACK[ENDINGS[code].come_back if code in ENDINGS else None],
            "what_to_do": _AFTER_CLOSE.get(code, otherwise),
        }
        return row


def _rounded(seconds: float) -> str:
    return f"{seconds:.0f}" if seconds >= 10 else f"{max(seconds, 0.1):.1f}"


def _shown(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"

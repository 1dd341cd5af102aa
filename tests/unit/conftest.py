"""What the unit tests share: a hub that must end clean, and listeners that keep a diary."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from shared import Room, WebSession

from backchannel import CloseReason, Hub, Listener, threaded
from backchannel.testing import MemoryClient

PARAMETERS = {
    "on_handshake": "request",
    "on_first_open": "hub",
    "on_open": "ws",
    "on_message": "ws, message",
    "on_invalid": "ws, error",
    "on_close": "ws, reason",
    "on_error": "ws, error",
    "on_last_close": "hub",
    "on_subscribe": "ws, channel",
    "on_unsubscribe": "ws, channel",
    "on_channel_open": "channel",
    "on_channel_close": "channel",
}
STYLES = ("def", "async def", "threaded")


class Diary(list[str]):
    """Which callbacks ran, in order, each with what tells it apart from the next."""

    def write(self, name: str, *arguments: Any) -> None:
        words = [name]
        for argument in arguments:
            if isinstance(argument, str):
                words.append(argument)
            elif isinstance(argument, CloseReason):
                words.append(str(argument.code))
            elif isinstance(argument, Exception):
                words.append(type(argument).__name__)
        self.append(" ".join(words))

    def count_of(self, name: str) -> int:
        return sum(entry.split()[0] == name for entry in self)

    def only(self, *names: str) -> list[str]:
        return [entry for entry in self if entry.split()[0] in names]

    def listener(self, style: str = "def", **acts: Callable[..., Any]) -> type[Listener]:
        """Return a Listener whose callbacks, all in one style, write here and then act.

        Args:
            style: one of STYLES.
            acts: what a callback does after writing, by its name; called without self.
        """

        def run(name: str, *arguments: Any) -> Any:
            self.write(name, *arguments)
            act = acts.get(name)
            return act(*arguments) if act else None

        scope: dict[str, Any] = {"run": run, "inspect": inspect, "threaded": threaded}
        for name, parameters in PARAMETERS.items():
            if name == "on_invalid" and name not in acts:
                continue
            if style == "async def":
                source = (
                    f"async def {name}(self, {parameters}):\n"
                    f"    result = run({name!r}, {parameters})\n"
                    "    return await result if inspect.isawaitable(result) else result\n"
                )
            else:
                source = (
                    f"def {name}(self, {parameters}):\n    return run({name!r}, {parameters})\n"
                )
                source = f"@threaded\n{source}" if style == "threaded" else source
            exec(compile(source, "<diary>", "exec"), scope)
        callbacks = {name: scope[name] for name in PARAMETERS if name in scope}
        return type("Kept", (Listener,), callbacks)


@pytest.fixture
def diary() -> Diary:
    return Diary()


@pytest.fixture(params=STYLES)
def style(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
async def hub() -> AsyncIterator[Hub]:
    """A hub that stops in time, with nothing left over and no problem of its own."""
    hub = Hub(cancel_grace=0.3)
    yield hub
    await hub.stop(timeout=1.0)
    assert hub.health.problems == ()
    assert hub.health.connections == 0
    assert hub.channels() == {}
    assert not hub.dispatches


@pytest.fixture
async def room(hub: Hub) -> AsyncIterator[dict[str, MemoryClient]]:
    """Ana on two devices, bob, and an anonymous; all but ana's second device in `cars`."""
    hub.add("/ws/{channel}", Room)
    hub.add("/quiet", Room)
    clients = {
        "ana1": await hub.test_client("/ws/cars", user="ana", session=WebSession("s1")).connect(),
        "ana2": await hub.test_client("/quiet", user="ana", session=WebSession("s2")).connect(),
        "bob": await hub.test_client("/ws/cars", user="bob", session=WebSession("s1")).connect(),
        "anonymous": await hub.test_client("/ws/cars").connect(),
    }
    yield clients
    for client in clients.values():
        await client.close()

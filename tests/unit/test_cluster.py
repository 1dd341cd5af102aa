"""A hub as one node of several, with a broker whose word takes its time."""

from __future__ import annotations

import asyncio

from backchannel import Hub, Listener
from backchannel.broker.memory import MemoryBroker
from backchannel.contracts import Target

ANA = Target("user", "ana")


class Confirming(MemoryBroker):
    """Confirms what is listened to when it is told to."""

    shared = True

    def __init__(self):
        super().__init__()
        self.listening = {}

    def about_changed(self):
        pass

    def listen(self, target):
        self.listening[target] = asyncio.get_running_loop().create_future()
        return self.listening[target]


async def test_a_second_device_is_welcome_only_when_its_user_is_heard():
    """The first one has begun to listen, which is not in force yet."""
    broker = Confirming()
    hub = Hub(broker=broker)

    @hub.endpoint("/ws")
    class Device(Listener):
        def on_open(self, ws):
            ws.send("welcome")

    devices = [hub.test_client("/ws", user="ana") for _ in range(2)]
    coming = [asyncio.create_task(device.connect()) for device in devices]
    while ANA not in broker.listening:  # noqa: ASYNC110
        await asyncio.sleep(0)
    for _ in range(20):
        await asyncio.sleep(0)
    assert await hub.user("ana").count() == 0
    assert not any(task.done() for task in coming)
    broker.listening[ANA].set_result(None)
    for task, device in zip(coming, devices, strict=True):
        await task
        assert device.received() == ["welcome"]
    await hub.stop()


async def test_who_signs_out_while_her_user_is_not_heard_yet_does_not_come_in():
    broker = Confirming()
    hub = Hub(broker=broker)
    hub.add("/ws", Listener)
    client = hub.test_client("/ws", user="ana")
    coming = asyncio.create_task(client.connect())
    while ANA not in broker.listening:  # noqa: ASYNC110
        await asyncio.sleep(0)
    await hub.user("ana").close(4004, "signed out")
    broker.listening[ANA].set_result(None)
    await coming
    assert client.closed.code == 4004
    assert not hub.cluster._held
    assert not hub.farewells._coming
    await hub.stop()

"""A user on several devices, on real sockets, by both transports of uvicorn."""

from __future__ import annotations

import asyncio
import json

import pytest
from websockets.exceptions import InvalidStatus

COMMANDS = {
    "portable": "uvicorn devices:app --port {port} --ws websockets-sansio --log-level warning",
    "native": "uvicorn devices:app --port {port} --log-level warning "
    "--ws backchannel.transport.uvicorn:Protocol",
}
PATIENCE = 15.0


@pytest.fixture(params=COMMANDS)
def server(start, request):
    return start(request.param, COMMANDS[request.param])


def device(server, user, name, agent="Firefox"):
    return server.connect(f"/ws/inbox?user={user}&name={name}", user_agent_header=agent)


async def hears(client):
    return await asyncio.wait_for(client.recv(), PATIENCE)


async def test_the_devices_of_a_user_are_told_apart_and_addressed(server):
    async with (
        device(server, "ana", "phone", "Safari") as phone,
        device(server, "ana", "laptop") as laptop,
        device(server, "ana", "tablet") as tablet,
        device(server, "bob", "desk") as desk,
    ):
        everyone = {"phone": phone, "laptop": laptop, "tablet": tablet, "desk": desk}
        ids = {name: json.loads(await hears(client))["id"] for name, client in everyone.items()}
        found = (await server.get("/devices/ana")).json()
        assert {(one["id"], one["name"], one["agent"]) for one in found} == {
            (ids["phone"], "phone", "Safari"),
            (ids["laptop"], "laptop", "Firefox"),
            (ids["tablet"], "tablet", "Firefox"),
        }
        assert {(one["user"], one["endpoint"]) for one in found} == {("ana", "/ws/inbox")}

        # To all her devices, and then from one of them to the others only.
        assert (await server.request("POST", "/say/ana", params={"text": "to all"})).json() == 3
        await hears(phone), await hears(laptop), await hears(tablet)
        await phone.send("to my others")
        assert [await hears(laptop), await hears(tablet)] == ["to my others"] * 2
        # What comes next tells that nothing came before.
        assert (await server.request("POST", "/say/bob", params={"text": "bob's"})).json() == 1
        assert (await server.request("POST", "/say/ana", params={"text": "the end"})).json() == 3
        assert await hears(desk) == "bob's"
        assert await hears(phone) == "the end"

    assert (await server.get("/devices/ana")).json() == []


async def test_a_user_comes_online_with_the_first_device_and_goes_with_the_last(server):
    async def told(**query):
        return (await server.get("/told", **query)).json()

    async with device(server, "ana", "phone") as phone:
        await hears(phone)
        assert await told() == ["ana online"]
        async with device(server, "ana", "laptop") as laptop:
            await hears(laptop)
        assert await told() == ["ana online"]
    assert await told(gone=1) == ["ana online", "ana offline"]


async def test_an_endpoint_asks_its_own_authenticate_sync_and_the_hub_its_async_one(server):
    options = {"additional_headers": {"X-Service": "billing"}}
    async with server.connect("/ws/service?user=ana", **options) as client:
        await client.send("who?")
        assert await hears(client) == "service billing"


async def test_while_the_session_store_is_down_503_says_when_to_come_back(server):
    async with device(server, "ana", "phone") as phone, device(server, "ana", "laptop") as laptop:
        await hears(phone), await hears(laptop)
        with pytest.raises(InvalidStatus) as refused:
            await server.connect("/ws/inbox?user=ana&down=1").__aenter__()
        answer = refused.value.response
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
        assert b"Sessions can't be read at the moment" in answer.body
        await phone.send("we live on")
        assert await hears(laptop) == "we live on"


async def test_what_a_client_says_adds_no_header_to_an_answer(server, make_raw):
    async with make_raw(server, "/ws/moved?to=/x%0d%0aSet-Cookie:%20stolen=1") as client:
        head = await client.read_until(b"\r\n\r\n")
    assert b"stolen" not in head
    assert head.startswith(b"HTTP/1.1 500 ")
    async with make_raw(server, "/ws/moved?to=/x") as client:
        head = await client.read_until(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 302 ")
    assert b"location: /x" in head

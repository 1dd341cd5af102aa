"""What publishing and subscribing costs, without clients: `broker_path.py PEER WHAT`.

The engine's URL is in the environment's BROKER. Each peer publishes 64 bytes as its users would, in
bursts of 50, and waits until a burst is through before the next one.
"""
# ruff: noqa: PLC0415 (each peer is in an environment that has not the others)

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import sys
import time

import uvloop

URL = os.environ["BROKER"]
BURST = 50
COUNT = 20_000
CHANNELS = 10_000
TEXT = "x" * 64


async def measured(work, count):
    """Run it once to warm up, then measure it."""
    await work(count // 10)
    began, cpu = time.perf_counter(), time.process_time()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    await work(count)
    return {
        "cpu_s": time.process_time() - cpu,
        "seconds": time.perf_counter() - began,
        "bytes": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024,
        "count": count,
    }


# ── Backchannel ───────────────────────────────────────────────────────────────────────────────


async def backchannel(what):
    """Publish as a view would; hear with a client in memory, since no socket shall be measured."""
    from backchannel import Hub, Listener

    hub = Hub(broker=URL, name="bench")
    hub.rule("keep", history=100, ttl=60)
    hub.add("/ws/{channel}", Listener)
    hub.add("/ws", Listener)
    await hub.start()
    async with contextlib.AsyncExitStack() as stack:
        client = await stack.enter_async_context(hub.test_client("/ws/hear"))
        others = [await stack.enter_async_context(hub.test_client("/ws")) for _ in range(BURST)]

        async def publish(count):
            for _ in range(count // BURST):
                for _ in range(BURST - 1):
                    hub.broadcast(what, TEXT)
                await hub.broadcast(what, TEXT)
            client.received()

        async def come(count):
            for number in range(0, count, BURST):
                some = zip(others, range(number, number + BURST), strict=True)
                for change in [ws.connection.subscribe(f"{count}:{n}") for ws, n in some]:
                    await change

        done = await measured(*((come, CHANNELS) if what == "channels" else (publish, COUNT)))
    await hub.stop()
    return done


# ── what they are compared with ───────────────────────────────────────────────────────────────


async def redis_py(what):
    """The least that redis-py can do: publish in pipelines, and listen."""
    from redis.asyncio import Redis

    redis = Redis.from_url(URL)
    heard = redis.pubsub()

    async def listen(count):
        async for message in heard.listen():
            count -= message["type"] == "message"
            if not count:
                return

    async def publish(count):
        listening = asyncio.create_task(listen(count)) if what == "hear" else None
        for _ in range(count // BURST):
            pipeline = redis.pipeline(transaction=False)
            for _ in range(BURST):
                pipeline.publish(what, TEXT)
            await pipeline.execute()
        if listening is not None:
            await listening

    async def come(count):
        await heard.subscribe(*[f"{count}:{number}" for number in range(count)])
        async for message in heard.listen():
            count -= message["type"] == "subscribe"
            if not count:
                return

    if what == "hear":
        await heard.subscribe(what)
    done = await measured(*((come, CHANNELS) if what == "channels" else (publish, COUNT)))
    await heard.aclose()
    await redis.aclose()
    return done


async def python_socketio(what):
    """Its Redis manager, as a process without clients uses it."""
    import socketio

    manager = socketio.AsyncRedisManager(URL, write_only=True)

    async def publish(count):
        for _ in range(count // BURST):
            await asyncio.gather(*[manager.emit("m", TEXT, room=what) for _ in range(BURST)])

    async def come(count):
        for number in range(0, count, BURST):
            rooms = [f"{count}:{n}" for n in range(number, number + BURST)]
            await asyncio.gather(
                *[manager.enter_room(sid, "/", room) for sid, room in zip(here, rooms, strict=True)]
            )

    if what != "channels":
        return await measured(publish, COUNT)
    manager = socketio.AsyncRedisManager(URL)  # it asks the engine for nothing: all hear all
    manager.set_server(socketio.AsyncServer(async_mode="asgi"))
    manager.initialize()
    here = [await manager.connect(f"eio{number}", "/") for number in range(BURST)]
    return await measured(come, CHANNELS)


async def channels(what):
    """channels_redis's layer over pub/sub."""
    from channels_redis.pubsub import RedisPubSubChannelLayer

    layer = RedisPubSubChannelLayer(hosts=[URL])
    message = {"type": "chat", "text": TEXT}

    async def publish(count):
        for _ in range(count // BURST):
            await asyncio.gather(*[layer.group_send(what, message) for _ in range(BURST)])

    async def come(count):
        name = await layer.new_channel()
        for start in range(0, count, BURST):
            some = range(start, start + BURST)
            await asyncio.gather(*[layer.group_add(f"{count}.{number}", name) for number in some])

    done = await measured(*((come, CHANNELS) if what == "channels" else (publish, COUNT)))
    await layer.flush()
    return done


PEERS = {
    "backchannel": backchannel,
    "redis-py": redis_py,
    "python-socketio": python_socketio,
    "channels": channels,
}
if __name__ == "__main__":
    print(json.dumps(uvloop.run(PEERS[sys.argv[1]](sys.argv[2]))))

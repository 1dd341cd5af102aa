"""Sites, Celery tasks and a script that run no hub publish to the sockets of real nodes."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from clients import ended, read
from websockets.exceptions import InvalidStatus

NODES = {
    "native": "uvicorn --factory publishing:node --port {port} "
    "--ws backchannel.transport.uvicorn:Protocol",
    "portable": "uvicorn --factory publishing:node --port {port} --ws websockets-sansio",
}
SITES = {
    "threads": "waitress --listen=127.0.0.1:{port} --threads=8 --call publishing:site",
    "forks": "gunicorn publishing:site() --bind 127.0.0.1:{port} --preload --workers 3",
    "flask": "gunicorn publishing:flask_site() --bind 127.0.0.1:{port} --preload --workers 3",
}


@pytest.fixture(params=NODES)
def node(request, start, redis_server):
    return start(request.param, NODES[request.param], env=(("BROKER", redis_server.url),))


@pytest.fixture(params=SITES)
def site(request, node, start, redis_server):
    """The site, started when the node is there."""
    return start(request.param, SITES[request.param], env=(("BROKER", redis_server.url),))


async def test_what_views_publish_arrives_in_the_sockets(node, site):
    async with (
        node.connect("/ws/lobby") as bob,
        node.connect("/ws/other?user=ana") as ana,
        httpx.AsyncClient(base_url=site.http, trust_env=False, timeout=30) as http,
    ):
        answers = await asyncio.gather(
            *(http.get("/say/lobby", params={"text": f"{number}"}) for number in range(60))
        )
        said = [answer.json() for answer in answers]
        offsets = sorted(int(one["position"].rpartition(".")[2]) for one in said)
        assert offsets == list(range(1, 61))
        assert {one["reached"] for one in said} == {1}
        assert (len({one["worker"] for one in said}) > 1) == (site.name != "threads")
        everything = {str(number) for number in range(60)}
        assert {await read(bob) for _ in range(60)} == everything
        assert {await read(ana) for _ in range(60)} == {f"psst {text}" for text in everything}


async def test_what_celery_tasks_publish_arrives_in_the_sockets(
    start, process, redis_server, tmp_path
):
    """From all processes of its worker, which forks them after it has published itself."""
    node = start("native", NODES["native"], env=(("BROKER", redis_server.url),))
    for name in ("done", "control"):
        (tmp_path / "tasks" / name).mkdir(parents=True)
    env = {"BROKER": redis_server.url, "TASKS": str(tmp_path / "tasks")}
    options = (
        "--pool prefork --concurrency 2 --prefetch-multiplier 1 --without-gossip --loglevel INFO"
    )
    worker = process(
        "celery", "--app", "tasks", "worker", *options.split(), env={**env, "TASKS_WORKER": "1"}
    )
    async with node.connect("/ws/lobby") as bob, node.connect("/ws/other?user=ana") as ana:
        worker.wait_for_output("ready")
        texts = {str(number) for number in range(20)}
        caller = process("tasks.py", *texts, env=env)
        assert caller.wait() == 0, caller.output()
        said = [await read(bob) for _ in texts]
        assert {one["text"] for one in said} == texts
        assert worker.pid not in {one["worker"] for one in said}
        assert {await read(ana) for _ in texts} == {f"psst {text}" for text in texts}
    worker.popen.kill()  # it takes its time to end, and has nothing to finish
    assert "ERROR" not in worker.output(), worker.output()


async def test_what_a_script_publishes_arrives_and_goes_on_in_history(node, process, redis_server):
    async with node.connect("/ws/lobby") as bob, node.connect("/ws/lobby?user=ana") as ana:
        script = process("publishing.py", "one", "two", env={"BROKER": redis_server.url})
        assert script.wait() == 0, script.output()
        assert [line.rpartition(".")[2] for line in script.output().split()] == ["1", "2"]
        assert [await read(bob), await read(bob)] == ["one", "two"]
        assert [await read(ana), await read(ana)] == ["one", "two"]
        assert await ended(ana) == (4100, "enough")


async def test_a_script_without_an_engine_ends_with_one_clear_error(process, free_port):
    script = process("publishing.py", "one", env={"BROKER": f"redis://127.0.0.1:{free_port}/0"})
    assert script.wait() == 1
    last = script.output().splitlines()[-1]
    assert last.startswith("backchannel.errors.BrokerUnavailable: redis://127.0.0.1:")
    assert "is away" in last


async def test_without_its_engine_a_node_refuses_tickets_for_now(node, redis_server):
    async with node.connect("/ws/lobby") as bob:
        redis_server.stop()
        with pytest.raises(InvalidStatus) as refused:
            async with node.connect("/ws/lobby?ticket=bct_x"):
                pass
        response = refused.value.response
        assert (response.status_code, response.headers["Retry-After"]) == (503, "5")
        await bob.ping()
        redis_server.start()

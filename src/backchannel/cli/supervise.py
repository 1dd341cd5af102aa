"""``backchannel run --workers``: several processes at the same sockets, by uvicorn's supervisor."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

import click
import uvicorn
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import multiprocess

from backchannel.cli.load import Found, find
from backchannel.cli.run import (
    HubServer,
    Options,
    make_server,
    set_up_logging,
    show_what_is_served,
    start_all,
)
from backchannel.cli.sockets import listen
from backchannel.errors import BrokerUnavailable
from backchannel.observe import HUB

if TYPE_CHECKING:
    from backchannel.app import Hub

__all__ = ["serve_with_workers"]

START = 60.0
"""Seconds a worker may take until it serves, before what is served is shown without it."""

BACK_OFF: Final = (0.05, 2.0)
"""Seconds at most before a worker tries its broker again: at first, and after many tries."""


def serve_with_workers(options: Options, sockets: list[socket.socket]) -> None:
    """Serve until a signal ends it.

    Raises:
        click.ClickException: the hub has no broker that connects processes, or it can't be used.
    """
    set_up_logging(options)
    found = find(options.target)
    alone = [hub for hub in found.hubs if not hub.cluster.is_shared]
    if alone:
        raise click.ClickException(
            f"--workers {options.workers}: the hub in {found.label} has no broker, so each process "
            "would have channels and users of its own, and a message would reach only some. Give "
            'it one, Hub(broker="redis://localhost:6379/0"), or leave --workers out'
        )
    asyncio.run(_try_out(found))
    listen(sockets)
    config = uvicorn.Config("backchannel:Hub", workers=options.workers, log_config=None)
    supervisor = Supervisor(config, sockets, found, options)
    supervisor.run()
    if supervisor.has_failed:
        sys.exit(1)


async def _try_out(found: Found) -> None:
    """Connect to the brokers once: what is wrong with one is then said once, and nothing starts."""
    await start_all(found.hubs)
    for hub in found.hubs:
        await hub.stop()


class PatientServer(HubServer):
    """The server of a worker that takes a place beside others: it waits for a broker that is away.

    Whoever ends for that has the supervisor end all, also the workers that serve.
    """

    _starting: asyncio.Task[None] | None = None

    async def start_hubs(self, hubs: Sequence[Hub]) -> bool:
        """Start the hubs as soon as their brokers answer; False where a signal came before."""
        self._starting = asyncio.create_task(_start_all_patiently(hubs))
        if self.should_exit:  # the signal was here before the task
            self._starting.cancel()
        await asyncio.wait({self._starting})
        if not self._starting.cancelled():
            self._starting.result()
            return True
        for hub in hubs:
            await hub.stop()
        self._captured_signals.clear()  # uvicorn would raise it again, and end with an error
        return False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Take a signal; one that comes while it waits ends the waiting."""
        super().handle_exit(sig, frame)
        if self._starting is not None:
            self._starting.get_loop().call_soon_threadsafe(self._starting.cancel)


async def _start_all_patiently(hubs: Sequence[Hub]) -> None:
    """Start hubs as soon as their brokers answer.

    Raises:
        click.ClickException: one could not start, and not for a broker that is away.
    """
    now = asyncio.get_running_loop().time
    began, is_told = now(), False
    wait, longest = BACK_OFF
    while True:
        try:
            await start_all(hubs)
        except click.ClickException as problem:
            if not isinstance(problem.__cause__, BrokerUnavailable):
                raise
            if not is_told:
                HUB.warning("worker %d waits for its broker: %s", os.getpid(), problem.__cause__)
                is_told = True
        else:
            break
        await asyncio.sleep(random.uniform(0, wait))  # noqa: S311 - full jitter
        wait = min(2 * wait, longest)
    if is_told:
        HUB.warning("worker %d starts: its broker answers after %.1f s", os.getpid(), now() - began)


class Worker(multiprocess.Process):
    """One process, which serves the file as ``backchannel run`` alone would."""

    def __init__(
        self,
        options: Options,
        kind: type[HubServer],
        config: uvicorn.Config,
        sockets: list[socket.socket],
    ):
        self._options = options
        self._kind = kind
        self._hub_server: HubServer | None = None
        super().__init__(config, sockets)

    def target(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve; this runs in the process."""
        threading.Thread(target=self.always_pong, daemon=True).start()
        try:
            self._hub_server = make_server(self._options, self._kind)
            self._hub_server.run(sockets)
        except click.ClickException as problem:  # nobody above shows it in this process
            problem.show()
            sys.exit(STARTUP_FAILURE)

    def pong(self) -> None:
        """Tell who started this process whether it serves."""
        self.child_conn.recv()
        self.child_conn.send(self._hub_server is not None and self._hub_server.started)


class Supervisor(multiprocess.Multiprocess):
    """uvicorn's, with our workers; a second signal hurries them."""

    def __init__(
        self,
        config: uvicorn.Config,
        sockets: list[socket.socket],
        found: Found,
        options: Options,
    ):
        # It makes its processes by this name, and has no other place to say which.
        multiprocess.__dict__["Process"] = self._make_worker
        super().__init__(config, sockets)
        self._found = found
        self._options = options
        self._kind: type[HubServer] = HubServer

    @property
    def has_failed(self) -> bool:
        """A worker could not start."""
        return any(process.exitcode == STARTUP_FAILURE for process in self.processes)

    def _make_worker(self, config: uvicorn.Config, sockets: list[socket.socket]) -> Worker:
        return Worker(self._options, self._kind, config, sockets)

    def init_processes(self) -> None:
        """Start the workers, and say what is served where once they do."""
        super().init_processes()
        self._kind = PatientServer  # of those who come from now on
        if all(process.wait_until_ready(START) for process in self.processes):
            show_what_is_served(self._found, self._options, self.sockets)

    def restart_all(self) -> None:
        """Replace one worker after the other, each when the new one serves; none where it can't."""
        replaced = [str(process.pid) for process in self.processes]
        for place, old in enumerate(self.processes):
            new = Worker(self._options, HubServer, self.config, self.sockets)
            new.start()
            if not self._comes_to_serve(new):
                new.kill()
                new.join()
                if not self._is_told_to_end:
                    HUB.error("worker %s stays: what was to replace it does not serve", old.pid)
                return
            old.terminate()
            self.processes[place] = new
            while old.process.is_alive() and not self._is_told_to_end:
                old.process.join(0.1)
            if old.process.is_alive():
                self.processes.append(old)  # to be waited for with the others
                return
        HUB.info(
            "reloaded: workers %s serve in place of %s",
            ", ".join(str(process.pid) for process in self.processes), ", ".join(replaced),
        )  # fmt: skip

    def _comes_to_serve(self, worker: Worker) -> bool:
        """Wait for it, for longer than the 5 s of uvicorn: an application may be slow to import."""
        deadline = time.monotonic() + START
        while worker.process.is_alive() and time.monotonic() < deadline:
            if self._is_told_to_end:
                return False
            if worker.is_ready(timeout=1):
                return True
            time.sleep(0.1)
        return False

    @property
    def _is_told_to_end(self) -> bool:
        return signal.SIGTERM in self.signal_queue or signal.SIGINT in self.signal_queue

    def join_all(self) -> None:
        """Wait for the workers' end; another signal makes them hurry."""
        self.signal_queue.clear()
        for process in self.processes:
            running: Any = process.process
            while running.is_alive():
                running.join(0.1)
                if self.signal_queue:
                    self.signal_queue.clear()
                    self._hurry()

    def _hurry(self) -> None:
        for process in self.processes:
            if process.pid is not None and process.exitcode is None:
                os.kill(process.pid, signal.SIGINT)

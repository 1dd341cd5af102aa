"""``backchannel run --workers``: several processes at the same sockets, by uvicorn's supervisor."""

from __future__ import annotations

import asyncio
import functools
import os
import signal
import socket
import sys
import threading
from typing import Any

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

__all__ = ["serve_with_workers"]

START = 60.0
"""Seconds a worker may take until it serves, before what is served is shown without it."""


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


class Worker(multiprocess.Process):
    """One process, which serves the file as ``backchannel run`` alone would."""

    def __init__(self, options: Options, config: uvicorn.Config, sockets: list[socket.socket]):
        self._options = options
        self._hub_server: HubServer | None = None
        super().__init__(config, sockets)

    def target(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve; this runs in the process."""
        threading.Thread(target=self.always_pong, daemon=True).start()
        try:
            self._hub_server = make_server(self._options)
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
        multiprocess.__dict__["Process"] = functools.partial(Worker, options)
        super().__init__(config, sockets)
        self._found = found
        self._options = options

    @property
    def has_failed(self) -> bool:
        """A worker could not start."""
        return any(process.exitcode == STARTUP_FAILURE for process in self.processes)

    def init_processes(self) -> None:
        """Start the workers, and say what is served where once they do."""
        super().init_processes()
        if all(process.wait_until_ready(START) for process in self.processes):
            show_what_is_served(self._found, self._options, self.sockets)

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

"""What the rehearsal finds out about another uvicorn; tests/integration/test_door.py has the rest."""

from __future__ import annotations

import logging

import pytest

from backchannel.transport.rehearsal import rehearse
from backchannel.transport.uvicorn_http import PatientH11, PatientHttp
from backchannel.transport.uvicorn_ws import NativeProtocol


@pytest.fixture(params=[PatientHttp, PatientH11], ids=["auto", "h11"])
def http(request):
    return request.param


def test_it_goes_well_with_this_uvicorn_and_nobody_is_told(http, caplog):
    caplog.set_level(1)
    for name in ("uvicorn.error", "uvicorn.asgi"):
        caplog.set_level(1, name)
    rehearse(NativeProtocol, http)
    assert caplog.records == []
    assert logging.getLogger("uvicorn.error").level == 1


def test_it_goes_well_on_a_machine_so_busy_that_each_request_waits_for_its_turn(http, monkeypatch):
    monkeypatch.setattr("backchannel.transport.pace.Turns.__init__.__defaults__", (1e-12,))
    rehearse(NativeProtocol, http)


class Closes(NativeProtocol):
    async def run_asgi(self):
        await super().run_asgi()
        self.transport.close()


class Compresses(NativeProtocol):
    def prepare(self, *arguments):
        return False


class Forgets(NativeProtocol):
    def data_received(self, data):
        if not self.handshake_initiated:
            super().data_received(data)


class Stays(NativeProtocol):
    def take_over(self):
        taken = super().take_over()
        self.connections.add(self)
        return taken


class Waits(NativeProtocol):
    async def send(self, message):
        await super().send(message)
        await self.queue.get()


class Renames(NativeProtocol):
    def _ask_app(self, opening):
        super()._ask_app(opening._replace(target=b"/other"))


class Hides(NativeProtocol):
    def _tell_library(self):
        pass


@pytest.mark.parametrize(
    ("other", "why"),
    [
        (Renames, "it makes the scope that uvicorn makes"),
        (Hides, "response"),
        (Closes, "it leaves the socket open"),
        (Compresses, "it agrees on"),
        (Forgets, "it keeps what came early"),
        (Stays, "it forgets what it gave"),
        (Waits, "waits for something|create_future"),
    ],
)
def test_what_is_otherwise_is_named(other, why, http):
    with pytest.raises(Exception, match=why):
        rehearse(other, http)


def test_an_http_protocol_that_is_not_patient_is_found_out():
    class Impatient(PatientHttp):
        def data_received(self, data):
            super().data_received(data)
            self._door.deadlines.discard(self)

    with pytest.raises(RuntimeError, match="it waits for the rest of a request"):
        rehearse(NativeProtocol, Impatient)

"""The proxy configurations of docs/proxies.md, in the proxies themselves."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest
from ports import free_port
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from backchannel.cli.doctor import diagnose

PAGE = (Path(__file__).parents[2] / "docs" / "proxies.md").read_text()
NATIVE = "uvicorn proxied:{app} --port {port} --ws backchannel.transport.uvicorn:Protocol"
MODULES = "/usr/lib/apache2/modules"
NGINX = """daemon off; worker_processes 1; pid {folder}/pid; error_log stderr;
events {{}}
http {{ access_log off; client_body_temp_path {folder}; proxy_temp_path {folder};
fastcgi_temp_path {folder}; uwsgi_temp_path {folder}; scgi_temp_path {folder};
{block} }}"""
APACHE = """ServerRoot {folder}
ServerName localhost
PidFile {folder}/pid
ErrorLog /dev/stderr
Listen {port}
LoadModule mpm_event_module {modules}/mod_mpm_event.so
LoadModule authz_core_module {modules}/mod_authz_core.so
LoadModule proxy_module {modules}/mod_proxy.so
LoadModule proxy_http_module {modules}/mod_proxy_http.so
User www-data
Group www-data
{block}"""
CADDY = "{{\nadmin off\nauto_https off\n}}\n{block}"
PROXIES = {
    "nginx": ("nginx", NGINX, ["nginx", "-e", "stderr", "-c", "{config}"]),
    "apache": ("apache2", APACHE, ["apache2", "-D", "FOREGROUND", "-f", "{config}"]),
    "caddy": ("caddy", CADDY, ["caddy", "run", "--adapter", "caddyfile", "--config", "{config}"]),
}


def documented(name):
    """Return a configuration as the page has it."""
    return re.search(rf"```{name}\n(.*?)```", PAGE, re.DOTALL)[1]


@pytest.fixture
def behind(start_once, tmp_path):
    """Start a proxy before the hub; returns its port. ``change`` edits the page's text."""
    started = []

    def start(name, change=str, app="hub"):
        program, whole, command = PROXIES[name]
        path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin"])
        if (found := shutil.which(program, path=path)) is None:
            pytest.skip(f"no {program}: apt-get install {program}")
        server = start_once("proxied", NATIVE.replace("{app}", app))
        port = free_port()
        block = change(documented(name)).replace("127.0.0.1:8888", f"127.0.0.1:{server.port}")
        block = re.sub(r"(listen |\*:|http://:)80\b", rf"\g<1>{port}", block)
        config = tmp_path / f"{name}.conf"
        config.write_text(whole.format(folder=tmp_path, block=block, port=port, modules=MODULES))
        arguments = [found, *(part.format(config=config) for part in command[1:])]
        log = tmp_path / f"{name}.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                arguments, stdout=out, stderr=out, start_new_session=True,
                env={**os.environ, "XDG_DATA_HOME": str(tmp_path), "HOME": str(tmp_path)},
            )  # fmt: skip
        started.append(process)
        deadline = time.monotonic() + 15
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
            except OSError:
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.02)
            else:
                return port

    yield start
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(15)


async def read(client):
    return json.loads(await asyncio.wait_for(client.recv(), 10))


@pytest.mark.parametrize("name", PROXIES)
async def test_a_browser_gets_through_the_documented_configuration(behind, name):
    port = behind(name)
    url = f"ws://127.0.0.1:{port}/ws/where/cars"
    async with connect(url, proxy=None, origin=f"http://127.0.0.1:{port}") as client:
        told = await read(client)
        assert told["asked"] == f"127.0.0.1:{port}"
        assert (told["host"], told["port"]) == ("127.0.0.1", 0)  # by the forwarded address
        for text in ("hello", "x" * 100_000):
            await client.send(text)
            assert await asyncio.wait_for(client.recv(), 10) == text


@pytest.mark.parametrize("name", PROXIES)
async def test_a_page_of_another_origin_is_refused_through_it_too(behind, name):
    url = f"ws://127.0.0.1:{behind(name)}/ws/where/cars"
    with pytest.raises(InvalidStatus) as refused:
        async with connect(url, proxy=None, origin="https://evil.example"):
            pass
    assert refused.value.response.status_code == 403


async def test_pings_keep_an_idle_connection_through_a_proxy_with_little_patience(behind):
    port = behind("nginx", lambda text: text.replace(
        "proxy_buffering off;", "proxy_buffering off; proxy_read_timeout 1s;"))  # fmt: skip
    async with connect(f"ws://127.0.0.1:{port}/ws/where/cars", proxy=None) as client:
        await read(client)
        await asyncio.sleep(2.5)  # real time is the subject: longer than the proxy waits
        await client.send("still here")
        assert await asyncio.wait_for(client.recv(), 10) == "still here"


@pytest.mark.parametrize(
    ("name", "line", "advice"),
    [
        ("nginx", "proxy_set_header Upgrade $http_upgrade;", "proxy_set_header Upgrade"),
        ("nginx", "proxy_set_header Host $http_host;", "proxy_set_header Host $http_host"),
        ("apache", " upgrade=websocket", "upgrade=websocket"),
        ("apache", "ProxyPreserveHost On", "ProxyPreserveHost On"),
    ],
)
async def test_doctor_names_what_a_proxy_lost(behind, name, line, advice):
    assert line in documented(name)
    # With a proxy that is trusted, Apache's X-Forwarded-Host would make up for the Host.
    port = behind(name, lambda text: text.replace(line, ""), app="untrusting")
    diagnosis = await diagnose(f"ws://127.0.0.1:{port}/ws/where/cars")
    assert advice in str(diagnosis), diagnosis


async def test_doctor_names_what_caddy_was_told_to_lose(behind):
    line = "reverse_proxy 127.0.0.1:8888"
    lost = line + " {\n header_up Host {upstream_hostport}\n header_up -X-Forwarded-Host\n }"
    port = behind("caddy", lambda text: text.replace(line, lost), app="untrusting")
    diagnosis = await diagnose(f"ws://127.0.0.1:{port}/ws/where/cars")
    assert "header_up Host" in str(diagnosis), diagnosis


PATIENCE = {
    "nginx": ("proxy_buffering off;", "proxy_buffering off; proxy_read_timeout 2s;"),
    "apache": ("ProxyPreserveHost On", "ProxyPreserveHost On\nTimeout 2\nProxyTimeout 2"),
}


@pytest.mark.parametrize("name", PATIENCE)
async def test_doctor_names_a_proxys_time_limit(behind, name):
    port = behind(name, lambda text: text.replace(*PATIENCE[name]), app="rarely")
    diagnosis = await diagnose(f"ws://127.0.0.1:{port}/ws/where/cars", watch=30)
    assert not diagnosis.ok
    assert "without a close frame" in diagnosis.title, diagnosis
    silent = re.search(r"For (\d+\.\d) s before", diagnosis.explanation)
    # The proxy counts from when it read, the doctor from when it was told: that may be later.
    assert silent is not None, diagnosis
    assert 1.5 <= float(silent[1]) < 4, diagnosis
    assert "proxy_read_timeout 75s;" in str(diagnosis)
    assert "ProxyTimeout 75" in str(diagnosis)


async def test_doctor_sees_pings_keep_a_connection_through_the_same_limit(behind):
    port = behind("nginx", lambda text: text.replace(*PATIENCE["nginx"]))
    diagnosis = await diagnose(f"ws://127.0.0.1:{port}/ws/where/cars", watch=4)
    assert diagnosis.ok, diagnosis
    assert "after 4 s still open" in diagnosis.title

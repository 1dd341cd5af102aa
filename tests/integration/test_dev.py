"""dev.py as people call it: what README says to type, from any folder, and signals."""

from __future__ import annotations

import asyncio
import importlib.util
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SERVED = re.findall(
    r"python3 (dev\.py (?:chat|example \w+)[^\n`]*)", (ROOT / "README.md").read_text()
)
EXAMPLES = [
    "chat",
    "cluster",
    "django_project",
    "echo",
    "fastapi_app",
    "fastapi_login",
    "private_chat",
]


@pytest.fixture
def checkout(tmp_path):
    """Return a checkout whose .venv is the environment of these tests: nothing is installed."""
    folder = tmp_path / "checkout"
    (folder / ".venv").mkdir(parents=True)
    (folder / ".venv/bin").symlink_to(Path(sys.executable).parent)
    for name in ("lib", "pyvenv.cfg"):  # by which a Python knows whose it is
        (folder / ".venv" / name).symlink_to(Path(sys.prefix) / name)
    (folder / "examples").symlink_to(ROOT / "examples")
    for name in ("dev.py", "pyproject.toml", "requirements-dev.lock"):
        shutil.copy(ROOT / name, folder)
    (folder / ".venv/.installed").write_text(f"{load(folder / 'dev.py').wanted()} dev")
    return folder


def load(path):
    spec = importlib.util.spec_from_file_location("dev", path)
    dev = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(dev)
    return dev


@pytest.fixture
def serve(process, make_server):
    """Start dev.py on a free port, from any folder; wait until it says that it serves."""

    def start(*arguments, **options):
        started = process(*arguments, "--port", "0", **options)
        port = started.wait_for_output(r"(?:http|ws)://localhost:(\d+)")[1]
        started.wait_for_output("Ctrl-C to stop")
        return make_server("uvicorn-dev", started, int(port))

    return start


async def assert_echoes(server):
    async with server.connect("/ws/echo") as client:
        await client.send("hello")
        assert await client.recv() == "hello"


@pytest.mark.parametrize("command", SERVED)
async def test_what_readme_says_to_type_serves(serve, checkout, command):
    server = serve(*shlex.split(command), cwd=checkout)
    assert (await server.get("/")).status_code == 200


def test_readme_says_how_to_serve_the_chat_and_an_example():
    assert SERVED == ["dev.py chat", "dev.py example fastapi_login", "dev.py example cluster"]


@pytest.mark.parametrize("name", EXAMPLES)
async def test_each_example_is_served_by_one_command_from_anywhere(serve, checkout, tmp_path, name):
    env = {"DATABASE": str(tmp_path / "db.sqlite3")}
    server = serve(checkout / "dev.py", "example", name, cwd=tmp_path, env=env)
    if name == "cluster":
        assert len(set(re.findall(r"http://localhost:(\d+)/", server.printed()))) == 3
    if name in {"echo", "private_chat"}:
        async with server.connect("/ws/echo" if name == "echo" else "/ws/privatechat") as client:
            await client.send('{"msgType": "userlist", "username": "Ana"}')
            assert "Ana" in await client.recv()
    else:
        page = {"fastapi_app": "/channels", "django_project": "/accounts/login/"}.get(name, "/")
        assert (await server.get(page)).status_code == 200


def test_what_an_example_needs_is_installed_once_into_the_checkouts_own_venv(tmp_path, capsys):
    folder = tmp_path / "checkout"
    folder.mkdir()
    for name in ("dev.py", "pyproject.toml", "requirements-dev.lock"):
        shutil.copy(ROOT / name, folder)
    dev = load(folder / "dev.py")
    dev.make_venv()
    (folder / ".venv/.installed").write_text(f"{dev.wanted()} ")
    wheel = tmp_path / "needed-1.0-py3-none-any.whl"
    about = "needed-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as made:
        made.writestr("needed.py", "")
        made.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: needed\nVersion: 1.0\n")
        made.writestr(
            f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        made.writestr(f"{about}/RECORD", "")
    dev.add(str(wheel))
    assert "Installing" in capsys.readouterr().out
    command = [folder / ".venv/bin/python", "-c", "import needed; print(needed.__file__)"]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert found.startswith(str(folder / ".venv"))
    dev.add(str(wheel))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_examples_first_lines_say_what_it_needs_and_how_to_run_it(name):
    target = load(ROOT / "dev.py").EXAMPLES[name][0]
    text = (ROOT / "examples" / target.partition(":")[0]).read_text().partition('"""\n\n')[0]
    assert f"python3 dev.py example {name}\n" in text
    file = target.rpartition("/")[2]
    program = name in load(ROOT / "dev.py").STARTS_ITSELF
    assert (f"and then: python {file}" if program else f"backchannel run {file}") in text
    needed = re.search("^Needs: +(.+)$", text, re.MULTILINE)
    installed = " ".join(
        ["pip install", *(needed[1].split() if needed else []), "/path/to/the/clone"]
    )
    assert installed in text


async def test_without_a_name_the_examples_are_listed(process, checkout):
    listed = process("dev.py", "example", cwd=checkout)
    assert await asyncio.to_thread(listed.wait) == 0
    assert re.findall(r"python3 dev\.py example (\w+)", listed.output()) == EXAMPLES
    files = {path.stem for path in (ROOT / "examples").iterdir() if path.suffix in {".py", ""}}
    assert files - {"__pycache__"} == set(EXAMPLES)
    wrong = process("dev.py", "example", "fastapi", cwd=checkout)
    assert await asyncio.to_thread(wrong.wait) == 2
    assert "There is no example 'fastapi'" in wrong.output()
    assert "example fastapi_login" in wrong.output()


async def test_a_file_is_looked_for_where_dev_py_is_called(serve, checkout, tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    shutil.copy(ROOT / "examples/echo.py", mine / "own.py")
    server = serve(checkout / "dev.py", "run", "own.py", cwd=mine)
    assert "serves own.py:hub" in server.printed()
    await assert_echoes(server)


async def test_the_chat_is_found_from_anywhere(serve, checkout, tmp_path):
    server = serve(checkout / "dev.py", "chat", cwd=tmp_path)
    assert "<title>" in (await server.get("/")).text


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("command", [["chat"], ["run", "examples/echo.py"]])
async def test_a_signal_ends_the_server_too(serve, checkout, command, number):
    server = serve("dev.py", *command, cwd=checkout)
    server.process.signal(number)
    await asyncio.to_thread(server.process.wait)
    with (
        pytest.raises(ConnectionRefusedError),
        socket.create_connection(("127.0.0.1", server.port)),
    ):
        pass


async def test_the_exit_code_is_that_of_the_command(process, checkout):
    started = process("dev.py", "run", "nowhere.py", cwd=checkout)
    assert await asyncio.to_thread(started.wait) == 1
    assert "there is no file nowhere.py" in started.output()


# mypy ends only once pyright ran, and says something before and after; it finds fault.
TOOLS = {
    "ruff": "echo all well",
    "mypy": "echo mypy begins; while [ ! -e pyright-ran ]; do sleep 0.01; done; echo mypy ends; exit 1",
    "pyright": "touch pyright-ran; echo pyright says; echo pyright complains >&2",
    "lint-imports": "echo kept",
    "pytest": "echo pytest gets $*; echo compiles anew: $PYTHONDONTWRITEBYTECODE; exit 5",
}


@pytest.fixture
def tools(checkout):
    """Return a checkout whose .venv has small programs in place of the tools."""
    folder = checkout / ".venv/bin"
    folder.unlink()
    folder.mkdir()
    for name, does in TOOLS.items():
        (folder / name).write_text(f"#!/bin/sh\n{does}\n")
        (folder / name).chmod(0o755)
    return checkout


async def test_check_runs_all_reads_at_once_mixes_nothing_and_names_what_failed(process, tools):
    started = process("dev.py", "check", cwd=tools)
    assert await asyncio.to_thread(started.wait) == 1
    printed = started.output()
    for block in (
        "── mypy: mypy\nmypy begins\nmypy ends\n── mypy: ",
        "── pyright: pyright\npyright says\npyright complains\n── pyright: ",
        "pytest gets -n auto",
    ):
        assert block in printed, printed
    order = ["format", "lint", "mypy", "pyright", "ladder", "tests"]
    assert re.findall(r"^── (\S+): \d+ s$", printed, re.MULTILINE) == order
    assert printed.endswith("FAILED: mypy, tests\n")


@pytest.mark.parametrize(("given", "gets"), [((), "-n auto"), (("-k", "x"), "-k x\n")])
async def test_all_tests_run_in_several_processes_and_named_ones_in_one(
    process, tools, given, gets
):
    started = process("dev.py", "test", *given, cwd=tools, env={"PYTHONDONTWRITEBYTECODE": "1"})
    assert await asyncio.to_thread(started.wait) == 5
    assert f"pytest gets {gets}" in started.output()
    assert "compiles anew:\n" in started.output()

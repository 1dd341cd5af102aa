"""What `backchannel run` adds to uvicorn, as far as it needs no server."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest
import uvicorn

from backchannel.cli.run import Reload


@pytest.fixture
def reload(tmp_path, monkeypatch):
    """Return a supervisor of a folder; its child processes do nothing."""

    def nothing(*arguments, **options):
        return None

    child = SimpleNamespace(start=nothing, terminate=nothing, join=nothing, pid=1)
    monkeypatch.setattr("uvicorn.supervisors.basereload.get_subprocess", lambda **_: child)
    monkeypatch.setattr("signal.signal", nothing)
    (tmp_path / "chat.py").write_text("one")
    config = uvicorn.Config("x", reload=True, reload_dirs=[str(tmp_path)], reload_delay=0)
    return Reload(config, target=nothing, sockets=[])


def change(file):
    was = file.stat().st_mtime
    os.utime(file, (was + 1, was + 1))


def test_reload_notices_a_change_while_the_program_starts(reload, tmp_path):
    reload.startup()
    change(tmp_path / "chat.py")
    assert reload.should_restart() == [tmp_path / "chat.py"]


def test_reload_notices_a_change_while_the_program_starts_again(reload, tmp_path):
    reload.startup()
    change(tmp_path / "chat.py")
    reload.restart()
    assert reload.should_restart() is None
    reload.restart()
    change(tmp_path / "chat.py")
    assert reload.should_restart() == [tmp_path / "chat.py"]


def test_reload_is_not_stopped_by_a_file_that_has_just_gone(reload, tmp_path, monkeypatch):
    monkeypatch.setattr(reload, "iter_py_files", lambda: iter([tmp_path / "gone.py"]))
    reload.startup()
    assert reload.should_restart() is None

"""Find the hub in a Python file."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import click

from backchannel.app import Hub

__all__ = ["Found", "find", "split_target"]


@dataclass(frozen=True, slots=True)
class Found:
    """What ``backchannel run`` serves.

    Args:
        app: the ASGI app: the hub itself, or the app named after the colon.
        hubs: the hubs in the file whose connections are to be closed at the end.
        label: file and name, for people.
    """

    app: Any
    hubs: tuple[Hub, ...]
    label: str


def split_target(target: str) -> tuple[Path, str | None]:
    """Split ``FILE[:NAME]``; a drive letter is no file.

    Raises:
        click.ClickException: there is no such file.
    """
    text, separator, name = target.rpartition(":")
    file, chosen = (Path(text), name) if separator and name.isidentifier() else (Path(target), None)
    if not file.is_file():
        hint = f"; did you mean {file}.py?" if file.with_name(file.name + ".py").is_file() else ""
        raise click.ClickException(f"there is no file {file}{hint}")
    return file, chosen


def find(target: str) -> Found:
    """Import a file and find its hub.

    Args:
        target: ``FILE`` or ``FILE:NAME``, where NAME is a hub or another ASGI app.

    Raises:
        click.ClickException: no file, no hub, or several to choose from; the message lists them.
        Whatever the file raises when it is imported.
    """
    file, name = split_target(target)
    module = _import(file)
    hubs = {key: value for key, value in vars(module).items() if isinstance(value, Hub)}
    distinct = tuple(dict.fromkeys(hubs.values()))
    if name is not None:
        if not hasattr(module, name):
            raise click.ClickException(f"{file} has no {name!r}; {_listing(hubs)}")
        app = getattr(module, name)
        if not callable(app):
            raise click.ClickException(f"{file}:{name} is {app!r}, which is no hub or ASGI app")
        return Found(app, (app,) if isinstance(app, Hub) else distinct, f"{file}:{name}")
    if "hub" in hubs:
        return Found(hubs["hub"], (hubs["hub"],), f"{file}:hub")
    if len(distinct) == 1:
        return Found(distinct[0], distinct, f"{file}:{next(iter(hubs))}")
    raise click.ClickException(
        f"{file} has no hub named 'hub'; {_listing(hubs)}"
        + (f". Choose one: backchannel run {file}:{next(iter(hubs))}" if hubs else "")
    )


def _listing(hubs: dict[str, Hub]) -> str:
    if not hubs:
        return "it has no Hub at module level at all: write `hub = Hub()`"
    return "its hubs are " + ", ".join(hubs)


def _import(file: Path) -> ModuleType:
    """Import a file as `python FILE` would: its folder comes first on the path."""
    path = file.resolve()
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    name = path.stem if path.stem.isidentifier() else "backchannel_app"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise click.ClickException(f"{file} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module

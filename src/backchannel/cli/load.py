"""Find the hub in a Python file."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import click

from backchannel.app import Hub
from backchannel.cli.mistakes import MistakeError

__all__ = ["Found", "find", "split_target"]


@dataclass(frozen=True, slots=True)
class Found:
    """What ``backchannel run`` serves.

    Args:
        app: the ASGI app: the hub itself, or the app named after the colon.
        hubs: the hubs in the file whose connections are to be closed at the end.
        label: file and name, for people.
        left_out: hubs and apps of the file that are not served, by the name to choose each with,
            and its endpoints.
    """

    app: Any
    hubs: tuple[Hub, ...]
    label: str
    left_out: Mapping[str, tuple[str, ...]]


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
        MistakeError: importing the file raised.
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
        if not isinstance(app, Hub):
            return Found(app, distinct, f"{file}:{name}", {})
    elif "hub" in hubs or len(distinct) == 1:
        name = "hub" if "hub" in hubs else next(iter(hubs))
        app = hubs[name]
    else:
        raise click.ClickException(
            f"{file} has no hub named 'hub'; {_listing(hubs)}"
            + (f". Choose one: backchannel run {file}:{next(iter(hubs))}" if hubs else "")
        )
    return Found(app, (app,), f"{file}:{name}", _left_out(module, file, app))


def _left_out(module: ModuleType, file: Path, served: Hub) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    seen: list[object] = [served]
    for name, value in vars(module).items():
        if any(value is other for other in seen):
            continue
        if isinstance(value, Hub):
            found[f"{file}:{name}"] = tuple(one.template.text for one in value.endpoints)
        elif _is_asgi_app(value):
            found[f"{file}:{name}"] = ()
        seen.append(value)
    return found


def _is_asgi_app(value: object) -> bool:
    if isinstance(value, type) or not callable(value):
        return False
    try:
        return list(inspect.signature(value).parameters) == ["scope", "receive", "send"]
    except (TypeError, ValueError):  # it does not tell
        return False


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
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise MistakeError(error) from error
    return module

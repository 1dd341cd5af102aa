"""Find the hub in a Python file."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import click

from backchannel.app import Hub
from backchannel.cli.mistakes import MistakeError
from backchannel.cli.mounts import Inside, is_asgi_app, look_inside

__all__ = ["Found", "find", "split_target"]

USUAL: Final[tuple[str, ...]] = ("app", "application", "asgi")
"""What apps are called; of several that have the hub in them, one of this name is served."""


@dataclass(frozen=True, slots=True)
class Found:
    """What ``backchannel run`` serves.

    Args:
        app: the ASGI app: the hub itself, or the app named after the colon.
        hubs: the hubs in the file whose connections are to be closed at the end.
        label: file and name, for people.
        left_out: hubs and apps of the file that are not served, by the name to choose each with,
            and its endpoints.
        note: why it is the app and not the hub, and how to have the hub; empty for a hub or an app
            that was named.
    """

    app: Any
    hubs: tuple[Hub, ...]
    label: str
    left_out: Mapping[str, tuple[str, ...]]
    note: str = ""


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
    """Import a file and find its hub, or the app of the file that has the hub in it.

    Args:
        target: ``FILE`` or ``FILE:NAME``, where NAME is a hub or another ASGI app.

    Raises:
        click.ClickException: no file, no hub, or several to choose from; the message lists them.
        MistakeError: importing the file raised.
    """
    file, name = split_target(target)
    module = _import(file)
    hubs = {key: value for key, value in vars(module).items() if isinstance(value, Hub)}
    if name is not None:
        return _named(module, file, name, hubs)
    distinct = list(dict.fromkeys(hubs.values()))
    wanted = [hubs["hub"]] if "hub" in hubs else distinct
    if (chosen := _app_with(module, wanted)) is not None:
        name, app, inside = chosen
        served = tuple(hub for hub in distinct if hub in inside.hubs)
        alone = next(key for key, hub in hubs.items() if hub in served)
        note = f"{name} has {alone} in it. To serve the hub alone: backchannel run {file}:{alone}"
        seen = inside.seen | {id(hub) for hub in served}
        return Found(app, served, f"{file}:{name}", _left_out(module, file, app, seen), note)
    if len(wanted) != 1:
        raise click.ClickException(
            f"{file} has no hub named 'hub'; {_listing(hubs)}"
            + (f". Choose one: backchannel run {file}:{next(iter(hubs))}" if hubs else "")
        )
    name = next(key for key, hub in hubs.items() if hub is wanted[0])
    return _named(module, file, name, hubs)


def _named(module: ModuleType, file: Path, name: str, hubs: dict[str, Hub]) -> Found:
    """Return what was named, be it a hub or an app."""
    if not hasattr(module, name):
        raise click.ClickException(f"{file} has no {name!r}; {_listing(hubs)}")
    app = getattr(module, name)
    if not callable(app):
        raise click.ClickException(f"{file}:{name} is {app!r}, which is no hub or ASGI app")
    if not isinstance(app, Hub):
        return Found(app, tuple(dict.fromkeys(hubs.values())), f"{file}:{name}", {})
    return Found(app, (app,), f"{file}:{name}", _left_out(module, file, app))


def _app_with(module: ModuleType, hubs: Sequence[Hub]) -> tuple[str, Any, Inside] | None:
    """Return the app of a file that has all of the hubs in it; None where none or no one is it."""
    apps = {
        name: (app, look_inside(app))
        for name, app in reversed(vars(module).items())
        if not isinstance(app, Hub) and is_asgi_app(app)
    }
    found = {
        name: (app, inside)
        for name, (app, inside) in apps.items()
        if hubs and set(hubs) <= set(inside.hubs)
    }
    outermost = [
        name
        for name, (app, _) in found.items()
        if not any(id(app) in inside.seen for other, inside in found.values() if other is not app)
    ]
    if len({id(found[name][0]) for name in outermost}) > 1:
        outermost = [name for name in USUAL if name in outermost][:1]
    return (outermost[-1], *found[outermost[-1]]) if outermost else None


def _left_out(
    module: ModuleType, file: Path, served: object, inside: frozenset[int] = frozenset()
) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    seen: list[object] = [served]
    for name, value in vars(module).items():
        if id(value) in inside or any(value is other for other in seen):
            continue
        if isinstance(value, Hub):
            found[f"{file}:{name}"] = tuple(one.template.text for one in value.endpoints)
        elif is_asgi_app(value):
            found[f"{file}:{name}"] = ()
        seen.append(value)
    return found


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

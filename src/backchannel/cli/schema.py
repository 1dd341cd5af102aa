"""``backchannel schema``: what endpoints take and send, for clients; whether that still fits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import click

from backchannel.cli.load import find
from backchannel.errors import ListenerError
from backchannel.schema.asyncapi import asyncapi
from backchannel.schema.changes import Change, compare
from backchannel.schema.described import Description, describe
from backchannel.schema.typescript import typescript

__all__ = ["schema"]

_FILE = click.Path(dir_okay=False, path_type=Path)


@click.command()
@click.argument("target", metavar="FILE[:NAME]")
@click.option("--asyncapi", "asyncapi_file", type=_FILE, metavar="JSON",
              help="Write the AsyncAPI document there.")  # fmt: skip
@click.option("--typescript", "typescript_file", type=_FILE, metavar="D.TS",
              help="Write TypeScript types there.")  # fmt: skip
@click.option("--check", "check_file", type=_FILE, metavar="JSON",
              help="Write nothing; compare with an AsyncAPI document that was written before, and "
              "fail where clients made for it would break.")  # fmt: skip
@click.option("--title", help="Of the document; the file's name unless given.")
@click.option("--api-version", default="0", show_default=True, help="Of the document.")
def schema(
    target: str,
    asyncapi_file: Path | None,
    typescript_file: Path | None,
    check_file: Path | None,
    title: str | None,
    api_version: str,
) -> None:
    """Print what a file's endpoints take and send, as AsyncAPI 3, or write it into files.

    It is read off the listeners' annotations, and off `sends = …` on a listener.
    """
    if check_file is not None and (asyncapi_file or typescript_file):
        raise click.UsageError("--check only compares: leave --asyncapi and --typescript out")
    found = find(target)
    endpoints = [endpoint for hub in found.hubs for endpoint in hub.endpoints]
    if not endpoints:
        raise click.ClickException(
            f"{found.label} has no endpoint: write @hub.endpoint(…) above a listener"
        )
    try:
        description = describe(endpoints)
    except ListenerError as error:
        raise click.ClickException(str(error)) from error
    document = asyncapi(description, title or Path(target.rpartition(":")[0] or target).stem,
                        api_version)  # fmt: skip
    if check_file is not None:
        _check(check_file, document, target)
        return
    _write(description, document, asyncapi_file, typescript_file)


def _write(
    description: Description,
    document: dict[str, Any],
    asyncapi_file: Path | None,
    typescript_file: Path | None,
) -> None:
    text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
    if asyncapi_file is None and typescript_file is None:
        click.echo(text, nl=False)
    for file, content in ((asyncapi_file, text), (typescript_file, typescript(description))):
        if file is None:
            continue
        try:
            file.write_text(content, encoding="utf-8")
        except OSError as error:
            raise click.ClickException(f"{file} can't be written: {error.strerror}") from error
        click.echo(file)


def _check(file: Path, document: dict[str, Any], target: str) -> None:
    """Print what has changed; exit with 1 where something of it breaks clients."""
    old = _read(file)
    try:
        changes = compare(old, document)
    except ValueError as error:
        raise click.ClickException(
            f"{file} is no document that this command wrote ({error}): write it anew, with "
            "--asyncapi"
        ) from error
    breaking = [one for one in changes if one.breaks]
    for one in (*breaking, *(one for one in changes if not one.breaks)):
        click.echo(_line(one))
    again = f"backchannel schema {target} --asyncapi {file}"
    if breaking:
        number = len(breaking)
        click.echo(
            f"\n{number} {'change breaks' if number == 1 else 'changes break'} clients that were "
            f"made for {file}. If that is meant: {again}",
            err=True,
        )
        raise click.exceptions.Exit(1)
    if changes:
        click.echo(f"\nNothing breaks. Write the file anew: {again}")
    elif old != document:
        click.echo(f"Only titles and descriptions have changed. Write the file anew: {again}")
    else:
        click.echo(f"{file} is up to date.")


def _line(change: Change) -> str:
    word = click.style("BREAKS", fg="red") if change.breaks else "ok    "
    whom = f" (breaks {change.breaks})" if change.breaks else ""
    return f"{word}  {change.where}: {change.what}{whom}"


def _read(file: Path) -> dict[str, Any]:
    """Read a document that was written before.

    Raises:
        click.ClickException: it can't be read, or is none of ours.
    """
    hint = "write it first, with --asyncapi"
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise click.ClickException(f"there is no file {file}: {hint}") from error
    except OSError as error:
        raise click.ClickException(f"{file} can't be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise click.ClickException(f"{file} is no JSON ({error}): {hint}") from error
    version = cast("dict[str, Any]", document).get("asyncapi") if isinstance(document, dict) else 0
    if not isinstance(version, str) or not version.startswith("3."):
        raise click.ClickException(f"{file} is no AsyncAPI 3 document: {hint}")
    return cast("dict[str, Any]", document)

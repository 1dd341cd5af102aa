"""``backchannel client``: how a page gets the browser's client."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import click

from backchannel.transport.scripts import FOLDER, SCRIPTS, TYPES, read

__all__ = ["client"]


@click.command()
@click.option("--prefix", default="", metavar="PATH",
              help="Where the hub is mounted, such as /live; or https://example.com/live, where "
              "that is another host than the page's.")  # fmt: skip
@click.option("--copy", type=click.Path(file_okay=False, path_type=Path), metavar="DIR",
              help="Copy the files there, with their types, and print nothing else.")  # fmt: skip
def client(prefix: str, copy: Path | None) -> None:
    """Print the tags by which a page loads the browser's client, with its integrity hashes.

    Every hub serves the files at /backchannel/client.js, below its mount.
    """
    if copy is not None:
        _copy(copy)
        return
    if prefix and not re.fullmatch(r"(https?://[\w.:\[\]-]+)?(/[\w.~%-]+)*/?", prefix):
        raise click.BadParameter(
            f"{prefix!r} is no path such as /live, and no address such as https://example.com/live",
            param_hint="--prefix",
        )
    where = f"{prefix.rstrip('/')}/backchannel"
    module, classic, tabs = (f"{where}/{name}" for name in SCRIPTS)
    hashes = {name: read(name).integrity for name in SCRIPTS}
    mapped = {
        "imports": {"backchannel": module, "backchannel/tabs": tabs},
        "integrity": {module: hashes["client.js"], tabs: hashes["tabs.js"]},
    }
    click.echo(
        '<!-- As a module: import { connect } from "backchannel", or from "backchannel/tabs" -->\n'
        f'<script type="importmap">\n{json.dumps(mapped, indent=2)}\n</script>\n\n'
        "<!-- As a classic script: Backchannel.connect(…) -->\n"
        f'<script src="{classic}"\n'
        f'        integrity="{hashes["client.global.js"]}" crossorigin="anonymous"></script>'
    )


def _copy(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in (*SCRIPTS, *TYPES):
            shutil.copyfile(FOLDER / name, folder / name)
            click.echo(folder / name)
    except OSError as error:
        raise click.ClickException(f"{folder} can't be written to: {error.strerror}") from error

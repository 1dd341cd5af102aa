"""The ``backchannel`` command."""

from __future__ import annotations

import click

from backchannel import __version__
from backchannel.cli.client import client
from backchannel.cli.doctor import doctor
from backchannel.cli.run import run
from backchannel.cli.schema import schema

__all__ = ["main"]


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="backchannel")
def main() -> None:
    """Backchannel: WebSockets for Python with channels, users and addressed messages."""


main.add_command(run)
main.add_command(doctor)
main.add_command(client)
main.add_command(schema)

"""``twillcore config``: a configuration as TOML, to read or to change."""

from pathlib import Path
from typing import Annotated

import typer

EXAMPLES = (
    "twillcore config u256",
    "twillcore config u256 -o mine.toml   (edit it, then pass --config mine.toml)",
)


def command(
    name: Annotated[str, typer.Argument(metavar="NAME|FILE", help="Preset, or a TOML file.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Default: stdout.")
    ] = None,
) -> None:
    """Write a configuration as TOML, every parameter with its meaning."""
    from twillcore.commands.files import write_text
    from twillcore.config import load_config

    text = load_config(name).to_toml()
    if output is None:
        typer.echo(text, nl=False)
    else:
        write_text(output, text)

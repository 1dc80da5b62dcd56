"""``twillcore verilog``: the accelerator for an FPGA flow."""

from pathlib import Path
from typing import Annotated

import typer

from twillcore.commands.options import Configuration

EXAMPLES = (
    "twillcore verilog -o build/u256",
    "twillcore verilog --config mine.toml -o build/mine",
)


def command(
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Folder to write to; created.")
    ],
    config: Configuration = "u256",
) -> None:
    """Write one self-contained Verilog file, its register map and its memory requirements."""
    from twillcore.commands.terminal import results, working
    from twillcore.config import load_config

    chosen = load_config(config)
    with working(f"elaborating {chosen.name}"):
        from twillcore.hw.verilog import generate

        generate(chosen, output)
    for path in sorted(output.iterdir()):
        results.print(f"{path}  {path.stat().st_size:,} bytes")

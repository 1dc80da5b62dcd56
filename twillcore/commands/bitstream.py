"""``twillcore bitstream``: a whole board design, by open tools."""

from pathlib import Path
from typing import Annotated

import typer

from twillcore.commands.options import Json

EXAMPLES = (
    "twillcore bitstream --board ulx3s -o build/ulx3s",
    "twillcore bitstream --board ulx3s --config mine.toml --memory 64 -o build/mine",
    "openFPGALoader --board ulx3s build/ulx3s/twillcore_ulx3s.bit",
)


def command(
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Folder to write to; created.")
    ],
    board: Annotated[str, typer.Option(metavar="NAME", help="Board.")] = "ulx3s",
    config: Annotated[
        str | None,
        typer.Option(metavar="NAME|FILE", help="Preset, or a TOML file; default: the board's."),
    ] = None,
    memory: Annotated[
        int, typer.Option(metavar="KIB", help="Block RAM for programs and data; a power of two.")
    ] = 128,
    baud: Annotated[
        int | None, typer.Option(help="Of the serial line; default: the board's.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the placer.")] = 1,
    as_json: Json = False,
) -> None:
    """Build a board's bitstream: accelerator, memory, and a serial link to the host.

    Exit code 1 if the design is too slow for the board's clock. Programs then run on the board with
    --engine board, after `twillcore compile --config DIR/config.toml`.
    """
    from twillcore.commands.terminal import changing, print_json, results
    from twillcore.fpga.boards import board_config, find_board

    chosen = find_board(board)
    configuration = board_config(chosen, config)
    with changing(f"{configuration.name} on {chosen.name}") as progress:
        from twillcore.fpga.build import build

        made = build(
            chosen, configuration, output,
            memory_kib=memory, baud=baud, seed=seed, progress=progress,
        )  # fmt: skip
    if as_json:
        print_json(made.to_json())
    else:
        report = made.report
        for name, used in report.used.items():
            if there := report.available[name]:
                share = f"{100 * used / there:5.1f} %"
                results.print(f"{name.replace('_', ' '):>16}  {used:>7,} of {there:>7,}  {share}")
        mark = "[green]met[/]" if made.met else "[bold red]missed[/]"
        results.print(
            f"           clock  [bold]{made.mhz:.1f} MHz[/], the board's is"
            f" {made.clock_mhz:g} MHz: {mark}"
        )
        results.print(f"{made.bitstream}  {made.bitstream.stat().st_size:,} bytes")
    if not made.met:
        raise typer.Exit(1)

"""``twillcore resources``: what a configuration costs on an FPGA."""

from enum import StrEnum
from typing import Annotated

import typer

from twillcore.commands.options import Configuration, Json


class Family(StrEnum):
    """Device families with open synthesis."""

    xc7 = "xc7"
    xcup = "xcup"
    ecp5 = "ecp5"
    ice40 = "ice40"


Part = Annotated[
    str | None,
    typer.Option(metavar="PART", help="For example xc7z020 or lfe5u-85f; default: the family's."),
]

EXAMPLES = (
    "twillcore resources --config z7020",
    "twillcore resources --config u256 --family xc7 --part xc7z045",
    "twillcore resources --config mine.toml --family ecp5 --json",
)


def command(
    config: Configuration = "u256",
    family: Annotated[
        Family | None, typer.Option(help="Default: the family of the configuration, or xc7.")
    ] = None,
    part: Part = None,
    depth: Annotated[int, typer.Option(metavar="N", min=1, help="Levels of modules shown.")] = 2,
    as_json: Json = False,
) -> None:
    """Synthesise with Yosys and count; exit code 1 if the part is too small."""
    from twillcore.commands.terminal import changing, messages, print_json
    from twillcore.config import load_config
    from twillcore.fpga.parts import FAMILY_BLOCKS, find_part
    from twillcore.fpga.resources import resources

    chosen = load_config(config)
    name = family or (chosen.family if chosen.family in FAMILY_BLOCKS else "xc7")
    device = find_part(part, name)
    with changing(f"synthesising {chosen.name} for {device.name}") as progress:
        report = resources(chosen, name, device, progress=progress)
    if as_json:
        print_json(report.to_json())
    else:
        _show(report, depth)
        for sentence in report.over():
            messages.print(f"[bold red]does not fit:[/] {sentence}")
        for sentence in report.misplaced():
            messages.print(f"[bold yellow]misplaced:[/] {sentence}")
    if report.over() or report.misplaced():
        raise typer.Exit(1)


def _show(report, depth: int) -> None:
    from rich.table import Table

    from twillcore.commands.terminal import results
    from twillcore.fpga.parts import FAMILY_BLOCKS

    multiplier, memory = FAMILY_BLOCKS[report.family]
    part = report.part
    title = f"{report.config.name} on {part.name}, {report.yosys}"
    table = Table("module", title=title, title_justify="left")
    for column in ("LUT", "of it memory", "FF", multiplier, memory):
        table.add_column(column, justify="right")

    def row(name: str, usage, style: str = "") -> None:
        figures = (usage.luts, usage.memory_luts, usage.flip_flops, usage.multipliers,
                   usage.memory_blocks)  # fmt: skip
        table.add_row(name, *(f"{n:,g}" if n else "" for n in figures), style=style)

    for name, usage in report.modules.items():
        steps = name.split(".")
        if len(steps) <= depth:
            row("  " * (len(steps) - 1) + steps[-1], usage, "" if len(steps) == 1 else "dim")
    table.add_section()
    row("whole design", report.total, "bold")
    capacity, percent = part.capacity(), report.percent()
    names = ("luts", None, "flip_flops", "multipliers", "memory_blocks")
    table.add_row(part.name, *(f"{capacity[n]:,g}" if n else "" for n in names))
    table.add_row("used", *(f"{percent[n]:.1f} %" if n else "" for n in names))
    results.print(table)
    macs = report.config.multipliers
    array = report.modules.get("gemm.array")
    if array is not None:
        results.print(
            f"array: {macs} int8 MAC per cycle, {array.luts / macs:.0f} LUT and"
            f" {array.flip_flops / macs:.0f} FF each"
        )

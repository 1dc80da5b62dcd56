"""``twillcore pnr``: the clock that a configuration reaches on an ECP5, by open tools."""

from pathlib import Path
from typing import Annotated

import typer

from twillcore.commands.options import Configuration, Json
from twillcore.commands.resources import Part

EXAMPLES = (
    "twillcore pnr --config ecp5-small --part lfe5u-25f",
    "twillcore pnr --config ecp5-85 --seed 1 --seed 2 --seed 3",
    "twillcore pnr --config ecp5-85 --speed 8 --mhz 120 --json",
)


def command(
    config: Configuration = "ecp5-85",
    part: Part = "lfe5u-85f",
    package: Annotated[str, typer.Option(metavar="NAME", help="Package.")] = "CABGA381",
    speed: Annotated[int, typer.Option(min=6, max=8, help="Speed grade; 8 is fastest.")] = 6,
    seed: Annotated[
        list[int] | None, typer.Option(help="Of the placer; several: the best is reported.")
    ] = None,
    mhz: Annotated[
        float | None, typer.Option(help="Clock to aim at; default: the configuration's.")
    ] = None,
    bitstream: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the best run's bitstream, to look at its size."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Synthesise, place and route the core by itself, its ports in registers, four pins.

    Exit code 1 if no seed reaches the clock.
    """
    from twillcore.commands.terminal import changing, print_json
    from twillcore.config import load_config
    from twillcore.fpga.pnr import core, pack

    chosen = load_config(config)
    reports = []
    for number in seed or [1]:
        with changing(f"{chosen.name} on {part}, seed {number}") as progress:
            report = core(chosen, part, package, speed, number, mhz=mhz, progress=progress)
        reports.append(report)
    best = max(reports, key=lambda report: report.mhz)
    if bitstream is not None:
        pack(best, bitstream)
    if as_json:
        runs = [report.to_json() for report in reports]
        print_json({"config": chosen.name, "config_hash": chosen.hash, "mhz": best.mhz,
                    "seed": best.seed, "runs": runs})  # fmt: skip
    else:
        _show(chosen, reports, best)
    if not all(clock.met for clock in best.clocks):
        raise typer.Exit(1)


def _show(config, reports, best) -> None:
    from rich.table import Table

    from twillcore.commands.terminal import results

    table = Table(
        "resource", title=f"{config.name} on {best.part}-{best.speed}, {best.tools}",
        title_justify="left",
    )  # fmt: skip
    for column in ("used", "of", ""):
        table.add_column(column, justify="right")
    for name, used in best.used.items():
        there = best.available[name]
        share = f"{100 * used / there:.1f} %" if there else ""
        table.add_row(name.replace("_", " "), f"{used:,}", f"{there:,}", share)
    results.print(table)
    for clock in best.clocks:
        table = Table("kind", "component", title=f"Critical path of {clock.name}",
                      title_justify="left")  # fmt: skip
        table.add_column("ns", justify="right")
        for step in clock.path:
            table.add_row(step.kind, step.cell, f"{step.nanoseconds:.2f}")
        table.add_section()
        table.add_row("", "", f"{sum(step.nanoseconds for step in clock.path):.2f}")
        results.print(table)
    for report in reports:
        for clock in report.clocks:
            mark = "[green]met[/]" if clock.met else "[bold red]missed[/]"
            results.print(
                f"seed {report.seed}: {clock.name} [bold]{clock.mhz:.1f} MHz[/],"
                f" {clock.target_mhz:g} MHz {mark}, {report.seconds:.0f} s"
            )

"""What a run shows in the end: tables, or one JSON object."""

import re
from collections.abc import Mapping, Sequence

from rich.table import Table

from twillcore.commands.terminal import print_json, results
from twillcore.image import Image
from twillcore.registers import COUNTER_MEANINGS, Counter
from twillcore.result import Result
from twillcore.sim.report import layer_times, run_dict

ADDED = ("cycles", "macs", "useful_macs", "busy", "bytes_read", "bytes_written", "seconds")


def added(runs: Sequence[dict], multipliers: int) -> dict:
    """Return ``run_dict`` of several runs of a program as one, counts and times added."""
    first = dict(runs[0])
    for name in ADDED:
        if first[name] is not None:
            first[name] = sum(run[name] for run in runs)
    first["stalls"] = {name: sum(run["stalls"][name] for run in runs) for name in first["stalls"]}
    if first["cycles"] is not None:
        first["utilisation"] = first["useful_macs"] / (first["cycles"] * multipliers)
        first["simulated_cycles_per_second"] = first["cycles"] / first["seconds"]
    return first


class RunReport:
    """Collects the results of one program's runs.

    Cycles, bytes, seconds and counters of several runs are added up; ``layers`` are of one run,
    since every run of a program takes the same cycles.
    """

    def __init__(self, image: Image) -> None:
        self.image = image
        self.results: list[Result] = []
        self.exact: bool | None = None

    def add(self, result: Result, bit_exact: bool | None) -> None:
        """Take one run in, and whether it equals the reference (None: it is the reference)."""
        self.results.append(result)
        self.exact = bit_exact if self.exact is None else self.exact and bit_exact

    def as_dict(self) -> dict[str, object]:
        """Return what ``--json`` prints; what the engine does not know is null or empty."""
        runs = [run_dict(self.image, result) for result in self.results]
        data = added(runs, self.image.config.multipliers)
        return {**data, "config_hash": self.image.config.hash, "bit_exact": self.exact}

    def show(self, as_json: bool, *tables: Table, **more: object) -> None:
        """Print JSON with ``more`` entries, or tables: where the cycles went, ``tables``, sums."""
        data = self.as_dict()
        if as_json:
            print_json({**data, **more})
            return
        if data["cycles"] is not None:
            if len(self.image.layers) > 1:
                results.print(_layers(self.image, self.results[0]))
            results.print(_where(data, self.image.config.multipliers))
        for table in tables:
            results.print(table)
        results.print(_summary(data, len(self.results)))


def _layers(image: Image, result: Result) -> Table:
    """Return where the cycles of one run went, layers of one kind together."""
    groups: dict[str, list] = {}
    for layer in layer_times(image, result):
        if layer.cycles:
            groups.setdefault(re.sub(r"\.\d+\.", ".*.", layer.name), []).append(layer)
    table = Table("layers", title="Cycles by layer (--json has each)", title_justify="left")
    for name in ("", "cycles", "share", "utilisation"):
        table.add_column(name, justify="right")
    for name, layers in groups.items():
        cycles = sum(layer.cycles for layer in layers)
        use = sum(layer.useful_macs for layer in layers) / (cycles * image.config.multipliers)
        share = cycles / result.cycles
        count = "" if len(layers) == 1 else f"x {len(layers)}"
        table.add_row(name, count, f"{cycles:,}", f"{share:.1%}", f"{use:.1%}" if use else "")
    return table


def _where(data: Mapping, multipliers: int) -> Table:
    table = Table("cause", "cycles", "share", title="The GEMM core's cycles", title_justify="left")
    meanings = {counter.name.lower(): COUNTER_MEANINGS[counter] for counter in Counter}
    meanings["blocked"] = "waited for the drain"
    useful = round(data["useful_macs"] / multipliers)
    meanings |= {"useful": "useful work", "padding": "work on rows, columns, inputs of padding"}
    causes = {"useful": useful, "padding": data["busy"] - useful, **data["stalls"]}
    for name, count in causes.items():
        if count:
            table.add_row(meanings[name], f"{count:,}", f"{count / data['cycles']:.1%}")
    for column in table.columns[1:]:
        column.justify = "right"
    return table


def _summary(data: Mapping, runs: int) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_row("engine", f"{data['engine']}, configuration {data['config']}")
    if data["cycles"] is None:
        table.add_row("computed in", f"{data['seconds']:.2f} s; this engine knows no cycles")
    else:
        each = "" if runs == 1 else f" in {runs} runs, {data['cycles'] // runs:,} each"
        rate = data["simulated_cycles_per_second"] / 1e6
        table.add_row("cycles", f"[bold]{data['cycles']:,}[/]{each}")
        table.add_row("utilisation", f"[bold]{data['utilisation']:.1%}[/] of the multipliers")
        table.add_row("simulated in", f"{data['seconds']:.2f} s, {rate:.2f} Mcycle/s")
        table.add_row(
            "memory", f"{data['bytes_read']:,} bytes read, {data['bytes_written']:,} written"
        )
    if data["bit_exact"] is not None:
        exact = "[green]yes, bit for bit" if data["bit_exact"] else "[bold red]NO"
        table.add_row("equals reference", exact)
    return table

"""What a run shows in the end: tables, or one JSON object."""

import re
from collections.abc import Mapping, Sequence

from rich.table import Table

from twillcore.commands.terminal import print_json, results
from twillcore.config import Config
from twillcore.image import Image
from twillcore.registers import COUNTER_MEANINGS, Counter
from twillcore.result import Result
from twillcore.sim.report import layer_times, run_dict

ADDED = ("cycles", "macs", "useful_macs", "busy", "bytes_read", "bytes_written", "seconds")
ADDED_LUT = ("macs", "bit_products", "busy")


def added(runs: Sequence[dict], config: Config) -> dict:
    """Return ``run_dict`` of several runs of a program as one, counts and times added."""
    first = _sums(runs, ADDED)
    if "lut" in first:
        first["lut"] = lut = _sums([run["lut"] for run in runs], ADDED_LUT)
    if first["cycles"] is not None:
        first["utilisation"] = first["useful_macs"] / (first["cycles"] * config.multipliers)
        first["simulated_cycles_per_second"] = first["cycles"] / first["seconds"]
        if "lut" in first:
            lut["utilisation"] = lut["bit_products"] / (first["cycles"] * config.bit_products)
    return first


def _sums(runs: Sequence[dict], names: Sequence[str]) -> dict:
    first = dict(runs[0])
    for name in names:
        if first[name] is not None:
            first[name] = sum(run[name] for run in runs)
    first["stalls"] = {name: sum(run["stalls"][name] for run in runs) for name in first["stalls"]}
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
        data = added(runs, self.image.config)
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
            results.print(_where(data, self.image.config))
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
    config = image.config
    lut = ("LUT core",) if any(layer.lut_macs for layer in image.layers) else ()
    for name in ("", "cycles", "share", "DSP core" if lut else "utilisation", *lut):
        table.add_column(name, justify="right")
    for name, layers in groups.items():
        cycles = sum(layer.cycles for layer in layers)
        uses = [sum(layer.useful_macs for layer in layers) / (cycles * config.multipliers)]
        if lut:
            uses.append(sum(layer.lut_work for layer in layers) / (cycles * config.bit_products))
        share = cycles / result.cycles
        count = "" if len(layers) == 1 else f"x {len(layers)}"
        table.add_row(
            name,
            count,
            f"{cycles:,}",
            f"{share:.1%}",
            *(f"{use:.1%}" if use else "" for use in uses),
        )
    return table


def _where(data: Mapping, config: Config) -> Table:
    meanings = {"useful": "useful work", "padding": "work on rows, columns, inputs of padding"}
    meanings |= {counter.name.lower(): COUNTER_MEANINGS[counter] for counter in Counter}
    meanings["blocked"] = "waited for the drain"
    cores = {"cycles": _causes(data, data["useful_macs"] / config.multipliers)}
    title = "The GEMM core's cycles"
    if "lut" in data and data["lut"]["macs"]:
        work = data["lut"]["bit_products"] / config.bit_products
        cores = {"DSP core": cores["cycles"], "LUT core": _causes(data["lut"], work)}
        title = "The cores' cycles"
        meanings["blocked"] = "waited for the drain or for activations"
    table = Table("cause", title=title, title_justify="left")
    for name in cores:
        table.add_column(name, justify="right")
        table.add_column("share", justify="right")
    for name, meaning in meanings.items():
        counts = [causes.get(name, 0) for causes in cores.values()]
        if any(counts):
            cells = ((f"{count:,}", f"{count / data['cycles']:.1%}") for count in counts)
            table.add_row(meaning, *(cell for pair in cells for cell in pair))
    return table


def _causes(core: Mapping, useful_cycles: float) -> dict[str, int]:
    useful = round(useful_cycles)
    return {"useful": useful, "padding": core["busy"] - useful, **core["stalls"]}


def _summary(data: Mapping, runs: int) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_row("engine", f"{data['engine']}, configuration {data['config']}")
    if data["cycles"] is None:
        table.add_row("computed in", f"{data['seconds']:.2f} s; this engine knows no cycles")
    else:
        each = "" if runs == 1 else f" in {runs} runs, {data['cycles'] // runs:,} each"
        rate = data["simulated_cycles_per_second"] / 1e6
        table.add_row("cycles", f"[bold]{data['cycles']:,}[/]{each}")
        use = f"[bold]{data['utilisation']:.1%}[/] of the multipliers"
        if "lut" in data and data["lut"]["macs"]:
            use += f", [bold]{data['lut']['utilisation']:.1%}[/] of the LUT core"
        table.add_row("utilisation", use)
        table.add_row("simulated in", f"{data['seconds']:.2f} s, {rate:.2f} Mcycle/s")
        table.add_row(
            "memory", f"{data['bytes_read']:,} bytes read, {data['bytes_written']:,} written"
        )
    if data["bit_exact"] is not None:
        exact = "[green]yes, bit for bit" if data["bit_exact"] else "[bold red]NO"
        table.add_row("equals reference", exact)
    return table

"""Clock and area of every component by itself on an ECP5: ``python -m twillcore.fpga.timing``.

Writes ``docs/results/timing.md``. Results are cached, so only what has changed takes time.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable
from datetime import date
from pathlib import Path

from amaranth.lib.wiring import Component

from twillcore.config import Config, load_config
from twillcore.errors import TwillcoreError
from twillcore.fpga.pnr import PnrReport, out_of_context
from twillcore.hw.activation_memory import ActivationMemory
from twillcore.hw.dispatch import Dispatch
from twillcore.hw.drain import Drain
from twillcore.hw.dsp_array import DspArray
from twillcore.hw.elementwise import Elementwise
from twillcore.hw.fetch import Fetch
from twillcore.hw.gemm import GemmEngine
from twillcore.hw.issue import Issue
from twillcore.hw.layer_norm import LayerNorm
from twillcore.hw.load import LoadEngine
from twillcore.hw.move import MoveEngine
from twillcore.hw.norm_statistics import NormStatistics
from twillcore.hw.read_port import ReadPort
from twillcore.hw.reciprocal import Reciprocal, SquareRoot
from twillcore.hw.registers import Registers
from twillcore.hw.requantize import Requantize
from twillcore.hw.run_control import RunControl
from twillcore.hw.sequencer import Sequencer
from twillcore.hw.softmax import Softmax
from twillcore.hw.store import StoreEngine
from twillcore.hw.vector import VectorEngine

RESULTS = Path("docs/results/timing.md")

COMPONENTS: dict[str, Callable[[Config], Component]] = {
    "sequencer": Sequencer,
    "issue": Issue,
    "dispatch": Dispatch,
    "fetch": Fetch,
    "read port": ReadPort,
    "load": LoadEngine,
    "store": StoreEngine,
    "move": MoveEngine,
    "run control": lambda config: RunControl(),
    "registers": lambda config: Registers(),
    "softmax": Softmax,
    "elementwise": Elementwise,
    "requantize": Requantize,
    "layer norm": LayerNorm,
    "norm statistics": NormStatistics,
    "reciprocal": lambda config: Reciprocal(config.lanes),
    "square root": lambda config: SquareRoot(config.lanes),
    "drain": Drain,
    "array": DspArray,
    "activation memory": ActivationMemory,
    "gemm": GemmEngine,
    "vector": VectorEngine,
}


def measure(
    config: Config, names: list[str], mhz: float, progress: Callable[[str], None]
) -> dict[str, PnrReport | str]:
    """Return a report of each component, aimed at ``mhz``, or why there is none."""
    reports: dict[str, PnrReport | str] = {}
    for name in names:
        progress(name)
        try:
            component = COMPONENTS[name](config)
            reports[name] = out_of_context(component, mhz=mhz)
        except TwillcoreError as error:
            reports[name] = str(error).splitlines()[-1]
        else:
            progress(_line(name, reports[name]))
    return reports


def _line(name: str, report: PnrReport) -> str:
    used = report.used
    start, end = report.clocks[0].ends if report.clocks else ("", "")
    return (
        f"| {name} | {report.mhz:.0f} | {used['luts']:,} | {used['flip_flops']:,}"
        f" | {used['multipliers']} | {used['memory_blocks']} | `{start}` -> `{end}` |"
    )


def table(config: Config, reports: dict[str, PnrReport | str], commit: str) -> str:
    """Return the results as Markdown."""
    known = [report for report in reports.values() if isinstance(report, PnrReport)]
    lines = [
        "# Clock of every component by itself",
        "",
        f"`make timing` on commit {commit}, {date.today()}. Configuration `{config.name}`",
        f"({config.lanes} lanes, {config.dsp_columns} columns), LFE5U-85F, speed grade 6, seed 1,",
        f"aimed at {known[0].clocks[0].target_mhz:.0f} MHz; {known[0].tools}." if known else "",
        "Every port is registered outside the component (`fpga/harness.py`), and those registers",
        "are in the figures of area.",
        "",
        "| component | MHz | LUT4 | FF | MULT18 | EBR | critical path |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, report in reports.items():
        if isinstance(report, str):
            lines.append(f"| {name} | | | | | | {report} |")
        else:
            lines.append(_line(name, report))
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("components", nargs="*", help="only these, and only to stdout")
    parser.add_argument("--config", default="ecp5-85")
    parser.add_argument("--mhz", type=float, default=120.0, help="what to aim at")
    parser.add_argument("--paths", action="store_true", help="print critical paths")
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.components) - COMPONENTS.keys())
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}; known: {', '.join(COMPONENTS)}")
    config = load_config(options.config)
    names = options.components or list(COMPONENTS)
    reports = measure(
        config, names, options.mhz, lambda line: print(line, file=sys.stderr, flush=True)
    )
    if options.paths:
        for name, report in reports.items():
            if isinstance(report, PnrReport):
                print(f"{name}: {report.mhz:.1f} MHz")
                for step in report.clocks[0].path:
                    print(f"  {step.nanoseconds:6.2f} {step.kind:9} {step.cell}")
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    text = table(config, reports, commit or "unknown")
    if options.components:
        print(text, end="")
    else:
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        RESULTS.write_text(text)


if __name__ == "__main__":
    main()

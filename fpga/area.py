"""Area of the presets, and the price of N:M: ``python -m twillcore.fpga.area``.

Writes ``docs/results/area.md`` or what ``--output`` says. Results are cached, so only what has
changed takes time.
"""

import argparse
import subprocess
import sys
from datetime import date
from pathlib import Path

from twillcore.config import Config, load_config
from twillcore.errors import TwillcoreError
from twillcore.fpga.parts import FAMILY_BLOCKS, find_part
from twillcore.fpga.pnr import out_of_context
from twillcore.fpga.resources import Report, Usage, resources, synthesise
from twillcore.fpga.target import to_rtlil
from twillcore.fpga.tools import YOSYS
from twillcore.hw.dsp_array import DspArray
from twillcore.hw.lut_array import LutArray

RESULTS = Path("docs/results/area.md")
PRESETS = (
    ("z7020", "xc7"),
    ("z7020-transformer", "xc7"),
    ("ecp5-85", "ecp5"),
    ("ecp5-small", "ecp5"),
)
#: Arrays with and without selectors, of so many lanes: large enough to say what an element costs.
ARRAYS = (("z7020", "xc7"), ("ecp5-85", "ecp5"))
ARRAY_LANES = 4
CLOCK_ARRAY = {"lanes": 4, "dsp_columns": 8}  # place and route of a small one says the clock


def say(text: str) -> None:
    """Show progress."""
    print(text, file=sys.stderr, flush=True)


def array(config: Config, family: str, dense: bool) -> Usage:
    """Return what an array costs by itself."""
    text = to_rtlil(DspArray(config.replace(family=family), dense), "array", family)
    return synthesise(text, "array", family)[0]


def _few_lanes(preset: str) -> Config:
    config = load_config(preset).replace(operand_depth=0)
    return config.replace(lanes=ARRAY_LANES, axi_data_bits=64)


def arrays() -> list[str]:
    """Return the comparison of arrays as lines of Markdown."""
    lines = [
        "| array | family | | LUT | FF | multiplier blocks | LUT per MAC | FF per MAC |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for preset, family in ARRAYS:
        config = _few_lanes(preset)
        for dense in (True, False):
            say(f"array of {preset} on {family}, {'dense' if dense else 'N:M'}")
            try:
                usage = array(config, family, dense)
            except TwillcoreError as error:
                say(str(error))
                lines.append(
                    f"| {config.lanes} x {config.dsp_columns} | {family}"
                    f" | {'dense only' if dense else '1:8 to 8:8'} | Yosys failed | | | | |"
                )
                continue
            macs = config.multipliers
            lines.append(
                f"| {config.lanes} x {config.dsp_columns} | {family}"
                f" | {'dense only' if dense else '1:8 to 8:8'} | {usage.luts:,}"
                f" | {usage.flip_flops:,} | {usage.multipliers}"
                f" | {usage.luts / macs:.1f} | {usage.flip_flops / macs:.1f} |"
            )
    return lines


def lut_array() -> list[str]:
    """Return what an element of the LUT core costs, as lines of Markdown."""
    config = _few_lanes("z7020")
    lanes, columns = config.lanes, config.lut_columns
    say("LUT array on xc7")
    try:
        usage = synthesise(to_rtlil(LutArray(config), "lut_array", "xc7"), "lut_array", "xc7")[0]
    except TwillcoreError as error:
        say(str(error))
        return ["Yosys failed."]
    elements = lanes * columns
    sentence = (
        f"{lanes} lanes x {columns} columns, {config.accumulator_bits}-bit accumulators, on xc7:"
        f" {usage.luts:,} LUT and {usage.flip_flops:,} FF,"
        f" {usage.luts / elements:.1f} and {usage.flip_flops / elements:.1f} per element."
    )
    return [sentence]


def clocks() -> list[str]:
    """Return the clock of a small array with and without selectors, as lines of Markdown."""
    config = load_config("ecp5-85").replace(**CLOCK_ARRAY)
    lines = []
    for dense in (True, False):
        say(f"clock of a small array, {'dense' if dense else 'N:M'}")
        report = out_of_context(DspArray(config, dense), mhz=150)
        lines.append(f"* {'dense only' if dense else '1:8 to 8:8'}: {report.mhz:.0f} MHz")
    return lines


def presets(reports: list[Report]) -> list[str]:
    """Return the presets against their parts as lines of Markdown."""
    lines = [
        "| preset | int8 MAC | part | LUT | FF | multipliers | memory blocks | of it wrong |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for report in reports:
        used, percent = report.total, report.percent()
        blocks = FAMILY_BLOCKS[report.family]
        lines.append(
            f"| `{report.config.name}` | {report.config.multipliers} | {report.part.name}"
            f" | {used.luts:,} ({percent['luts']:.0f} %)"
            f" | {used.flip_flops:,} ({percent['flip_flops']:.0f} %)"
            f" | {used.multipliers} {blocks[0]} ({percent['multipliers']:.0f} %)"
            f" | {used.memory_blocks:g} {blocks[1]} ({percent['memory_blocks']:.0f} %)"
            f" | {'; '.join(report.over() + report.misplaced()) or 'nothing'} |"
        )
    return lines


def modules(report: Report) -> list[str]:
    """Return a preset's modules as lines of Markdown."""
    multiplier, memory = FAMILY_BLOCKS[report.family]
    lines = [
        f"## Modules of `{report.config.name}`",
        "",
        "By the names of cells, after optimisation across modules.",
        "",
        f"| module | LUT | FF | {multiplier} | {memory} |",
        "|---|---|---|---|---|",
    ]
    for name, usage in report.modules.items():
        if name.count(".") < 2 and usage.luts + usage.flip_flops + usage.memory_blocks >= 100:
            lines.append(
                f"| {name} | {usage.luts:,} | {usage.flip_flops:,} | {usage.multipliers}"
                f" | {usage.memory_blocks:g} |"
            )
    return lines


def main(arguments: list[str] | None = None) -> None:
    """Measure and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--presets", nargs="*", default=[name for name, _ in PRESETS])
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    reports = []
    for name, family in PRESETS:
        if name in options.presets:
            say(f"{name} on {family}")
            reports.append(resources(load_config(name), family, find_part(None, family)))
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    lines = [
        "# Area",
        "",
        f"`make area` on commit {commit or 'unknown'}, {date.today()}; Yosys {YOSYS.version}.",
        "On Xilinx families LUT are Yosys' estimate of logic cells.",
        "",
        "## Presets",
        "",
        *presets(reports),
        "",
        "## The price of N:M",
        "",
        "The array by itself, and the same array without selectors, which can do dense layers only",
        "(`DspArray(config, dense=True)`).",
        "",
        *arrays(),
        "",
        "## The LUT core's array",
        "",
        *lut_array(),
        "",
        "## Clock",
        "",
        f"Clock of {CLOCK_ARRAY['lanes']} x {CLOCK_ARRAY['dsp_columns']}, placed and routed by",
        "itself on an LFE5U-85F, speed grade 6, seed 1:",
        "",
        *clocks(),
    ]
    for report in reports:
        lines += ["", *modules(report)]
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()

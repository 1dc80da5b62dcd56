"""From Verilog or RTLIL to a placed and routed ECP5, and its bitstream, by open tools."""

import json
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from amaranth.lib.wiring import Component

from twillcore.cache import cache_folder, content_key
from twillcore.config import Config
from twillcore.errors import TwillcoreError
from twillcore.fpga import block_ram_registers, fanout
from twillcore.fpga.parts import PARTS, Part
from twillcore.fpga.resources import Report, cells_by_scope, split_before_luts, usages
from twillcore.fpga.tools import ECPPACK, NEXTPNR, YOSYS, Progress, silent

#: nextpnr's option per part.
DEVICES = {"lfe5u-12f": "--12k", "lfe5u-25f": "--25k", "lfe5u-45f": "--45k", "lfe5u-85f": "--85k"}
SPEEDS = (6, 7, 8)
HARNESS = "harness"

#: The placer heeds timing more than by default (10 and 2): 11 % more MHz for `ecp5-85` as estimated
#: after placement (docs/results/fpga_clock.md). Weights of 120 and 5 are worse again.
PLACER_OPTIONS = ("--placer-heap-timingweight", "40", "--placer-heap-critexp", "4")

#: Files here whose code decides what becomes of Yosys's netlist: it is kept under their content.
_PASSES = ("netlist.py", "block_ram_registers.py", "fanout.py")

#: What nextpnr's cells are called here.
RESOURCES = {
    "TRELLIS_COMB": "luts",
    "TRELLIS_FF": "flip_flops",
    "MULT18X18D": "multipliers",
    "DP16KD": "memory_blocks",
}


@dataclass(frozen=True)
class PathStep:
    """One step of a critical path: a cell's own delay, or the way (``route``) to the next."""

    kind: str  # clk-to-q, source, logic, routing, setup
    cell: str  # the component's name; of a routing step, from -> to
    nanoseconds: float


@dataclass(frozen=True)
class Clock:
    """What a clock reaches, and the path that keeps it from more."""

    name: str
    mhz: float
    target_mhz: float
    path: tuple[PathStep, ...] = ()

    @property
    def met(self) -> bool:
        """Whether the target is reached."""
        return self.mhz >= self.target_mhz

    @property
    def ends(self) -> tuple[str, str]:
        """First and last cell of the critical path."""
        if not self.path:
            return ("", "")
        return (self.path[0].cell, self.path[-1].cell)


@dataclass(frozen=True)
class PnrReport:
    """One run of place and route; ``textcfg`` is what :func:`pack` makes a bitstream of."""

    top: str
    part: str
    package: str
    speed: int
    seed: int
    clocks: tuple[Clock, ...]
    used: Mapping[str, int]
    available: Mapping[str, int]
    seconds: float
    tools: str
    textcfg: Path
    log: Path

    @property
    def mhz(self) -> float:
        """The slowest clock that has any register path; 0 if there is none."""
        return min((clock.mhz for clock in self.clocks), default=0.0)

    def to_json(self) -> dict:
        """Return everything as plain values."""
        data = asdict(self)
        data["clocks"] = [asdict(clock) | {"met": clock.met} for clock in self.clocks]
        return data | {"mhz": self.mhz, "textcfg": str(self.textcfg), "log": str(self.log)}


def synthesise(source: str, top: str, progress: Progress = silent, *, options: str = "") -> Path:
    """Return the ECP5 netlist (Yosys JSON) of ``source``, which is Verilog or RTLIL; cached.

    Registers move into block RAM (:mod:`~twillcore.fpga.block_ram_registers`), and drivers of very
    many loads are copied (:mod:`~twillcore.fpga.fanout`).

    Raises
    ------
    TwillcoreError
        If Yosys is missing or fails.
    """
    command = split_before_luts(f"synth_ecp5 -top {top} {options}".rstrip()) + "; write_json "
    passes = [Path(__file__).with_name(name).read_bytes() for name in _PASSES]
    key = content_key(source, command, YOSYS.version, *passes)
    folder = cache_folder() / "pnr" / key
    netlist = folder / "netlist.json"
    if netlist.exists():
        return netlist
    folder.mkdir(parents=True, exist_ok=True)
    is_rtlil = bool(re.search(r"^(attribute .*|module \\\S+)$", source, re.MULTILINE))
    file = folder / f"{top}.{'il' if is_rtlil else 'v'}"
    file.write_text(source)
    part = netlist.with_suffix(".part")
    read = "read_rtlil" if is_rtlil else "read_verilog -sv"
    YOSYS.run(
        ["-p", f"{read} {file.name}; {command}{part.name}"],
        folder / "yosys.log",
        progress,
    )
    progress("moving registers into block RAM, copying drivers of many loads")
    design = json.loads(part.read_text())
    block_ram_registers.absorb_registers(design["modules"][top])
    fanout.copy_drivers(design["modules"][top])
    part.write_text(json.dumps(design))
    part.replace(netlist)
    return netlist


def place_and_route(
    source: str,
    top: str,
    part: str = "lfe5u-85f",
    package: str = "CABGA381",
    speed: int = 6,
    lpf: str | None = None,
    seed: int = 1,
    *,
    mhz: float = 100.0,
    progress: Progress = silent,
    options: Sequence[str] = (),
) -> PnrReport:
    """Synthesise, place and route ``source`` (Verilog or RTLIL) on an ECP5; cached by content.

    ``lpf`` is the text of the pin constraints; without it pins go where there is room. ``mhz`` is
    the target of clocks for which ``lpf`` names none. A target that is missed is no error: see
    :attr:`Clock.met`.

    Raises
    ------
    TwillcoreError
        If the part is unknown, a tool is missing or fails, or the design does not fit.
    """
    _check_part(part, speed)
    netlist = synthesise(source, top, progress)
    options = (*PLACER_OPTIONS, *options)
    key = content_key(
        part, package, str(speed), lpf or "", str(seed), str(mhz), *options, NEXTPNR.version
    )
    folder = netlist.parent / key
    textcfg, raw = folder / f"{top}.config", folder / "report.json"
    log, summary = folder / "nextpnr.log", folder / "summary.json"
    if not summary.exists():
        folder.mkdir(parents=True, exist_ok=True)
        arguments = [
            DEVICES[part.lower()], "--package", package, "--speed", str(speed), "--seed", str(seed),
            "--freq", f"{mhz:g}", "--timing-allow-fail", "--json", netlist, "--top", top,
            "--textcfg", textcfg, "--report", raw, *options,
        ]  # fmt: skip
        if lpf is None:
            arguments += ["--lpf-allow-unconstrained"]
        else:
            (folder / f"{top}.lpf").write_text(lpf)
            arguments += ["--lpf", folder / f"{top}.lpf"]
        started = time.monotonic()
        NEXTPNR.run(arguments, log, progress)
        summary.write_text(json.dumps({"seconds": time.monotonic() - started}))
    return read_report(
        json.loads(raw.read_text()),
        top=top, part=part.lower(), package=package, speed=speed, seed=seed,
        seconds=json.loads(summary.read_text())["seconds"],
        tools=f"Yosys {YOSYS.version}, nextpnr-ecp5 {NEXTPNR.version}",
        textcfg=textcfg, log=log,
    )  # fmt: skip


def _check_part(part: str, speed: int) -> None:
    if part.lower() not in DEVICES:
        raise TwillcoreError(
            f"no open place and route for part {part!r}; there is for {', '.join(DEVICES)}"
        )
    if speed not in SPEEDS:
        raise TwillcoreError(f"speed grade must be one of {SPEEDS}, not {speed}")


def pack(report: PnrReport, bitstream: Path, *, options: Sequence[str] = ("--compress",)) -> Path:
    """Write the bitstream of a placed and routed design; return its path.

    Raises
    ------
    TwillcoreError
        If ecppack is missing or fails.
    """
    bitstream.parent.mkdir(parents=True, exist_ok=True)
    made = report.textcfg.with_suffix(".bit")
    ECPPACK.run([*options, report.textcfg, made], made.with_suffix(".packlog"))
    shutil.copyfile(made, bitstream)
    return bitstream


def core(
    config: Config,
    part: str = "lfe5u-85f",
    package: str = "CABGA756",
    speed: int = 6,
    seed: int = 1,
    *,
    mhz: float | None = None,
    progress: Progress = silent,
) -> PnrReport:
    """Place and route the accelerator of ``config`` by itself, its ports in registers.

    The clock's target is that of the configuration unless ``mhz`` is given.

    Raises
    ------
    TwillcoreError
        As :func:`place_and_route`; what does not fit is said before any placement, with what to
        lower.
    """
    from twillcore.hw.accelerator import Accelerator

    _check_part(part, speed)
    progress(f"elaborating {config.name}")
    text = _in_harness(Accelerator(config))
    netlist = synthesise(text, HARNESS, progress)
    if part.lower() in PARTS:
        _check_size(netlist, config, PARTS[part.lower()])
    return place_and_route(
        text, HARNESS, part, package, speed, None, seed,
        mhz=mhz or config.clock_mhz, progress=progress,
    )  # fmt: skip


def _check_size(netlist: Path, config: Config, part: Part) -> None:
    checked = netlist.with_name(f"fits-{part.name}")  # reading a netlist takes seconds
    if checked.exists():
        return
    cells = json.loads(netlist.read_text())["modules"][HARNESS]["cells"]
    prefix = "core."
    scopes = {name.removeprefix(prefix): n for name, n in cells_by_scope(cells).items()}
    total, modules = usages(scopes)
    report = Report(config, part.family, part, total, modules, "")
    if over := report.over():
        raise TwillcoreError(f"{config.name} does not fit: " + "; ".join(over))
    checked.touch()


def _in_harness(component: Component) -> str:
    from twillcore.fpga.harness import Harness
    from twillcore.fpga.target import to_rtlil

    return to_rtlil(Harness(component), HARNESS, "ecp5")


def out_of_context(
    component: Component,
    part: str = "lfe5u-85f",
    package: str = "CABGA756",
    speed: int = 6,
    seed: int = 1,
    *,
    mhz: float = 100.0,
    progress: Progress = silent,
) -> PnrReport:
    """Place and route one component in a :class:`~twillcore.fpga.harness.Harness`."""
    progress(f"elaborating {type(component).__name__}")
    text = _in_harness(component)
    return place_and_route(
        text, HARNESS, part, package, speed, None, seed, mhz=mhz, progress=progress
    )


def read_report(raw: Mapping, **known) -> PnrReport:
    """Return a :class:`PnrReport` from nextpnr's ``--report`` and what is ``known`` already."""
    paths = {}
    for entry in raw["critical_paths"]:
        if entry["from"] == entry["to"] and entry["from"].startswith("posedge "):
            paths[entry["from"].removeprefix("posedge ")] = tuple(_steps(entry["path"]))
    clocks = [
        Clock(_name(clock), speed["achieved"], speed["constraint"], paths.get(clock, ()))
        for clock, speed in raw["fmax"].items()
    ]
    used = {RESOURCES.get(cell, cell): n["used"] for cell, n in raw["utilization"].items()}
    there = {RESOURCES.get(cell, cell): n["available"] for cell, n in raw["utilization"].items()}
    return PnrReport(
        clocks=tuple(clocks),
        used={name: n for name, n in used.items() if n or name in RESOURCES.values()},
        available=there,
        **known,
    )


def _steps(path: Sequence[Mapping]) -> list[PathStep]:
    """Return the steps of a path; those inside one carry chain or multiplexer are one step."""
    steps: list[PathStep] = []
    for step in path:
        start, end = _name(step["from"]["cell"]), _name(step["to"]["cell"])
        kind, delay = step["type"], step["delay"]
        before = steps[-1] if steps else None
        if kind == "routing" and (delay == 0 or start == end):
            if before and delay:
                steps[-1] = PathStep(before.kind, before.cell, before.nanoseconds + delay)
            continue
        name = f"{start} -> {end}" if kind == "routing" else end
        if before and before.kind == "logic" == kind and (before.cell == name or delay < 0.1):
            steps[-1] = PathStep(kind, name, before.nanoseconds + delay)
        else:
            steps.append(PathStep(kind, name, delay))
    return steps


def _name(cell: str) -> str:
    """Return our name of a cell or net: without what Yosys and nextpnr appended to it."""
    cell = re.sub(r"^\$glbnet\$|\$TRELLIS_(CLK|IO)\w*$", "", cell).removeprefix("core.")
    cell = re.sub(r"\$(nextpnr|CCU2|PACKED|FEEDTHRU|const|BLEND|widefn)\w*", "", cell)
    # signal[3]_TRELLIS_FF_Q_2 is the register of a bit of signal; a_LUT4_Z, a_CCU2C_S0 compute a.
    return re.sub(r"(_(TRELLIS_FF|LUT4|CCU2C|PFUMX|L6MUX21|MULT18X18D|DP16KD)\w*)+$", "", cell)

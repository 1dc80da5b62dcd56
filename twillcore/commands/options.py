"""Options that several commands share, with one wording."""

import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from twillcore.errors import TwillcoreError


class EngineName(StrEnum):
    """Engines, from fast to exact."""

    reference = "reference"
    functional = "functional"
    cycle = "cycle"
    rtl = "rtl"
    board = "board"


class TimedEngineName(StrEnum):
    """Engines that know time."""

    cycle = "cycle"
    rtl = "rtl"


class CoreName(StrEnum):
    """Which core computes a single layer."""

    dsp = "dsp"
    lut = "lut"
    both = "both"


Configuration = Annotated[
    str, typer.Option("--config", metavar="NAME|FILE", help="Preset, or a TOML file.")
]
Engine = Annotated[
    EngineName,
    typer.Option(
        help="reference: the integers of the network; functional: its instructions, no time;"
        " cycle: exact cycles, fast; rtl: the hardware itself under Verilator;"
        " board: the hardware on an FPGA board ($TWILLCORE_PORT: its serial port)."
    ),
]
Sparsity = Annotated[
    str,
    typer.Option(metavar="dense|N:M", help="Weights kept of every M inputs; M divides the block."),
]
Core = Annotated[
    CoreName,
    typer.Option(
        help="dsp: int8 weights, N:M sparse; lut: dense weights of few bits; both: outputs are"
        " divided so that both finish together."
    ),
]
WeightBits = Annotated[
    int | None,
    typer.Option(
        metavar="1..8", show_default=False, help="Of weights on the LUT core; 4 unless given."
    ),
]
Seed = Annotated[int, typer.Option(help="Of the random weights and inputs.")]
Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON object to stdout, and nothing else.")
]
MemoryLatency = Annotated[
    int, typer.Option(metavar="CYCLES", min=1, help="From a read burst's address to its data.")
]
MemoryBeatCycles = Annotated[
    int, typer.Option(metavar="CYCLES", min=1, help="Cycles per beat of the memory bus.")
]
Vcd = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Write every signal to a waveform (rtl only).")
]
VcdWindow = Annotated[
    str | None,
    typer.Option(metavar="START:STOP", help="Cycles that the waveform covers; default: all."),
]
Program = Annotated[Path, typer.Argument(metavar="PROGRAM", help="File that `compile` wrote.")]


def in_directions(name: str, text: str) -> int | tuple[int, int]:
    """Return ``N`` as it is, and ``DOWN,RIGHT`` as (vertical, horizontal) unless both are the same.

    Raises
    ------
    TwillcoreError
        If ``text`` is neither; ``name`` is what it was given for.
    """
    match = re.fullmatch(r"(-?\d+)(?:,(-?\d+))?", text)
    if not match:
        raise TwillcoreError(f"{name} must be a number or DOWN,RIGHT, as 1,2, not {text!r}")
    down, right = int(match[1]), int(match[2] or match[1])
    return down if down == right else (down, right)


def waveform(engine: str, vcd: Path | None, window: str | None) -> dict[str, object]:
    """Return what an engine's ``run`` needs to write a waveform.

    Raises
    ------
    TwillcoreError
        If the engine has no signals, or the window is none.
    """
    if vcd is None:
        if window is not None:
            raise TwillcoreError("--vcd-window needs --vcd FILE")
        return {}
    if engine != "rtl":
        raise TwillcoreError(f"--vcd needs --engine rtl: {engine} has no signals")
    if window is None:
        return {"vcd": vcd}
    match = re.fullmatch(r"(\d+):(\d+)", window)
    if not match or int(match[1]) >= int(match[2]):
        raise TwillcoreError(
            f"--vcd-window must be START:STOP in cycles with START < STOP, not {window!r}"
        )
    return {"vcd": vcd, "window": (int(match[1]), int(match[2]))}

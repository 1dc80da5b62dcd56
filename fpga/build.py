"""From a configuration to the bitstream of a board."""

import json
import time
from dataclasses import dataclass
from pathlib import Path

from amaranth.back import verilog

from twillcore.config import Config
from twillcore.errors import TwillcoreError
from twillcore.fpga.boards import Board
from twillcore.fpga.parts import find_part
from twillcore.fpga.pnr import PnrReport, pack, place_and_route
from twillcore.fpga.target import to_rtlil
from twillcore.fpga.tools import Progress, silent
from twillcore.fpga.top import LEDS, BoardTop
from twillcore.hw.verilog import without_zero_contents

MEMORY_KIB = 128
_FAMILY = "ecp5"
_BLOCK_BITS = 16_384  # of a DP16KD, without its ninth bits


def design_name(board: Board) -> str:
    """Return the name of the top module."""
    return f"twillcore_{board.name}"


def board_verilog(
    board: Board, config: Config, memory_kib: int = MEMORY_KIB, divisor: int | None = None
) -> str:
    """Return the Verilog of a whole board design; the same bytes for the same arguments.

    It is for simulation: :func:`build` synthesises the same design with the part's multipliers.

    Parameters
    ----------
    memory_kib : block RAM in the place of DRAM
    divisor : clock cycles per bit of the serial line; default: the board's baud rate

    Raises
    ------
    TwillcoreError
        If ``memory_kib`` is no power of two from 4 on.
    """
    top = _top(board, config, memory_kib, divisor or board.divisor(board.baud))
    with without_zero_contents():
        return verilog.convert(
            top, name=design_name(board), emit_src=False, strip_internal_attrs=True
        )


def _top(board: Board, config: Config, memory_kib: int, divisor: int) -> BoardTop:
    if memory_kib < 4 or memory_kib & (memory_kib - 1):
        raise TwillcoreError(f"memory must be a power of two and at least 4 KiB, not {memory_kib}")
    return BoardTop(board, config, memory_kib * 1024, divisor)


@dataclass(frozen=True)
class BoardBuild:
    """A bitstream and what is known about it."""

    bitstream: Path
    report: PnrReport
    clock_mhz: float  # what the design runs at
    memory_kib: int
    seconds: float

    @property
    def mhz(self) -> float:
        """What the core's clock reaches."""
        return self.report.mhz

    @property
    def met(self) -> bool:
        """Whether the design is fast enough for its own clock."""
        return self.mhz >= self.clock_mhz

    def to_json(self) -> dict:
        """Return everything as plain values."""
        return {
            "bitstream": str(self.bitstream),
            "mhz": self.mhz,
            "clock_mhz": self.clock_mhz,
            "met": self.met,
            "memory_kib": self.memory_kib,
            "seconds": self.seconds,
            "report": self.report.to_json(),
        }


def build(
    board: Board,
    config: Config,
    directory: Path,
    *,
    memory_kib: int = MEMORY_KIB,
    baud: int | None = None,
    seed: int = 1,
    progress: Progress = silent,
) -> BoardBuild:
    """Synthesise, place, route and pack; write bitstream, pins, configuration and report.

    A design that is too slow for its clock is written and reported, see :attr:`BoardBuild.met`.

    Raises
    ------
    TwillcoreError
        If the configuration is for another family or does not fit, or a tool is missing or fails.
    """
    started = time.monotonic()
    _check(board, config, memory_kib)
    divisor = board.divisor(baud or board.baud)
    progress("elaborating")
    text = to_rtlil(_top(board, config, memory_kib, divisor), design_name(board), _FAMILY)
    name, pins = design_name(board), board.lpf(len(LEDS))
    try:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / f"{name}.lpf").write_text(pins)
        (directory / "config.toml").write_text(config.to_toml())
    except OSError as error:
        raise TwillcoreError(f"{directory}: cannot be written: {error.strerror}") from None
    report = place_and_route(
        text, name, board.part, board.package, board.speed, pins, seed,
        mhz=board.clock_mhz, progress=progress,
    )  # fmt: skip
    bitstream = pack(report, directory / f"{name}.bit")
    seconds = time.monotonic() - started
    made = BoardBuild(bitstream, report, board.clock_mhz, memory_kib, seconds)
    (directory / "report.json").write_text(json.dumps(made.to_json(), indent=2) + "\n")
    return made


def _check(board: Board, config: Config, memory_kib: int) -> None:
    """Refuse what cannot fit before minutes are spent on it."""
    if config.family != _FAMILY:
        raise TwillcoreError(
            f"configuration {config.name!r} is for family {config.family!r}; board {board.name}"
            f' carries an {_FAMILY}: set family = "{_FAMILY}"'
        )
    part = find_part(board.part, _FAMILY)
    core = {
        "activation_depth": config.activation_depth * config.word_bytes * 8,
        "wide_depth": config.wide_depth * config.word_bytes * 16,
        "weight_depth": config.weight_depth * config.dsp_columns * (8 + config.index_bits),
        "lut_weight_depth": config.lut_weight_depth * config.lut_columns * config.block,
        "operand_depth": config.operand_depth * config.dsp_columns * 8,
    }
    ours = memory_kib * 1024 * 8 // _BLOCK_BITS
    needed = sum(-(-bits // (_BLOCK_BITS * 9 // 8)) for bits in core.values())
    if needed + ours > part.memory_blocks:
        largest = max(core, key=core.__getitem__)
        raise TwillcoreError(
            f"configuration {config.name!r} needs at least {needed} memory blocks and"
            f" --memory {memory_kib} (KiB) needs {ours}; {part.name} has {part.memory_blocks:g}:"
            f" lower --memory or {largest}, the largest of the configuration's memories"
        )

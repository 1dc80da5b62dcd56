"""Machine operations on symbolic buffers: what :mod:`twillcore.compiler.tile` makes of a graph.

A :class:`Step` is an instruction whose addresses are still :class:`Place`s in :class:`Buffer`s,
with the exact words that it reads and writes. Steps of a :class:`Plan` stand in a valid sequential
order.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from twillcore.config import Config
from twillcore.image import Layer, Slot
from twillcore.isa import ISA, Engine, Opcode


class Space(IntEnum):
    """Where a buffer lies; the first eight are :class:`twillcore.isa.Memory`."""

    ACTIVATION = 0
    WIDE = 1
    WEIGHT = 2
    PARAMETER = 3
    NORM = 4
    TABLE = 5
    LUT_WEIGHT = 6
    TAP = 7
    OPERAND = 8
    MAXIMUM = 9
    LANE = 10
    DRAM = 11


#: The parameter of :class:`Config` that makes a space larger.
DEPTH_PARAMETER = {
    Space.ACTIVATION: "activation_depth",
    Space.WIDE: "wide_depth",
    Space.WEIGHT: "weight_depth",
    Space.PARAMETER: "parameter_depth",
    Space.NORM: "norm_depth",
    Space.LUT_WEIGHT: "lut_weight_depth",
    Space.TAP: "tap_depth",
    Space.OPERAND: "operand_depth",
    Space.MAXIMUM: "lane_depth",
    Space.LANE: "lane_depth",
}
TABLE_UNITS = 64  # a function table as LOAD counts it, in 64-bit units


def depth(space: Space, config: Config) -> int:
    """Return the size of an on-chip space in its own units (words, rows, entries)."""
    if space == Space.TABLE:
        return TABLE_UNITS
    return getattr(config, DEPTH_PARAMETER[space])


@dataclass(frozen=True, eq=False)
class Buffer:
    """A piece of one space; ``size`` in units of the space, DRAM in bytes.

    ``data`` is the content of a constant in DRAM. ``tensor`` names the graph's tensor if the buffer
    is its home for all its life: such a buffer can be spilled. ``stream`` names the one of which it
    holds a part for some time.
    """

    name: str
    space: Space
    size: int
    data: bytes | None = None
    tensor: str | None = None
    stream: str | None = None


@dataclass(frozen=True)
class Place:
    """A word of a buffer: an operand that becomes an address."""

    buffer: Buffer
    offset: int = 0

    def __str__(self) -> str:
        return f"{self.buffer.name}+{self.offset}"


@dataclass(frozen=True)
class Region:
    """``runs`` runs of ``length`` words of a buffer, ``stride`` apart."""

    buffer: Buffer
    offset: int
    length: int
    runs: int = 1
    stride: int = 0

    def units(self, base: int, unit: int = 1) -> NDArray[np.int64]:
        """Return every address when the buffer stands at ``base``, divided by ``unit``."""
        run = np.arange(self.length // unit)
        start = (base + self.offset) // unit
        return (start + np.arange(self.runs)[:, None] * (self.stride // unit) + run).ravel()


@dataclass(frozen=True, eq=False)
class Step:
    """An instruction to be: operands that the hardware needs, and what it touches."""

    opcode: Opcode
    operands: Mapping[str, int | Place]
    reads: tuple[Region, ...]
    writes: tuple[Region, ...]
    layer: int

    @property
    def engine(self) -> Engine:
        """The engine that executes it."""
        return ISA[self.opcode].engine

    def buffers(self) -> Iterable[Buffer]:
        """Yield every buffer that the step touches, constants included."""
        for region in (*self.reads, *self.writes):
            yield region.buffer
        for value in self.operands.values():
            if isinstance(value, Place):
                yield value.buffer

    def __str__(self) -> str:
        return f"{self.opcode.name.lower()} " + " ".join(
            f"{name}={value}" for name, value in self.operands.items() if value
        )


@dataclass(frozen=True)
class Plan:
    """Steps in a valid sequential order, and what they share with the host.

    ``by_bands`` are the layers, by number, whose weights all pass each band of their map.
    """

    config: Config
    steps: tuple[Step, ...]
    layers: tuple[Layer, ...]
    inputs: tuple[tuple[Slot, Buffer], ...]
    outputs: tuple[tuple[Slot, Buffer], ...]
    by_bands: frozenset[int] = frozenset()

    def __str__(self) -> str:
        return "\n".join(f"{self.layers[step.layer].name}: {step}" for step in self.steps)

"""Where the taps of a layer look: the geometry of its windows, and the entries of the tap memory.

A map stands in memory as :mod:`twillcore.compiler.pitches` says.
"""

import dataclasses
import itertools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from twillcore.compiler.column_tiles import padded
from twillcore.compiler.errors import CompileError
from twillcore.compiler.graph import Conv, Linear, MaxPool
from twillcore.compiler.limits import LARGEST_STRIDE, MOST_TAPS
from twillcore.compiler.lowering import Lowering, ceil_div
from twillcore.isa import TAP


@dataclass(frozen=True)
class Geometry:
    """Where the taps of a layer look, in pixels and row tiles.

    Output row tile t starts at input row tile ``t * tile_step + t // line_tiles * line_step``
    (without the second term if ``line_tiles`` is 0); the second half of its lanes ``second`` pixels
    further on (stride 2).
    """

    taps: tuple[tuple[int, int, int], ...]  # (dy, dx, first input word)
    stride: int
    width: int
    height: int
    in_pitch: int
    pitch: int
    out_width: int
    out_height: int
    tile_step: int
    line_tiles: int
    line_step: int
    second: int

    def unit(self, lanes: int) -> int:
        """Return the least number of output lines after which a row tile ends."""
        return lanes // math.gcd(lanes, self.pitch)

    def input_tile(self, tile: int) -> int:
        """Return the input row tile where an output row tile starts."""
        lines = tile // self.line_tiles if self.line_tiles else 0
        return tile * self.tile_step + lines * self.line_step

    def entries(self, lanes: int, row_words: int) -> NDArray[np.uint64]:
        """Return the entries of the tap memory; row tiles of the input are ``row_words`` apart."""
        entries = []
        for dy, dx, word in self.taps:
            first = dy * self.in_pitch + dx
            second = first + self.second
            values = (
                first // lanes * row_words + word, first % lanes, dx, dy,
                second // lanes * row_words + word, second % lanes,
            )  # fmt: skip
            entry, offset = 0, 0
            for part, value in zip(TAP, values, strict=True):
                if not part.low <= value <= part.high:
                    raise CompileError(f"tap {part.name} must be {part.low}..{part.high}: {value}")
                entry |= (value & (1 << part.bits) - 1) << offset
                offset += part.bits
            entries.append(entry)
        return np.array(entries, np.uint64)


def geometry(low: Lowering, op: Conv | MaxPool) -> Geometry | None:
    """Return the geometry of a layer; None if each pixel needs just itself.

    Raises
    ------
    CompileError
        If there are too many taps, or no windows in the configuration, or the stride is above 2.
    """
    x, out = low.tensor(op.x), low.tensor(op.out)
    lanes = low.config.lanes
    kernel = op.weight.shape[1:3] if isinstance(op, Conv) else op.kernel
    taps = tuple(
        (i * op.dilation - op.padding[0], j * op.dilation - op.padding[1], 0)
        for i, j in itertools.product(*map(range, kernel))
    )
    if taps == ((0, 0, 0),) and op.stride == 1 and x.grid == out.grid and isinstance(op, Conv):
        return None
    if op.stride > LARGEST_STRIDE:
        raise CompileError(f"{op.name}: windows have a stride of 1 or 2, not {op.stride}")
    if not low.config.tap_depth:
        raise CompileError(
            f"{op.name}: configuration {low.config.name!r} has no windows, which a convolution"
            " needs: set tap_depth"
        )
    if len(taps) > min(MOST_TAPS, low.config.tap_depth):
        raise CompileError(
            f"{op.name}: {len(taps)} taps, more than {min(MOST_TAPS, low.config.tap_depth)};"
            " use several smaller kernels" if len(taps) > MOST_TAPS else
            f"{op.name}: {len(taps)} taps, more than tap_depth={low.config.tap_depth}; raise it"
        )  # fmt: skip
    (height, width), (out_height, out_width) = x.grid, out.grid
    pitch, in_pitch = low.pitch(out), low.pitch(x)
    if out_height == 1:  # any pitch that a line fits in; what is behind it is junk
        pitch = max(in_pitch, out_width) if op.stride == 1 else ceil_div(out_width, lanes) * lanes
    elif height == 1:
        in_pitch = pitch
    tile_step, line_tiles, line_step, second = 1, 0, 0, 0
    if op.stride == 2:
        tile_step, second = 2, lanes
        if out_height > 1 and pitch != in_pitch:
            if pitch == lanes // 2:
                tile_step, second = 4 * in_pitch // lanes, 2 * in_pitch
            else:
                line_tiles = pitch // lanes
                line_step = 2 * in_pitch // lanes - 2 * line_tiles
    return Geometry(
        taps, op.stride, width, height, in_pitch, pitch, out_width, out_height,
        tile_step, line_tiles, line_step, second,
    )  # fmt: skip


def without_zeros(
    low: Lowering, op: Conv | Linear, g: Geometry | None
) -> tuple[Geometry | None, NDArray[np.int8] | None]:
    """Return geometry and (N, taps, C) weights in which no block of a tap is 0 for all outputs.

    If there are such blocks, each of the others becomes a tap of its own.
    """
    if g is None or getattr(op, "groups", 1) > 1:
        return g, None
    block, taps = low.config.block, len(g.taps)
    weight = padded(op.weight.reshape(len(op.weight), taps, -1), block)[: len(op.weight)]
    weight = weight.reshape(len(weight), taps, -1, block)
    live = np.argwhere(weight.any(axis=(0, 3)))
    blocks = weight.shape[2]
    if not 0 < len(live) < min(taps * blocks, MOST_TAPS, low.config.tap_depth // 2):
        return g, None
    places = tuple((*g.taps[tap][:2], g.taps[tap][2] + word) for tap, word in live)
    return dataclasses.replace(g, taps=places), weight[:, live[:, 0], live[:, 1]]

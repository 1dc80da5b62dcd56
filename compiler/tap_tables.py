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
from twillcore.compiler.graph import Conv, Linear, MaxPool, both_directions
from twillcore.compiler.limits import LARGEST_STRIDE, MOST_TAPS
from twillcore.compiler.lowering import Lowering, ceil_div
from twillcore.compiler.pitches import window_strides
from twillcore.isa import TAP


@dataclass(frozen=True)
class Tap:
    """What one read of a window is for.

    Lane 0 of the first row tile reads the pixel ``first`` after that where its window begins, from
    word ``word`` on. The other lanes follow. A lane is live whose counters (x, y) of the window
    plus ``dx``, ``dy`` lie in it.
    """

    dy: int
    dx: int
    first: int
    word: int = 0


@dataclass(frozen=True)
class Geometry:
    """Where the taps of a layer look, in pixels and row tiles.

    Output row tile t starts at input row tile ``t * tile_step + t // line_tiles * line_step``
    (without the second term if ``line_tiles`` is 0); the second half of its lanes ``second`` pixels
    further on (stride 2). ``stride`` is what the window does horizontally, ``y_stride`` the input
    lines per output line.

    With ``by_lines``, every output line has an instruction of its own, which begins at any input
    line. Output lines are whole row tiles then.

    With ``gather``, so many pixels are from one pixel that is read to the next. The windows cannot
    do that: each lane has a tap of its own, for which the counters of the other lanes are outside:
    x counts lanes, y row tiles.
    """

    taps: tuple[Tap, ...]
    stride: int
    y_stride: int
    width: int
    height: int
    in_pitch: int
    pitch: int
    out_width: int
    out_height: int
    tile_step: int
    line_tiles: int = 0
    line_step: int = 0
    second: int = 0
    by_lines: bool = False
    gather: int = 0

    @property
    def reach(self) -> tuple[int, int]:
        """First and last input line of a window, counted from its own."""
        lines = [0] if self.gather else [tap.dy for tap in self.taps]
        return min(lines), max(lines)

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
        for tap in self.taps:
            second = tap.first + self.second
            values = (
                tap.first // lanes * row_words + tap.word, tap.first % lanes, tap.dx, tap.dy,
                second // lanes * row_words + tap.word, second % lanes,
            )  # fmt: skip
            entry, offset = 0, 0
            for part, value in zip(TAP, values, strict=True):
                if not part.low <= value <= part.high:
                    raise CompileError(f"tap {part.name} must be {part.low}..{part.high}: {value}")
                entry |= (value & (1 << part.bits) - 1) << offset
                offset += part.bits
            entries.append(entry)
        return np.array(entries, np.uint64)

    def operands(self, lanes: int, row_words: int, y: int, height: int) -> dict[str, int]:
        """Return the operands of WINDOW, but for where the taps are.

        ``y`` is the input line of the first output line, ``height`` the lines below which is
        padding.
        """
        if self.gather:
            lane_counters = {"width": 1, "height": ceil_div(self.out_width, lanes), "y": 0}
            steps = {"pitch": lanes, "tile_x": 0, "tile_y": 1}
            return {"taps": len(self.taps), "stride": 1, "tile_stride": row_words, "line_tiles": 0,
                    "line_stride": 0, **lane_counters, **steps}  # fmt: skip
        return {
            "taps": len(self.taps), "stride": self.stride, "width": self.width, "height": height,
            "pitch": self.pitch, "y": y, "tile_x": self.stride * (lanes % self.pitch),
            "tile_y": self.stride * (lanes // self.pitch), "tile_stride": row_words,
            "line_tiles": 0 if self.by_lines else self.line_tiles,
            "line_stride": 0 if self.by_lines else self.line_step * row_words,
        }  # fmt: skip


def geometry(low: Lowering, op: Conv | MaxPool) -> Geometry | None:
    """Return the geometry of a layer; None if each pixel needs just itself.

    Raises
    ------
    CompileError
        If there are too many taps, or no windows in the configuration, or the horizontal stride of
        more than one tap is above 2.
    """
    x, out = low.tensor(op.x), low.tensor(op.out)
    lanes = low.config.lanes
    kernel = op.weight.shape[1:3] if isinstance(op, Conv) else op.kernel
    distances = [
        [i * distance - before for i in range(size)]
        for size, distance, before in zip(
            kernel, both_directions(op.dilation), op.padding, strict=True
        )
    ]
    taps = tuple(itertools.product(*distances))
    y_stride, stride = window_strides(op.stride, out.grid)
    alone = taps == ((0, 0),)
    if alone and (y_stride, stride) == (1, 1) and x.grid == out.grid and isinstance(op, Conv):
        return None
    gather = stride if stride > LARGEST_STRIDE else 0
    if gather and not (alone and isinstance(op, MaxPool)):
        raise CompileError(f"{op.name}: windows have a stride of 1 or 2, not {stride}")
    if not low.config.tap_depth:
        raise CompileError(
            f"{op.name}: configuration {low.config.name!r} has no windows, which a convolution"
            " needs: set tap_depth"
        )
    count = lanes if gather else len(taps)
    if count > min(MOST_TAPS, low.config.tap_depth):
        raise CompileError(
            f"{op.name}: {count} taps, more than {min(MOST_TAPS, low.config.tap_depth)};"
            " use several smaller kernels" if count > MOST_TAPS else
            f"{op.name}: {count} taps, more than tap_depth={low.config.tap_depth}; raise it"
        )  # fmt: skip
    (height, width), (out_height, out_width) = x.grid, out.grid
    pitch, in_pitch = low.pitch(out), low.pitch(x)
    by_lines = bool(gather) or y_stride != stride
    if out_height == 1:  # any pitch that a line fits in; what is behind it is junk
        whole = by_lines or stride > 1
        pitch = ceil_div(out_width, lanes) * lanes if whole else max(in_pitch, out_width)
    elif height == 1:
        in_pitch = pitch
    g = Geometry(
        tuple(Tap(dy, dx, dy * in_pitch + dx) for dy, dx in taps), stride, y_stride, width, height,
        in_pitch, pitch, out_width, out_height, gather or stride, by_lines=by_lines, gather=gather,
    )  # fmt: skip
    if stride == LARGEST_STRIDE:
        g = dataclasses.replace(g, second=lanes)
        if out_height > 1 and pitch != in_pitch and pitch == lanes // 2:
            g = dataclasses.replace(g, tile_step=4 * in_pitch // lanes, second=2 * in_pitch)
    if out_height > 1 and (by_lines or (stride == 2 and pitch not in (in_pitch, lanes // 2))):
        tiles = pitch // lanes
        line_step = y_stride * in_pitch // lanes - g.tile_step * tiles
        g = dataclasses.replace(g, line_tiles=tiles, line_step=line_step)
    return dataclasses.replace(g, taps=_lane_taps(g, lanes)) if gather else g


def _lane_taps(g: Geometry, lanes: int) -> tuple[Tap, ...]:
    """Return a tap for every lane, which reads the pixel ``gather`` times as far on.

    Lanes that are behind the end of the line in its last row tile are not live there.
    """
    last = g.out_width - (ceil_div(g.out_width, lanes) - 1) * lanes
    return tuple(
        Tap(int(lane >= last), -lane, (g.gather - 1) * lane)
        for lane in range(min(lanes, g.out_width))
    )


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
    places = tuple(dataclasses.replace(g.taps[tap], word=int(word)) for tap, word in live)
    return dataclasses.replace(g, taps=places), weight[:, live[:, 0], live[:, 1]]

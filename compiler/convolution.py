"""Convolutions, pooling, and linear layers of feature maps or of two cores, as GEMMs.

A map stands in memory as :mod:`twillcore.compiler.pitches` says, its channel blocks next to each
other in a row tile, without filling up to whole column tiles. A layer becomes *runs* of column
tiles: a run is what one instruction can compute, tiles of as many words, each reading as many
blocks, ``a_step`` words on from tile to tile.

* Dense: every column tile reads all blocks. The last tile may have fewer words.
* Groups of whole blocks: a tile reads the blocks of its group.
* Groups of channels in a block, as many outputs as inputs (depthwise: one of each): a tile of n
  words reads the n words of the same channels; what is outside an output's group is 0, and of N
  channels per group only N beats remain. So depthwise convolution is 1:B sparsity.
* Other groups are dense, with zeros.
* Pooling: tiles of one word, and the identity as weights.

Outputs of the LUT core are runs of their own. In program order both cores progress evenly through
a layer, so that neither queue runs empty and they share the buffers of a band.

Maps that live in DRAM are processed in *bands* of output lines, with the input lines around them.
A band begins with a row tile. Either all bands pass the weights by, or all weights pass the bands
by; where the weights of a layer fit in their memory, they are loaded once.

If two column tiles of weights do not fit, they come in parts of the input blocks: each row tile
passes all parts, and the sums wait in the accumulators. So the parts of the next column tile can
arrive while the last row tile consumes these. If not even one column tile fits, row tiles pass the
parts to and fro, so that only some of them have to come again. That needs instructions of single
row tiles, so lines that divide a row tile; other maps wait for their weights.
"""

import dataclasses
import heapq
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from twillcore.compiler.drain import clear_padding
from twillcore.compiler.errors import CompileError
from twillcore.compiler.graph import Concat, Conv, Linear, Map, MaxPool, Op, Tensor
from twillcore.compiler.lowering import Held, Lowering, ceil_div, parameter_entries, pieces
from twillcore.compiler.sparsify import beats_per_block
from twillcore.compiler.split import MOST_HELPED, lut_block_cycles
from twillcore.compiler.steps import TABLE_UNITS, Buffer, Place, Region, Space
from twillcore.config import Config
from twillcore.isa import TAP, Function, Opcode
from twillcore.numerics import look_up, narrow
from twillcore.weights import (
    encode_planes,
    encode_rows,
    encoded_rows,
    plane_row_bytes,
    smallest_format,
    weight_row_bytes,
)

MOST_TAPS = (1 << 8) - 1
MOST_ROW_TILES = (1 << 12) - 1
PART_SHARE = 1 / 12  #: of the weight memory, for a part of a column tile that does not fit twice


# Column tiles


@dataclass(frozen=True)
class Core:
    """One of the two GEMM engines."""

    gemm: Opcode
    window: Opcode
    columns: int
    space: Space
    depth: int


def cores(config: Config) -> tuple[Core, Core]:
    """Return the DSP core and the LUT core."""
    return (
        Core(Opcode.GEMM, Opcode.WINDOW, config.dsp_columns, Space.WEIGHT, config.weight_depth),
        Core(Opcode.LUT_GEMM, Opcode.LUT_WINDOW, config.lut_columns, Space.LUT_WEIGHT,
             config.lut_weight_depth),
    )  # fmt: skip


class Zone(Enum):
    """Which row tiles of a band: all; or those before, or after, one core helps the other."""

    ALL = auto()
    HEAD = auto()
    TAIL = auto()


@dataclass(frozen=True, eq=False)
class Run:
    """Column tiles that one instruction can compute.

    ``word`` is the first output word, ``words`` those of a tile; ``a_word`` the first input word,
    ``a_step`` the words from tile to tile. ``values`` are the weights, (tiles, words * block, taps,
    blocks * block).
    """

    core: Core
    word: int
    tiles: int
    words: int
    a_word: int
    a_step: int
    blocks: int
    beats: int
    values: NDArray[np.int8]
    pool: bool = False
    zone: Zone = Zone.ALL

    @property
    def block_rows(self) -> int:
        """Weight rows of a column tile per input block."""
        return self.values.shape[2] * self.beats

    @property
    def tile_rows(self) -> int:
        """Weight rows of a column tile."""
        return self.block_rows * self.blocks

    def cut(self, first: int, count: int) -> "Run":
        """Return some of the tiles."""
        return dataclasses.replace(
            self,
            word=self.word + first * self.words,
            a_word=self.a_word + first * self.a_step,
            tiles=count,
            values=self.values[first : first + count],
        )


def _padded(weight: NDArray[np.int8], block: int) -> NDArray[np.int8]:
    """Return (N, taps, C) with N and C filled up to whole blocks."""
    gaps = [(0, -weight.shape[0] % block), (0, 0), (0, -weight.shape[2] % block)]
    return np.pad(weight, gaps)


def _dense(core: Core, weight: NDArray[np.int8], word: int, a_word: int, config: Config,
           bits: int) -> Iterator[Run]:  # fmt: skip
    """Yield runs of (N, taps, C) weights: whole column tiles, and the rest."""
    block = config.block
    weight = _padded(weight, block)
    full = core.columns // block
    blocks = weight.shape[2] // block
    done, total = 0, len(weight) // block
    while done < total:
        words = min(full, total - done)
        tiles = (total - done) // words
        part = weight[done * block : (done + tiles * words) * block]
        beats = bits or beats_per_block(part.reshape(-1, part.shape[2]), block)
        values = part.reshape(tiles, words * block, *part.shape[1:])
        yield Run(core, word + done, tiles, words, a_word, 0, blocks, beats, values)
        done += tiles * words


def _diagonal(core: Core, weight: NDArray[np.int8], word: int, group: int, config: Config,
              bits: int) -> Iterator[Run]:  # fmt: skip
    """Yield runs of (N, taps, group) weights: output n reads channels of its group of ``group``."""
    block, taps = config.block, weight.shape[1]
    weight = np.pad(weight, [(0, -len(weight) % block), (0, 0), (0, 0)])
    n = np.arange(len(weight))
    full = core.columns // block
    done, total = 0, len(weight) // block
    while done < total:
        words = min(full, total - done)
        tiles = (total - done) // words
        part = slice(done * block, (done + tiles * words) * block)
        values = np.zeros((tiles * words * block, taps, words * block), np.int8)
        channel = (n[part] - done * block) % (words * block) // group * group
        for k in range(group):
            values[np.arange(len(values)), :, channel + k] = weight[part, :, k]
        beats = bits or beats_per_block(values.reshape(-1, words * block), block)
        values = values.reshape(tiles, words * block, taps, -1)
        yield Run(core, word + done, tiles, words, word + done, words, words, beats, values)
        done += tiles * words


def _joined(runs: list[Run]) -> list[Run]:
    """Join runs of one tile that follow each other evenly."""
    joined: list[Run] = []
    for run in runs:
        last = joined[-1] if joined else None
        if last is not None and run.tiles == 1 and run.word == last.word + last.tiles * last.words:
            step = run.a_word - (last.a_word + (last.tiles - 1) * last.a_step)
            same = (run.words, run.blocks, run.beats) == (last.words, last.blocks, last.beats)
            if same and step >= 0 and (last.tiles == 1 or step == last.a_step):
                joined[-1] = dataclasses.replace(
                    last, tiles=last.tiles + 1, a_step=step,
                    values=np.concatenate([last.values, run.values]),
                )  # fmt: skip
                continue
        joined.append(run)
    return joined


def layer_runs(
    op: Conv | Linear, config: Config, weight: NDArray[np.int8] | None = None
) -> list[Run]:
    """Return the column tiles of a layer on both cores.

    ``weight`` is the layer's as (N, taps, C / groups), if it is not to be taken as it is.

    Raises
    ------
    CompileError
        If the LUT core's channels cannot be separated from the others, or there is no LUT core.
    """
    block, n = config.block, len(op.weight)
    if weight is None:
        weight = op.weight.reshape(n, -1, op.weight.shape[-1])
    groups = getattr(op, "groups", 1)
    if op.lut_channels and not config.lut_columns:
        raise CompileError(f"{op.name}: configuration {config.name!r} has no LUT core")
    first = n - op.lut_channels
    if op.lut_channels and first % block:
        raise CompileError(
            f"{op.name}: the {first} outputs of the DSP core must be a multiple of {block}:"
            f" lut_channels may be {n - first // block * block} or {n}"
        )
    inputs, outputs = weight.shape[2], n // groups
    runs: list[Run] = []
    for core, low, high in zip(cores(config), (0, first), (first, n), strict=True):
        if low == high:
            continue
        bits = op.lut_bits if core.gemm == Opcode.LUT_GEMM else 0
        part, word = weight[low:high], low // block
        if groups == 1:
            runs += _dense(core, part, word, 0, config, bits)
        elif inputs == outputs and block % inputs == 0:
            runs += _diagonal(core, part, word, inputs, config, bits)
        elif inputs % block == 0 and outputs % block == 0:
            mine = []
            for group in range(groups):
                start, end = max(low, group * outputs), min(high, (group + 1) * outputs)
                if start < end:
                    mine += _dense(core, weight[start:end], start // block,
                                   group * inputs // block, config, bits)  # fmt: skip
            runs += _joined(mine)
        else:
            dense = np.zeros((high - low, weight.shape[1], inputs * groups), np.int8)
            for i in range(high - low):
                at = (low + i) // outputs * inputs
                dense[i, :, at : at + inputs] = part[i]
            runs += _dense(core, dense, word, 0, config, bits)
    return runs


def identity_runs(channels: int, config: Config, word: int = 0) -> list[Run]:
    """Return column tiles of the DSP core that pass every channel to itself.

    ``word`` is the first output word; input words start at 0.
    """
    weight = np.ones((channels, 1, 1), np.int8)
    runs = _diagonal(cores(config)[0], weight, 0, 1, config, 0)
    return [dataclasses.replace(run, word=word + run.word) for run in runs]


def pool_run(channels: int, config: Config) -> list[Run]:
    """Return the column tiles of max pooling."""
    words = ceil_div(channels, config.block)
    eye = np.eye(config.block, dtype=np.int8)[None, :, None]
    values = np.repeat(eye, words, axis=0)
    return [Run(cores(config)[0], 0, words, 1, 0, 1, 1, 1, values, pool=True)]


# Geometry


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
    if op.stride not in (1, 2):
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


@dataclass(frozen=True)
class Band:
    """Output row tiles that one instruction computes, and what they need of the input.

    ``row`` and ``rows`` are of the output; ``in_row`` and ``in_rows`` are what is read of the
    input, ``a_row`` is where its first tap (0, 0) is. ``y`` is the input line of the first output
    line for that tap, ``height`` the lines below which is padding.
    """

    row: int
    rows: int
    in_row: int
    in_rows: int
    a_row: int
    y: int = 0
    height: int = 0
    piece: "_Piece | None" = None


@dataclass(frozen=True)
class _Piece:
    """Which part of the output a band is: ``count`` units from ``first`` on, of batch ``item``.

    A unit is the least number of row tiles after which another band can begin.
    """

    first: int
    count: int
    item: int = 0


@dataclass(frozen=True)
class _Limits:
    """Most row tiles of a band, of the input and of the output, and the fewest bands."""

    inputs: int
    outputs: int
    bands: int


def row_bands(rows: int, limits: _Limits) -> list[Band]:
    """Split the row tiles of a layer without windows."""
    most = min(limits.inputs, limits.outputs, MOST_ROW_TILES)
    count = max(ceil_div(rows, max(most, 1)), limits.bands)
    return [row_band(_Piece(row, n)) for row, n in pieces(rows, count)]


def row_band(piece: _Piece) -> Band:
    """Return some row tiles of a layer without windows."""
    return Band(piece.first, piece.count, piece.first, piece.count, piece.first, piece=piece)


def window_band(g: Geometry, lanes: int, in_rows: int, out_rows: int, piece: _Piece) -> Band:
    """Return some output lines; items are ``in_rows`` and ``out_rows`` row tiles."""
    unit = g.unit(lanes)
    below = max(dy for dy, _, _ in g.taps)
    above = min(dy for dy, _, _ in g.taps)
    start, end = piece.first * unit, min((piece.first + piece.count) * unit, g.out_height)
    top = min(max(start * g.stride + above, 0), g.height - 1)
    bottom = min(max((end - 1) * g.stride + below + 1, top + 1), g.height)
    low = top * g.in_pitch // lanes
    high = ceil_div((bottom - 1) * g.in_pitch + g.width, lanes)
    row = start * g.pitch // lanes
    last = end == g.out_height
    pixels = (end - 1) * g.pitch + (g.out_width if last else g.pitch)
    return Band(
        row + piece.item * out_rows, ceil_div(pixels, lanes) - row,
        low + piece.item * in_rows, high - low, g.input_tile(row) + piece.item * in_rows,
        start * g.stride, bottom, piece,
    )  # fmt: skip


def window_bands(g: Geometry, lanes: int, limits: _Limits, batch: int, in_rows: int,
                 out_rows: int) -> list[Band]:  # fmt: skip
    """Split the output lines of every item; items are ``in_rows`` and ``out_rows`` row tiles."""
    units = ceil_div(g.out_height, g.unit(lanes))

    def band(first: int, count: int, item: int = 0) -> Band:
        return window_band(g, lanes, in_rows, out_rows, _Piece(first, count, item))

    def fits(count: int) -> bool:
        return all(
            b.rows <= min(limits.outputs, MOST_ROW_TILES) and b.in_rows <= limits.inputs
            for b in itertools.starmap(band, pieces(units, count))
        )

    count = next((n for n in range(1, units) if fits(n)), units)
    if units > 1 and count == units and not fits(count) and band(0, 1).rows > MOST_ROW_TILES:
        raise CompileError(f"a line of {g.pitch} pixels has too many row tiles")
    count = max(count, min(limits.bands, units))
    return [band(first, n, item) for item in range(batch) for first, n in pieces(units, count)]


# Steps


def _in_turns(work: list[Iterator[int]], total: list[int]) -> None:
    """Run all iterators; the one that has done the smaller share of its ``total`` is next."""
    queue = [(0.0, number) for number in range(len(work))]
    while queue:
        share, number = heapq.heappop(queue)
        rows = next(work[number], None)
        if rows is not None:
            heapq.heappush(queue, (share + rows / total[number], number))


class _Chunk:
    """Column tiles whose weights are loaded together, in parts of K if they are too many."""

    def __init__(self, layer: "_Layer", run: Run, parts: list[tuple[int, int]]) -> None:
        self.layer, self.run, self.parts = layer, run, parts
        self._places: dict[int, Place] = {}
        self._parameters: Buffer | None = None
        #: Whether all parts can stay for all row tiles: their rows and one part more fit.
        largest = max(blocks for _, blocks in parts)
        self.stays = (run.blocks + largest) * run.block_rows <= run.core.depth or len(parts) == 1

    def weights(self, index: int) -> Place:
        """Return where the weights of a part are; loads them."""
        if index not in self._places:
            self._places[index] = self.layer.load_weights(self.run, *self.parts[index])
        return self._places[index]

    def forget(self, order: list[int]) -> None:
        """Forget the parts that cannot stay for the next row tile, those used first."""
        if not self.stays:
            largest = max(blocks for _, blocks in self.parts) * self.run.block_rows
            most = self.run.core.depth // largest - 1  # and room for one that arrives
            self._places = {index: self._places[index] for index in order[len(order) - most :]}

    @property
    def parameters(self) -> Place:
        """Where the parameters of the columns are; loads them."""
        if self._parameters is None:
            self._parameters = self.layer.load_parameters(self.run)
        return Place(self._parameters)


class _Layer:
    """One op on its way to steps."""

    def __init__(self, low: Lowering, op: Op, g: Geometry | None, runs: list[Run],
                 entries: NDArray[np.uint64], x: str, out: str, tail: Fraction = Fraction(0)
                 ) -> None:  # fmt: skip
        self.low, self.op, self.g, self.runs, self.entries = low, op, g, runs, entries
        self.x, self.out, self.tail = x, out, tail
        self.residual: str | None = getattr(op, "residual", None)
        self._held: dict[tuple, tuple[Held, Held, Held | None]] = {}
        self._left: dict[tuple, int] = {}
        self._taps: Buffer | None = None

    def lower(self) -> None:
        """Append all steps."""
        mine = self.chunks()
        fit = all(self.weight_rows(core) <= core.depth for core in cores(self.low.config))
        bands = self._bands(fit)
        passes = sum(map(len, mine))
        by_bands = fit or self._reload_weights(bands) < self._reload_inputs(bands, passes)
        by_bands &= not isinstance(self.op, Concat)  # each part stores its own words
        if by_bands:
            self.low.by_bands.add(self.low.number)
        work = [self._work(chunks, bands, by_bands, fit) for chunks in mine]
        total = [0] * len(mine)
        for band in bands:
            zones = {zone: self._zone(band, zone) for zone in Zone}
            self._left[band.row,] = 0
            for number, chunk in ((n, chunk) for n, part in enumerate(mine) for chunk in part):
                if (zone := zones[chunk.run.zone]) is not None:
                    self._left[band.row,] += 1
                    total[number] += zone.rows * chunk.run.tiles * chunk.run.tile_rows
        _in_turns(work, total)

    def lower_band(self, chunks: list[list[_Chunk]], band: Band, x: Held | None, out: Held | None
                   ) -> None:  # fmt: skip
        """Append the steps of one band. ``x`` and ``out`` are maps that never go to DRAM."""
        key = (band.row,)
        low = self.low
        self._held[key] = (
            x or low.read(self.x, band.in_row, band.in_rows),
            out or low.write(self.out, band.row, band.rows),
            low.read(self.residual, band.row, band.rows) if self.residual else None,
        )
        zones = {zone: self._zone(band, zone) for zone in Zone}
        some = [[chunk for chunk in part if zones[chunk.run.zone] is not None] for part in chunks]
        total = [
            sum(zones[c.run.zone].rows * c.run.tiles * c.run.tile_rows for c in part)
            for part in some
        ]
        self._left[key] = 0 if out else sum(map(len, some))
        _in_turns([self._work(part, [band], True, True) for part in some], total)

    def chunks(self) -> list[list[_Chunk]]:
        """Return the column tiles of each core that has some, in pieces."""
        mine = [
            [chunk for run in self.runs if run.core == core for chunk in self._cut(run)]
            for core in cores(self.low.config)
        ]
        return [chunks for chunks in mine if chunks]

    def weight_rows(self, core: Core) -> int:
        """Return the weight rows of all of a core's column tiles."""
        return sum(run.tile_rows * run.tiles for run in self.runs if run.core == core)

    def cover(self, row: int, rows: int) -> Band:
        """Return the least band of the only item that computes some row tiles."""
        if self.g is None:
            return row_band(_Piece(row, rows))
        low, lanes = self.low, self.low.config.lanes
        lines = self.g.unit(lanes)
        step = lines * self.g.pitch // lanes
        first = row // step
        count = min(ceil_div(row + rows, step), ceil_div(self.g.out_height, lines)) - first
        in_rows, out_rows = (low.rows_per_item(low.tensor(name)) for name in (self.x, self.out))
        return window_band(self.g, lanes, in_rows, out_rows, _Piece(first, count))

    # How the layer is divided

    def _cut(self, run: Run) -> list[_Chunk]:
        """Split a run so that the weights of two chunks fit, or those of a tile into parts."""
        tuning, config, depth = self.low.tuning, self.low.config, run.core.depth
        if run.tile_rows > depth // 2 and not run.pool:
            single = self.g is None or config.lanes % self.g.pitch == 0 or (
                self.low.rows_per_item(self.low.tensor(self.out)) == 1
            )  # fmt: skip
            if run.tile_rows > depth and not single:
                raise CompileError(
                    f"{self.op.name}: a column tile has {run.tile_rows} weight rows, more than"
                    f" {depth}, and a row tile begins inside a line; raise"
                    f" {'weight_depth' if run.core.space == Space.WEIGHT else 'lut_weight_depth'}"
                )
            parts = [(0, run.blocks)]
            if single:
                most = max(1, int(depth * PART_SHARE) // run.block_rows)
                parts = pieces(run.blocks, ceil_div(run.blocks, most))
            return [_Chunk(self, run.cut(tile, 1), parts) for tile in range(run.tiles)]
        most = int(depth * tuning.chunk_share) // run.tile_rows
        most = min(most, tuning.chunk_tiles,
                   config.parameter_depth // 4 // (run.words * config.block))  # fmt: skip
        first = min(self._first_tiles(run), most, run.tiles - 1) if run is self.runs[0] else 0
        rest = run.tiles - first
        cuts = pieces(rest, ceil_div(rest, max(most, 1)))
        cuts = [(0, first)] * bool(first) + [(first + start, count) for start, count in cuts]
        return [_Chunk(self, run.cut(*cut), [(0, run.blocks)]) for cut in cuts]

    def _first_tiles(self, run: Run) -> int:
        """Return how many column tiles hide the load of the next row tile."""
        low = self.low
        if self.g is not None or not low.is_loaded(self.x):
            return 1
        words = low.words(low.tensor(self.x))
        return ceil_div(words * low.config.word_bytes // low.config.axi_bytes, run.tile_rows)

    def _bands(self, fit: bool) -> list[Band]:
        low, config = self.low, self.low.config
        x, out = low.tensor(self.x), low.tensor(self.out)
        limits = {"inputs": MOST_ROW_TILES, "outputs": MOST_ROW_TILES}  # runs of a LOAD, too
        streamed_residual = low.is_streamed(self.residual)
        if low.is_streamed(self.x):
            share = low.tuning.input_share * (2 / 3 if streamed_residual else 1)
            words = low.scratch(Space.ACTIVATION, share)
            limits["inputs"] = min(limits["inputs"], words // low.words(x))
        for name in (self.out, self.residual):
            if low.is_streamed(name):
                space = Space.WIDE if low.tensor(name).bits == 16 else Space.ACTIVATION
                limits["outputs"] = min(limits["outputs"], low.scratch(space) // low.words(out))
        early = low.is_loaded(self.x) or low.is_stored(self.out)
        bands = low.tuning.pieces if early and (fit or not low.is_streamed(self.x)) else 1
        most = _Limits(**limits, bands=bands)
        if self.g is None:
            return row_bands(low.rows(out), most)
        return window_bands(self.g, config.lanes, most, out.batch, low.rows_per_item(x),
                            low.rows_per_item(out))  # fmt: skip

    def _zone(self, band: Band, zone: Zone) -> Band | None:
        """Return the part of a band that belongs to a zone; None: nothing does."""
        if zone == Zone.ALL:
            return band
        piece = band.piece
        ends = [int(self.tail * unit) for unit in (piece.first, piece.first + piece.count)]
        tail = ends[1] - ends[0]
        head = piece.count - tail
        start, count = (0, head) if zone == Zone.HEAD else (head, tail)
        if not count:
            return None
        part = _Piece(piece.first + start, count, piece.item)
        if self.g is None:
            return row_band(part)
        x, out = self.low.tensor(self.x), self.low.tensor(self.out)
        return window_band(self.g, self.low.config.lanes, self.low.rows_per_item(x),
                           self.low.rows_per_item(out), part)  # fmt: skip

    def _reload_weights(self, bands: list[Band]) -> int:
        """Bytes of weights that come again if bands are the outer loop."""
        rows = sum(run.tile_rows * run.tiles * run.core.columns for run in self.runs)
        return rows * (len(bands) - 1)

    def _reload_inputs(self, bands: list[Band], passes: int) -> int:
        """Bytes of the input that come again if the weights are the outer loop."""
        if not self.low.is_streamed(self.x):
            return 0
        rows = sum(band.in_rows for band in bands)
        words = rows * self.low.words(self.low.tensor(self.x))
        return words * self.low.config.word_bytes * (passes - 1)

    # One core's instructions, in order

    def _work(self, chunks: list[_Chunk], bands: list[Band], by_bands: bool, keep: bool
              ) -> Iterator[int]:  # fmt: skip
        """Append the steps of one core; yield the row tiles times weight rows of each."""
        if not by_bands:
            for chunk, band in itertools.product(chunks, bands):
                if (zone := self._zone(band, chunk.run.zone)) is not None:
                    yield from self._pass(chunk, zone, zone, (band.row, chunk))
            return
        for band in bands:
            for chunk in chunks:
                zone = self._zone(band, chunk.run.zone)
                if zone is None:
                    continue
                if not keep:
                    chunk = _Chunk(self, chunk.run, chunk.parts)
                yield from self._pass(chunk, zone, band, (band.row,))

    def _pass(self, chunk: _Chunk, band: Band, whole: Band, key: tuple) -> Iterator[int]:
        """Append a chunk's instructions on a band, a part of ``whole``, of which the buffers are.

        ``key`` tells who shares them.
        """
        low, run = self.low, chunk.run
        alone = len(key) > 1  # the chunk's words only
        word, words = run.word, run.tiles * run.words
        part = (word, words) if alone else (0, None)
        if key not in self._held:
            self._held[key] = (
                low.read(self.x, whole.in_row, whole.in_rows),
                low.write(self.out, whole.row, whole.rows, *part),
                low.read(self.residual, whole.row, whole.rows, *part) if self.residual else None,
            )
        x, out, residual = self._held[key]
        low.load(x, band.in_row, band.in_rows)
        if residual is not None:
            low.load(residual, band.row, band.rows)
        if len(chunk.parts) == 1:
            yield self._gemm(chunk, 0, band, x, out, residual)
        else:
            order = list(range(len(chunk.parts)))
            for tile in self._row_tiles(band):
                for index in order:
                    ends = index == order[0], index == order[-1]
                    yield self._gemm(chunk, index, tile, x, out, residual, *ends)
                chunk.forget(order)
                order.reverse()  # what has been used last is still there
        if alone:
            low.store(out, band.row, band.rows, word, words)
            return
        self._left[key] -= 1
        if not self._left[key]:
            low.store(out, whole.row, whole.rows)

    def _row_tiles(self, band: Band) -> Iterator[Band]:
        """Yield bands of single row tiles."""
        for tile in range(band.rows):
            if self.g is None:
                row = band.row + tile
                yield Band(row, 1, row, 1, row)
                continue
            lines = self.low.config.lanes // self.g.pitch
            yield dataclasses.replace(
                band, row=band.row + tile, rows=1, a_row=band.a_row + self.g.input_tile(tile),
                y=band.y + tile * lines * self.g.stride,
            )  # fmt: skip

    def _gemm(self, chunk: _Chunk, index: int, band: Band, x: Held, out: Held,
              residual: Held | None, first: bool = True, last: bool = True) -> int:  # fmt: skip
        """Append one instruction; return its row tiles times its weight rows."""
        low, run, op = self.low, chunk.run, self.op
        start, blocks = chunk.parts[index]
        words = run.tiles * run.words
        w = chunk.weights(index)
        a_word = run.a_word + start
        width = blocks + (run.tiles - 1) * run.a_step
        rows = run.tiles * (1 if run.pool else blocks * run.block_rows)
        reads = [
            x.region(band.in_row, band.in_rows, a_word, width),
            Region(w.buffer, w.offset, rows),
        ]
        writes, flags = [], {}
        if self.g is not None:
            taps = self._window(run, band, x)
            reads.append(Region(taps, 0, taps.size))
            flags |= {"windowed": 1, "pool": int(run.pool)}
        if last:
            parameters = chunk.parameters
            reads.append(Region(parameters.buffer, 0, parameters.buffer.size))
            writes.append(out.region(band.row, band.rows, run.word, words))
            function = getattr(op, "function", Function.NONE)
            flags |= {"parameter": parameters, "function": function}
            if function == Function.TABLE:
                reads.append(Region(low.table(op.name, op.table), 0, TABLE_UNITS))
            if residual is not None:
                reads.append(residual.region(band.row, band.rows, run.word, words))
                flags |= {
                    "residual": 1,
                    "residual_address": residual.place(band.row, run.word),
                    "residual_row_stride": residual.stride,
                    "residual_shift": op.residual_shift,
                    "residual_narrow": int(residual.buffer.space == Space.ACTIVATION),
                }
        full = run.words * low.config.block == run.core.columns
        low.emit(
            run.core.gemm, reads, writes,
            a=x.place(band.a_row, a_word),
            a_row_stride=x.stride * (self.g.tile_step if self.g else 1),
            a_column_stride=run.a_step if run.tiles > 1 else 0,
            row_tiles=band.rows, column_tiles=run.tiles, blocks=blocks, beats=run.beats,
            w=w, accumulate=int(not first), hold=int(not last),
            wide=int(out.buffer.space == Space.WIDE),
            out=out.place(band.row, run.word), out_row_stride=out.stride,
            words=0 if full else run.words, **flags,
        )  # fmt: skip
        return band.rows * rows

    def _window(self, run: Run, band: Band, x: Held) -> Buffer:
        """Set the window of the run's core; return where its taps are."""
        low, g, lanes = self.low, self.g, self.low.config.lanes
        if self._taps is None:
            step = low.config.entries_per_beat  # entries of a beat
            entries = g.entries(lanes, x.stride)
            entries = np.pad(entries, (0, -len(entries) % step))
            self._taps = low.parameters(f"{self.op.name}.taps", entries, (x.stride,), Space.TAP)
        low.window(
            run.core.window, self._taps,
            taps=len(g.taps), stride=g.stride, width=g.width, height=band.height, pitch=g.pitch,
            y=band.y, tile_x=g.stride * (lanes % g.pitch), tile_y=g.stride * (lanes // g.pitch),
            tile_stride=x.stride, line_tiles=g.line_tiles, line_stride=g.line_step * x.stride,
        )  # fmt: skip
        return self._taps

    # Constants

    def load_weights(self, run: Run, start: int, blocks: int) -> Place:
        """Load some input blocks of a run's weights into a new buffer."""
        low, config, core = self.low, self.low.config, run.core
        block = config.block
        rows = run.tiles * (1 if run.pool else blocks * run.block_rows)
        buffer = low.new(f"{self.op.name}.weight[{run.word}, {start}]", core.space, rows)

        def columns() -> NDArray[np.int8]:
            part = run.values[..., start * block : (start + blocks) * block]
            gap = core.columns - part.shape[1]
            part = np.pad(part, [(0, 0), (0, gap), (0, 0), (0, 0)])
            return part.reshape(run.tiles * core.columns, -1)

        key = "weights", self.op.name, core.space, run.word, run.tiles, run.words, start, blocks
        if core.space == Space.LUT_WEIGHT:
            constant = low.constant(
                key, lambda: encode_planes(columns(), run.beats, config).tobytes()
            )
            low.load_constant(Place(buffer), rows, constant)
        else:
            form = smallest_format(run.beats, config)
            constant = low.constant(key, lambda: encode_rows(columns(), run.beats, form, config))
            low.load_constant(Place(buffer), rows, constant, form, run.beats)
        return Place(buffer)

    def load_parameters(self, run: Run) -> Buffer:
        """Load the parameters of a run's columns into a new buffer."""
        block = self.low.config.block
        entries = self.entries[run.word * block : (run.word + run.tiles * run.words) * block]
        return self.low.parameters(self.op.name, entries, (run.word, run.tiles, run.words))


def _entries(low: Lowering, op: Conv | Linear | Map) -> tuple[NDArray[np.uint64], bool]:
    """Return the parameters of all columns, and whether padding channels become 0."""
    out, block = low.tensor(op.out), low.config.block
    padding = -out.channels % block
    fills = [0, 0, 0, 0]
    zero = True
    if op.function == Function.TABLE and padding:
        fills[3] = 15  # what the table makes of 0 is small
        value = look_up(0, op.table)
        zero = int(narrow(value, 15) if out.bits == 8 else value) == 0
    columns = (op.bias, op.multiplier, op.shift, op.narrow_shift)
    padded = (
        np.concatenate([values, np.full(padding, fill, np.int64)])
        for values, fill in zip(columns, fills, strict=True)
    )
    return parameter_entries(*padded), zero


def _without_zeros(
    low: Lowering, op: Conv | Linear, g: Geometry | None
) -> tuple[Geometry | None, NDArray[np.int8] | None]:
    """Return geometry and (N, taps, C) weights in which no block of a tap is 0 for all outputs.

    If there are such blocks, each of the others becomes a tap of its own.
    """
    if g is None or getattr(op, "groups", 1) > 1:
        return g, None
    block, taps = low.config.block, len(g.taps)
    weight = _padded(op.weight.reshape(len(op.weight), taps, -1), block)[: len(op.weight)]
    weight = weight.reshape(len(weight), taps, -1, block)
    live = np.argwhere(weight.any(axis=(0, 3)))
    blocks = weight.shape[2]
    if not 0 < len(live) < min(taps * blocks, MOST_TAPS, low.config.tap_depth // 2):
        return g, None
    places = tuple((*g.taps[tap][:2], g.taps[tap][2] + word) for tap, word in live)
    return dataclasses.replace(g, taps=places), weight[:, live[:, 0], live[:, 1]]


@dataclass(frozen=True)
class _Division:
    """Column tiles of both cores, and which share of the row tiles is in :attr:`Zone.TAIL`."""

    runs: list[Run]
    tail: Fraction = Fraction(0)
    helper: Opcode | None = None
    bits: int = 0  # of the weights that the LUT core takes over


def _divide(low: Lowering, op: Conv | Linear, g: Geometry | None,
            weight: NDArray[np.int8] | None) -> _Division:  # fmt: skip
    """Return the column tiles of a layer, and let the core that would idle help the other one.

    Rounding to column tiles leaves one core idle. It computes the outputs of the other one too, in
    the tail of the row tiles: the LUT core with as many planes as the weights of the DSP core have
    bits, the DSP core with the positions that the weights of the LUT core fill.
    """
    config, outputs = low.config, len(op.weight)
    runs = layer_runs(op, config, weight)
    if not config.lut_columns or not op.help or getattr(op, "groups", 1) > 1:
        return _Division(runs)
    out, first = low.tensor(op.out), outputs - op.lut_channels
    if g is None:
        units, tiles = low.rows(out), 1
    else:
        units = out.batch * ceil_div(g.out_height, g.unit(config.lanes))
        tiles = g.unit(config.lanes) * g.pitch // config.lanes
    if weight is None:
        weight = op.weight.reshape(outputs, -1, op.weight.shape[-1])
    dsp_core, lut_core = cores(config)
    helpers, bits = {}, 0
    if first:
        here = op.weight[:first].astype(np.int64)
        bits = int(max(here.max(), ~here.min())).bit_length() + 1
        helpers[dsp_core] = list(_dense(lut_core, weight[:first], 0, 0, config, bits))
    if op.lut_channels:
        word = first // config.block
        helpers[lut_core] = list(_dense(dsp_core, weight[first:], word, 0, config, 0))
    stride = g.stride if g else 1
    beats = next((run.beats for run in runs if run.core == dsp_core), config.block)

    def cycles(some: list[Run]) -> float:
        total = 0.0
        for run in some:
            on_lut = run.core == lut_core
            block = lut_block_cycles(beats, run.beats, stride) if on_lut else max(run.beats, stride)
            steps = run.values.shape[2] * run.blocks * block
            total += run.tiles * max(steps, run.words * config.block)
        return total * tiles

    def transfers(some: list[Run]) -> float:
        return sum(_load_beats(run, config) for run in some)

    maps = [low.tensor(name) for name in (op.x, op.residual)
            if name is not None and low.is_loaded(name)]  # fmt: skip
    words = sum(low.rows(tensor) * low.words(tensor) for tensor in maps)
    bus = words * config.word_bytes // config.axi_bytes + transfers(runs)
    own = {core: [run for run in runs if run.core == core] for core in (dsp_core, lut_core)}
    times = {core: cycles(own[core]) for core in own}
    alone = max(*times.values()) * units
    best, division = max(alone, bus) * MOST_HELPED, _Division(runs)
    for helped, helper in ((dsp_core, lut_core), (lut_core, dsp_core)):
        if helped not in helpers:
            continue
        if any(run.tile_rows > run.core.depth // 2 for run in helpers[helped]):
            continue
        extra, load = cycles(helpers[helped]), bus + transfers(helpers[helped])
        for tail in range(1, units):
            time = max(times[helped] * (units - tail), times[helper] * units + extra * tail, load)
            if time < best:
                best = time
                head = [dataclasses.replace(run, zone=Zone.HEAD) for run in own[helped]]
                more = [dataclasses.replace(run, zone=Zone.TAIL) for run in helpers[helped]]
                division = _Division(
                    [*head, *own[helper], *more], Fraction(tail, units), helper.gemm, bits
                )
    return division


def _load_beats(run: Run, config: Config) -> int:
    """Return the beats of the memory port that a run's weights take."""
    rows = run.tiles * run.tile_rows
    if run.core.space == Space.LUT_WEIGHT:
        return rows * plane_row_bytes(config) // config.axi_bytes
    rows = encoded_rows(rows, run.beats, smallest_format(run.beats, config), config)
    return rows * weight_row_bytes(config) // config.axi_bytes


def _layer(low: Lowering, op: Conv | Linear | MaxPool) -> _Layer:
    """Begin a layer: convolution, max pooling, or linear with outputs that are tiled exactly."""
    if isinstance(op, MaxPool):
        low.layer(op.name)
        out = low.tensor(op.out)
        runs = pool_run(out.channels, low.config)
        entries = _plain_entries(out, low.config)
        return _Layer(low, op, geometry(low, op), runs, entries, op.x, op.out)
    config, out = low.config, low.tensor(op.out)
    g, weight = _without_zeros(low, op, geometry(low, op) if isinstance(op, Conv) else None)
    division = _divide(low, op, g, weight)
    each = op.weight.shape[-1]  # inputs of an output in one tap
    kept = min(op.beats * ceil_div(each, config.block), each)
    inputs = op.weight[0].size
    if weight is not None:  # blocks of zeros are no work
        inputs = (
            inputs * weight.shape[1] // (op.weight[0].size // each * ceil_div(each, config.block))
        )
    lut = op.lut_channels * out.batch * out.rows * inputs
    macs = out.channels * out.batch * out.rows * inputs
    useful, lut_work = (macs - lut) * kept // each, lut * op.lut_bits
    tail = division.tail
    if division.helper == Opcode.LUT_GEMM:
        lut_work += round(useful * tail) * division.bits
        lut += round((macs - lut) * tail)
        useful -= round(useful * tail)
    elif division.helper == Opcode.GEMM:
        beats = next(run.beats for run in division.runs if run.zone == Zone.TAIL)
        useful += round(lut * tail * min(beats * ceil_div(each, config.block), each) / each)
        lut_work -= round(lut_work * tail)
        lut -= round(lut * tail)
    low.layer(op.name, macs, useful, lut, lut_work)
    largest = np.abs(op.weight.astype(np.int32)).reshape(len(op.weight), -1).sum(axis=1)
    low.require_accumulator(op.name, int(largest.max(initial=0)) << 7)
    entries, _ = _entries(low, op)
    return _Layer(low, op, g, division.runs, entries, op.x, op.out, division.tail)


def lower_conv(low: Lowering, op: Conv | Linear) -> None:
    """Append the steps of a convolution, or of a linear layer whose outputs are tiled exactly."""
    _layer(low, op).lower()
    if not _entries(low, op)[1]:
        clear_padding(low, op)


def lower_fused(low: Lowering, first: Conv | MaxPool, second: Conv | MaxPool, share: float) -> bool:
    """Append the steps of two layers between which the map stays on chip; False: impossible.

    It is computed band by band, as the second layer needs it: what two bands of that read is
    computed twice. The first layer is one band ahead. All that both need takes a ``share`` of the
    activation memory.
    """
    config = low.config
    middle = low.tensor(first.out)
    some = isinstance(first, Conv) and not _entries(low, first)[1]
    some |= isinstance(second, Conv) and not _entries(low, second)[1]
    if some or middle.batch > 1 or getattr(first, "residual", None) or low.is_shared(first.out):
        return False
    a, layer_a = _layer(low, first), low.number
    b, layer_b = _layer(low, second), low.number
    chunks = a.chunks(), b.chunks()
    if any(a.weight_rows(core) + b.weight_rows(core) > core.depth for core in cores(config)) or any(
        len(chunk.parts) > 1 for mine in chunks for part in mine for chunk in part
    ):
        return False
    bands = _fused_bands(low, a, b, share)
    if len(bands) < 2:
        return False
    held: list[Held] = []
    for number in range(len(bands) + 1):
        if number < len(bands):
            low.number = layer_a
            band = a.cover(bands[number].in_row, bands[number].in_rows)
            held.append(low.write(first.out, band.row, band.rows))
            a.lower_band(chunks[0], band, None, held[-1])
        if number:
            low.number = layer_b
            b.lower_band(chunks[1], bands[number - 1], held[number - 1], None)
    return True


def _fused_bands(low: Lowering, a: _Layer, b: _Layer, share: float) -> list[Band]:
    """Return the fewest bands of ``b`` of which two fit on chip, with all that they need."""
    x, middle, out = (low.tensor(name) for name in (a.x, a.out, b.out))
    room = low.scratch(Space.ACTIVATION, share / 2)
    if b.g is None:
        step = 1 if a.g is None else a.g.unit(low.config.lanes) * a.g.pitch // low.config.lanes
        rows = low.rows(out)
        units = ceil_div(rows, step)
    else:
        units = ceil_div(b.g.out_height, b.g.unit(low.config.lanes))

    def split(count: int) -> list[Band]:
        if b.g is None:
            return [row_band(_Piece(first * step, min(n * step, rows - first * step)))
                    for first, n in pieces(units, count)]  # fmt: skip
        return [window_band(b.g, low.config.lanes, low.rows_per_item(middle),
                            low.rows_per_item(out), _Piece(*piece))
                for piece in pieces(units, count)]  # fmt: skip

    def words(band: Band) -> int:
        before = a.cover(band.in_row, band.in_rows)
        total = before.rows * low.words(middle)
        total += before.in_rows * low.words(x) if low.is_streamed(a.x) else 0
        total += band.rows * low.words(out) if low.is_streamed(b.out) else 0
        return total + (band.rows * low.words(out) if low.is_streamed(b.residual) else 0)

    for count in range(2, units + 1):
        bands = split(count)
        if max(map(words, bands)) <= room:
            return bands
    return []


def lower_map(low: Lowering, op: Map) -> None:
    """Append the steps of a Map whose outputs are tiled exactly."""
    low.layer(op.name)
    entries, zero = _entries(low, op)
    runs = identity_runs(low.tensor(op.out).channels, low.config)
    _Layer(low, op, None, runs, entries, op.x, op.out).lower()
    if not zero:
        clear_padding(low, op)


def _plain_entries(tensor: Tensor, config: Config) -> NDArray[np.uint64]:
    """Return parameters that leave values as they are."""
    channels = ceil_div(tensor.channels, config.block) * config.block
    return parameter_entries(np.zeros(channels, np.int64), 1, 0, 0)


def lower_max_pool(low: Lowering, op: MaxPool) -> None:
    """Append the steps of a max pooling."""
    _layer(low, op).lower()


def lower_concat(low: Lowering, op: Concat) -> None:
    """Copy those parts into a concatenation that do not lie in it."""
    low.layer(op.name)
    word = 0
    for name in op.parts:
        part = low.tensor(name)
        if not low.is_part_of(name, op.out):
            entries = np.tile(_plain_entries(part, low.config), 1)
            padding = np.zeros(word * low.config.block, np.uint64)
            runs = identity_runs(part.channels, low.config, word)
            entries = np.concatenate([padding, entries])
            _Layer(low, op, None, runs, entries, name, op.out).lower()
        word += low.words(part)

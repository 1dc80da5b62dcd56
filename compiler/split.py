"""How a layer's outputs are divided between the DSP core and the LUT core.

The last channels go to the LUT core, as many as it computes in the time that the DSP core needs for
the others. Both cores compute whole column tiles, so the time of each is a staircase, and the best
division is found by trying all of them.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from twillcore.compiler.errors import CompileError
from twillcore.config import FRAME_CYCLES, Config
from twillcore.timing import lut_phases
from twillcore.weights import encoded_rows, plane_row_bytes, smallest_format, weight_row_bytes

NEAR = 1.03  #: times that count as equal, since the model is not exact
MOST_HELPED = 0.98  #: of a layer's time, for one core to help the other


@dataclass(frozen=True, kw_only=True)
class LayerShape:
    """What a layer asks of the cores.

    Attributes
    ----------
    rows
        Rows of the GEMM, output pixels of a convolution, of the whole batch.
    blocks, taps
        Blocks of input channels per tap, and taps (1 for a linear layer).
    stride
        Of the window, within a line.
    channels
        Outputs.
    beats, lut_bits
        Beats per block on the DSP core (N of N:B), and on the LUT core.
    """

    rows: int
    blocks: int
    channels: int
    beats: int
    lut_bits: int
    taps: int = 1
    stride: int = 1


def lut_block_cycles(
    beats: int, lut_bits: int, stride: int = 1, phases: frozenset[int] = frozenset()
) -> float:
    """Return the cycles of the LUT core per block while the DSP core works, infinite if it starves.

    The DSP core reads a block's word (two with a stride of 2) in the first of its cycles; a read of
    the LUT core in the same cycle waits. Where it would starve, it reads in ``phases`` of the frame
    (:func:`twillcore.timing.lut_phases`); elsewhere they save it little, and are left out.
    """
    period = max(beats, stride)
    if period <= stride:
        return _cycles_in_phases(lut_bits, stride, phases) if phases else math.inf
    blocks, cycle = 4 * period, 0
    for _ in range(blocks):
        for _ in range(stride):
            phase = cycle % period
            cycle += 1 + max(stride - phase, 0)
        cycle += max(lut_bits, stride) - stride
    return cycle / blocks


def _cycles_in_phases(lut_bits: int, stride: int, phases: frozenset[int]) -> float:
    """Return the cycles of the LUT core per block if it reads in ``phases`` only."""
    blocks, cycle = 8 * FRAME_CYCLES, 0
    for _ in range(blocks):
        for _ in range(stride):
            while cycle % FRAME_CYCLES not in phases:
                cycle += 1
            cycle += 1
        cycle += max(lut_bits, stride) - stride
    return cycle / blocks


def finish_cycles(config: Config, layer: LayerShape, lut_channels: int) -> float:
    """Return the cycles until both cores have computed their channels of all rows.

    The model: a core issues one beat per cycle; a tile takes no less time than its drain, which
    makes one column per cycle and serves both cores; the LUT core waits for the reads of the other;
    all weights come over the memory port once; the core that would idle helps the other one.
    """
    beats, lut_bits, stride = layer.beats, layer.lut_bits, layer.stride
    row_tiles, blocks = -(-layer.rows // config.lanes), layer.taps * layer.blocks
    load = blocks * _load_beats(config, layer, lut_channels)

    def cycles(count: int, columns: int, block_cycles: float) -> float:
        tiles, last = divmod(count, columns)
        tile = blocks * block_cycles
        widths = [columns] * tiles + [last] * bool(last)
        return sum(max(tile, width) for width in widths)

    mine = layer.channels - lut_channels
    dsp = cycles(mine, config.dsp_columns, max(beats, stride))
    if not config.lut_columns:
        return max(row_tiles * dsp, load)
    phases = lut_phases(config)
    beside = lut_block_cycles(beats, lut_bits, stride, phases)
    lut = cycles(lut_channels, config.lut_columns, beside) if lut_channels else 0.0
    if lut > dsp:  # the rest of it is computed alone
        alone = cycles(lut_channels, config.lut_columns, max(lut_bits, stride))
        lut = dsp + alone * (1 - dsp / lut)
    times = [row_tiles * max(dsp, lut)]
    if mine and lut_channels and dsp > lut:
        extra = cycles(mine, config.lut_columns, lut_block_cycles(beats, 8, stride, phases))
        times += _helped(row_tiles, dsp, lut, extra)
    elif mine and lut_channels and beside < math.inf:  # else both would not run at once
        extra = cycles(lut_channels, config.dsp_columns, max(config.block, stride))
        times += _helped(row_tiles, lut, dsp, extra)
    return max(min(times), row_tiles * layer.channels, load)


def _helped(rows: int, slow: float, fast: float, extra: float) -> Iterator[float]:
    """Yield the time if the fast core computes all of some rows, which takes ``extra`` for each."""
    if extra < math.inf:
        tail = int(rows * (slow - fast) / (slow + extra))
        for some in (tail, tail + 1):
            yield max(slow * (rows - some), fast * rows + extra * some) / MOST_HELPED


def _load_beats(config: Config, layer: LayerShape, lut_channels: int) -> float:
    """Return the beats of the memory port for a block of the weights of all channels."""
    tiles = -(-(layer.channels - lut_channels) // config.dsp_columns)
    many = config.block * 8  # blocks, so that shared header rows count by halves
    sparsity = smallest_format(layer.beats, config)
    rows = encoded_rows(many * layer.beats, layer.beats, sparsity, config) / many
    lut_tiles = -(-lut_channels // config.lut_columns) if lut_channels else 0
    size = tiles * rows * weight_row_bytes(config)
    size += lut_tiles * layer.lut_bits * plane_row_bytes(config)
    return size / config.axi_bytes


def split_channels(config: Config, layer: LayerShape, share: float | None = None) -> int:
    """Return how many of a layer's last outputs the LUT core takes.

    A multiple of ``config.block`` (a word of the output has one writer) or all; 0 without a LUT
    core. Where the layer's channels are no multiple of it, there is nothing between 0 and all.

    ``share`` is the part of the channels that the LUT core takes, 0..1, rounded to blocks; None: as
    many as let both cores finish together, and of about equally fast divisions the one that uses
    both best.

    Raises
    ------
    CompileError
        If ``share`` is out of range, or more than 0 and the LUT core gets no column.
    """
    block, channels = config.block, layer.channels
    choices = [0, channels]
    if channels % block == 0:
        choices = list(range(0, channels + 1, block))
    if share is None:
        if not config.lut_columns:
            return 0
        times = {n: finish_cycles(config, layer, n) for n in choices}
        least = min(times.values())
        if times[0] == least:
            return 0

        def use(count: int) -> float:
            dsp, lut = (channels - count) * layer.beats, count * layer.lut_bits
            return min(dsp / config.dsp_columns, lut / config.lut_columns) / times[count]

        return max((n for n in choices if times[n] <= least * NEAR), key=use)
    if not 0 <= share <= 1:
        raise CompileError(f"the LUT core's share must be 0..1, not {share}")
    if share and not config.lut_columns:
        raise CompileError(
            f"the LUT core's share is {share}, but configuration {config.name!r} has none:"
            " set lut_columns and lut_weight_depth"
        )
    count = min(choices, key=lambda count: abs(count - share * channels))
    if share and not count:
        raise CompileError(
            f"a share of {share} of {channels} channels leaves the LUT core no block of {block}"
        )
    return count

"""The column tiles of a layer: which words and weights one instruction of a core computes.

A layer becomes *runs* of column tiles: a run is what one instruction can compute, tiles of as many
words, each reading as many blocks, ``a_step`` words on from tile to tile.

* Dense: every column tile reads all blocks. The last tile may have fewer words.
* Groups of whole blocks: a tile reads the blocks of its group.
* Groups of channels in a block, as many outputs as inputs (depthwise: one of each): a tile of n
  words reads the n words of the same channels; what is outside an output's group is 0, and of N
  channels per group only N beats remain. So depthwise convolution is 1:B sparsity.
* Other groups are dense, with zeros.
* Pooling: tiles of one word, and the identity as weights.

Outputs of the LUT core are runs of their own.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto

import numpy as np
from numpy.typing import NDArray

from twillcore.compiler.errors import CompileError
from twillcore.compiler.graph import Conv, Linear
from twillcore.compiler.lowering import ceil_div
from twillcore.compiler.sparsify import beats_per_block
from twillcore.compiler.steps import Space
from twillcore.config import Config
from twillcore.isa import Opcode


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


def padded(weight: NDArray[np.int8], block: int) -> NDArray[np.int8]:
    """Return (N, taps, C) with N and C filled up to whole blocks."""
    gaps = [(0, -weight.shape[0] % block), (0, 0), (0, -weight.shape[2] % block)]
    return np.pad(weight, gaps)


def dense_runs(core: Core, weight: NDArray[np.int8], word: int, a_word: int, config: Config,
           bits: int) -> Iterator[Run]:  # fmt: skip
    """Yield runs of (N, taps, C) weights: whole column tiles, and the rest."""
    block = config.block
    weight = padded(weight, block)
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


def _diagonal_runs(core: Core, weight: NDArray[np.int8], word: int, group: int, config: Config,
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
            runs += dense_runs(core, part, word, 0, config, bits)
        elif inputs == outputs and block % inputs == 0:
            runs += _diagonal_runs(core, part, word, inputs, config, bits)
        elif inputs % block == 0 and outputs % block == 0:
            mine = []
            for group in range(groups):
                start, end = max(low, group * outputs), min(high, (group + 1) * outputs)
                if start < end:
                    mine += dense_runs(core, weight[start:end], start // block,
                                   group * inputs // block, config, bits)  # fmt: skip
            runs += _joined(mine)
        else:
            dense = np.zeros((high - low, weight.shape[1], inputs * groups), np.int8)
            for i in range(high - low):
                at = (low + i) // outputs * inputs
                dense[i, :, at : at + inputs] = part[i]
            runs += dense_runs(core, dense, word, 0, config, bits)
    return runs


def identity_runs(channels: int, config: Config, word: int = 0) -> list[Run]:
    """Return column tiles of the DSP core that pass every channel to itself.

    ``word`` is the first output word; input words start at 0.
    """
    weight = np.ones((channels, 1, 1), np.int8)
    runs = _diagonal_runs(cores(config)[0], weight, 0, 1, config, 0)
    return [dataclasses.replace(run, word=word + run.word) for run in runs]


def pool_run(channels: int, config: Config) -> list[Run]:
    """Return the column tiles of max pooling."""
    words = ceil_div(channels, config.block)
    eye = np.eye(config.block, dtype=np.int8)[None, :, None]
    values = np.repeat(eye, words, axis=0)
    return [Run(cores(config)[0], 0, words, 1, 0, 1, 1, 1, values, pool=True)]

"""Linear layers whose outputs are whole column tiles of the DSP core.

Weights come in *chunks* of column tiles, each loaded once per group of rows and used for all rows
of the group. The first chunk goes row by row where its input arrives row by row, the last one where
its readers start row by row, so that neighbouring layers overlap.
"""

import numpy as np
from numpy.typing import NDArray

from twillcore.compiler.drain import clear_padding
from twillcore.compiler.graph import Linear, Map
from twillcore.compiler.instructions import gemm
from twillcore.compiler.limits import MOST_ROW_TILES
from twillcore.compiler.lowering import Held, Lowering, ceil_div, parameter_entries, pieces
from twillcore.compiler.steps import Place, Space
from twillcore.isa import Function


def _padded_columns(low: Lowering, values: NDArray, tiles: int, fill: int = 0) -> NDArray:
    """Return per-column values, filled up to whole column tiles."""
    padded = np.full(tiles * low.config.dsp_columns, fill, np.int64)
    padded[: len(values)] = values
    return padded


def drain_entries(low: Lowering, op: Linear | Map, tiles: int) -> NDArray[np.uint64]:
    """Return the parameter entries of a layer; multiplier 0 clears padding channels."""
    return parameter_entries(
        *(_padded_columns(low, v, tiles) for v in (op.bias, op.multiplier, op.shift,
                                                   op.narrow_shift))
    )  # fmt: skip


def row_groups(low: Lowering, op: Linear | Map, out_words: int) -> list[tuple[int, int]]:
    """Split the rows so that temporary buffers of streamed tensors stay small."""
    x, out = low.tensor(op.x), low.tensor(op.out)
    rows = most = low.rows(out)
    if low.is_streamed(op.x):
        most = min(most, low.scratch(Space.ACTIVATION, low.tuning.input_share) // low.words(x))
    if low.is_streamed(op.out):
        space = Space.WIDE if out.bits == 16 else Space.ACTIVATION
        most = min(most, low.scratch(space) // out_words)
    if low.is_streamed(op.residual):
        most = min(most, low.scratch(Space.WIDE) // out_words)
    most = min(max(most, 1), MOST_ROW_TILES)
    return pieces(rows, ceil_div(rows, most))


def _chunks(low: Lowering, op: Linear, rows: int, tiles: int, tile_rows: int) -> list:
    """Split the column tiles, as (first, count).

    While an input still comes from DRAM, the first chunk is just long enough to hide the load of
    the next row tile, and the following ones double, so that their weights arrive in time. Chunks
    of a layer that is bound by loading are short, since the last one is computed after all loads.
    """
    config, tuning = low.config, low.tuning
    size = max(1, int(config.weight_depth * tuning.chunk_share) // tile_rows)
    size = min(size, tuning.chunk_tiles, config.parameter_depth // 4 // config.dsp_columns)
    if low.is_streamed(op.out) or low.is_streamed(op.residual):
        size = min(size, low.scratch(Space.ACTIVATION) // (rows * config.words_per_tile))
    if rows * config.axi_bytes < 2 * config.dsp_columns:
        size = min(size, ceil_div(tuning.chunk_cycles, tile_rows))
    size = max(1, size)
    chunks, done = [], 0
    if low.is_loaded(op.x):
        count = ceil_div(config.word_bytes // config.axi_bytes, op.beats)
        while count < size and done + count < tiles:
            chunks.append((done, count))
            done += count
            count *= 1 if done == count else 2
    rest = tiles - done
    return chunks + [(done + tile, count) for tile, count in pieces(rest, ceil_div(rest, size))]


def lower_linear(low: Lowering, op: Linear) -> None:
    """Append the steps of a linear layer that fills up the last column tile of its output."""
    config = low.config
    x, out = low.tensor(op.x), low.tensor(op.out)
    blocks, tiles = low.words(x), low.column_tiles(out)
    macs = out.batch * out.rows * out.channels * x.channels
    low.layer(op.name, macs, macs * op.beats // config.block)
    largest = np.abs(op.weight.astype(np.int32)).sum(axis=1).max(initial=0)
    low.require_accumulator(op.name, int(largest) << 7)
    entries = drain_entries(low, op, tiles)
    tile_rows = blocks * op.beats
    # Parts of K are loaded anew for every row tile, but need no second column tile of room.
    split = tile_rows > config.weight_depth // (2 if low.rows(out) == 1 else 1)
    for row, rows in row_groups(low, op, config.words_per_tile):
        source = low.read(op.x, row, rows)
        chunks = [(t, 1) for t in range(tiles)] if split else _chunks(low, op, rows, tiles,
                                                                      tile_rows)  # fmt: skip
        for first, count in chunks:
            chunk = _Chunk(low, op, source, row, rows, first, count, entries)
            if split:
                chunk.lower_split()
            else:
                late = first == 0 and low.is_late(op.x)
                urgent = first + count == tiles and low.is_urgent(op.out)
                chunk.lower(late, urgent)
    clear_padding(low, op)


def drain_arguments(low: Lowering, op: Linear | Map, residual: Held | None) -> dict:
    """Return what the drain does, for :func:`~twillcore.compiler.instructions.gemm`."""
    table = low.table(op.name, op.table) if op.function == Function.TABLE else None
    shift = {"residual_shift": op.residual_shift} if residual is not None else {}
    return {"residual": residual, "function": op.function, "table": table, **shift}


class _Chunk:
    """Some column tiles of a linear layer on a group of rows."""

    def __init__(self, low, op, source, row, rows, first, count, entries) -> None:
        config = low.config
        self.low, self.op, self.source = low, op, source
        self.row, self.rows, self.first, self.count = row, rows, first, count
        self.blocks = low.words(low.tensor(op.x))
        self.tile_rows = self.blocks * op.beats
        self.word, words = first * config.words_per_tile, count * config.words_per_tile
        self.out = low.write(op.out, row, rows, self.word, words)
        self.residual = None
        if op.residual is not None:
            self.residual = low.read(op.residual, row, rows, self.word, words)
        columns = slice(first * config.dsp_columns, (first + count) * config.dsp_columns)
        self.entries = entries[columns]
        self.values = op.weight[columns]

    def lower(self, late: bool, urgent: bool) -> None:
        """All of K at once: (row pieces, column tiles)."""
        low, tuning = self.low, self.low.tuning
        size = self.count * self.tile_rows
        weights = low.new(f"{self.op.name}.weight[{self.first}]", Space.WEIGHT, size)
        parameters = None
        split = pieces(self.rows, tuning.pieces if late or urgent else 1)
        loaded = 0
        for i, (start, rows) in enumerate(split):
            row = self.row + start
            self._load_rows(row, rows)
            singly = (late and i == 0) or (urgent and i == len(split) - 1)
            for tile, tiles in pieces(self.count, self.count if singly else 1):
                if loaded < tile + tiles:
                    self._load_weights(weights, tile, tiles)
                    loaded = tile + tiles
                if parameters is None:
                    parameters = low.parameters(
                        self.op.name, self.entries, (self.first, self.count)
                    )
                self._gemm(
                    row, rows, tile, tiles,
                    w=Place(weights, tile * self.tile_rows), blocks=self.blocks,
                    parameter=Place(parameters, tile * low.config.dsp_columns),
                )  # fmt: skip

    def lower_split(self) -> None:
        """One column tile whose weights exceed the memory: parts of K, row tile by row tile."""
        low, op, block = self.low, self.op, self.low.config.block
        most = low.config.weight_depth // 2 // op.beats
        parts = pieces(self.blocks, ceil_div(self.blocks, most))
        parameters = low.parameters(op.name, self.entries, (self.first,))
        for row in range(self.row, self.row + self.rows):
            self._load_rows(row, 1)
            for i, (start, blocks) in enumerate(parts):
                weights = low.new(
                    f"{op.name}.weight[{self.first}, {i}]", Space.WEIGHT, blocks * op.beats
                )
                values = self.values[:, start * block : (start + blocks) * block]
                low.weights(Place(weights), op.name, values, op.beats, (self.first, start))
                self._gemm(
                    row, 1, 0, 1, w=Place(weights), blocks=blocks, word=start,
                    parameter=Place(parameters),
                    accumulate=int(i > 0), hold=int(i < len(parts) - 1),
                )  # fmt: skip

    def _load_rows(self, row: int, rows: int) -> None:
        self.low.load(self.source, row, rows)
        if self.residual is not None:
            self.low.load(self.residual, row, rows)

    def _load_weights(self, weights, tile: int, tiles: int) -> None:
        columns = self.low.config.dsp_columns
        values = self.values[tile * columns : (tile + tiles) * columns]
        self.low.weights(
            Place(weights, tile * self.tile_rows), self.op.name, values, self.op.beats,
            (self.first + tile, tiles),
        )  # fmt: skip

    def _gemm(self, row: int, rows: int, tile: int, tiles: int, **arguments) -> None:
        low, op = self.low, self.op
        word = self.word + tile * low.config.words_per_tile
        last = not arguments.get("hold")
        gemm(
            low, self.source, self.out, row, rows, tiles=tiles, beats=op.beats, out_word=word,
            **(drain_arguments(low, op, self.residual) if last else {}), **arguments,
        )  # fmt: skip
        if last:
            low.store(self.out, row, rows, word, tiles * low.config.words_per_tile)

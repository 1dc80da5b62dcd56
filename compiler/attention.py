"""Products of two activations: attention and matmul, through the operand memory.

Attention is a pipeline of *units*, each some row tiles of one head: while the vector unit makes the
exponentials of one unit, the GEMM core computes the logits of the next, and then the weighted sum
of the first. Buffers between them are double: two units are alive at a time. Keys and values of the
next head are moved ahead too; where operand memory is short, values are moved only when they are
needed, and where it is very short, keys and values are moved again for every unit.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from twillcore.compiler.errors import CompileError
from twillcore.compiler.graph import Attention, MatMul, Tensor
from twillcore.compiler.instructions import gemm, move, softmax
from twillcore.compiler.lowering import Held, Lowering, ceil_div, parameter_entries, pieces
from twillcore.compiler.steps import Buffer, Place, Space
from twillcore.isa import MoveMode
from twillcore.numerics import EXP_ONE


def _require_operands(low: Lowering, name: str, rows: int) -> None:
    if rows > low.config.operand_depth:
        raise CompileError(
            f"{name}: its keys or values need {rows} rows of operand memory, the configuration has"
            f" {low.config.operand_depth}; raise operand_depth"
        )


def _move_keys(low: Lowering, name: str, source: Held, row: int, rows: int, word: int, words: int):
    """Move row tiles into a new operand buffer so that every row of ``source`` becomes a column."""
    config = low.config
    tiles = ceil_div(rows * config.lanes, config.dsp_columns)
    stride = words * config.block
    _require_operands(low, name, tiles * stride)
    target = Place(low.new(f"{name} keys", Space.OPERAND, tiles * stride))
    low.load(source, row, rows)
    move(low, MoveMode.KEYS, source, row, rows, word, words, target, tiles * stride, stride)
    return target


def _value_blocks(low: Lowering, tensor: Tensor) -> int:
    """Blocks of rows that MOVE fills for each column tile."""
    config = low.config
    return ceil_div(low.rows_per_item(tensor) * config.lanes, config.block)


def _move_values(low: Lowering, name: str, source: Held, row: int, rows: int, word: int,
                 tiles: int) -> Place:  # fmt: skip
    """Move column tiles into a new operand buffer so that rows of ``source`` become rows."""
    config = low.config
    stride = _value_blocks(low, source.tensor) * config.block
    _require_operands(low, name, tiles * stride)
    target = Place(low.new(f"{name} values", Space.OPERAND, tiles * stride))
    low.load(source, row, rows)
    words = tiles * config.words_per_tile
    move(low, MoveMode.VALUES, source, row, rows, word, words, target, tiles * stride, stride)
    return target


@dataclass(frozen=True)
class _Unit:
    """Row tiles of one head whose exponentials are on their way."""

    values: "_Values"
    row: int
    rows: int
    e: Held
    lane: Place


class _Values:
    """The values of one head of one item, and how their sums are narrowed; each fetched once."""

    def __init__(self, low: Lowering, op: Attention, item: int, head: int) -> None:
        self.low, self.op, self.item, self.head = low, op, item, head
        self.words = op.head_channels // low.config.block
        self.word = head * self.words
        columns = slice(head * op.head_channels, (head + 1) * op.head_channels)
        self.entries = parameter_entries(0, 0, 0, op.narrow_shift[columns])

    @cached_property
    def place(self) -> Place:
        """Where they are in operand memory; moves them there."""
        low, op = self.low, self.op
        rows = low.rows_per_item(low.tensor(op.v))
        row = self.item * rows
        held = low.read(op.v, row, rows, self.word, self.words)
        tiles = self.words // low.config.words_per_tile
        return _move_values(low, op.name, held, row, rows, self.word, tiles)

    @cached_property
    def parameters(self) -> Buffer:
        """Parameter entries of the columns; loads them."""
        return self.low.parameters(self.op.name, self.entries, ("values", self.head))


def lower_attention(low: Lowering, op: Attention) -> None:
    """Append the steps of an :class:`~twillcore.compiler.graph.Attention`."""
    q, k = low.tensor(op.q), low.tensor(op.k)
    keys = k.rows
    macs = 2 * q.batch * q.rows * keys * op.heads * op.head_channels
    low.layer(op.name, macs)
    low.require_accumulator(op.name, max(op.head_channels << 14, keys * EXP_ONE << 7))
    bias = None
    if op.mask is None:
        entries = low.key_bias(keys, op.multiplier, op.shift)
        bias = low.parameters(op.name, entries, ("keys",))
    waiting: _Unit | None = None
    for item in range(q.batch):
        if op.mask is not None:
            bias = low.mask(op.mask, item, op.multiplier, op.shift)
        for head in range(op.heads):
            for unit in _logits(low, op, item, head, bias):
                if waiting is not None:
                    _weighted_sum(low, op, waiting)
                waiting = unit
    _weighted_sum(low, op, waiting)


def _logits(low: Lowering, op: Attention, item: int, head: int, bias: Buffer):
    """Yield units of one head, each after its logits and exponentials have been started."""
    config = low.config
    q, k = low.tensor(op.q), low.tensor(op.k)
    head_words = op.head_channels // config.block
    word = head * head_words
    key_rows, tiles = low.rows_per_item(k), ceil_div(k.rows, config.dsp_columns)
    words = tiles * config.words_per_tile
    first, rows = item * low.rows_per_item(q), low.rows_per_item(q)
    most = min(2 * low.scratch(Space.WIDE) // words, 2 * low.scratch(Space.ACTIVATION) // words,
               config.lane_depth // 2, rows)  # fmt: skip
    k_held = low.read(op.k, item * key_rows, key_rows, word, head_words)
    operand_rows = tiles * op.head_channels
    split = pieces(rows, ceil_div(rows, max(1, most)))
    for i, (start, count) in enumerate(split):
        if i == 0 or 2 * operand_rows > config.operand_depth:
            keys = _move_keys(low, op.name, k_held, item * key_rows, key_rows, word, head_words)
            values = _Values(low, op, item, head)
            if 4 * operand_rows <= config.operand_depth:
                _ = values.place  # move them ahead
        row = first + start
        source = low.read(op.q, row, count, word, head_words)
        low.load(source, row, count)
        logits = low.temporary("logits", Space.WIDE, row, count, words)
        e = low.temporary("exponentials", Space.ACTIVATION, row, count, words)
        maximum = Place(low.new("maxima", Space.MAXIMUM, count))
        lane = Place(low.new("lane scales", Space.LANE, count))
        gemm(
            low, source, logits, row, count, w=keys, tiles=tiles, blocks=head_words,
            beats=config.block, counted=1, parameter=Place(bias), word=word, maximum=maximum,
        )  # fmt: skip
        softmax(low, logits, e, row, count, maximum, lane, op.numerator, op.lane_shift)
        yield _Unit(values, row, count, e, lane)


def _weighted_sum(low: Lowering, op: Attention, unit: _Unit) -> None:
    config, values = low.config, unit.values
    out = low.write(op.out, unit.row, unit.rows, values.word, values.words)
    gemm(
        low, unit.e, out, unit.row, unit.rows, w=values.place,
        tiles=values.words // config.words_per_tile,
        blocks=_value_blocks(low, low.tensor(op.v)), beats=config.block, counted=1,
        parameter=Place(values.parameters), lane=unit.lane, out_word=values.word,
    )  # fmt: skip
    low.store(out, unit.row, unit.rows, values.word, values.words)


def lower_matmul(low: Lowering, op: MatMul) -> None:
    """Append the steps of a :class:`~twillcore.compiler.graph.MatMul`."""
    config = low.config
    a, b, out = low.tensor(op.a), low.tensor(op.b), low.tensor(op.out)
    low.layer(op.name, a.batch * a.rows * a.channels * out.channels)
    low.require_accumulator(op.name, a.channels << 14)
    tiles, width = low.column_tiles(out), config.words_per_tile
    blocks = low.words(a)
    tile_rows = (blocks if op.transpose_b else _value_blocks(low, b)) * config.block
    multiplier = np.where(np.arange(tiles * config.dsp_columns) < out.channels, op.multiplier, 0)
    narrow = np.zeros(tiles * config.dsp_columns, np.int64)
    narrow[: out.channels] = op.narrow_shift
    entries = parameter_entries(0, multiplier, op.shift, narrow)
    most = max(1, min(config.operand_depth // 2 // tile_rows,
                      config.parameter_depth // 2 // config.dsp_columns))  # fmt: skip
    rows, b_rows = low.rows_per_item(a), low.rows_per_item(b)
    for item in range(a.batch):
        for first, count in pieces(tiles, ceil_div(tiles, most)):
            if op.transpose_b:
                per_tile = config.dsp_columns // config.lanes
                row = item * b_rows + first * per_tile
                held_rows = min(count * per_tile, b_rows - first * per_tile)
                held = low.read(op.b, row, held_rows)
                w = _move_keys(low, op.name, held, row, held_rows, 0, blocks)
            else:
                held = low.read(op.b, item * b_rows, b_rows, first * width, count * width)
                w = _move_values(low, op.name, held, item * b_rows, b_rows, first * width, count)
            columns = slice(first * config.dsp_columns, (first + count) * config.dsp_columns)
            parameters = low.parameters(op.name, entries[columns], (first, count))
            source = low.read(op.a, item * rows, rows)
            low.load(source, item * rows, rows)
            target = low.write(op.out, item * rows, rows, first * width, count * width)
            # Weight rows must run on from tile to tile: moved rows beyond K separate them.
            singly = tile_rows != blocks * config.block
            for tile, step in pieces(count, count if singly else 1):
                gemm(
                    low, source, target, item * rows, rows,
                    w=Place(w.buffer, tile * tile_rows), tiles=step, blocks=blocks,
                    beats=config.block, counted=1,
                    parameter=Place(parameters, tile * config.dsp_columns),
                    out_word=(first + tile) * width,
                )  # fmt: skip
            low.store(target, item * rows, rows, first * width, count * width)

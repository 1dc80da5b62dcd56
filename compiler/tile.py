"""Graph to :class:`~twillcore.compiler.steps.Plan`: each op into tiles that fit the memories.

Weights of a linear layer come in *chunks* of column tiles, each loaded once per group of rows and
used for all rows of the group. The first chunk goes row by row where its input arrives row by row,
the last one where its readers start row by row, so that neighbouring layers overlap.
"""

import itertools
from collections.abc import Mapping
from enum import Enum, auto
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from twillcore.compiler.attention import lower_attention, lower_matmul
from twillcore.compiler.convolution import lower_concat, lower_conv, lower_map, lower_max_pool
from twillcore.compiler.drain import clear_padding
from twillcore.compiler.fusion import lower_fused
from twillcore.compiler.graph import (
    Attention,
    Concat,
    Conv,
    Elementwise,
    Graph,
    LayerNorm,
    Linear,
    Map,
    MatMul,
    MaxPool,
    Op,
    Softmax,
)
from twillcore.compiler.instructions import gemm, softmax
from twillcore.compiler.interleave import interleave, load_of
from twillcore.compiler.limits import MOST_ROW_TILES
from twillcore.compiler.lowering import (
    Held,
    Lowering,
    Tuning,
    ceil_div,
    parameter_entries,
    pieces,
)
from twillcore.compiler.steps import Place, Plan, Region, Space, Step
from twillcore.compiler.tensor_parts import is_tiled_exactly
from twillcore.isa import Function, Opcode

LEAST_GAIN = 0.03  #: of the time of two layers one after the other, for them to go together
BUSY_PORT = 0.7  #: of the time of two layers, for which transfers must not wait for their buffers


class Pairing(Enum):
    """How two layers go together: the map between them goes to DRAM and back, or never does."""

    INTERLEAVED = auto()
    FUSED = auto()
    FUSED_SMALL = auto()  # with smaller bands


SHARES = {Pairing.FUSED: 0.92, Pairing.FUSED_SMALL: 0.5}  #: of the activation memory


def tile(
    graph: Graph,
    streamed: frozenset[str],
    constants: dict,
    tuning: Tuning,
    paired: Mapping[int, Pairing] = MappingProxyType({}),
) -> Plan:
    """Return the steps of ``graph`` when the tensors in ``streamed`` live in DRAM.

    Layers whose numbers are in ``paired`` go together with those that follow them.
    """
    lowering = Lowering(graph, streamed, constants, tuning)
    for number, op in enumerate(graph.ops):
        if number in paired:
            _lower_pair(lowering, op, graph.ops[number + 1], paired[number])
        elif number - 1 not in paired:
            _LOWER[type(op)](lowering, op)
    written = {name for op in graph.ops for name in (getattr(op, "out", None),
               getattr(op, "wide_out", None))}  # fmt: skip
    for name in dict.fromkeys(graph.outputs):
        if name not in written:  # an output that is an input
            lowering.layer(f"copy {name}")
            _copy(lowering, name)
    return lowering.plan()


def _lower_pair(low: Lowering, first: Op, second: Op, pairing: Pairing) -> None:
    """Lower two layers band by band."""
    if pairing in SHARES:
        lower_fused(low, first, second, SHARES[pairing])
        return
    tuning, low.tuning = low.tuning, low.tuning.paired()
    start = len(low.steps)
    _LOWER[type(first)](low, first)
    middle = len(low.steps)
    _LOWER[type(second)](low, second)
    low.tuning = tuning
    low.replace(start, interleave(low.steps[start:middle], low.steps[middle:], low.config))


class Pairs:
    """Which layers of a plan had better go together with the next ones, and how."""

    def __init__(
        self, graph: Graph, plan: Plan, streamed: frozenset[str], constants: dict, tuning: Tuning
    ) -> None:
        self._gains: list[dict[Pairing, float]] = [{}]  # of every layer with the one before it
        steps: dict[int, list[Step]] = {number: [] for number in range(len(plan.layers))}
        for step in plan.steps:
            steps[step.layer].append(step)
        loads = [load_of(steps[number], graph.config) for number in range(len(graph.ops))]
        self._need_room: set[int] = set()
        for number, (first, second) in enumerate(itertools.pairwise(graph.ops)):
            self._gains.append({})
            if not (
                isinstance(first, Conv | MaxPool)
                and isinstance(second, Conv | MaxPool)
                and second.x == first.out
                and first.out in streamed
                and plan.by_bands >= {number, number + 1}
            ):
                continue
            apart = (loads[number].bound + loads[number + 1].bound) * (1 - LEAST_GAIN)
            together = loads[number] + loads[number + 1]
            self._gains[-1][Pairing.INTERLEAVED] = apart - together.bound
            if max(together.read, together.write) > BUSY_PORT * together.bound:
                self._need_room.add(number)
            for pairing, share in SHARES.items():
                trial = Lowering(graph, streamed, constants, tuning)
                trial.layers = list(plan.layers[:number])
                if lower_fused(trial, first, second, share):
                    load = load_of(trial.steps, graph.config)
                    self._gains[-1][pairing] = apart - load.bound

    def refuse(self, number: int, pairing: Pairing) -> None:
        """Do not propose a pairing of layer ``number`` with the next one any more."""
        del self._gains[number + 1][pairing]

    def need_room(self, number: int) -> bool:
        """Whether interleaving a layer with the next one pays only if transfers can overlap."""
        return number in self._need_room and Pairing.INTERLEAVED in self._gains[number + 1]

    def best(self) -> dict[int, Pairing]:
        """Return the pairs that save most, by the number of the first layer."""
        best: list[tuple[float, dict[int, Pairing]]] = [(0.0, {})]  # of ever more layers
        for number, gains in enumerate(self._gains):
            best.append(best[number])
            for pairing, gain in gains.items():
                saved, chosen = best[number - 1]
                if saved + gain > best[-1][0]:
                    best[-1] = saved + gain, {**chosen, number - 1: pairing}
        return best[-1][1]


def _copy(low: Lowering, name: str) -> None:
    rows = low.rows(low.tensor(name))
    for row, count in pieces(rows, rows):
        held = low.read(name, row, count)
        low.load(held, row, count)
        low.store(held, row, count)


def _padded_columns(low: Lowering, values: NDArray, tiles: int, fill: int = 0) -> NDArray:
    """Return per-column values, filled up to whole column tiles."""
    padded = np.full(tiles * low.config.dsp_columns, fill, np.int64)
    padded[: len(values)] = values
    return padded


def _drain_entries(low: Lowering, op: Linear | Map, tiles: int) -> NDArray[np.uint64]:
    """Return the parameter entries of a layer; multiplier 0 clears padding channels."""
    return parameter_entries(
        *(_padded_columns(low, v, tiles) for v in (op.bias, op.multiplier, op.shift,
                                                   op.narrow_shift))
    )  # fmt: skip


# Linear


def _groups(low: Lowering, op: Linear | Map, out_words: int) -> list[tuple[int, int]]:
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


def _lower_linear(low: Lowering, op: Linear) -> None:
    if is_tiled_exactly(op, low.graph):
        lower_conv(low, op)
        return
    config = low.config
    x, out = low.tensor(op.x), low.tensor(op.out)
    blocks, tiles = low.words(x), low.column_tiles(out)
    macs = out.batch * out.rows * out.channels * x.channels
    low.layer(op.name, macs, macs * op.beats // config.block)
    largest = np.abs(op.weight.astype(np.int32)).sum(axis=1).max(initial=0)
    low.require_accumulator(op.name, int(largest) << 7)
    entries = _drain_entries(low, op, tiles)
    tile_rows = blocks * op.beats
    # Parts of K are loaded anew for every row tile, but need no second column tile of room.
    split = tile_rows > config.weight_depth // (2 if low.rows(out) == 1 else 1)
    for row, rows in _groups(low, op, config.words_per_tile):
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


def _drain_arguments(low: Lowering, op: Linear | Map, residual: Held | None) -> dict:
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
            **(_drain_arguments(low, op, self.residual) if last else {}), **arguments,
        )  # fmt: skip
        if last:
            low.store(self.out, row, rows, word, tiles * low.config.words_per_tile)


# Products with the identity


def _identity(low: Lowering, op: Op, tiles: int, channels: int) -> Place:
    """Load weights that pass every column's own channel: one beat per block of a column tile."""
    columns = low.config.dsp_columns
    values = np.tile(np.eye(columns, dtype=np.int8), (tiles, 1))
    values[channels:] = 0
    size = tiles * low.config.words_per_tile
    weights = Place(low.new(f"{op.name}.identity", Space.WEIGHT, size))
    low.weights(weights, "identity", values, 1, (tiles, channels))
    return weights


def _identity_chunks(low: Lowering, tiles: int) -> list[tuple[int, int]]:
    config = low.config
    most = min(config.weight_depth // 4 // config.words_per_tile,
               config.parameter_depth // 4 // config.dsp_columns)  # fmt: skip
    return pieces(tiles, ceil_div(tiles, max(1, most)))


def _lower_map(low: Lowering, op: Map) -> None:
    if is_tiled_exactly(op, low.graph):
        lower_map(low, op)
        return
    config, out = low.config, low.tensor(op.out)
    tiles, width = low.column_tiles(out), config.words_per_tile
    low.layer(op.name)
    entries = _drain_entries(low, op, tiles)
    for row, rows in _groups(low, op, tiles * width):
        source = low.read(op.x, row, rows)
        low.load(source, row, rows)
        for first, count in _identity_chunks(low, tiles):
            columns = slice(first * config.dsp_columns, (first + count) * config.dsp_columns)
            words = first * width, count * width
            target = low.write(op.out, row, rows, *words)
            residual = None
            if op.residual is not None:
                residual = low.read(op.residual, row, rows, *words)
                low.load(residual, row, rows)
            channels = min(out.channels - columns.start, count * config.dsp_columns)
            weights = _identity(low, op, count, channels)
            parameters = low.parameters(op.name, entries[columns], (first, count))
            gemm(
                low, source, target, row, rows, w=weights, tiles=count, blocks=width, beats=1,
                parameter=Place(parameters), word=words[0], out_word=words[0],
                a_column_stride=width, **_drain_arguments(low, op, residual),
            )  # fmt: skip
            low.store(target, row, rows, *words)
    clear_padding(low, op)


def _lower_softmax(low: Lowering, op: Softmax) -> None:
    config, x = low.config, low.tensor(op.x)
    tiles, width = low.column_tiles(x), config.words_per_tile
    words = tiles * width
    low.layer(op.name)
    bias = low.key_bias(x.channels, op.multiplier, op.shift)
    rows = low.rows(x)
    most = min(rows, low.scratch(Space.WIDE) // words, low.scratch(Space.ACTIVATION) // words,
               config.lane_depth // 2)  # fmt: skip
    weights = _identity(low, op, tiles, tiles * config.dsp_columns)
    logit = low.parameters(op.name, bias, ("logits",))
    chunks = pieces(tiles, ceil_div(tiles, config.parameter_depth // 4 // config.dsp_columns))
    scale = np.zeros(chunks[-1][1] * config.dsp_columns, np.uint64)
    final = low.parameters(op.name, scale, ("out",))
    for row, count in pieces(rows, ceil_div(rows, max(1, most))):
        source = low.read(op.x, row, count)
        low.load(source, row, count)
        target = low.write(op.out, row, count)
        logits = low.temporary("logits", Space.WIDE, row, count, words)
        e = low.temporary("exponentials", Space.ACTIVATION, row, count, words)
        maximum = Place(low.new("maxima", Space.MAXIMUM, count))
        lane = Place(low.new("lane scales", Space.LANE, count))
        shape = {"w": weights, "tiles": tiles, "blocks": width, "beats": 1}
        gemm(
            low, source, logits, row, count, **shape, parameter=Place(logit), maximum=maximum,
            a_column_stride=width,
        )  # fmt: skip
        softmax(low, logits, e, row, count, maximum, lane, op.numerator, op.lane_shift)
        for first, step in chunks:
            gemm(
                low, e, target, row, count, w=weights, tiles=step, blocks=width, beats=1,
                parameter=Place(final), lane=lane, word=first * width, out_word=first * width,
                a_column_stride=width,
            )  # fmt: skip
        low.store(target, row, count)


# The vector unit


def _vector_pieces(low: Lowering, names: list[str]) -> list[tuple[int, int]]:
    """Split rows so that the readers start early, and temporary buffers stay small."""
    rows = low.rows(low.tensor(names[0]))
    most = rows if any(low.is_streamed(name) for name in names) else low.tuning.pieces
    return pieces(rows, max(most, ceil_div(rows, MOST_ROW_TILES)))


def _lower_layer_norm(low: Lowering, op: LayerNorm) -> None:
    x, block = low.tensor(op.x), low.config.block
    words = low.words(x)
    low.layer(op.name)

    def padded(values):
        return np.concatenate([values, np.zeros(words * block - x.channels, np.int64)])

    entries = parameter_entries(*map(padded, (op.beta, op.gamma, op.shift, op.narrow_shift)))
    norm = low.parameters(op.name, entries, space=Space.NORM)
    names = [name for name in (op.x, op.out, op.wide_out) if name is not None]
    for row, rows in _vector_pieces(low, names):
        source = low.read(op.x, row, rows)
        low.load(source, row, rows)
        targets = [low.write(name, row, rows) for name in names[1:]]
        operands = {}
        for held in targets:
            prefix = "wide_" if held.buffer.space == Space.WIDE else ""
            operands |= {
                "wide" if prefix else "narrow": 1,
                f"{prefix}out": held.place(row),
                f"{prefix}out_row_stride": held.stride,
            }
        low.emit(
            Opcode.LAYER_NORM,
            (source.region(row, rows, 0, words), Region(norm, 0, words * block)),
            [held.region(row, rows, 0, words) for held in targets],
            a=source.place(row), a_row_stride=source.stride, row_tiles=rows, words=words,
            channels=x.channels, epsilon=op.epsilon, parameter=Place(norm), **operands,
        )  # fmt: skip
        for held in targets:
            low.store(held, row, rows)


def _lower_elementwise(low: Lowering, op: Elementwise) -> None:
    words = low.words(low.tensor(op.out))
    low.layer(op.name)
    for row, rows in _vector_pieces(low, [op.out, op.a, op.b]):
        a = low.read(op.a, row, rows)
        low.load(a, row, rows)
        b = a if op.b == op.a else low.read(op.b, row, rows)
        low.load(b, row, rows)
        target = low.write(op.out, row, rows)
        low.emit(
            Opcode.ELEMENTWISE,
            (a.region(row, rows, 0, words), b.region(row, rows, 0, words)),
            (target.region(row, rows, 0, words),),
            op=op.op,
            a_wide=int(a.buffer.space == Space.WIDE), a=a.place(row), a_row_stride=a.stride,
            b_wide=int(b.buffer.space == Space.WIDE), b=b.place(row), b_row_stride=b.stride,
            row_tiles=rows, words=words, a_multiplier=op.a_multiplier,
            b_multiplier=op.b_multiplier, shift=op.shift, narrow_shift=op.narrow_shift,
            wide=int(target.buffer.space == Space.WIDE), out=target.place(row),
            out_row_stride=target.stride,
        )  # fmt: skip
        low.store(target, row, rows)


_LOWER = {
    Linear: _lower_linear,
    Conv: lower_conv,
    MaxPool: lower_max_pool,
    Concat: lower_concat,
    Map: _lower_map,
    MatMul: lower_matmul,
    Attention: lower_attention,
    Softmax: _lower_softmax,
    LayerNorm: _lower_layer_norm,
    Elementwise: _lower_elementwise,
}

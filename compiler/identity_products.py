"""Products with the identity: maps and softmax, whose work the drain and the vector unit do."""

import numpy as np

from twillcore.compiler.drain import clear_padding
from twillcore.compiler.graph import Map, Op, Softmax
from twillcore.compiler.instructions import gemm, softmax
from twillcore.compiler.linear import drain_arguments, drain_entries, row_groups
from twillcore.compiler.lowering import Lowering, ceil_div, pieces
from twillcore.compiler.steps import Place, Space


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


def lower_map_by_tiles(low: Lowering, op: Map) -> None:
    """Append the steps of a Map that fills up the last column tile of its output."""
    config, out = low.config, low.tensor(op.out)
    tiles, width = low.column_tiles(out), config.words_per_tile
    low.layer(op.name)
    entries = drain_entries(low, op, tiles)
    for row, rows in row_groups(low, op, tiles * width):
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
                a_column_stride=width, **drain_arguments(low, op, residual),
            )  # fmt: skip
            low.store(target, row, rows, *words)
    clear_padding(low, op)


def lower_softmax(low: Lowering, op: Softmax) -> None:
    """Append the steps of a softmax: logits, exponentials, and their products with the scales."""
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

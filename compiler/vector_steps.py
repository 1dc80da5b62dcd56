"""Layers of the vector unit: layer norm, and sums and products of two tensors."""

import numpy as np

from twillcore.compiler.graph import Elementwise, LayerNorm
from twillcore.compiler.limits import MOST_ROW_TILES
from twillcore.compiler.lowering import Lowering, ceil_div, parameter_entries, pieces
from twillcore.compiler.steps import Place, Region, Space
from twillcore.isa import Opcode


def _vector_pieces(low: Lowering, names: list[str]) -> list[tuple[int, int]]:
    """Split rows so that the readers start early, and temporary buffers stay small."""
    rows = low.rows(low.tensor(names[0]))
    most = rows if any(low.is_streamed(name) for name in names) else low.tuning.pieces
    return pieces(rows, max(most, ceil_div(rows, MOST_ROW_TILES)))


def lower_layer_norm(low: Lowering, op: LayerNorm) -> None:
    """Append the steps of a layer norm."""
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


def lower_elementwise(low: Lowering, op: Elementwise) -> None:
    """Append the steps of a sum, product or conversion."""
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

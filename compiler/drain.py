"""The drain's parameters of whole words, and the channels that fill up the last one.

These are 0, for which a function table has to be outwitted: what it makes of 0 is shifted away, or,
where that is not enough, multiplied by 0 afterwards.
"""

import numpy as np
from numpy.typing import NDArray

from twillcore.compiler.errors import CompileError
from twillcore.compiler.graph import Conv, Linear, Map
from twillcore.compiler.lowering import Lowering, parameter_entries, pieces
from twillcore.compiler.steps import Space
from twillcore.isa import Function, Opcode
from twillcore.numerics import look_up, narrow

NARROWEST = 15  #: narrow_shift with which only large values do not become 0


def channel_entries(low: Lowering, op: Conv | Linear | Map) -> NDArray[np.uint64]:
    """Return the parameters of all columns; of padding channels those that make 0 of 0, or try."""
    padding = -low.tensor(op.out).channels % low.config.block
    shift = NARROWEST if op.function == Function.TABLE and padding else 0
    columns = (op.bias, 0), (op.multiplier, 0), (op.shift, 0), (op.narrow_shift, shift)
    return parameter_entries(
        *(np.concatenate([values, np.full(padding, fill, np.int64)]) for values, fill in columns)
    )


def fills_with_zeros(low: Lowering, op: Conv | Linear | Map) -> bool:
    """Whether padding channels are 0 with the parameters of :func:`channel_entries`."""
    out = low.tensor(op.out)
    if op.function != Function.TABLE or not out.channels % low.config.block:
        return True
    value = look_up(0, op.table)
    return int(narrow(value, NARROWEST) if out.bits == 8 else value) == 0


def clear_padding(low: Lowering, op: Linear | Conv | Map) -> None:
    """Multiply padding channels by 0 where a table has made something of their 0."""
    out, config = low.tensor(op.out), low.config
    real = out.channels % config.block
    if op.function != Function.TABLE or not real or look_up(0, op.table) == 0:
        return
    if not config.wide_depth:
        raise CompileError(
            f"{op.name}: its table makes {int(look_up(0, op.table))} of 0 in the channels that fill"
            f" up its last block, and configuration {config.name!r} has no vector engine to clear"
            f" them: use a multiple of {config.block} channels, or set wide_depth"
        )
    word = low.words(out) - 1
    data = np.zeros((config.lanes, config.block), np.int8)
    data[:, :real] = 1
    constant = low.constant(("padding", real), data.tobytes)
    keep = low.temporary("padding", Space.ACTIVATION, 0, 1, 1)
    low.load_constant(keep.place(0), 1, constant)
    wide = int(out.bits == 16)
    for row, rows in pieces(low.rows(out), low.rows(out) if low.is_streamed(op.out) else 1):
        held = low.read(op.out, row, rows, word, 1)
        low.load(held, row, rows)
        region = held.region(row, rows, word, 1)
        place = held.place(row, word)
        low.emit(
            Opcode.ELEMENTWISE, (region, keep.region(0, 1, 0, 1)), (region,),
            op=1, a_wide=wide, a=place, a_row_stride=held.stride, b=keep.place(0), row_tiles=rows,
            words=1, a_multiplier=1, wide=wide, out=place, out_row_stride=held.stride,
        )  # fmt: skip
        low.store(held, row, rows, word, 1)

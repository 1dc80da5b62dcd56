"""Instructions of matrix products and attention, with what they read and write."""

from twillcore.compiler.lowering import Held, Lowering
from twillcore.compiler.steps import TABLE_UNITS, Buffer, Place, Region, Space
from twillcore.isa import MoveMode, Opcode


def gemm(
    low: Lowering,
    x: Held,
    out: Held,
    row: int,
    rows: int,
    *,
    w: Place,
    tiles: int,
    blocks: int,
    beats: int,
    parameter: Place,
    word: int = 0,
    out_word: int = 0,
    a_column_stride: int = 0,
    residual: Held | None = None,
    table: Buffer | None = None,
    maximum: Place | None = None,
    lane: Place | None = None,
    **flags: int,
) -> None:
    """Append a GEMM on some row tiles and ``tiles`` column tiles.

    It reads ``blocks`` words from ``word`` on (and ``a_column_stride`` further on for each
    column tile), weight rows from ``w`` on, and writes words from ``out_word`` on. What it does
    with them is in ``flags``, operands of the instruction; ``maximum`` is written, ``lane``
    read, where they are given.
    """
    width = tiles * low.config.words_per_tile
    reads = [
        x.region(row, rows, word, blocks + (tiles - 1) * a_column_stride),
        Region(w.buffer, w.offset, tiles * blocks * beats),
    ]
    writes = []
    if not flags.get("hold"):
        reads.append(Region(parameter.buffer, parameter.offset, tiles * low.config.dsp_columns))
        writes.append(out.region(row, rows, out_word, width, whole=True))
    if residual is not None:
        reads.append(residual.region(row, rows, out_word, width))
        flags |= {
            "residual": 1,
            "residual_address": residual.place(row, out_word),
            "residual_row_stride": residual.stride,
        }
    if table is not None:
        reads.append(Region(table, 0, TABLE_UNITS))
    if maximum is not None:
        writes.append(Region(maximum.buffer, maximum.offset, rows))
        flags |= {"keep_maximum": 1, "columns_inner": 1, "maximum": maximum}
    if lane is not None:
        reads.append(Region(lane.buffer, lane.offset, rows))
        flags |= {"lane_scaled": 1, "lane": lane}
    low.emit(
        Opcode.GEMM,
        reads,
        writes,
        a=x.place(row, word),
        a_row_stride=x.stride,
        a_column_stride=a_column_stride,
        row_tiles=rows,
        column_tiles=tiles,
        blocks=blocks,
        beats=beats,
        w=w,
        operand=int(w.buffer.space == Space.OPERAND),
        parameter=parameter,
        wide=int(out.buffer.space == Space.WIDE),
        out=out.place(row, out_word),
        out_row_stride=out.stride,
        **flags,
    )


def softmax(
    low: Lowering, logits: Held, e: Held, row: int, rows: int, maximum: Place, lane: Place,
    numerator: int, shift: int,
) -> None:  # fmt: skip
    """Append a SOFTMAX of some row tiles, from scratch buffer to scratch buffer."""
    low.emit(
        Opcode.SOFTMAX,
        (logits.region(row, rows, 0, logits.words), Region(maximum.buffer, 0, rows)),
        (e.region(row, rows, 0, e.words), Region(lane.buffer, 0, rows)),
        a=logits.place(row),
        a_row_stride=logits.stride,
        row_tiles=rows,
        words=logits.words,
        maximum=maximum,
        lane=lane,
        numerator=numerator,
        shift=shift,
        out=e.place(row),
        out_row_stride=e.stride,
    )


def move(
    low: Lowering, mode: MoveMode, source: Held, row: int, rows: int, word: int, words: int,
    target: Place, size: int, column_stride: int,
) -> None:  # fmt: skip
    """Append a MOVE of ``words`` words of some row tiles, which fills ``size`` rows."""
    low.emit(
        Opcode.MOVE,
        (source.region(row, rows, word, words),),
        (Region(target.buffer, target.offset, size),),
        mode=mode,
        a=source.place(row, word),
        a_row_stride=source.stride,
        row_tiles=rows,
        blocks=words,
        out=target,
        column_stride=column_stride,
    )

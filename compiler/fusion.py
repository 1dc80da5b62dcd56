"""Two layers between which the map stays on chip, band by band."""

from twillcore.compiler.banded_layer import BandedLayer
from twillcore.compiler.column_tiles import cores
from twillcore.compiler.convolution import begin_layer
from twillcore.compiler.drain import fills_with_zeros
from twillcore.compiler.graph import Conv, MaxPool
from twillcore.compiler.lowering import Held, Lowering, ceil_div, pieces
from twillcore.compiler.row_bands import Band, Piece, row_band, window_band
from twillcore.compiler.steps import Space


def lower_fused(low: Lowering, first: Conv | MaxPool, second: Conv | MaxPool, share: float) -> bool:
    """Append the steps of two layers between which the map stays on chip; False: impossible.

    It is computed band by band, as the second layer needs it: what two bands of that read is
    computed twice. The first layer is one band ahead. All that both need takes a ``share`` of the
    activation memory.
    """
    config = low.config
    middle = low.tensor(first.out)
    some = any(isinstance(op, Conv) and not fills_with_zeros(low, op) for op in (first, second))
    if some or middle.batch > 1 or getattr(first, "residual", None) or low.is_shared(first.out):
        return False
    a, layer_a = begin_layer(low, first), low.number
    b, layer_b = begin_layer(low, second), low.number
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


def _fused_bands(low: Lowering, a: BandedLayer, b: BandedLayer, share: float) -> list[Band]:
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
            return [row_band(Piece(first * step, min(n * step, rows - first * step)))
                    for first, n in pieces(units, count)]  # fmt: skip
        return [window_band(b.g, low.config.lanes, low.rows_per_item(middle),
                            low.rows_per_item(out), Piece(*piece))
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

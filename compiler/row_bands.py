"""Bands of row tiles: which part of a layer's output one instruction computes.

Maps that live in DRAM are processed in bands of output lines, with the input lines around them. A
band begins with a row tile.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

from twillcore.compiler.errors import CompileError
from twillcore.compiler.limits import MOST_ROW_TILES
from twillcore.compiler.lowering import ceil_div, pieces
from twillcore.compiler.tap_tables import Geometry


@dataclass(frozen=True)
class Band:
    """Output row tiles that one instruction computes, and what they need of the input.

    ``row`` and ``rows`` are of the output; ``in_row`` and ``in_rows`` are what is read of the
    input, ``a_row`` is where its first tap (0, 0) is. ``y`` is the input line of the first output
    line for that tap, ``height`` the lines below which is padding.
    """

    row: int
    rows: int
    in_row: int
    in_rows: int
    a_row: int
    y: int = 0
    height: int = 0
    piece: "Piece | None" = None


@dataclass(frozen=True)
class Piece:
    """Which part of the output a band is: ``count`` units from ``first`` on, of batch ``item``.

    A unit is the least number of row tiles after which another band can begin.
    """

    first: int
    count: int
    item: int = 0


@dataclass(frozen=True)
class Limits:
    """Most row tiles of a band, of the input and of the output, and the fewest bands."""

    inputs: int
    outputs: int
    bands: int


def row_bands(rows: int, limits: Limits) -> list[Band]:
    """Split the row tiles of a layer without windows."""
    most = min(limits.inputs, limits.outputs, MOST_ROW_TILES)
    count = max(ceil_div(rows, max(most, 1)), limits.bands)
    return [row_band(Piece(row, n)) for row, n in pieces(rows, count)]


def row_band(piece: Piece) -> Band:
    """Return some row tiles of a layer without windows."""
    return Band(piece.first, piece.count, piece.first, piece.count, piece.first, piece=piece)


def window_band(g: Geometry, lanes: int, in_rows: int, out_rows: int, piece: Piece) -> Band:
    """Return some output lines; items are ``in_rows`` and ``out_rows`` row tiles."""
    unit = g.unit(lanes)
    above, below = g.reach
    start, end = piece.first * unit, min((piece.first + piece.count) * unit, g.out_height)
    top = min(max(start * g.y_stride + above, 0), g.height - 1)
    bottom = min(max((end - 1) * g.y_stride + below + 1, top + 1), g.height)
    low = top * g.in_pitch // lanes
    high = ceil_div((bottom - 1) * g.in_pitch + g.width, lanes)
    row = start * g.pitch // lanes
    last = end == g.out_height
    pixels = (end - 1) * g.pitch + (g.out_width if last else g.pitch)
    return Band(
        row + piece.item * out_rows, ceil_div(pixels, lanes) - row,
        low + piece.item * in_rows, high - low, g.input_tile(row) + piece.item * in_rows,
        start * g.y_stride, bottom, piece,
    )  # fmt: skip


def lines(g: Geometry, lanes: int, in_rows: int, out_rows: int, band: Band) -> Iterator[Band]:
    """Yield the output lines of a band, each as a band of its own.

    Only what is above or below the map is padding, so lines whose windows begin in it are all as
    if that were its first line, and need no other WINDOW.
    """
    above = g.reach[0]
    for number in range(band.piece.count):
        piece = replace(band.piece, first=band.piece.first + number, count=1)
        line = window_band(g, lanes, in_rows, out_rows, piece)
        up = max(line.y + above, 0)
        yield replace(line, y=line.y - up, height=line.height - up)


def window_bands(g: Geometry, lanes: int, limits: Limits, batch: int, in_rows: int,
                 out_rows: int) -> list[Band]:  # fmt: skip
    """Split the output lines of every item; items are ``in_rows`` and ``out_rows`` row tiles."""
    units = ceil_div(g.out_height, g.unit(lanes))

    def band(first: int, count: int, item: int = 0) -> Band:
        return window_band(g, lanes, in_rows, out_rows, Piece(first, count, item))

    def fits(count: int) -> bool:
        return all(
            b.rows <= min(limits.outputs, MOST_ROW_TILES) and b.in_rows <= limits.inputs
            for b in itertools.starmap(band, pieces(units, count))
        )

    count = next((n for n in range(1, units) if fits(n)), units)
    if units > 1 and count == units and not fits(count) and band(0, 1).rows > MOST_ROW_TILES:
        raise CompileError(f"a line of {g.pitch} pixels has too many row tiles")
    count = max(count, min(limits.bands, units))
    return [band(first, n, item) for item in range(batch) for first, n in pieces(units, count)]

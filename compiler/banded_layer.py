"""A layer on its way to steps: column tiles of both cores on bands of row tiles.

In program order both cores progress evenly through a layer, so that neither queue runs empty and
they share the buffers of a band. Either all bands pass the weights by, or all weights pass the
bands by; where the weights of a layer fit in their memory, they are loaded once. Weights that come
in parts (:mod:`twillcore.compiler.column_chunks`) need instructions of single row tiles, so lines
that divide a row tile; other maps wait for their weights.
"""

import dataclasses
import heapq
import itertools
from collections.abc import Iterable, Iterator
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from twillcore.compiler.column_chunks import Chunk
from twillcore.compiler.column_tiles import Core, Run, Zone, cores
from twillcore.compiler.errors import CompileError
from twillcore.compiler.graph import Concat, Op
from twillcore.compiler.limits import MOST_ROW_TILES
from twillcore.compiler.lowering import Held, Lowering, ceil_div, pieces
from twillcore.compiler.row_bands import (
    Band,
    Limits,
    Piece,
    lines,
    row_band,
    row_bands,
    window_band,
    window_bands,
)
from twillcore.compiler.steps import TABLE_UNITS, Buffer, Region, Space
from twillcore.compiler.tap_tables import Geometry
from twillcore.isa import Function

PART_SHARE = 1 / 12  #: of the weight memory, for a part of a column tile that does not fit twice


class BandedLayer:
    """One op on its way to steps."""

    def __init__(self, low: Lowering, op: Op, g: Geometry | None, runs: list[Run],
                 entries: NDArray[np.uint64], x: str, out: str, tail: Fraction = Fraction(0)
                 ) -> None:  # fmt: skip
        self.low, self.op, self.g, self.runs, self.entries = low, op, g, runs, entries
        self.x, self.out, self.tail = x, out, tail
        self.residual: str | None = getattr(op, "residual", None)
        self._held: dict[tuple, tuple[Held, Held, Held | None]] = {}
        self._left: dict[tuple, int] = {}
        self._taps: Buffer | None = None

    def lower(self) -> None:
        """Append all steps."""
        mine = self.chunks()
        fit = all(self.weight_rows(core) <= core.depth for core in cores(self.low.config))
        bands = self._bands(fit)
        passes = sum(map(len, mine))
        by_bands = fit or self._reload_weights(bands) < self._reload_inputs(bands, passes)
        by_bands &= not isinstance(self.op, Concat)  # each part stores its own words
        if by_bands:
            self.low.by_bands.add(self.low.number)
        work = [self._work(chunks, bands, by_bands, fit) for chunks in mine]
        total = [0] * len(mine)
        for band in bands:
            zones = {zone: self._zone(band, zone) for zone in Zone}
            self._left[band.row,] = 0
            for number, chunk in ((n, chunk) for n, part in enumerate(mine) for chunk in part):
                if (zone := zones[chunk.run.zone]) is not None:
                    self._left[band.row,] += 1
                    total[number] += zone.rows * chunk.run.tiles * chunk.run.tile_rows
        _in_turns(work, total)

    def lower_band(self, chunks: list[list[Chunk]], band: Band, x: Held | None, out: Held | None
                   ) -> None:  # fmt: skip
        """Append the steps of one band. ``x`` and ``out`` are maps that never go to DRAM."""
        key = (band.row,)
        low = self.low
        self._held[key] = (
            x or low.read(self.x, band.in_row, band.in_rows),
            out or low.write(self.out, band.row, band.rows),
            low.read(self.residual, band.row, band.rows) if self.residual else None,
        )
        zones = {zone: self._zone(band, zone) for zone in Zone}
        some = [[chunk for chunk in part if zones[chunk.run.zone] is not None] for part in chunks]
        total = [
            sum(zones[c.run.zone].rows * c.run.tiles * c.run.tile_rows for c in part)
            for part in some
        ]
        self._left[key] = 0 if out else sum(map(len, some))
        _in_turns([self._work(part, [band], True, True) for part in some], total)

    def chunks(self) -> list[list[Chunk]]:
        """Return the column tiles of each core that has some, in pieces."""
        mine = [
            [chunk for run in self.runs if run.core == core for chunk in self._cut(run)]
            for core in cores(self.low.config)
        ]
        return [chunks for chunks in mine if chunks]

    def weight_rows(self, core: Core) -> int:
        """Return the weight rows of all of a core's column tiles."""
        return sum(run.tile_rows * run.tiles for run in self.runs if run.core == core)

    def cover(self, row: int, rows: int) -> Band:
        """Return the least band of the only item that computes some row tiles."""
        if self.g is None:
            return row_band(Piece(row, rows))
        low, lanes = self.low, self.low.config.lanes
        unit = self.g.unit(lanes)
        step = unit * self.g.pitch // lanes
        first = row // step
        count = min(ceil_div(row + rows, step), ceil_div(self.g.out_height, unit)) - first
        in_rows, out_rows = (low.rows_per_item(low.tensor(name)) for name in (self.x, self.out))
        return window_band(self.g, lanes, in_rows, out_rows, Piece(first, count))

    # How the layer is divided

    def _cut(self, run: Run) -> list[Chunk]:
        """Split a run so that the weights of two chunks fit, or those of a tile into parts."""
        tuning, config, depth = self.low.tuning, self.low.config, run.core.depth
        if run.tile_rows > depth // 2 and not run.pool:
            single = self.g is None or config.lanes % self.g.pitch == 0 or (
                self.low.rows_per_item(self.low.tensor(self.out)) == 1
            )  # fmt: skip
            if run.tile_rows > depth and not single:
                raise CompileError(
                    f"{self.op.name}: a column tile has {run.tile_rows} weight rows, more than"
                    f" {depth}, and a row tile begins inside a line; raise"
                    f" {'weight_depth' if run.core.space == Space.WEIGHT else 'lut_weight_depth'}"
                )
            parts = [(0, run.blocks)]
            if single:
                most = max(1, int(depth * PART_SHARE) // run.block_rows)
                parts = pieces(run.blocks, ceil_div(run.blocks, most))
            return [self._chunk(run.cut(tile, 1), parts) for tile in range(run.tiles)]
        most = int(depth * tuning.chunk_share) // run.tile_rows
        most = min(most, tuning.chunk_tiles,
                   config.parameter_depth // 4 // (run.words * config.block))  # fmt: skip
        first = min(self._first_tiles(run), most, run.tiles - 1) if run is self.runs[0] else 0
        rest = run.tiles - first
        cuts = pieces(rest, ceil_div(rest, max(most, 1)))
        cuts = [(0, first)] * bool(first) + [(first + start, count) for start, count in cuts]
        return [self._chunk(run.cut(*cut), [(0, run.blocks)]) for cut in cuts]

    def _chunk(self, run: Run, parts: list[tuple[int, int]]) -> Chunk:
        return Chunk(self.low, self.op.name, self.entries, run, parts)

    def _first_tiles(self, run: Run) -> int:
        """Return how many column tiles hide the load of the next row tile."""
        low = self.low
        if self.g is not None or not low.is_loaded(self.x):
            return 1
        words = low.words(low.tensor(self.x))
        return ceil_div(words * low.config.word_bytes // low.config.axi_bytes, run.tile_rows)

    def _bands(self, fit: bool) -> list[Band]:
        low, config = self.low, self.low.config
        x, out = low.tensor(self.x), low.tensor(self.out)
        limits = {"inputs": MOST_ROW_TILES, "outputs": MOST_ROW_TILES}  # runs of a LOAD, too
        streamed_residual = low.is_streamed(self.residual)
        if low.is_streamed(self.x):
            share = low.tuning.input_share * (2 / 3 if streamed_residual else 1)
            words = low.scratch(Space.ACTIVATION, share)
            limits["inputs"] = min(limits["inputs"], words // low.words(x))
        for name in (self.out, self.residual):
            if low.is_streamed(name):
                space = Space.WIDE if low.tensor(name).bits == 16 else Space.ACTIVATION
                limits["outputs"] = min(limits["outputs"], low.scratch(space) // low.words(out))
        early = low.is_loaded(self.x) or low.is_stored(self.out)
        bands = low.tuning.pieces if early and (fit or not low.is_streamed(self.x)) else 1
        most = Limits(**limits, bands=bands)
        if self.g is None:
            return row_bands(low.rows(out), most)
        return window_bands(self.g, config.lanes, most, out.batch, low.rows_per_item(x),
                            low.rows_per_item(out))  # fmt: skip

    def _zone(self, band: Band, zone: Zone) -> Band | None:
        """Return the part of a band that belongs to a zone; None: nothing does."""
        if zone == Zone.ALL:
            return band
        piece = band.piece
        ends = [int(self.tail * unit) for unit in (piece.first, piece.first + piece.count)]
        tail = ends[1] - ends[0]
        head = piece.count - tail
        start, count = (0, head) if zone == Zone.HEAD else (head, tail)
        if not count:
            return None
        part = Piece(piece.first + start, count, piece.item)
        if self.g is None:
            return row_band(part)
        x, out = self.low.tensor(self.x), self.low.tensor(self.out)
        return window_band(self.g, self.low.config.lanes, self.low.rows_per_item(x),
                           self.low.rows_per_item(out), part)  # fmt: skip

    def _reload_weights(self, bands: list[Band]) -> int:
        """Bytes of weights that come again if bands are the outer loop."""
        rows = sum(run.tile_rows * run.tiles * run.core.columns for run in self.runs)
        return rows * (len(bands) - 1)

    def _reload_inputs(self, bands: list[Band], passes: int) -> int:
        """Bytes of the input that come again if the weights are the outer loop."""
        if not self.low.is_streamed(self.x):
            return 0
        rows = sum(band.in_rows for band in bands)
        words = rows * self.low.words(self.low.tensor(self.x))
        return words * self.low.config.word_bytes * (passes - 1)

    # One core's instructions, in order

    def _work(self, chunks: list[Chunk], bands: list[Band], by_bands: bool, keep: bool
              ) -> Iterator[int]:  # fmt: skip
        """Append the steps of one core; yield the row tiles times weight rows of each."""
        if not by_bands:
            for chunk, band in itertools.product(chunks, bands):
                if (zone := self._zone(band, chunk.run.zone)) is not None:
                    yield from self._pass(chunk, zone, zone, (band.row, chunk))
            return
        for band in bands:
            for chunk in chunks:
                zone = self._zone(band, chunk.run.zone)
                if zone is None:
                    continue
                if not keep:
                    chunk = chunk.afresh()
                yield from self._pass(chunk, zone, band, (band.row,))

    def _pass(self, chunk: Chunk, band: Band, whole: Band, key: tuple) -> Iterator[int]:
        """Append a chunk's instructions on a band, a part of ``whole``, of which the buffers are.

        ``key`` tells who shares them.
        """
        low, run = self.low, chunk.run
        alone = len(key) > 1  # the chunk's words only
        word, words = run.word, run.tiles * run.words
        part = (word, words) if alone else (0, None)
        if key not in self._held:
            self._held[key] = (
                low.read(self.x, whole.in_row, whole.in_rows),
                low.write(self.out, whole.row, whole.rows, *part),
                low.read(self.residual, whole.row, whole.rows, *part) if self.residual else None,
            )
        x, out, residual = self._held[key]
        low.load(x, band.in_row, band.in_rows)
        if residual is not None:
            low.load(residual, band.row, band.rows)
        if len(chunk.parts) == 1:
            for part in self._instructions(band):
                yield self._gemm(chunk, 0, part, x, out, residual)
        else:
            order = list(range(len(chunk.parts)))
            for tile in self._row_tiles(band):
                for index in order:
                    ends = index == order[0], index == order[-1]
                    yield self._gemm(chunk, index, tile, x, out, residual, *ends)
                chunk.forget(order)
                order.reverse()  # what has been used last is still there
        if alone:
            low.store(out, band.row, band.rows, word, words)
            return
        self._left[key] -= 1
        if not self._left[key]:
            low.store(out, whole.row, whole.rows)

    def _instructions(self, band: Band) -> Iterable[Band]:
        """Return the parts of a band of which each has an instruction of its own."""
        if self.g is None or not self.g.by_lines:
            return [band]
        low = self.low
        in_rows, out_rows = (low.rows_per_item(low.tensor(name)) for name in (self.x, self.out))
        return lines(self.g, low.config.lanes, in_rows, out_rows, band)

    def _row_tiles(self, band: Band) -> Iterator[Band]:
        """Yield bands of single row tiles."""
        for tile in range(band.rows):
            if self.g is None:
                row = band.row + tile
                yield Band(row, 1, row, 1, row)
                continue
            in_tile = self.low.config.lanes // self.g.pitch
            yield dataclasses.replace(
                band, row=band.row + tile, rows=1, a_row=band.a_row + self.g.input_tile(tile),
                y=band.y + tile * in_tile * self.g.y_stride,
            )  # fmt: skip

    def _gemm(self, chunk: Chunk, index: int, band: Band, x: Held, out: Held,
              residual: Held | None, first: bool = True, last: bool = True) -> int:  # fmt: skip
        """Append one instruction; return its row tiles times its weight rows."""
        low, run, op = self.low, chunk.run, self.op
        start, blocks = chunk.parts[index]
        words = run.tiles * run.words
        w = chunk.weights(index)
        a_word = run.a_word + start
        width = blocks + (run.tiles - 1) * run.a_step
        rows = run.tiles * (1 if run.pool else blocks * run.block_rows)
        reads = [
            x.region(band.in_row, band.in_rows, a_word, width),
            Region(w.buffer, w.offset, rows),
        ]
        writes, flags = [], {}
        if self.g is not None:
            taps = self._window(run, band, x)
            reads.append(Region(taps, 0, taps.size))
            flags |= {"windowed": 1, "pool": int(run.pool)}
        if last:
            parameters = chunk.parameters
            reads.append(Region(parameters.buffer, 0, parameters.buffer.size))
            writes.append(out.region(band.row, band.rows, run.word, words))
            function = getattr(op, "function", Function.NONE)
            flags |= {"parameter": parameters, "function": function}
            if function == Function.TABLE:
                reads.append(Region(low.table(op.name, op.table), 0, TABLE_UNITS))
            if residual is not None:
                reads.append(residual.region(band.row, band.rows, run.word, words))
                flags |= {
                    "residual": 1,
                    "residual_address": residual.place(band.row, run.word),
                    "residual_row_stride": residual.stride,
                    "residual_shift": op.residual_shift,
                    "residual_narrow": int(residual.buffer.space == Space.ACTIVATION),
                }
        full = run.words * low.config.block == run.core.columns
        low.emit(
            run.core.gemm, reads, writes,
            a=x.place(band.a_row, a_word),
            a_row_stride=x.stride * (self.g.tile_step if self.g else 1),
            a_column_stride=run.a_step if run.tiles > 1 else 0,
            row_tiles=band.rows, column_tiles=run.tiles, blocks=blocks, beats=run.beats,
            w=w, accumulate=int(not first), hold=int(not last),
            wide=int(out.buffer.space == Space.WIDE),
            out=out.place(band.row, run.word), out_row_stride=out.stride,
            words=0 if full else run.words, **flags,
        )  # fmt: skip
        return band.rows * rows

    def _window(self, run: Run, band: Band, x: Held) -> Buffer:
        """Set the window of the run's core; return where its taps are."""
        low, g, lanes = self.low, self.g, self.low.config.lanes
        if self._taps is None:
            step = low.config.entries_per_beat  # entries of a beat
            entries = g.entries(lanes, x.stride)
            entries = np.pad(entries, (0, -len(entries) % step))
            self._taps = low.parameters(f"{self.op.name}.taps", entries, (x.stride,), Space.TAP)
        low.window(run.core.window, self._taps, **g.operands(lanes, x.stride, band.y, band.height))
        return self._taps


def _in_turns(work: list[Iterator[int]], total: list[int]) -> None:
    """Run all iterators; the one that has done the smaller share of its ``total`` is next."""
    queue = [(0.0, number) for number in range(len(work))]
    while queue:
        share, number = heapq.heappop(queue)
        rows = next(work[number], None)
        if rows is not None:
            heapq.heappush(queue, (share + rows / total[number], number))

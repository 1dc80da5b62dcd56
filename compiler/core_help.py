"""One core helps the other: who computes which row tiles of a layer.

Rounding to column tiles leaves one core idle. It computes the outputs of the other one too, in the
tail of the row tiles: the LUT core with as many planes as the weights of the DSP core have bits,
the DSP core with the positions that the weights of the LUT core fill.
"""

import dataclasses
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from twillcore.compiler.column_tiles import Run, Zone, cores, dense_runs, layer_runs
from twillcore.compiler.graph import Conv, Linear
from twillcore.compiler.lowering import Lowering, ceil_div
from twillcore.compiler.split import MOST_HELPED, lut_block_cycles
from twillcore.compiler.steps import Space
from twillcore.compiler.tap_tables import Geometry
from twillcore.config import Config
from twillcore.isa import Opcode
from twillcore.timing import lut_phases
from twillcore.weights import encoded_rows, plane_row_bytes, smallest_format, weight_row_bytes


@dataclass(frozen=True)
class Division:
    """Column tiles of both cores, and which share of the row tiles is in :attr:`Zone.TAIL`."""

    runs: list[Run]
    tail: Fraction = Fraction(0)
    helper: Opcode | None = None
    bits: int = 0  # of the weights that the LUT core takes over


def divide(low: Lowering, op: Conv | Linear, g: Geometry | None,
            weight: NDArray[np.int8] | None) -> Division:  # fmt: skip
    """Return the column tiles of a layer; a core that would idle helps the other one if it pays."""
    config, outputs = low.config, len(op.weight)
    runs = layer_runs(op, config, weight)
    if not config.lut_columns or not op.help or getattr(op, "groups", 1) > 1:
        return Division(runs)
    out, first = low.tensor(op.out), outputs - op.lut_channels
    if g is None:
        units, tiles = low.rows(out), 1
    else:
        units = out.batch * ceil_div(g.out_height, g.unit(config.lanes))
        tiles = g.unit(config.lanes) * g.pitch // config.lanes
    if weight is None:
        weight = op.weight.reshape(outputs, -1, op.weight.shape[-1])
    dsp_core, lut_core = cores(config)
    helpers, bits = {}, 0
    if first:
        here = op.weight[:first].astype(np.int64)
        bits = int(max(here.max(), ~here.min())).bit_length() + 1
        helpers[dsp_core] = list(dense_runs(lut_core, weight[:first], 0, 0, config, bits))
    if op.lut_channels:
        word = first // config.block
        helpers[lut_core] = list(dense_runs(dsp_core, weight[first:], word, 0, config, 0))
    stride, phases = g.stride if g else 1, lut_phases(config)
    beats = next((run.beats for run in runs if run.core == dsp_core), config.block)

    def cycles(some: list[Run]) -> float:
        total = 0.0
        for run in some:
            on_lut = run.core == lut_core
            block = max(run.beats, stride)
            if on_lut:
                block = lut_block_cycles(beats, run.beats, stride, phases)
            steps = run.values.shape[2] * run.blocks * block
            total += run.tiles * max(steps, run.words * config.block)
        return total * tiles

    def transfers(some: list[Run]) -> float:
        return sum(_load_beats(run, config) for run in some)

    maps = [low.tensor(name) for name in (op.x, op.residual)
            if name is not None and low.is_loaded(name)]  # fmt: skip
    words = sum(low.rows(tensor) * low.words(tensor) for tensor in maps)
    bus = words * config.word_bytes // config.axi_bytes + transfers(runs)
    own = {core: [run for run in runs if run.core == core] for core in (dsp_core, lut_core)}
    times = {core: cycles(own[core]) for core in own}
    alone = max(*times.values()) * units
    best, division = max(alone, bus) * MOST_HELPED, Division(runs)
    for helped, helper in ((dsp_core, lut_core), (lut_core, dsp_core)):
        if helped not in helpers:
            continue
        if any(run.tile_rows > run.core.depth // 2 for run in helpers[helped]):
            continue
        extra, load = cycles(helpers[helped]), bus + transfers(helpers[helped])
        for tail in range(1, units):
            time = max(times[helped] * (units - tail), times[helper] * units + extra * tail, load)
            if time < best:
                best = time
                head = [dataclasses.replace(run, zone=Zone.HEAD) for run in own[helped]]
                more = [dataclasses.replace(run, zone=Zone.TAIL) for run in helpers[helped]]
                division = Division(
                    [*head, *own[helper], *more], Fraction(tail, units), helper.gemm, bits
                )
    return division


def _load_beats(run: Run, config: Config) -> int:
    """Return the beats of the memory port that a run's weights take."""
    rows = run.tiles * run.tile_rows
    if run.core.space == Space.LUT_WEIGHT:
        return rows * plane_row_bytes(config) // config.axi_bytes
    rows = encoded_rows(rows, run.beats, smallest_format(run.beats, config), config)
    return rows * weight_row_bytes(config) // config.axi_bytes

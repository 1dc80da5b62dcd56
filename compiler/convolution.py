"""Convolutions, pooling, and linear layers of feature maps or of two cores, as GEMMs.

Each becomes column tiles (:mod:`~twillcore.compiler.column_tiles`) whose taps look where
:mod:`~twillcore.compiler.tap_tables` says, divided between the cores by
:mod:`~twillcore.compiler.core_help`, on bands of lines (:mod:`~twillcore.compiler.banded_layer`).
The channel blocks of a map stand next to each other in a row tile, without filling up to whole
column tiles.
"""

import numpy as np
from numpy.typing import NDArray

from twillcore.compiler.banded_layer import BandedLayer
from twillcore.compiler.column_tiles import Zone, identity_runs, pool_run
from twillcore.compiler.core_help import divide
from twillcore.compiler.drain import channel_entries, clear_padding, fills_with_zeros
from twillcore.compiler.graph import Concat, Conv, Linear, Map, MaxPool, Tensor
from twillcore.compiler.lowering import Lowering, ceil_div, parameter_entries
from twillcore.compiler.tap_tables import geometry, without_zeros
from twillcore.config import Config
from twillcore.isa import Opcode


def begin_layer(low: Lowering, op: Conv | Linear | MaxPool) -> BandedLayer:
    """Begin a layer: convolution, max pooling, or linear with outputs that are tiled exactly."""
    if isinstance(op, MaxPool):
        low.layer(op.name)
        out = low.tensor(op.out)
        runs = pool_run(out.channels, low.config)
        entries = _plain_entries(out, low.config)
        return BandedLayer(low, op, geometry(low, op), runs, entries, op.x, op.out)
    config, out = low.config, low.tensor(op.out)
    g, weight = without_zeros(low, op, geometry(low, op) if isinstance(op, Conv) else None)
    division = divide(low, op, g, weight)
    each = op.weight.shape[-1]  # inputs of an output in one tap
    kept = min(op.beats * ceil_div(each, config.block), each)
    inputs = op.weight[0].size
    if weight is not None:  # blocks of zeros are no work
        inputs = (
            inputs * weight.shape[1] // (op.weight[0].size // each * ceil_div(each, config.block))
        )
    lut = op.lut_channels * out.batch * out.rows * inputs
    macs = out.channels * out.batch * out.rows * inputs
    useful, lut_work = (macs - lut) * kept // each, lut * op.lut_bits
    tail = division.tail
    if division.helper == Opcode.LUT_GEMM:
        lut_work += round(useful * tail) * division.bits
        lut += round((macs - lut) * tail)
        useful -= round(useful * tail)
    elif division.helper == Opcode.GEMM:
        beats = next(run.beats for run in division.runs if run.zone == Zone.TAIL)
        useful += round(lut * tail * min(beats * ceil_div(each, config.block), each) / each)
        lut_work -= round(lut_work * tail)
        lut -= round(lut * tail)
    low.layer(op.name, macs, useful, lut, lut_work)
    largest = np.abs(op.weight.astype(np.int32)).reshape(len(op.weight), -1).sum(axis=1)
    low.require_accumulator(op.name, int(largest.max(initial=0)) << 7)
    entries = channel_entries(low, op)
    return BandedLayer(low, op, g, division.runs, entries, op.x, op.out, division.tail)


def lower_conv(low: Lowering, op: Conv | Linear) -> None:
    """Append the steps of a convolution, or of a linear layer whose outputs are tiled exactly."""
    begin_layer(low, op).lower()
    if not fills_with_zeros(low, op):
        clear_padding(low, op)


def lower_map(low: Lowering, op: Map) -> None:
    """Append the steps of a Map whose outputs are tiled exactly."""
    low.layer(op.name)
    entries = channel_entries(low, op)
    runs = identity_runs(low.tensor(op.out).channels, low.config)
    BandedLayer(low, op, None, runs, entries, op.x, op.out).lower()
    if not fills_with_zeros(low, op):
        clear_padding(low, op)


def _plain_entries(tensor: Tensor, config: Config) -> NDArray[np.uint64]:
    """Return parameters that leave values as they are."""
    channels = ceil_div(tensor.channels, config.block) * config.block
    return parameter_entries(np.zeros(channels, np.int64), 1, 0, 0)


def lower_max_pool(low: Lowering, op: MaxPool) -> None:
    """Append the steps of a max pooling."""
    begin_layer(low, op).lower()


def lower_concat(low: Lowering, op: Concat) -> None:
    """Copy those parts into a concatenation that do not lie in it."""
    low.layer(op.name)
    word = 0
    for name in op.parts:
        part = low.tensor(name)
        if not low.is_part_of(name, op.out):
            entries = np.tile(_plain_entries(part, low.config), 1)
            padding = np.zeros(word * low.config.block, np.uint64)
            runs = identity_runs(part.channels, low.config, word)
            entries = np.concatenate([padding, entries])
            BandedLayer(low, op, None, runs, entries, name, op.out).lower()
        word += low.words(part)

"""Strides that windows cannot do, or not well: inputs folded by the host, convolutions in steps.

*Space to depth*: an input image is folded so that a pixel of the folded image holds stride * stride
pixels. A convolution with that stride becomes one with stride 1 and a smaller kernel, on more
channels. The graph's input is the folded image; its :class:`Layout` says how the host makes it.
"""

from collections import Counter
from dataclasses import replace

import numpy as np

from twillcore.compiler.float_graph import (
    FloatConv,
    FloatGraph,
    FloatLinear,
    FloatMap,
    FloatMaxPool,
    FloatOp,
    FloatTensor,
    Layout,
    float_reads,
)
from twillcore.compiler.graph import both_directions
from twillcore.compiler.limits import WINDOW_STRIDES
from twillcore.compiler.shares import NO_SHARES, LutShare, Shares
from twillcore.compiler.sparsify import window_beats
from twillcore.compiler.split import LayerShape, finish_cycles, split_channels
from twillcore.config import Config

MOST_CHANNELS = 16  # of the folded image, if the convolution could do without


def reduce_strides(
    graph: FloatGraph,
    config: Config,
    shares: Shares = NO_SHARES,
    fold_inputs: bool | None = None,
) -> FloatGraph:
    """Return ``graph`` with strides that windows can do: horizontal ones of 1 and 2 only.

    ``fold_inputs`` says whether inputs of convolutions with stride 2 and few channels are folded;
    None: where the convolution is faster then, which depends on the cores that compute it, in
    ``shares``. Those of other strides are folded whenever possible.
    """
    uses = Counter(name for op in graph.ops for name in float_reads(op))
    uses.update(name for name, _, _ in graph.outputs)
    tensors, inputs, ops = dict(graph.tensors), dict(graph.inputs), []
    for op in graph.ops:
        if (
            isinstance(op, FloatConv)
            and op.stride != 1
            and op.dilation == 1
            and op.groups == 1
            and op.x in inputs
            and uses[op.x] == 1
            and _folds(graph, op, config, shares.of(op.name), fold_inputs)
        ):
            op, tensors[op.x], inputs[op.x] = _fold(graph, op, config.block)
        if isinstance(op, FloatConv | FloatMaxPool) and op.stride not in WINDOW_STRIDES:
            ops += _in_steps(op, tensors)
            continue
        if (
            isinstance(op, FloatConv)
            and not config.tap_depth
            and op.weight.shape[1:3] == (1, 1)
            and (op.stride, op.padding, op.groups) == (1, (0, 0), 1)
        ):
            op = FloatLinear(
                op.name, op.out, op.x, op.weight[:, 0, 0], op.bias, op.residual, op.function
            )
        ops.append(op)
    return replace(graph, tensors=tensors, inputs=inputs, ops=tuple(ops))


def _folds(
    graph: FloatGraph, op: FloatConv, config: Config, share: LutShare | None, wanted: bool | None
) -> bool:
    """Whether to fold the input of a convolution."""
    if op.stride not in WINDOW_STRIDES or not config.tap_depth:
        return True
    channels = op.weight.shape[3]
    if wanted is not None or channels * op.stride**2 > MOST_CHANNELS:
        return bool(wanted) and channels * op.stride**2 <= MOST_CHANNELS
    folded = _fold(graph, op, config.block)[0]
    rows = graph.tensors[op.out].batch * graph.tensors[op.out].rows
    return _cycles(folded, rows, config, share) < _cycles(op, rows, config, share)


def _cycles(op: FloatConv, rows: int, config: Config, share: LutShare | None) -> float:
    """Estimate the cycles of a convolution; a block with stride 2 takes at least two of each."""
    outputs, height, width, channels = op.weight.shape
    beats = window_beats(np.sign(op.weight).astype(np.int8), 1, config.block)
    shape = LayerShape(
        rows=rows,
        blocks=-(-channels // config.block),
        channels=outputs,
        beats=max(beats, op.stride),
        lut_bits=8 if share is None else max(share.bits, op.stride),
        taps=height * width,
    )
    lut = 0 if share is None else split_channels(config, shape, share.share)
    return finish_cycles(config, shape, lut)


def _fold(graph: FloatGraph, op: FloatConv, block: int) -> tuple[FloatConv, FloatTensor, Layout]:
    """Return the convolution on the folded image, that image, and its layout."""
    source, outputs, channels = graph.tensors[op.x], len(op.weight), op.weight.shape[3]
    sizes = op.weight.shape[1:3]
    strides = both_directions(op.stride)
    steps = [
        1 if n == 1 and k == 1 else step
        for n, k, step in zip(source.grid, sizes, strides, strict=True)
    ]
    grid = tuple(-(-n // s) for n, s in zip(source.grid, steps, strict=True))
    # a tap at distance d is position d mod s of the folded pixel at distance d div s
    distances = [np.arange(k) - before for k, before in zip(sizes, op.padding, strict=True)]
    first = [int(d[0]) // s for d, s in zip(distances, steps, strict=True)]
    length = [
        int(d[-1]) // s - start + 1 for d, s, start in zip(distances, steps, first, strict=True)
    ]
    kernel = np.zeros((outputs, length[0], length[1], steps[0], steps[1], channels), np.float32)
    for i, y in enumerate(distances[0]):
        for j, x in enumerate(distances[1]):
            place = y // steps[0] - first[0], x // steps[1] - first[1], y % steps[0], x % steps[1]
            kernel[:, *place] = op.weight[:, i, j]
    index = _spread(steps[0] * steps[1] * channels, block)
    weight = kernel.reshape(outputs, *length, -1)[..., index] * (index >= 0).astype(np.float32)
    folded = replace(op, weight=weight, stride=1, padding=(-first[0], -first[1]))
    image = replace(source, rows=grid[0] * grid[1], channels=len(index), grid=grid)
    layout = Layout(
        (source.batch, *grid, *steps, channels),
        (0, 5, 1, 3, 2, 4),  # batch, channel, line and line in it, column and column in it
        graph.inputs[op.x].shape,
        tuple(zip((source.batch, channels, *source.grid),
                  (source.batch, channels, grid[0] * steps[0], grid[1] * steps[1]), strict=True)),
        tuple(map(int, index)),
    )  # fmt: skip
    return folded, image, layout


def _spread(channels: int, block: int) -> np.ndarray:
    """Return which channel lies where, -1: none, so that blocks are evenly filled."""
    blocks = -(-channels // block)
    each = -(-channels // blocks)
    index = np.full(blocks * block, -1)
    for channel in range(channels):
        index[channel // each * block + channel % each] = channel
    return index[: (channels - 1) // each * block + (channels - 1) % each + 1]


def _in_steps(op: FloatConv | FloatMaxPool, tensors: dict[str, FloatTensor]) -> list[FloatOp]:
    """Return ``op`` with a stride that windows can do, and what takes every n-th of its results.

    ``tensors`` gets those between the steps.
    """
    final = tensors[op.out]
    left = both_directions(op.stride)
    pixel = isinstance(op, FloatMaxPool) and (op.kernel, op.padding) == ((1, 1), (0, 0))
    if getattr(op, "residual", None) is not None and _first_step(left, pixel) != left:
        alone = f"{op.out}.alone"
        tensors[alone] = replace(final, name=alone)
        ones = np.ones(final.channels, np.float32)
        tail = FloatMap(op.name, op.out, alone, ones, ones * 0, op.residual, op.function)
        return [*_in_steps(replace(op, out=alone, residual=None, function=None), tensors), tail]
    ops: list[FloatOp] = []
    x = op.x
    while left != (1, 1):
        step = _first_step(left, pixel)
        left = left[0] // step[0], left[1] // step[1]
        whole = left == (1, 1)
        out = op.out if whole else f"{op.out}.every{left[0]}x{left[1]}"
        grid = tuple((n - 1) * step + 1 for n, step in zip(final.grid, left, strict=True))
        tensors[out] = replace(final, name=out, rows=grid[0] * grid[1], grid=grid)
        stride = step[0] if step[0] == step[1] else step
        if not ops:
            ops.append(replace(op, out=out, stride=stride))
        else:
            ops.append(FloatMaxPool(op.name, out, x, (1, 1), stride, (0, 0)))
        pixel, x = True, out
    return ops


def _first_step(stride: tuple[int, int], pixel: bool) -> tuple[int, int]:
    """Return which part of a stride comes first; of a window of one ``pixel`` it may be anything.

    All vertical steps come first, since windows can do any number of them, and of the horizontal
    ones a factor of 2.
    """
    down, right = stride
    if right % 2 == 0:
        return down, 2
    return down, right if pixel else 1

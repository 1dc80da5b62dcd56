"""The quantised graph in numpy: the oracle of every other engine. It knows no instructions.

Every op is one function below, a transcription of its docstring in
:mod:`twillcore.compiler.graph` into calls of :mod:`twillcore.numerics`.
"""

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from twillcore import numerics
from twillcore.compiler.graph import (
    Attention,
    Concat,
    Conv,
    Elementwise,
    Graph,
    LayerNorm,
    Linear,
    Map,
    MatMul,
    MaxPool,
    Op,
    Softmax,
    both_directions,
    reads,
)
from twillcore.image import MASKED_BIAS, ProgramError
from twillcore.isa import ElementwiseOp, Function

Ints = NDArray[np.int64]
Tensors = dict[str, Ints]


def run_graph(
    graph: Graph, inputs: Mapping[str, NDArray], *, every_tensor: bool = False
) -> dict[str, Ints]:
    """Execute ``graph`` and return its outputs, or every tensor if asked to.

    ``inputs`` are integer arrays (batch, rows, channels), masks boolean ones (batch, 1, keys).

    Raises
    ------
    ProgramError
        If input names, shapes or values are wrong; all problems in one message.
    """
    _check_inputs(graph, inputs)
    values: Tensors = {name: np.asarray(inputs[name]).astype(np.int64) for name in inputs}
    for op in graph.ops:
        values.update(run_op(graph, op, {name: values[name] for name in reads(op)}))
    return values if every_tensor else {name: values[name] for name in graph.outputs}


def run_op(graph: Graph, op: Op, values: Mapping[str, Ints]) -> Tensors:
    """Execute one op of ``graph`` on the tensors it reads and return those that it writes."""
    return _OPS[type(op)](graph, op, values)


def exact_matmul(a: ArrayLike, b: ArrayLike) -> Ints:
    """Return the exact product of integer matrices with int8 entries, or slightly wider ones.

    It is computed in float64, for the speed of BLAS: partial sums stay below 2**53, so it is exact.
    """
    a, b = np.asarray(a), np.asarray(b)
    return np.rint(a.astype(np.float64) @ b.astype(np.float64)).astype(np.int64)


def _check_inputs(graph: Graph, inputs: Mapping[str, NDArray]) -> None:
    expected = {*graph.inputs, *graph.masks}
    problems = []
    if missing := sorted(expected - inputs.keys()):
        problems.append(f"missing inputs: {', '.join(missing)}")
    if unknown := sorted(inputs.keys() - expected):
        problems.append(f"unknown inputs: {', '.join(unknown)}")
    for name in sorted(expected & inputs.keys()):
        tensor, array = graph.tensors[name], np.asarray(inputs[name])
        if array.shape != tensor.shape:
            problems.append(f"{name}: shape must be {tensor.shape}, not {array.shape}")
        elif tensor.bits > 1 and array.dtype.kind not in "iu":
            problems.append(f"{name}: values must be integers, not {array.dtype}")
        elif tensor.bits > 1 and (numerics.saturate(array, tensor.bits) != array).any():
            problems.append(f"{name}: values must fit in int{tensor.bits}")
    if problems:
        raise ProgramError("; ".join(problems))


def _narrowed(graph: Graph, name: str, x: Ints, shift: ArrayLike) -> Ints:
    """``x`` as the tensor ``name`` holds it: int16, or int8 after ``narrow``."""
    return numerics.narrow(x, shift) if graph.tensors[name].bits == 8 else x


def _finish(
    graph: Graph, op: Linear | Conv | Map, acc: Ints, values: Mapping[str, Ints]
) -> Tensors:
    """Apply to the sums of a Linear, Conv or Map what the drain does."""
    x = numerics.scale_accumulator(acc, op.bias, op.multiplier, op.shift)
    if op.residual is not None:
        x = numerics.add_residual(x, values[op.residual], op.residual_shift)
    if op.function == Function.RELU:
        x = numerics.relu(x)
    elif op.function == Function.TABLE:
        x = numerics.look_up(x, op.table)
    return {op.out: _narrowed(graph, op.out, x, op.narrow_shift)}


def _linear(graph: Graph, op: Linear, values: Mapping[str, Ints]) -> Tensors:
    return _finish(graph, op, exact_matmul(values[op.x], op.weight.T), values)


def _taps(graph: Graph, op: Conv | MaxPool, x: Ints, fill: int) -> Iterator[NDArray]:
    """Yield for every tap of a window, line by line, the input that each output pixel sees there.

    The arrays are (batch, output height, output width, channels) views of one padded copy of ``x``;
    pixels outside the grid are ``fill``.
    """
    source, target = graph.tensors[op.x].grid, graph.tensors[op.out].grid
    kernel = op.weight.shape[1:3] if isinstance(op, Conv) else op.kernel
    starts = [
        [i * distance for i in range(size)]
        for size, distance in zip(kernel, both_directions(op.dilation), strict=True)
    ]
    down, right = both_directions(op.stride)
    spans = [(target[0] - 1) * down + 1, (target[1] - 1) * right + 1]
    beyond = [
        max(start[-1] + span - before - size, 0)
        for start, span, before, size in zip(starts, spans, op.padding, source, strict=True)
    ]
    padding = [(0, 0), *zip(op.padding, beyond, strict=True), (0, 0)]
    padded = np.pad(x.reshape(len(x), *source, -1), padding, constant_values=fill)
    for y, left in itertools.product(*starts):
        yield padded[:, y : y + spans[0] : down, left : left + spans[1] : right]


def window_sums(graph: Graph, op: Conv, x: Ints) -> Ints:
    """Return the exact accumulators (batch, pixels, N) of a convolution of ``x``.

    Floating point, for the speed of BLAS: in float32 where the weights' magnitudes bound every
    partial sum by 2**24, else in float64; so it is exact.
    """
    n, channels = len(op.weight), op.weight.shape[3]
    weight = op.weight.astype(np.int64)
    bound = int(np.abs(weight).sum((1, 2, 3)).max()) * -numerics.INT8_MIN
    dtype = np.float32 if bound < 1 << 24 else np.float64
    taps = list(_taps(graph, op, x.astype(dtype), 0))
    shape = taps[0].shape[:3]
    if channels == 1 and n == op.groups:  # depthwise: one product per pixel and tap
        kernel = weight.reshape(n, -1).T.astype(dtype)
        sums = np.zeros((*shape, n), dtype)
        for tap, column in zip(taps, kernel, strict=True):
            sums += tap * column
    else:
        kernel = weight.reshape(op.groups, n // op.groups, -1).swapaxes(1, 2).astype(dtype)
        sums = np.empty((*shape, n), dtype)
        grouped = sums.reshape(*shape, op.groups, -1)
        for group in range(op.groups):
            part = slice(group * channels, (group + 1) * channels)
            for item in range(shape[0]):  # one image of columns at a time bounds the memory
                columns = np.concatenate([tap[item, ..., part] for tap in taps], -1)
                grouped[item, ..., group, :] = columns @ kernel[group]
    return sums.astype(np.int64).reshape(shape[0], -1, n)


def _conv(graph: Graph, op: Conv, values: Mapping[str, Ints]) -> Tensors:
    return _finish(graph, op, window_sums(graph, op, values[op.x]), values)


def _max_pool(graph: Graph, op: MaxPool, values: Mapping[str, Ints]) -> Tensors:
    x = values[op.x]
    largest = functools.reduce(np.maximum, _taps(graph, op, x, numerics.INT8_MIN))
    return {op.out: largest.reshape(len(x), -1, x.shape[2])}


def _concat(graph: Graph, op: Concat, values: Mapping[str, Ints]) -> Tensors:
    parts = [values[part] for part in op.parts]
    gaps = [-part.shape[-1] % graph.config.block for part in parts[:-1]] + [0]
    padded = [np.pad(part, [(0, 0), (0, 0), (0, n)]) for part, n in zip(parts, gaps, strict=True)]
    return {op.out: np.concatenate(padded, -1)}


def _map(graph: Graph, op: Map, values: Mapping[str, Ints]) -> Tensors:
    return _finish(graph, op, values[op.x], values)


def _matmul(graph: Graph, op: MatMul, values: Mapping[str, Ints]) -> Tensors:
    b = values[op.b]
    acc = exact_matmul(values[op.a], b.swapaxes(-1, -2) if op.transpose_b else b)
    x = numerics.scale_accumulator(acc, 0, op.multiplier, op.shift)
    return {op.out: _narrowed(graph, op.out, x, op.narrow_shift)}


def _exponentials(graph: Graph, acc: Ints, kept: Ints, multiplier: int, shift: int) -> Ints:
    """Exponentials of logits over the last axis, padded to a multiple of the columns.

    ``acc`` (.., keys) are the sums that become logits; ``kept`` (.., keys) is 0 for excluded keys.
    """
    padding = [(0, 0)] * (acc.ndim - 1) + [(0, -acc.shape[-1] % graph.config.dsp_columns)]
    bias = np.where(np.pad(np.broadcast_to(kept, acc.shape), padding) != 0, 0, MASKED_BIAS)
    logits = numerics.scale_accumulator(np.pad(acc, padding), bias, multiplier, shift)
    return numerics.exponential(logits, logits.max(-1, keepdims=True))


def _attention(graph: Graph, op: Attention, values: Mapping[str, Ints]) -> Tensors:
    def split(x: Ints) -> Ints:  # (batch, rows, heads * channels) -> (batch, heads, rows, channels)
        return x.reshape(*x.shape[:2], op.heads, op.head_channels).swapaxes(1, 2)

    q, k, v = (split(values[name]) for name in (op.q, op.k, op.v))
    keys = k.shape[2]
    kept = np.int64(1) if op.mask is None else values[op.mask][:, None]  # (batch, 1, 1, keys)
    acc = exact_matmul(q, k.swapaxes(-1, -2))
    e = _exponentials(graph, acc, kept, op.multiplier, op.shift)
    m, s = numerics.lane_scale(e.sum(-1), op.numerator, op.lane_shift)
    x = numerics.scale_accumulator(exact_matmul(e[..., :keys], v), 0, m[..., None], s[..., None])
    x = x.swapaxes(1, 2).reshape(values[op.q].shape)
    return {op.out: _narrowed(graph, op.out, x, op.narrow_shift)}


def _softmax(graph: Graph, op: Softmax, values: Mapping[str, Ints]) -> Tensors:
    x = values[op.x]
    e = _exponentials(graph, x, np.int64(1), op.multiplier, op.shift)
    m, s = numerics.lane_scale(e.sum(-1), op.numerator, op.lane_shift)
    kept = e[..., : x.shape[-1]]
    scaled = numerics.scale_accumulator(kept, 0, m[..., None], s[..., None])
    return {op.out: numerics.narrow(scaled, 0)}


def _layer_norm(graph: Graph, op: LayerNorm, values: Mapping[str, Ints]) -> Tensors:
    x = values[op.x]
    y = numerics.layer_norm(x, x.shape[-1], op.epsilon, op.gamma, op.beta, op.shift)
    results = {}
    if op.out is not None:
        results[op.out] = numerics.narrow(y, op.narrow_shift)
    if op.wide_out is not None:
        results[op.wide_out] = y
    return results


def _elementwise(graph: Graph, op: Elementwise, values: Mapping[str, Ints]) -> Tensors:
    a, b = values[op.a], values[op.b]
    if op.op == ElementwiseOp.ADD:
        x = numerics.elementwise_add(a, b, op.a_multiplier, op.b_multiplier, op.shift)
    else:
        x = numerics.elementwise_multiply(a, b, op.a_multiplier, op.shift)
    return {op.out: _narrowed(graph, op.out, x, op.narrow_shift)}


_OPS: dict[type[Op], Callable[[Graph, Op, Mapping[str, Ints]], Tensors]] = {
    Linear: _linear,
    Conv: _conv,
    MaxPool: _max_pool,
    Concat: _concat,
    Map: _map,
    MatMul: _matmul,
    Attention: _attention,
    Softmax: _softmax,
    LayerNorm: _layer_norm,
    Elementwise: _elementwise,
}

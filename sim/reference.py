"""The quantised graph in numpy: the oracle of every other engine. It knows no instructions.

Every op is one function below, a transcription of its docstring in
:mod:`twillcore.compiler.graph` into calls of :mod:`twillcore.numerics`.
"""

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from twillcore import numerics
from twillcore.compiler.graph import (
    Attention,
    Elementwise,
    Graph,
    LayerNorm,
    Linear,
    Map,
    MatMul,
    Op,
    Softmax,
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


def _finish(graph: Graph, op: Linear | Map, acc: Ints, values: Mapping[str, Ints]) -> Tensors:
    """Apply to the sums of a Linear or Map what the drain does."""
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
    Map: _map,
    MatMul: _matmul,
    Attention: _attention,
    Softmax: _softmax,
    LayerNorm: _layer_norm,
    Elementwise: _elementwise,
}

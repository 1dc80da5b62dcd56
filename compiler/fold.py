"""The float graph with fewer ops: factors, functions and residuals go into linear layers."""

from collections import Counter
from dataclasses import replace

import numpy as np

from twillcore.compiler.float_graph import (
    FloatAdd,
    FloatConv,
    FloatGraph,
    FloatLayerNorm,
    FloatLinear,
    FloatMap,
    FloatOp,
    Floats,
    float_reads,
    without_dead,
)
from twillcore.compiler.graph import both_directions


def fold(graph: FloatGraph, vector_engine: bool = True) -> FloatGraph:
    """Return an equivalent graph.

    A :class:`FloatMap` (batch norm, factor, offset, function) joins the linear layer, convolution
    or layer norm before it, or, without a function, those after it; an addition joins the layer
    before it as residual. What remains of additions of images, or without vector engine of all,
    becomes a map with a residual.
    """
    return _shrunk(_additions_into_maps(_shrunk(graph), vector_engine))


def _shrunk(graph: FloatGraph) -> FloatGraph:
    previous: FloatGraph | None = None
    while previous is None or len(graph.ops) < len(previous.ops):
        previous = graph
        for step in (_maps_into_producers, _maps_into_consumers, _additions_into_linears):
            graph = without_dead(step(graph))
    return graph


def _uses(graph: FloatGraph) -> Counter:
    uses = Counter(name for op in graph.ops for name in float_reads(op))
    uses.update(name for name, _, _ in graph.outputs)
    return uses


def _maps_into_producers(graph: FloatGraph) -> FloatGraph:
    uses, ops = _uses(graph), {op.out: op for op in graph.ops}
    for op in graph.ops:
        if not isinstance(op, FloatMap) or uses[op.x] > 1 or op.x not in ops:
            continue
        if op.residual is not None:
            continue
        joined = _joined(ops[op.x], op)
        if joined is not None:
            ops[op.x] = joined  # stays where it was, so that what reads it still follows
            ops[op.out] = ops.pop(op.x)
            return _maps_into_producers(replace(graph, ops=_sorted(graph, ops)))
    return graph


def _sorted(graph: FloatGraph, ops: dict[str, FloatOp]) -> tuple[FloatOp, ...]:
    """Order ``ops`` (by the tensor they write): every tensor is written before it is read."""
    done, result, pending = set(graph.inputs), [], list(ops.values())
    while pending:
        ready = next(op for op in pending if set(float_reads(op)) <= done)
        pending.remove(ready)
        result.append(ready)
        done.add(ready.out)
    return tuple(result)


def _joined(before: FloatOp, op: FloatMap) -> FloatOp | None:
    """Return one op for ``before`` followed by ``op``, if there is one."""
    if getattr(before, "residual", None) is not None and (op.factor != 1).any():
        return None
    if isinstance(before, FloatLinear | FloatConv) and before.function is None:
        return replace(
            before,
            out=op.out,
            weight=_along_outputs(before.weight, op.factor),
            bias=before.bias * op.factor + op.offset,
            function=op.function,
        )
    if isinstance(before, FloatLayerNorm) and op.function is None:
        gamma, beta = before.gamma * op.factor, before.beta * op.factor + op.offset
        return replace(before, out=op.out, gamma=gamma, beta=beta)
    if isinstance(before, FloatMap) and before.function is None:
        factor, offset = before.factor * op.factor, before.offset * op.factor + op.offset
        return replace(op, x=before.x, factor=factor, offset=offset, residual=before.residual)
    return None


def _along_outputs(weight: Floats, factor: Floats) -> Floats:
    return weight * factor.reshape(-1, *[1] * (weight.ndim - 1))


def _along_inputs(op: FloatLinear | FloatConv, vector: Floats) -> Floats:
    """Return a value per input channel in a shape that broadcasts to the weight of ``op``."""
    if isinstance(op, FloatLinear):
        return vector
    per_group = vector.reshape(op.groups, 1, 1, -1)
    return np.repeat(per_group, len(op.weight) // op.groups, 0)


def _maps_into_consumers(graph: FloatGraph) -> FloatGraph:
    ops = list(graph.ops)
    returned = {name for name, _, _ in graph.outputs}
    for op in graph.ops:
        if not isinstance(op, FloatMap) or op.function is not None or op.out in returned:
            continue
        if op.residual is not None:
            continue
        readers = [i for i, reader in enumerate(ops) if op.out in float_reads(reader)]
        if not all(_absorbs(graph, ops[i], op) for i in readers):
            continue
        for i in readers:
            layer = ops[i]
            weight = layer.weight * _along_inputs(layer, op.factor)
            constant = layer.weight * _along_inputs(layer, op.offset)
            bias = layer.bias + constant.reshape(len(constant), -1).sum(1)
            ops[i] = replace(layer, x=op.x, weight=weight, bias=bias)
    return replace(graph, ops=tuple(ops))


def _absorbs(graph: FloatGraph, layer: FloatOp, op: FloatMap) -> bool:
    """Whether a layer can take up a map of its input: not an offset that padding has not."""
    if isinstance(layer, FloatLinear):
        return layer.residual != op.out
    if not isinstance(layer, FloatConv) or layer.residual == op.out:
        return False
    source, target = graph.tensors[layer.x].grid, graph.tensors[layer.out].grid
    reach = [
        (m - 1) * step + (k - 1) * distance - before < n
        for n, m, k, before, step, distance in zip(
            source, target, layer.weight.shape[1:3], layer.padding, both_directions(layer.stride),
            both_directions(layer.dilation), strict=True,
        )
    ]  # fmt: skip
    return not op.offset.any() or (not any(layer.padding) and all(reach))


def _additions_into_linears(graph: FloatGraph) -> FloatGraph:
    uses, ops = _uses(graph), {op.out: op for op in graph.ops}
    order = {op.out: i for i, op in enumerate(graph.ops)}
    for op in graph.ops:
        if not isinstance(op, FloatAdd) or op.a == op.b:
            continue
        sides = [(op.b, op.b_scale, op.a, op.a_scale), (op.a, op.a_scale, op.b, op.b_scale)]
        # the one that is computed last: the other is there by then
        for name, factor, other, other_factor in sorted(
            sides, key=lambda side: -order.get(side[0], -1)
        ):
            linear = ops.get(name)
            fits = (
                isinstance(linear, FloatLinear | FloatConv)
                and uses[name] == 1
                and linear.function is None
                and linear.residual is None
                and other_factor == 1
            )
            if fits:
                factor = np.float32(factor)
                joined = replace(
                    linear,
                    out=op.out,
                    weight=linear.weight * factor,
                    bias=linear.bias * factor,
                    residual=other,
                )
                del ops[name]
                ops[op.out] = joined
                return _additions_into_linears(replace(graph, ops=_sorted(graph, ops)))
    return graph


def _additions_into_maps(graph: FloatGraph, vector_engine: bool) -> FloatGraph:
    """Replace additions by maps with a residual: of images, or without a vector engine all."""
    ops, tensors = [], dict(graph.tensors)
    for op in graph.ops:
        grid = graph.tensors[op.out].grid
        if not isinstance(op, FloatAdd) or (vector_engine and grid in (None, (1, 1))):
            ops.append(op)
            continue
        ones = np.ones(graph.tensors[op.out].channels, np.float32)
        a, a_scale, b, b_scale = op.a, op.a_scale, op.b, op.b_scale
        if a == b:
            ops.append(FloatMap(op.name, op.out, a, ones * np.float32(a_scale + b_scale), ones * 0))
            continue
        if b_scale != 1 and a_scale == 1:
            a, a_scale, b, b_scale = b, b_scale, a, a_scale
        if b_scale != 1:
            scaled = op.out + ".b"
            tensors[scaled] = replace(graph.tensors[b], name=scaled)
            ops.append(FloatMap(op.name, scaled, b, ones * np.float32(b_scale), ones * 0))
            b = scaled
        ops.append(FloatMap(op.name, op.out, a, ones * np.float32(a_scale), ones * 0, b))
    return replace(graph, ops=tuple(ops), tensors=tensors)

"""The float graph with fewer ops: factors, functions and residuals go into linear layers."""

from collections import Counter
from dataclasses import replace

import numpy as np

from twillcore.compiler.float_graph import (
    FloatAdd,
    FloatGraph,
    FloatLayerNorm,
    FloatLinear,
    FloatMap,
    FloatOp,
    float_reads,
    without_dead,
)


def fold(graph: FloatGraph) -> FloatGraph:
    """Return an equivalent graph.

    A :class:`FloatMap` (batch norm, factor, offset, function) joins the linear layer or layer norm
    before it, or, without a function, the linear layers after it; an addition joins the linear
    layer before it as residual.
    """
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
    if isinstance(before, FloatLinear) and before.function is None:
        if before.residual is not None and (op.factor != 1).any():
            return None
        return replace(
            before,
            out=op.out,
            weight=before.weight * op.factor[:, None],
            bias=before.bias * op.factor + op.offset,
            function=op.function,
        )
    if isinstance(before, FloatLayerNorm) and op.function is None:
        gamma, beta = before.gamma * op.factor, before.beta * op.factor + op.offset
        return replace(before, out=op.out, gamma=gamma, beta=beta)
    if isinstance(before, FloatMap) and before.function is None:
        factor, offset = before.factor * op.factor, before.offset * op.factor + op.offset
        return replace(op, x=before.x, factor=factor, offset=offset)
    return None


def _maps_into_consumers(graph: FloatGraph) -> FloatGraph:
    ops = list(graph.ops)
    returned = {name for name, _, _ in graph.outputs}
    for op in graph.ops:
        if not isinstance(op, FloatMap) or op.function is not None or op.out in returned:
            continue
        readers = [i for i, reader in enumerate(ops) if op.out in float_reads(reader)]
        linears = all(
            isinstance(ops[i], FloatLinear) and ops[i].residual != op.out for i in readers
        )
        if not linears:
            continue
        for i in readers:
            linear = ops[i]
            weight = linear.weight * op.factor
            bias = linear.bias + linear.weight @ op.offset
            ops[i] = replace(linear, x=op.x, weight=weight, bias=bias)
    return replace(graph, ops=tuple(ops))


def _additions_into_linears(graph: FloatGraph) -> FloatGraph:
    uses, ops = _uses(graph), {op.out: op for op in graph.ops}
    for op in graph.ops:
        if not isinstance(op, FloatAdd) or op.a == op.b:
            continue
        for name, factor, other, other_factor in (
            (op.b, op.b_scale, op.a, op.a_scale),
            (op.a, op.a_scale, op.b, op.b_scale),
        ):
            linear = ops.get(name)
            fits = (
                isinstance(linear, FloatLinear)
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

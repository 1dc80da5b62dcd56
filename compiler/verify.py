"""What an integer graph must fulfil before the back end sees it."""

from collections.abc import Iterator
from dataclasses import fields

import numpy as np

from twillcore.compiler.errors import CompileError
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
    writes,
)
from twillcore.compiler.sparsify import beats_per_block
from twillcore.isa import Function
from twillcore.numerics import INT8_MIN, TABLE_ENTRIES

#: Legal values of the parameters of ops, inclusive.
LIMITS = {
    "bias": (-(1 << 31), (1 << 31) - 1),
    "beta": (-(1 << 31), (1 << 31) - 1),
    "multiplier": (-(1 << 15), (1 << 15) - 1),
    "a_multiplier": (-(1 << 15), (1 << 15) - 1),
    "b_multiplier": (-(1 << 15), (1 << 15) - 1),
    "gamma": (-(1 << 15), (1 << 15) - 1),
    "table": (-(1 << 15), (1 << 15) - 1),
    "shift": (0, 63),
    "narrow_shift": (0, 15),
    "residual_shift": (-8, 15),
    "epsilon": (0, (1 << 32) - 1),
    "numerator": (1 << 15, (1 << 16) - 1),
    "lane_shift": (23, 63),
}
#: Bits that the inputs of ops must have.
BITS = {
    Linear: {"x": (8,), "residual": (16,), "out": (8, 16)},
    Map: {"x": (8,), "residual": (16,), "out": (8, 16)},
    MatMul: {"a": (8,), "b": (8,), "out": (8, 16)},
    Attention: {"q": (8,), "k": (8,), "v": (8,), "out": (8,), "mask": (1,)},
    Softmax: {"x": (8,), "out": (8,)},
    LayerNorm: {"x": (16,), "out": (8,), "wide_out": (16,)},
    Elementwise: {"a": (8, 16), "b": (8, 16), "out": (8, 16)},
}


def verify(graph: Graph) -> None:
    """Check names, shapes, formats, ranges of parameters and the width of accumulators.

    Raises
    ------
    CompileError
        With all problems in one message.
    """
    problems = list(_problems(graph))
    if problems:
        raise CompileError("\n".join(problems))


def _problems(graph: Graph) -> Iterator[str]:
    known = {*graph.inputs, *graph.masks}
    yield from (f"{name}: no such tensor" for name in sorted(known - graph.tensors.keys()))
    for op in graph.ops:
        label = f"{type(op).__name__} {op.name}"
        missing = [name for name in reads(op) if name not in known]
        if missing:
            yield f"{label}: reads {', '.join(missing)} before it is written"
        names = [*reads(op), *writes(op)]
        unknown = [name for name in names if name not in graph.tensors]
        if unknown:
            yield f"{label}: no tensor {', '.join(unknown)}"
        known |= set(writes(op))
        if missing or unknown:
            continue
        for check in (_formats, _parameters, _shapes, _accumulators):
            yield from (f"{label}: {problem}" for problem in check(graph, op))
    yield from (f"output {name} is never written" for name in graph.outputs if name not in known)


def _formats(graph: Graph, op: Op) -> Iterator[str]:
    for name, allowed in BITS[type(op)].items():
        tensor = getattr(op, name)
        if tensor is not None and graph.tensors[tensor].bits not in allowed:
            bits = graph.tensors[tensor].bits
            yield f"{name} must have {' or '.join(map(str, allowed))} bits, not {bits}"


def _parameters(graph: Graph, op: Op) -> Iterator[str]:
    for field in fields(op):
        value = getattr(op, field.name)
        if field.name not in LIMITS or value is None:
            continue
        low, high = LIMITS[field.name]
        array = np.asarray(value)
        if array.size and (array.min() < low or array.max() > high):
            yield f"{field.name} must be {low}..{high}, not {array.min()}..{array.max()}"


def _vectors(op: Op, channels: int) -> Iterator[str]:
    for field in fields(op):
        value = getattr(op, field.name)
        if not isinstance(value, np.ndarray) or field.name in ("weight", "table"):
            continue
        if value.shape != (channels,):
            yield f"{field.name} must have shape ({channels},), not {value.shape}"


def _shapes(graph: Graph, op: Op) -> Iterator[str]:
    shape = {name: graph.tensors[getattr(op, name)].shape
             for name in BITS[type(op)] if getattr(op, name) is not None}  # fmt: skip
    out = shape.get("out", shape.get("wide_out"))
    yield from _vectors(op, out[2])
    match op:
        case Linear():
            n, k = op.weight.shape
            expected = {"x": (*out[:2], k), "out": (*out[:2], n), "residual": out}
            if op.weight.dtype != np.int8:
                yield f"weight must be int8, not {op.weight.dtype}"
            beats = beats_per_block(op.weight, graph.config.block)
            if not beats <= op.beats <= graph.config.block:
                yield f"beats must be {beats}..{graph.config.block}, not {op.beats}"
        case MatMul():
            inner = shape["a"][2]
            b = (out[0], out[2], inner) if op.transpose_b else (out[0], inner, out[2])
            expected = {"a": (*out[:2], inner), "b": b}
        case Attention():
            channels, keys = op.heads * op.head_channels, shape["k"][1]
            expected = {
                "q": (*out[:2], channels),
                "k": (out[0], keys, channels),
                "v": (out[0], keys, channels),
                "mask": (out[0], 1, keys),
            }
            if op.head_channels % graph.config.dsp_columns:
                yield (
                    f"head_channels must be a multiple of {graph.config.dsp_columns},"
                    f" not {op.head_channels}"
                )
        case _:
            expected = dict.fromkeys(shape, out)
    for name, wanted in expected.items():
        if name in shape and shape[name] != wanted:
            yield f"{name} must have shape {wanted}, not {shape[name]}"
    function = getattr(op, "function", Function.NONE)
    table = getattr(op, "table", None)
    if (function == Function.TABLE) != (table is not None):
        yield "a table is there exactly if the function is TABLE"
    if table is not None and table.shape != (TABLE_ENTRIES,):
        yield f"table must have {TABLE_ENTRIES} entries, not {table.shape}"


def _accumulators(graph: Graph, op: Op) -> Iterator[str]:
    limit = (1 << (graph.config.accumulator_bits - 1)) - 1
    largest = -INT8_MIN
    match op:
        case Linear():
            bound = int(np.abs(op.weight.astype(np.int64)).sum(1).max(initial=0)) * largest
            k = op.weight.shape[1]
        case MatMul():
            k = graph.tensors[op.a].channels
            bound = k * largest * largest
        case Attention():
            k = max(op.head_channels, graph.tensors[op.k].rows)
            bound = k * largest * largest
        case _:
            return
    if bound > limit:
        yield (
            f"the accumulator could overflow: sums over {k} inputs reach {bound}, it holds {limit};"
            f" use more than accumulator_bits = {graph.config.accumulator_bits}"
        )

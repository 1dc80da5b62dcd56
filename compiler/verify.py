"""What an integer graph must fulfil before the back end sees it."""

from collections.abc import Iterator
from dataclasses import fields

import numpy as np

from twillcore.compiler.errors import CompileError
from twillcore.compiler.graph import (
    Attention,
    Concat,
    Conv,
    Elementwise,
    Graph,
    Ints,
    LayerNorm,
    Linear,
    Map,
    MatMul,
    MaxPool,
    Op,
    Softmax,
    Tensor,
    both_directions,
    reads,
    windows_see_pixels,
    writes,
)
from twillcore.compiler.limits import LARGEST_STRIDE, MOST_PIXELS, MOST_TAPS, TAP_REACH
from twillcore.compiler.pitches import window_strides
from twillcore.compiler.sparsify import beats_per_block, window_beats
from twillcore.isa import LUT_WEIGHT_BITS, Function
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
    "dilation": (1, 255),
    "padding": (0, 128),
}
#: Bits that the inputs of ops must have.
BITS = {
    Linear: {"x": (8,), "residual": (8, 16), "out": (8, 16)},
    Conv: {"x": (8,), "residual": (8, 16), "out": (8, 16)},
    MaxPool: {"x": (8,), "out": (8,)},
    Concat: {"out": (8,)},
    Map: {"x": (8,), "residual": (8, 16), "out": (8, 16)},
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
        for check in (_formats, _parameters, _shapes, _windows, _scales, _cores, _accumulators):
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
        case Conv() | MaxPool():
            expected = {}  # in _windows
        case Concat():
            parts = [graph.tensors[part] for part in op.parts]
            *firsts, last = (part.channels for part in parts)
            block = graph.config.block
            total = sum(-(-channels // block) * block for channels in firsts) + last
            expected = {"out": (*out[:2], total)}
            for part in parts:
                if part.bits != 8 or (part.batch, part.rows) != out[:2]:
                    yield f"{part.name} must be int8 with batch and rows {out[:2]}"
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


def _windows(graph: Graph, op: Op) -> Iterator[str]:
    """Check the geometry of an op with windows, and that the chip can gather them."""
    if not isinstance(op, Conv | MaxPool):
        return
    x, out = graph.tensors[op.x], graph.tensors[op.out]
    for tensor in (x, out):
        if tensor.grid is None or tensor.grid[0] * tensor.grid[1] != tensor.rows:
            yield f"{tensor.name} must have a grid of {tensor.rows} pixels, not {tensor.grid}"
            return
    kernel = op.kernel if isinstance(op, MaxPool) else op.weight.shape[1:3]
    if isinstance(op, MaxPool):
        channels = x.channels
    elif op.weight.ndim != 4 or op.weight.dtype != np.int8:
        yield f"weight must be int8 of four dimensions, not {op.weight.dtype} {op.weight.shape}"
        return
    else:
        channels = len(op.weight)
        if op.groups < 1 or channels % op.groups or x.channels % op.groups:
            yield f"{op.groups} groups divide neither {channels} nor {x.channels} channels"
        elif op.weight.shape[3] * op.groups != x.channels:
            yield f"weight must have {x.channels // op.groups} inputs, not {op.weight.shape[3]}"
    if out.channels != channels or out.batch != x.batch:
        yield f"out must have batch {x.batch} and {channels} channels, not {out.shape}"
    residual = getattr(op, "residual", None)
    if residual is not None and graph.tensors[residual].shape != out.shape:
        yield f"residual must have shape {out.shape}, not {graph.tensors[residual].shape}"
    strides, dilations = both_directions(op.stride), both_directions(op.dilation)
    if kernel == (1, 1) and strides == (1, 1):
        return  # no windows
    alone = isinstance(op, MaxPool) and kernel == (1, 1) and op.padding == (0, 0)
    if min(strides) < 1 or (window_strides(op.stride, out.grid)[1] > LARGEST_STRIDE and not alone):
        yield f"stride must be 1..{LARGEST_STRIDE} from pixel to pixel, not {strides[1]}"
    config = graph.config
    taps, most = kernel[0] * kernel[1], min(MOST_TAPS, config.tap_depth)
    if not config.tap_depth:
        yield f"configuration {config.name!r} has no windows: set tap_depth"
    elif taps > most:
        yield f"{taps} taps are more than the {most} that a window can have"
    if max(*x.grid, *out.grid) > MOST_PIXELS:
        yield f"a grid of {x.grid} has more than {MOST_PIXELS} pixels in a direction"
    for name, (low, high), size, before, distance in zip(
        ("dy", "dx"), TAP_REACH, kernel, op.padding, dilations, strict=True
    ):
        last = (size - 1) * distance - before
        if -before < low or last > high:
            yield f"taps at {name} {-before}..{last} are too far away"
    if isinstance(op, MaxPool) and not windows_see_pixels(
        x.grid, kernel, out.grid, op.stride, op.padding, op.dilation
    ):
        yield "every window must contain a pixel of the grid"


def _scales(graph: Graph, op: Op) -> Iterator[str]:
    """Check that ops that keep integers as they are keep their meaning, and residuals too."""
    residual = getattr(op, "residual", None)
    if residual is not None and graph.tensors[residual].channel_shift is not None:
        yield f"the residual {residual} must have no factors between its channels"
    if not isinstance(op, MaxPool | Concat):
        return
    out, start = graph.tensors[op.out], 0
    for name in reads(op):
        part = graph.tensors[name]
        if part.scale != out.scale:
            yield f"{name} must have the scale of {op.out}"
        factors = _factors(out)[start : start + part.channels]
        if not np.array_equal(_factors(part), factors):
            yield f"{name} must have the factors of {op.out}"
        start += -(-part.channels // graph.config.block) * graph.config.block


def _factors(tensor: Tensor) -> Ints:
    shift = tensor.channel_shift
    return np.zeros(tensor.channels, np.int64) if shift is None else shift


def _cores(graph: Graph, op: Op) -> Iterator[str]:
    """Check what each core computes: sparsity on the DSP core, few bits on the LUT core."""
    if not isinstance(op, Linear | Conv):
        return
    config, outputs, count = graph.config, len(op.weight), op.lut_channels
    if not 0 <= count <= outputs or (count not in (0, outputs) and count % config.block):
        yield f"lut_channels must be all or a multiple of {config.block}, not {count} of {outputs}"
        return
    if count and getattr(op, "groups", 1) > 1:
        yield "the LUT core computes no groups"
        return
    here, there = op.weight[: outputs - count], op.weight[outputs - count :]
    if isinstance(op, Conv):
        if op.weight.ndim != 4 or op.groups < 1 or outputs % op.groups:
            return  # as _windows says
        beats = window_beats(here, op.groups, config.block)
    else:
        beats = beats_per_block(here, config.block)
    if not beats <= op.beats <= config.block:
        yield f"beats must be {beats}..{config.block}, not {op.beats}"
    if not count:
        return
    if not config.lut_columns:
        yield f"configuration {config.name!r} has no LUT core"
    if not 1 <= op.lut_bits <= LUT_WEIGHT_BITS:
        yield f"lut_bits must be 1..{LUT_WEIGHT_BITS}, not {op.lut_bits}"
    elif there.min() < -(1 << op.lut_bits - 1) or there.max() > (1 << op.lut_bits - 1) - 1:
        yield f"weights of {there.min()}..{there.max()} do not fit in {op.lut_bits} bits"


def _accumulators(graph: Graph, op: Op) -> Iterator[str]:
    limit = (1 << (graph.config.accumulator_bits - 1)) - 1
    largest = -INT8_MIN
    match op:
        case Linear() | Conv():
            rows = op.weight.reshape(len(op.weight), -1)
            bound = int(np.abs(rows.astype(np.int64)).sum(1).max(initial=0)) * largest
            k = rows.shape[1]
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

"""Run the float graph on calibration inputs and record what range every tensor has."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from twillcore.compiler.errors import CompileError
from twillcore.compiler.float_graph import (
    FloatAdd,
    FloatAttention,
    FloatConcat,
    FloatConv,
    FloatGraph,
    FloatLayerNorm,
    FloatLinear,
    FloatMap,
    FloatMatMul,
    FloatMaxPool,
    FloatMultiply,
    FloatOp,
    Floats,
    FloatSoftmax,
    Function,
)
from twillcore.compiler.graph import both_directions

SAMPLE_ROWS = 512  # rows kept of every tensor, to compare roundings on
BEFORE = ":before"  # suffix of what a function is applied to
ALONE = ":alone"  # suffix of a linear layer's result before the residual is added
BATCH = 8  # samples that are calibrated together, if not for their size
MOST_VALUES = 1 << 26  # of all tensors together, in one such group


@dataclass
class Range:
    """Smallest and largest value per channel, and some rows (rows, channels)."""

    low: Floats
    high: Floats
    sample: Floats

    @property
    def magnitude(self) -> Floats:
        """Largest absolute value per channel."""
        return np.maximum(np.abs(self.low), np.abs(self.high))

    @property
    def peak(self) -> float:
        """Largest absolute value."""
        return float(self.magnitude.max(initial=0.0))


@dataclass
class Calibration:
    """Ranges by tensor, and by tensor with a suffix for values inside a fused op."""

    ranges: dict[str, Range] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Range:
        return self.ranges[name]

    def __str__(self) -> str:
        return "\n".join(f"{name}: {r.low.min():.4g}..{r.high.max():.4g}" for name, r in
                         self.ranges.items())  # fmt: skip


def apply(function: Function | None, x: Tensor) -> Tensor:
    """Apply an elementwise function to a tensor of real numbers."""
    if function is None:
        return x
    if function.name == "gelu" and function.arguments:
        return torch.ops.aten.gelu(x, approximate=str(function.arguments[0]))
    return getattr(torch.ops.aten, function.name)(x, *function.arguments)


def evaluate(
    graph: FloatGraph,
    inputs: Mapping[str, Tensor],
    masks: Mapping[str, Tensor],
    record: Callable[[str, Tensor], None] = lambda name, value: None,
) -> dict[str, Tensor]:
    """Return every tensor of ``graph``.

    ``inputs`` are (batch, rows, channels), ``masks`` boolean (batch, 1, keys); the batch may be any
    multiple of the graph's. ``record`` sees every tensor, and values inside fused ops.
    """
    values = dict(inputs)
    for name, value in inputs.items():
        record(name, value)
    with torch.no_grad():
        for op in graph.ops:
            values[op.out] = _EVALUATE[type(op)](graph, op, values, masks, record)
            record(op.out, values[op.out])
    return values


def _linear(
    graph: FloatGraph, op: FloatLinear, values: Mapping, masks: Mapping, record: Callable
) -> Tensor:
    x = values[op.x] @ torch.from_numpy(op.weight).T + torch.from_numpy(op.bias)
    return _drained(op, x, values, record)


def _drained(
    op: FloatLinear | FloatConv | FloatMap, x: Tensor, values: Mapping, record: Callable
) -> Tensor:
    """Add the residual and apply the function."""
    if op.residual is not None:
        record(op.out + ALONE, x)
        x = x + values[op.residual]
    if op.function is not None:
        record(op.out + BEFORE, x)
    return apply(op.function, x)


def _padded(
    graph: FloatGraph, op: FloatConv | FloatMaxPool, values: Mapping, fill: float
) -> Tensor:
    """Return the image that ``op`` reads as (batch, channels, height, width), with its padding."""
    source, target = graph.tensors[op.x].grid, graph.tensors[op.out].grid
    kernel = op.weight.shape[1:3] if isinstance(op, FloatConv) else op.kernel
    image = values[op.x].unflatten(1, source).permute(0, 3, 1, 2)
    sides = []
    for n, m, k, before, step, distance in zip(
        source, target, kernel, op.padding, both_directions(op.stride),
        both_directions(op.dilation), strict=True,
    ):  # fmt: skip
        needed = (m - 1) * step + (k - 1) * distance + 1
        sides = [before, needed - before - n, *sides]  # the last direction first; < 0: unused
    return torch.nn.functional.pad(image, sides, value=fill) if any(sides) else image


def _rows(image: Tensor) -> Tensor:
    return image.flatten(2).transpose(1, 2)


def _conv(
    graph: FloatGraph, op: FloatConv, values: Mapping, masks: Mapping, record: Callable
) -> Tensor:
    weight = torch.from_numpy(op.weight).permute(0, 3, 1, 2).contiguous()
    bias = torch.from_numpy(op.bias)
    image = _padded(graph, op, values, 0.0)
    x = torch.nn.functional.conv2d(image, weight, bias, op.stride, 0, op.dilation, op.groups)
    return _drained(op, _rows(x), values, record)


def _max_pool(
    graph: FloatGraph, op: FloatMaxPool, values: Mapping, masks: Mapping, record: Callable
) -> Tensor:
    image = _padded(graph, op, values, -torch.inf)
    x = torch.nn.functional.max_pool2d(image, op.kernel, op.stride, 0, op.dilation)
    return _rows(x)


def _concat(
    graph: FloatGraph, op: FloatConcat, values: Mapping, masks: Mapping, record: Callable
) -> Tensor:
    parts = [values[part] for part in op.parts]
    gaps = [-part.shape[-1] % op.align for part in parts[:-1]] + [0]
    pad = torch.nn.functional.pad
    return torch.cat([pad(part, (0, gap)) for part, gap in zip(parts, gaps, strict=True)], -1)


def _map(
    graph: FloatGraph, op: FloatMap, values: Mapping, masks: Mapping, record: Callable
) -> Tensor:
    x = values[op.x] * torch.from_numpy(op.factor) + torch.from_numpy(op.offset)
    return _drained(op, x, values, record)


def _matmul(
    graph: FloatGraph, op: FloatMatMul, values: Mapping, masks: Mapping, record: Callable
) -> Tensor:
    b = values[op.b]
    return values[op.a] @ (b.transpose(1, 2) if op.transpose_b else b) * op.scale


def _attention(
    graph: FloatGraph, op: FloatAttention, values: Mapping, masks: Mapping, record: Callable
) -> Tensor:
    q, k, v = (
        values[name].unflatten(-1, (op.heads, op.head_channels)).transpose(1, 2)
        for name in (op.q, op.k, op.v)
    )
    scores = q @ k.transpose(-1, -2) * op.scale
    if op.mask is not None:
        lowest = torch.finfo(scores.dtype).min
        scores = scores.masked_fill(~masks[op.mask][:, None], lowest)
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


def _softmax(
    graph: FloatGraph, op: FloatSoftmax, values: Mapping, masks: Mapping, record: Callable
) -> Tensor:
    return torch.softmax(values[op.x] * op.scale, -1)


def _layer_norm(
    graph: FloatGraph, op: FloatLayerNorm, values: Mapping, masks: Mapping, record: Callable
) -> Tensor:
    gamma, beta = torch.from_numpy(op.gamma), torch.from_numpy(op.beta)
    return torch.nn.functional.layer_norm(values[op.x], gamma.shape, gamma, beta, op.epsilon)


def _add(
    graph: FloatGraph, op: FloatAdd, values: Mapping, masks: Mapping, record: Callable
) -> Tensor:
    return values[op.a] * op.a_scale + values[op.b] * op.b_scale


def _multiply(
    graph: FloatGraph, op: FloatMultiply, values: Mapping, masks: Mapping, record: Callable
) -> Tensor:
    return values[op.a] * values[op.b] * op.scale


_EVALUATE: dict[type[FloatOp], Callable[..., Tensor]] = {
    FloatLinear: _linear,
    FloatConv: _conv,
    FloatMaxPool: _max_pool,
    FloatConcat: _concat,
    FloatMap: _map,
    FloatMatMul: _matmul,
    FloatAttention: _attention,
    FloatSoftmax: _softmax,
    FloatLayerNorm: _layer_norm,
    FloatAdd: _add,
    FloatMultiply: _multiply,
}


def calibrate(
    graph: FloatGraph,
    samples: Sequence[tuple[Mapping[str, NDArray], Mapping[str, NDArray]]],
    batch: int = BATCH,
) -> Calibration:
    """Return the ranges of every tensor over ``samples``, pairs of chip inputs and masks.

    Rows that the mask of a self-attention excludes as keys are padding: they do not count.

    Raises
    ------
    CompileError
        If a tensor becomes NaN or infinite; the first ones are named.
    """
    calibration = Calibration()
    values = sum(math.prod(tensor.shape) for tensor in graph.tensors.values())
    batch = max(1, min(batch, MOST_VALUES // max(values, 1)))
    generator = np.random.default_rng(0)
    share = max(1, SAMPLE_ROWS // max(1, -(-len(samples) // batch)))
    bad: dict[str, int] = {}
    for start in range(0, len(samples), batch):
        group = samples[start : start + batch]
        inputs = {n: _joined([s[0][n] for s in group]).float() for n in graph.inputs}
        masks = {n: _joined([s[1][n] for s in group]) for n in graph.masks}
        rows = next((mask[:, 0] for mask in masks.values()), None)

        def record(name: str, value: Tensor, rows: Tensor | None = rows) -> None:
            if rows is not None and rows.shape == value.shape[:2] and rows.any():
                value = value[rows]
            flat = value.reshape(-1, value.shape[-1]).numpy()
            wrong = int((~np.isfinite(flat)).sum())
            if wrong:
                bad[name] = bad.get(name, 0) + wrong
            _note(calibration, name, flat, share, generator)

        evaluate(graph, inputs, masks, record)
    if bad:
        listed = "; ".join(f"{name}: {n} values" for name, n in list(bad.items())[:10])
        raise CompileError(f"NaN or infinite values during calibration: {listed}")
    return calibration


def _joined(arrays: Sequence[NDArray]) -> Tensor:
    return torch.from_numpy(np.concatenate(arrays))


def _note(
    calibration: Calibration, name: str, flat: Floats, share: int, generator: np.random.Generator
) -> None:
    chosen = flat
    if len(flat) > share:
        chosen = flat[generator.choice(len(flat), share, replace=False)]
    low, high = flat.min(0), flat.max(0)
    known = calibration.ranges.get(name)
    if known is None:
        calibration.ranges[name] = Range(low, high, chosen.copy())
        return
    known.low = np.minimum(known.low, low)
    known.high = np.maximum(known.high, high)
    known.sample = np.concatenate([known.sample, chosen])

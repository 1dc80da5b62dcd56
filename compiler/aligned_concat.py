"""Concatenations of channels that fill no whole blocks: the gaps between them are channels, too.

A part of a concatenation begins with a word, so its channels at a multiple of the block. Behind a
part that does not fill its last word there are *gaps*: channels that are 0. The pass makes them
channels of the tensor and tells everybody who reads it: weights get inputs that are 0, pools and
functions pass gaps on, a layer whose residual has gaps gets outputs for them, the host leaves them
out of what it reads. What works on all channels at once, and sums of tensors that do not lie alike,
get a copy without gaps.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from twillcore.compiler.float_graph import (
    FloatAdd,
    FloatConcat,
    FloatConv,
    FloatGraph,
    FloatLinear,
    FloatMap,
    FloatMaxPool,
    FloatMultiply,
    FloatOp,
    Floats,
    FloatTensor,
    Layout,
)

#: Which channel of the network lies where; -1: a gap.
Index = NDArray[np.int64]


def align_concats(graph: FloatGraph, block: int) -> FloatGraph:
    """Return ``graph`` with concatenations of which every part begins at a multiple of ``block``.

    Without any others it is returned as it is.
    """
    if not any(
        graph.tensors[part].channels % block
        for op in graph.ops
        if isinstance(op, FloatConcat)
        for part in op.parts[:-1]
    ):
        return graph
    return _Aligner(graph, block).run()


class _Aligner:
    """Rewrites op after op; ``index`` has the channels of tensors with gaps."""

    def __init__(self, graph: FloatGraph, block: int) -> None:
        self.graph, self.block = graph, block
        self.tensors = dict(graph.tensors)
        self.ops: list[FloatOp] = []
        self.index: dict[str, Index] = {}
        self._compact: dict[str, str] = {}

    def run(self) -> FloatGraph:
        for op in self.graph.ops:
            rule = _RULES.get(type(op), _Aligner._whole)
            self.ops.append(rule(self, op))
        outputs = tuple(
            (name, self._layout(name, layout), factor)
            for name, layout, factor in self.graph.outputs
        )
        return replace(self.graph, tensors=self.tensors, ops=tuple(self.ops), outputs=outputs)

    def _layout(self, name: str, layout: Layout) -> Layout:
        if name not in self.index:
            return layout
        return replace(layout, channels=tuple(map(int, self.index[name])))

    def _of(self, name: str) -> Index:
        """Return which channel of a tensor lies where."""
        return self.index.get(name, np.arange(self.tensors[name].channels))

    def _declare(self, name: str, index: Index) -> None:
        """Give a tensor that has not been written yet the channels ``index``."""
        if (index < 0).any():
            self.index[name] = index
            self.tensors[name] = replace(self.tensors[name], channels=len(index))

    def _alike(self, *names: str | None) -> bool:
        first, *others = (self._of(name) for name in names if name is not None)
        return all(np.array_equal(first, other) for other in others)

    def compact(self, name: str) -> str:
        """Return a tensor without its gaps."""
        if name not in self.index:
            return name
        if name not in self._compact:
            index, tensor = self.index[name], self.tensors[name]
            out = f"{name}.compact"
            self._compact[name] = out
            channels = int(index.max()) + 1
            self.tensors[out] = replace(tensor, name=out, channels=channels)
            weight = np.zeros((channels, len(index)), np.float32)
            weight[index[index >= 0], np.flatnonzero(index >= 0)] = 1
            path = next(op.name for op in self.ops if op.out == name)
            self.ops.append(_pointwise(path, out, name, weight, tensor))
        return self._compact[name]

    def _whole(self, op: FloatOp) -> FloatOp:
        """Let an op read tensors without gaps only."""
        names = {
            field: self.compact(value)
            for field in ("x", "a", "b", "q", "k", "v", "residual")
            if isinstance(value := getattr(op, field, None), str)
        }
        return replace(op, **names)

    def _concat(self, op: FloatConcat) -> FloatOp:
        index, first = [], 0
        for part in op.parts:
            own = self._of(part)
            index += [np.full(-sum(map(len, index)) % self.block, -1)]
            index += [np.where(own >= 0, own + first, -1)]
            first += int(own.max()) + 1
        self._declare(op.out, np.concatenate(index))
        return replace(op, align=self.block)

    def _layer(self, op: FloatLinear | FloatConv) -> FloatOp:
        """Weights: 0 for gaps of the input; outputs for gaps of the residual."""
        if op.x in self.index:
            if getattr(op, "groups", 1) > 1:
                return self._groups(op)
            op = replace(op, weight=_spread(op.weight, self.index[op.x], -1))
        if op.residual in self.index:
            if getattr(op, "groups", 1) > 1:
                return self._whole(op)
            index = self.index[op.residual]
            self._declare(op.out, index)
            weight, bias = (_spread(values, index, 0) for values in (op.weight, op.bias))
            op = replace(op, weight=weight, bias=bias)
        return op

    def _groups(self, op: FloatConv) -> FloatOp:
        """Depthwise: gaps stay gaps, if the residual's are the same. Other groups read a copy."""
        if len(op.weight) != op.groups or not op.depthwise:
            return self._whole(op)
        if not self._alike(op.x, op.residual):
            return self._whole(op)
        index = self.index[op.x]
        self._declare(op.out, index)
        weight, bias = (_spread(values, index, 0) for values in (op.weight, op.bias))
        return replace(op, weight=weight, bias=bias, groups=len(index))

    def _map(self, op: FloatMap) -> FloatOp:
        if not self._alike(op.x, op.residual):
            return self._whole(op)
        index = self._of(op.x)
        self._declare(op.out, index)
        return replace(op, factor=_spread(op.factor, index, 0), offset=_spread(op.offset, index, 0))

    def _pool(self, op: FloatMaxPool) -> FloatOp:
        self._declare(op.out, self._of(op.x))
        return op

    def _binary(self, op: FloatAdd | FloatMultiply) -> FloatOp:
        if not self._alike(op.a, op.b):
            return self._whole(op)
        self._declare(op.out, self._of(op.a))
        return op


def _spread(values: Floats, index: Index, axis: int) -> Floats:
    """Return ``values`` along an axis where ``index`` says, 0 in gaps."""
    shape = [1] * values.ndim
    shape[axis] = len(index)
    return np.take(values, index, axis) * (index >= 0).astype(np.float32).reshape(shape)


def _pointwise(name: str, out: str, x: str, weight: Floats, tensor: FloatTensor) -> FloatOp:
    bias = np.zeros(len(weight), np.float32)
    if tensor.grid in (None, (1, 1)):
        return FloatLinear(name, out, x, weight, bias)
    return FloatConv(name, out, x, weight[:, None, None], bias)


_RULES: dict[type[FloatOp], Callable[[_Aligner, FloatOp], FloatOp]] = {
    FloatConcat: _Aligner._concat,
    FloatLinear: _Aligner._layer,
    FloatConv: _Aligner._layer,
    FloatMap: _Aligner._map,
    FloatMaxPool: _Aligner._pool,
    FloatAdd: _Aligner._binary,
    FloatMultiply: _Aligner._binary,
}

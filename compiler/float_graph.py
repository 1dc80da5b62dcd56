"""The float graph: what capture makes of a module, before any number is quantised.

Every tensor is (batch, rows, channels) of real numbers; masks are (batch, 1, keys) booleans. Ops
stand in execution order. Views, transposes and slices of the framework are gone: they live in the
:class:`Layout` of inputs and outputs and in the order of weight rows.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from twillcore.compiler.graph import PerDirection

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Layout:
    """How a framework tensor lies in a canonical array.

    The canonical array is reshaped to ``sizes``, transposed by ``order`` and reshaped to ``shape``.
    An input may besides be padded with zeros: it is reshaped to the first numbers of ``padding``,
    and extended at the ends to the second ones. And canonical channel c may be channel
    ``channels[c]`` of what results, or zero (of an output: of no meaning) if that is -1.
    """

    sizes: tuple[int, ...]
    order: tuple[int, ...]
    shape: tuple[int, ...]
    padding: tuple[tuple[int, int], ...] = ()
    channels: tuple[int, ...] = ()

    def to_framework(self, array: NDArray) -> NDArray:
        """Return the framework's view of a canonical array."""
        if self.channels:
            index = np.array(self.channels)
            array = array[..., np.argsort(index)[(index < 0).sum() :]]
        return array.reshape(self.sizes).transpose(self.order).reshape(self.shape)

    def from_framework(self, array: NDArray, canonical: tuple[int, ...]) -> NDArray:
        """Return the canonical array of ``array``, which is broadcast to ``shape`` first."""
        full = np.broadcast_to(array, self.shape)
        if self.padding:
            full = full.reshape([size for size, _ in self.padding])
            full = np.pad(full, [(0, padded - size) for size, padded in self.padding])
        split = full.reshape([self.sizes[i] for i in self.order]).transpose(np.argsort(self.order))
        if not self.channels:
            return split.reshape(canonical)
        index = np.array(self.channels)
        spread = split.reshape(*canonical[:2], -1)[..., index]
        spread[..., index < 0] = 0
        return spread


@dataclass(frozen=True)
class FloatTensor:
    """A real tensor (batch, rows, channels)."""

    name: str
    batch: int
    rows: int
    channels: int
    grid: tuple[int, int] | None = None  # (height, width) if the rows are pixels, line by line

    @property
    def shape(self) -> tuple[int, int, int]:
        """(batch, rows, channels)."""
        return self.batch, self.rows, self.channels


@dataclass(frozen=True)
class Function:
    """An elementwise function by name, with its scalar arguments: ``("elu", (1.0,))``."""

    name: str
    arguments: tuple[float | str, ...] = ()

    def __str__(self) -> str:
        return (
            f"{self.name}({', '.join(map(str, self.arguments))})" if self.arguments else self.name
        )


@dataclass(frozen=True)
class FloatOp:
    """Base of all ops: the module path it comes from, and the tensor it writes."""

    name: str
    out: str


@dataclass(frozen=True)
class FloatLinear(FloatOp):
    """``function(x @ weight.T + bias + residual)``; weight (N, K), bias (N,)."""

    x: str
    weight: Floats
    bias: Floats
    residual: str | None = None
    function: Function | None = None


@dataclass(frozen=True)
class FloatConv(FloatOp):
    """``function(convolution of x + bias + residual)``; weight (N, height, width, C / groups).

    Stride, padding (top, left), dilation and groups as in :class:`twillcore.compiler.graph.Conv`.
    """

    x: str
    weight: Floats
    bias: Floats
    stride: PerDirection = 1
    padding: tuple[int, int] = (0, 0)
    dilation: PerDirection = 1
    groups: int = 1
    residual: str | None = None
    function: Function | None = None

    @property
    def depthwise(self) -> bool:
        """Whether every output reads one input channel."""
        return self.groups > 1 and self.weight.shape[3] == 1


@dataclass(frozen=True)
class FloatMaxPool(FloatOp):
    """Maximum over windows; fields as in :class:`twillcore.compiler.graph.MaxPool`."""

    x: str
    kernel: tuple[int, int]
    stride: PerDirection
    padding: tuple[int, int]
    dilation: PerDirection = 1


@dataclass(frozen=True)
class FloatConcat(FloatOp):
    """Channels of ``parts``, one after the other, each part at a multiple of ``align`` channels.

    What is left out between them is 0.
    """

    parts: tuple[str, ...]
    align: int = 1


@dataclass(frozen=True)
class FloatMap(FloatOp):
    """``function(x * factor + offset + residual)``; factor and offset (channels,)."""

    x: str
    factor: Floats
    offset: Floats
    residual: str | None = None
    function: Function | None = None


@dataclass(frozen=True)
class FloatMatMul(FloatOp):
    """``a @ b * scale`` or ``a @ b.T * scale``, per batch item."""

    a: str
    b: str
    transpose_b: bool
    scale: float


@dataclass(frozen=True)
class FloatAttention(FloatOp):
    """Per head: ``softmax(q @ k.T * scale, keys that mask excludes left out) @ v``.

    ``real_channels`` of the ``head_channels`` of every head are in use, the others are zero.
    """

    q: str
    k: str
    v: str
    heads: int
    head_channels: int
    real_channels: int
    scale: float
    mask: str | None = None


@dataclass(frozen=True)
class FloatSoftmax(FloatOp):
    """``softmax(x * scale)`` over the channels."""

    x: str
    scale: float


@dataclass(frozen=True)
class FloatLayerNorm(FloatOp):
    """Layer norm over the channels; gamma and beta (channels,)."""

    x: str
    gamma: Floats
    beta: Floats
    epsilon: float


@dataclass(frozen=True)
class FloatAdd(FloatOp):
    """``a * a_scale + b * b_scale``."""

    a: str
    b: str
    a_scale: float
    b_scale: float


@dataclass(frozen=True)
class FloatMultiply(FloatOp):
    """``a * b * scale``."""

    a: str
    b: str
    scale: float


@dataclass(frozen=True)
class MaskInput:
    """A padding mask as the framework has it.

    ``kind`` says what its values mean: ``"keep"`` (true: attended), ``"drop"`` (true: excluded) or
    ``"additive"`` (0: attended, very negative: excluded). ``layout`` is that of a canonical array
    (batch, heads, rows, keys); a mask must be the same for all heads and rows.
    """

    name: str
    layout: Layout
    kind: str
    batch: int
    heads: int
    rows: int
    keys: int


@dataclass(frozen=True)
class FloatGraph:
    """The part of a network that runs on the chip.

    ``inputs`` are tensors in the layout in which the host has them; ``outputs`` are pairs of a
    tensor and the layout (and factor) in which the host wants it.
    """

    tensors: dict[str, FloatTensor]
    ops: tuple[FloatOp, ...]
    inputs: dict[str, Layout]
    masks: dict[str, MaskInput]
    outputs: tuple[tuple[str, Layout, float], ...]

    def __str__(self) -> str:
        lines = [f"input  {name}: {list(self.tensors[name].shape)}" for name in self.inputs]
        lines += [f"mask   {m.name}: {[m.batch, 1, m.keys]} {m.kind}" for m in self.masks.values()]
        for op in self.ops:
            parts = []
            for f in fields(op):
                value = getattr(op, f.name)
                if f.name in ("name", "out") or value is None:
                    continue
                if isinstance(value, np.ndarray):
                    value = list(value.shape)
                parts.append(f"{f.name}={value}")
            kind = type(op).__name__.removeprefix("Float")
            shape = list(self.tensors[op.out].shape)
            lines.append(f"{op.out}: {shape} = {kind}[{op.name}] {' '.join(parts)}")
        lines.append("output " + " ".join(name for name, _, _ in self.outputs))
        return "\n".join(lines)


def float_reads(op: FloatOp) -> Iterator[str]:
    """Yield the tensors (not masks) that ``op`` reads."""
    for name in ("x", "a", "b", "q", "k", "v", "residual"):
        tensor = getattr(op, name, None)
        if isinstance(tensor, str):
            yield tensor
    yield from getattr(op, "parts", ())


def without_dead(graph: FloatGraph) -> FloatGraph:
    """Return ``graph`` without ops, inputs, masks and tensors that no output needs."""
    needed = {name for name, _, _ in graph.outputs}
    masks = set()
    ops = []
    for op in reversed(graph.ops):
        if op.out in needed:
            ops.append(op)
            needed |= set(float_reads(op))
            masks.add(getattr(op, "mask", None))
    return FloatGraph(
        {name: tensor for name, tensor in graph.tensors.items() if name in needed},
        tuple(reversed(ops)),
        {name: layout for name, layout in graph.inputs.items() if name in needed},
        {name: mask for name, mask in graph.masks.items() if name in masks},
        graph.outputs,
    )

"""The quantised graph: what the front end hands to the back end, and what the reference executes.

Every tensor is (batch, rows, channels) of integers. Every op is a frozen dataclass that holds its
integer parameters as numpy arrays and names its tensors; the exact arithmetic of each is
:mod:`twillcore.numerics`, quoted in its docstring. Ops stand in execution order.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, fields

import numpy as np
from numpy.typing import NDArray

from twillcore.config import Config
from twillcore.isa import ElementwiseOp, Function

Ints = NDArray[np.int64]
#: A number for both directions of a map, or (vertical, horizontal).
PerDirection = int | tuple[int, int]


def both_directions(value: PerDirection) -> tuple[int, int]:
    """Return ``value`` as (vertical, horizontal)."""
    return value if isinstance(value, tuple) else (value, value)


def windows_see_pixels(
    grid: tuple[int, int], kernel: tuple[int, int], output: tuple[int, int],
    stride: PerDirection, padding: tuple[int, int], dilation: PerDirection,
) -> bool:  # fmt: skip
    """Whether each window of ``output`` has a tap on a pixel of ``grid``."""
    for n, k, m, step, before, distance in zip(
        grid, kernel, output, both_directions(stride), padding, both_directions(dilation),
        strict=True,
    ):  # fmt: skip
        pixels = np.arange(m)[:, None] * step + np.arange(k) * distance - before
        if not ((pixels >= 0) & (pixels < n)).any(1).all():
            return False
    return True


@dataclass(frozen=True)
class Tensor:
    """An integer tensor of 8 or 16 bits: real = integer * scale * 2**channel_shift[c]."""

    name: str
    batch: int
    rows: int
    channels: int
    bits: int
    scale: float
    channel_shift: Ints | None = None  # int, one per channel; None: all zero
    grid: tuple[int, int] | None = None  # (height, width) if the rows are pixels, line by line

    @property
    def shape(self) -> tuple[int, int, int]:
        """(batch, rows, channels)."""
        return self.batch, self.rows, self.channels


@dataclass(frozen=True)
class Op:
    """Base of all ops: a name for reports (the module path it comes from)."""

    name: str


@dataclass(frozen=True, kw_only=True)
class DrainedOp(Op):
    """Base of what computes ``out = narrow(f(scale_accumulator(sum, ...) + residual))``.

    The sum goes through ``scale_accumulator(sum, bias, multiplier, shift)``. residual, if any, is
    int16 or int8, of the shape of the output, added by ``add_residual(.., residual_shift)``;
    function NONE, RELU or TABLE (``look_up`` in ``table``, 256 int16). An int16 output is written
    before, an int8 output after ``narrow(.., narrow_shift)``. bias, multiplier, shift and
    narrow_shift are (N,), one per output channel.
    """

    bias: Ints
    multiplier: Ints
    shift: Ints
    narrow_shift: Ints
    residual: str | None = None
    residual_shift: int = 0
    function: Function = Function.NONE
    table: Ints | None = None


@dataclass(frozen=True, kw_only=True)
class WeightedOp(DrainedOp):
    """Base of what has weights, for both cores.

    The last ``lut_channels`` outputs (a multiple of ``config.block``, or all) are the LUT core's:
    their weights fit in ``lut_bits`` bits and need no sparsity. With ``help`` a core that would
    idle may compute some rows of the other one's outputs.
    """

    lut_channels: int = 0
    lut_bits: int = 0
    help: bool = False


@dataclass(frozen=True)
class Linear(WeightedOp):
    """Sum ``x @ weight.T``: x int8 (batch, rows, K), weight int8 (N, K).

    Of the weights, every aligned block of ``config.block`` inputs has at most ``beats`` non-zeros
    per output of the DSP core.
    """

    x: str
    out: str
    weight: NDArray[np.int8]
    beats: int


@dataclass(frozen=True)
class Conv(WeightedOp):
    """Sum over windows: two-dimensional convolution of pixels.

    x int8 (batch, height * width, C) with a grid; weight int8 (N, kernel height, kernel width,
    C / groups). ``out[y, x, n]`` sums over ``x[y * stride + i * dilation - top, x * stride + j *
    dilation - left, c] * weight[n, i, j, c]``, pixels outside the grid are 0; the size of the
    output is that of its tensor's grid. The horizontal stride is 1 or 2. ``padding`` is (top,
    left): more on the other sides follows from the output's grid. With groups, output n reads
    channels from ``n // (N / groups) * (C / groups)`` on. In the weights of one tap, every aligned
    block of ``config.block`` inputs has at most ``beats`` non-zeros per output of the DSP core.
    """

    x: str
    out: str
    weight: NDArray[np.int8]
    stride: PerDirection
    padding: tuple[int, int]
    dilation: PerDirection
    groups: int
    beats: int


@dataclass(frozen=True)
class MaxPool(Op):
    """Maximum over windows of int8 x: ``kernel`` (height, width), the rest as in :class:`Conv`.

    Pixels outside the grid do not count. Scales of x and out are the same. With a kernel of one
    pixel and without padding, which leaves pixels out, the horizontal stride may be anything.
    """

    x: str
    out: str
    kernel: tuple[int, int]
    stride: PerDirection
    padding: tuple[int, int]
    dilation: PerDirection = 1


@dataclass(frozen=True)
class Concat(Op):
    """Channels of ``parts``, one after the other; all int8, of one scale and one grid.

    Every part begins at a multiple of ``config.block`` channels; those between are 0.
    """

    parts: tuple[str, ...]
    out: str


@dataclass(frozen=True)
class Map(DrainedOp):
    """The drain alone: the sum is x, int8 (batch, rows, N)."""

    x: str
    out: str


@dataclass(frozen=True)
class MatMul(Op):
    """Product of two activations, per batch item: ``a @ b`` or ``a @ b.T``.

    a int8 (batch, M, K); b int8 (batch, K, N), or (batch, N, K) if ``transpose_b``. One multiplier
    and shift for all columns, no bias; ``narrow_shift`` is (N,), used for an int8 output.
    """

    a: str
    b: str
    out: str
    transpose_b: bool
    multiplier: int
    shift: int
    narrow_shift: Ints


@dataclass(frozen=True)
class Attention(Op):
    """Multi-head attention on projected, int8 q (batch, T, heads * head_channels), k, v.

    k and v are (batch, S, heads * head_channels). Per head h (channels h * head_channels and on;
    head_channels is a multiple of the columns of the configuration, the front end pads heads with
    zero channels):
    ``logits = scale_accumulator(q_h @ k_h.T, bias, multiplier, shift)``, int16 in 1/16 octave.
    bias is 0, or ``MASKED_BIAS`` for keys that ``mask`` (a graph input (batch, 1, S), bool)
    excludes and for the padding keys up to a multiple of ``config.dsp_columns``.
    ``e = exponential(logits, row maximum)``; ``m, s = lane_scale(sum(e), numerator, lane_shift)``;
    ``out_h = narrow(scale_accumulator(e @ v_h, 0, m, s), narrow_shift_h)``, int8.
    A masked key has an exponential of 0, so an item whose keys are all masked is 0.
    ``narrow_shift`` is (heads * head_channels,).
    """

    q: str
    k: str
    v: str
    out: str
    heads: int
    head_channels: int
    multiplier: int
    shift: int
    numerator: int
    lane_shift: int
    narrow_shift: Ints
    mask: str | None = None


@dataclass(frozen=True)
class Softmax(Op):
    """Softmax over the channels of int8 x, to int8.

    ``logits = scale_accumulator(x, 0, multiplier, shift)`` int16 in 1/16 octave (padding channels,
    up to a multiple of ``config.dsp_columns``, are masked by ``MASKED_BIAS``), ``e`` and ``m, s``
    as in :class:`Attention`, ``out = narrow(scale_accumulator(e, 0, m, s), 0)``.
    """

    x: str
    out: str
    multiplier: int
    shift: int
    numerator: int
    lane_shift: int


@dataclass(frozen=True)
class LayerNorm(Op):
    """``layer_norm(x, channels, epsilon, gamma, beta, shift)`` of int16 x.

    Written as int16 to ``wide_out`` and, after ``narrow(.., narrow_shift)``, as int8 to ``out``;
    either may be None. gamma, beta, shift, narrow_shift are (channels,).
    """

    x: str
    out: str | None
    wide_out: str | None
    epsilon: int
    gamma: Ints
    beta: Ints
    shift: Ints
    narrow_shift: Ints


@dataclass(frozen=True)
class Elementwise(Op):
    """``elementwise_add`` or ``elementwise_multiply`` of a and b, each int8 or int16.

    An int8 output is narrowed by ``narrow_shift`` (one int). ``a`` may equal ``b``: a conversion
    between int8 and int16 is an ADD with ``b_multiplier`` 0.
    """

    op: ElementwiseOp
    a: str
    b: str
    out: str
    a_multiplier: int
    b_multiplier: int
    shift: int
    narrow_shift: int


@dataclass(frozen=True)
class Graph:
    """A quantised network for one configuration.

    ``inputs`` are names of int8 or int16 tensors, ``masks`` names of boolean inputs
    (batch, 1, keys) whose :class:`Tensor` has bits 1; ``outputs`` are names of tensors.
    """

    config: Config
    tensors: dict[str, Tensor]
    ops: tuple[Op, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    masks: tuple[str, ...] = ()
    notes: dict[str, object] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = []
        for name in (*self.inputs, *self.masks):
            tensor = self.tensors[name]
            lines.append(f"input  {name}: int{tensor.bits} {list(tensor.shape)}")
        for op in self.ops:
            parts = []
            own = type(op).__annotations__
            for f in sorted(fields(op), key=lambda f: f.name not in own):  # inherited ones last
                value = getattr(op, f.name)
                if f.name in ("name", "out", "wide_out") or value is None:
                    continue
                if isinstance(value, np.ndarray):
                    value = f"{value.dtype}{list(value.shape)}"
                parts.append(f"{f.name}={value}")
            outs = " ".join(
                f"{o}: int{self.tensors[o].bits} {list(self.tensors[o].shape)}" for o in writes(op)
            )
            lines.append(f"{outs} = {type(op).__name__}[{op.name}] {' '.join(parts)}")
        lines.append(f"output {' '.join(self.outputs)}")
        return "\n".join(lines)


def reads(op: Op) -> Iterator[str]:
    """Yield the tensors that ``op`` reads."""
    for name in ("x", "a", "b", "q", "k", "v", "residual", "mask"):
        tensor = getattr(op, name, None)
        if isinstance(tensor, str):
            yield tensor
    yield from getattr(op, "parts", ())


def writes(op: Op) -> Iterator[str]:
    """Yield the tensors that ``op`` writes."""
    for name in ("out", "wide_out"):
        tensor = getattr(op, name, None)
        if tensor is not None:
            yield tensor

"""One random layer as a graph, and the fewest cycles in which a product can be computed."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from twillcore.compiler.errors import CompileError
from twillcore.compiler.graph import (
    Conv,
    Graph,
    Linear,
    MaxPool,
    Op,
    PerDirection,
    Tensor,
    both_directions,
)
from twillcore.compiler.limits import LARGEST_STRIDE
from twillcore.config import Config
from twillcore.isa import LUT_WEIGHT_BITS

SPREAD = 32.0  # standard deviation of the outputs, as int8
NARROW_SHIFT = 4


@dataclass(frozen=True)
class LutPart:
    """What of a layer the LUT core computes: its last ``channels``, weights of ``bits`` bits.

    With ``help`` a core that would idle may compute some rows of the other one's outputs.
    """

    channels: int = 0
    bits: int = 0
    help: bool = False

    def check(self, outputs: int, config: Config) -> None:
        """Raise :class:`CompileError` unless a layer of ``outputs`` can be divided so."""
        if not self.channels:
            return
        if not config.lut_columns:
            raise CompileError(f"configuration {config.name!r} has no LUT core")
        if not 1 <= self.bits <= LUT_WEIGHT_BITS:
            raise CompileError(f"weights on the LUT core must have 1..8 bits, not {self.bits}")
        if self.channels != outputs and (
            not 0 < self.channels < outputs or self.channels % config.block
        ):
            raise CompileError(
                f"the LUT core must get all of {outputs} outputs or fewer, in blocks of"
                f" {config.block}, not {self.channels}"
            )


def gemm_graph(
    m: int,
    k: int,
    n: int,
    config: Config,
    beats: int,
    seed: int = 0,
    lut: LutPart = LutPart(),
) -> tuple[Graph, dict[str, NDArray]]:
    """Return a layer from int8 ``m`` x ``k`` to int8 ``m`` x ``n``, and its input.

    Every aligned block of K has exactly ``beats`` random weights; the scale makes the outputs
    spread over int8 with few saturated.

    Raises
    ------
    CompileError
        If a dimension is not positive, ``beats`` not 1..block, or ``lut`` impossible.
    """
    if min(m, k, n) < 1:
        raise CompileError(f"dimensions must be at least 1, not {m} x {k} x {n}")
    lut.check(n, config)
    rng = np.random.default_rng(seed)
    weight = _random_weights(rng, (n, k), beats, config)
    x = rng.integers(-127, 128, (1, m, k), dtype=np.int8)
    layer = Linear(
        name=f"gemm {m} {k} {n}",
        x="x",
        out="y",
        weight=weight,
        beats=beats,
        **_drain(rng, weight, k * beats / config.block, lut),
    )
    tensors = (Tensor("x", 1, m, k, 8, 1.0), Tensor("y", 1, m, n, 8, 1.0))
    graph = Graph(config, {t.name: t for t in tensors}, (layer,), ("x",), ("y",))
    return graph, {"x": x}


def conv_graph(
    height: int,
    width: int,
    inputs: int,
    outputs: int,
    kernel: PerDirection,
    config: Config,
    beats: int,
    *,
    stride: PerDirection = 1,
    padding: PerDirection = 0,
    dilation: PerDirection = 1,
    groups: int = 1,
    seed: int = 0,
    lut: LutPart = LutPart(),
) -> tuple[Graph, dict[str, NDArray]]:
    """Return a convolution of int8 ``height`` x ``width`` pixels, and its input.

    With a horizontal stride above 2 another layer takes every n-th pixel of its lines.

    In each tap, every aligned block of a group's inputs has at most ``beats`` random weights.

    Raises
    ------
    CompileError
        With every reason in one message, if there is no such convolution; or as
        :func:`gemm_graph`.
    """
    out_grid = check_conv(
        height, width, inputs, outputs, kernel,
        stride=stride, padding=padding, dilation=dilation, groups=groups,
    )  # fmt: skip
    lut.check(outputs, config)
    rng = np.random.default_rng(seed)
    each, sizes = inputs // groups, both_directions(kernel)
    weight = _random_weights(rng, (outputs * math.prod(sizes), each), beats, config)
    weight = weight.reshape(outputs, *sizes, each)
    x = rng.integers(-127, 128, (1, height * width, inputs), dtype=np.int8)
    terms = float((weight[: outputs - lut.channels or None] != 0).sum()) / outputs
    down, right = both_directions(stride)
    step, every = horizontal_steps(right, out_grid[1])
    layer = Conv(
        name=f"conv {height} {width} {inputs} {outputs} {kernel}",
        x="x",
        out="y" if every == 1 else "line",
        weight=weight,
        stride=step if step == down else (down, step),
        padding=both_directions(padding),
        dilation=dilation,
        groups=groups,
        beats=min(beats, each),
        **_drain(rng, weight.reshape(outputs, -1), terms, lut),
    )
    grids = {"x": (height, width), "y": out_grid}
    ops: tuple[Op, ...] = (layer,)
    if every > 1:
        grids["line"] = out_grid[0], (out_grid[1] - 1) * every + 1
        ops = layer, MaxPool(f"every {every} pixels", "line", "y", (1, 1), (1, every), (0, 0))
    tensors = {
        name: Tensor(name, 1, grid[0] * grid[1], inputs if name == "x" else outputs, 8, 1.0,
                     grid=grid)
        for name, grid in grids.items()
    }  # fmt: skip
    return Graph(config, tensors, ops, ("x",), ("y",)), {"x": x}


def horizontal_steps(stride: int, outputs: int) -> tuple[int, int]:
    """Return the stride of a window within a line, and that every n-th result is kept: (s, n)."""
    if stride <= LARGEST_STRIDE or outputs == 1:
        return min(stride, LARGEST_STRIDE), 1
    step = LARGEST_STRIDE if stride % LARGEST_STRIDE == 0 else 1
    return step, stride // step


def check_conv(
    height: int, width: int, inputs: int, outputs: int, kernel: PerDirection, *,
    stride: PerDirection, padding: PerDirection, dilation: PerDirection, groups: int,
) -> tuple[int, int]:  # fmt: skip
    """Return height and width of a convolution's output.

    Raises
    ------
    CompileError
        With every reason in one message, if there is no such convolution.
    """
    least = {
        "height": height, "width": width, "input channels": inputs, "output channels": outputs,
        "kernel": kernel, "stride": stride, "dilation": dilation, "groups": groups,
    }  # fmt: skip
    wrong = [
        f"{name} must be at least 1, not {n}"
        for name, n in least.items()
        if min(both_directions(n)) < 1
    ]
    around = both_directions(padding)
    if min(around) < 0:
        wrong.append(f"padding must be at least 0, not {padding}")
    if wrong:
        raise CompileError("; ".join(wrong))
    for name, channels in (("input", inputs), ("output", outputs)):
        if channels % groups:
            wrong.append(f"{channels} {name} channels are not divisible by {groups} groups")
    span = tuple(
        distance * (size - 1) + 1
        for distance, size in zip(both_directions(dilation), both_directions(kernel), strict=True)
    )
    padded = height + 2 * around[0], width + 2 * around[1]
    if span[0] > padded[0] or span[1] > padded[1]:
        wrong.append(
            f"the kernel of {span[0]} x {span[1]} pixels (dilation counted) is larger than the"
            f" padded image of {padded[0]} x {padded[1]}"
        )
    if wrong:
        raise CompileError("; ".join(wrong))
    down, right = both_directions(stride)
    return (padded[0] - span[0]) // down + 1, (padded[1] - span[1]) // right + 1


def _random_weights(
    rng: np.random.Generator, shape: tuple[int, int], beats: int, config: Config
) -> NDArray[np.int8]:
    """Return (outputs, K) weights, in every aligned block of K exactly ``beats`` that may be."""
    if not 1 <= beats <= config.block:
        raise CompileError(f"beats must be 1..{config.block}, not {beats}")
    outputs, k = shape
    weight = rng.integers(-127, 128, (outputs, -(-k // config.block), config.block), dtype=np.int8)
    weight[rng.random(weight.shape).argsort(-1).argsort(-1) >= beats] = 0
    return np.ascontiguousarray(weight.reshape(outputs, -1)[:, :k])


def _drain(
    rng: np.random.Generator, weight: NDArray[np.int8], terms: float, lut: LutPart
) -> dict[str, object]:
    """Return the operands that scale sums of ``terms`` products to int8.

    Rows of ``weight`` (outputs, K) that are the LUT core's become new, dense ones, in place.
    """
    outputs = len(weight)
    deviation = np.full(outputs, 127 * 127 / 3 * math.sqrt(max(terms, 1)))
    bias = rng.integers(-int(deviation[0]), int(deviation[0]) + 1, outputs) // 4
    if lut.channels:
        half = 1 << lut.bits - 1
        rows = rng.integers(-half, half, (lut.channels, weight.shape[1]), dtype=np.int8)
        weight[-lut.channels :] = rows
        norms = np.sqrt(np.maximum((rows.astype(np.float64) ** 2).sum(1), 1))
        deviation[-lut.channels :] = 127 / math.sqrt(3) * norms
        bias[-lut.channels :] = deviation[-lut.channels :] / 4 * rng.uniform(-1, 1, lut.channels)
    # out = acc * multiplier / 2**shift / 2**narrow_shift, with a multiplier of 15 bits
    mantissa, exponent = np.frexp(SPREAD * 2**NARROW_SHIFT / deviation)
    return {
        "bias": bias,
        "multiplier": np.minimum(np.rint(mantissa * (1 << 15)), (1 << 15) - 1).astype(np.int64),
        "shift": (15 - exponent).astype(np.int64),
        "narrow_shift": np.full(outputs, NARROW_SHIFT),
        "lut_channels": lut.channels,
        "lut_bits": lut.bits,
        "help": lut.help,
    }


def ideal_cycles(m: int, k: int, n: int, config: Config, beats: int) -> int:
    """Return the beats of a GEMM: tiles * blocks * beats, with nothing lost between them."""
    tiles = -(-m // config.lanes) * -(-n // config.dsp_columns)
    return tiles * -(-k // config.block) * beats

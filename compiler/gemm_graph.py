"""One random linear layer as a graph, and the fewest cycles in which it can be computed."""

import math

import numpy as np
from numpy.typing import NDArray

from twillcore.compiler.errors import CompileError
from twillcore.compiler.graph import Graph, Linear, Tensor
from twillcore.config import Config

SPREAD = 32.0  # standard deviation of the outputs, as int8


def gemm_graph(
    m: int, k: int, n: int, config: Config, beats: int, seed: int = 0
) -> tuple[Graph, dict[str, NDArray]]:
    """Return a layer from int8 ``m`` x ``k`` to int8 ``m`` x ``n``, and its input.

    Every aligned block of K has exactly ``beats`` random weights; the scale makes the outputs
    spread over int8 with few saturated.

    Raises
    ------
    CompileError
        If a dimension is not positive, or ``beats`` not 1..block.
    """
    if min(m, k, n) < 1:
        raise CompileError(f"dimensions must be at least 1, not {m} x {k} x {n}")
    if not 1 <= beats <= config.block:
        raise CompileError(f"beats must be 1..{config.block}, not {beats}")
    rng = np.random.default_rng(seed)
    blocks = -(-k // config.block)
    weight = rng.integers(-127, 128, (n, blocks, config.block), dtype=np.int8)
    weight[rng.random(weight.shape).argsort(-1).argsort(-1) >= beats] = 0
    weight = np.ascontiguousarray(weight.reshape(n, -1)[:, :k])
    x = rng.integers(-127, 128, (1, m, k), dtype=np.int8)
    deviation = 127 * 127 / 3 * math.sqrt(max(k * beats / config.block, 1))
    narrow_shift = 4
    # out = acc * multiplier / 2**shift / 2**narrow_shift, with a multiplier of 15 bits
    mantissa, exponent = math.frexp(SPREAD * 2**narrow_shift / deviation)
    tensors = (
        Tensor("x", 1, m, k, 8, 1.0),
        Tensor("y", 1, m, n, 8, 1.0),
    )
    layer = Linear(
        name=f"gemm {m} {k} {n}",
        x="x",
        out="y",
        weight=weight,
        beats=beats,
        bias=rng.integers(-int(deviation), int(deviation) + 1, n) // 4,
        multiplier=np.full(n, min(round(mantissa * (1 << 15)), (1 << 15) - 1)),
        shift=np.full(n, 15 - exponent),
        narrow_shift=np.full(n, narrow_shift),
    )
    graph = Graph(config, {t.name: t for t in tensors}, (layer,), ("x",), ("y",))
    return graph, {"x": x}


def ideal_cycles(m: int, k: int, n: int, config: Config, beats: int) -> int:
    """Return the beats of a GEMM: tiles * blocks * beats, with nothing lost between them."""
    tiles = -(-m // config.lanes) * -(-n // config.dsp_columns)
    return tiles * -(-k // config.block) * beats

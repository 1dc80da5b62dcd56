"""Listings of small programs, reviewed as text: what changes in them was meant to change."""

from pathlib import Path

import numpy as np
import pytest

from twillcore.compiler.gemm_graph import gemm_graph
from twillcore.compiler.graph import Attention, Graph, LayerNorm, Linear, Tensor
from twillcore.compiler.pipeline import compile_graph
from twillcore.config import PRESETS

GOLDEN = Path(__file__).parents[1] / "golden"
TINY = PRESETS["tiny"]


def tensor(name, rows, channels, bits=8):
    return Tensor(name, 1, rows, channels, bits, 1.0)


def linear(name, x, out, columns, channels, **more):
    weight = (np.arange(columns * channels).reshape(columns, channels) % 7 - 3).astype(np.int8)
    ones = np.ones(columns, np.int64)
    drain = {"bias": 0 * ones, "multiplier": 16384 * ones, "shift": 20 * ones}
    return Linear(name, x, out, weight, 8, **drain, narrow_shift=0 * ones, **more)


def block():
    """One head of attention with residual and layer norm: every engine has something to do."""
    tensors = {
        t.name: t
        for t in (
            tensor("x", 6, 16),
            tensor("stream", 6, 16, 16),
            *(tensor(name, 6, 8) for name in ("q", "k", "v", "context")),
            tensor("sum", 6, 16, 16),
            tensor("y", 6, 16),
            tensor("wide", 6, 16, 16),
        )
    }
    ones = np.ones(16, np.int64)
    ops = (
        linear("query", "x", "q", 8, 16),
        linear("key", "x", "k", 8, 16),
        linear("value", "x", "v", 8, 16),
        Attention("attention", "q", "k", "v", "context", 1, 8, 16384, 20, 40000, 40,
                  np.zeros(8, np.int64)),
        linear("output", "context", "sum", 16, 8, residual="stream", residual_shift=1),
        LayerNorm("norm", "sum", "y", "wide", 3, 8192 * ones, 0 * ones, 18 * ones, 4 * ones),
    )  # fmt: skip
    return Graph(TINY, tensors, ops, ("x", "stream"), ("y", "wide"))


GRAPHS = {
    "gemm-dense": lambda: gemm_graph(9, 20, 17, TINY, 8, 0)[0],
    "gemm-2of8": lambda: gemm_graph(9, 20, 17, TINY, 2, 0)[0],
    "attention-block": block,
}


@pytest.mark.parametrize("name", GRAPHS)
def test_listing(name, update_golden):
    graph = GRAPHS[name]()
    image = compile_graph(graph)
    text = f"{graph}\n\n" + "".join(
        f"{i:4} {inst}\n" for i, inst in enumerate(image.instructions())
    )
    path = GOLDEN / f"{name}.txt"
    if update_golden:
        path.write_text(text)
    assert text == path.read_text(), "if this was meant, run pytest --update-golden and review it"

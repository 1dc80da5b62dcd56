"""The verifier sees what is wrong with a graph; the graph survives a trip through bytes."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from twillcore.compiler.errors import CompileError
from twillcore.compiler.front import run_front
from twillcore.compiler.serialize import graph_from_bytes, graph_to_bytes
from twillcore.compiler.verify import verify
from twillcore.config import PRESETS


@pytest.fixture(scope="module")
def graph():
    torch.set_num_threads(1)
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 24, batch_first=True, activation="gelu").eval()
    return run_front(layer, (torch.randn(2, 5, 16),), PRESETS["tiny"]).graph


def changed(graph, kind, **changes):
    """Return ``graph`` with fields of its first op of a kind changed."""
    ops = list(graph.ops)
    index = next(i for i, op in enumerate(ops) if type(op).__name__ == kind)
    ops[index] = dataclasses.replace(ops[index], **changes)
    return dataclasses.replace(graph, ops=tuple(ops))


def test_good_graph_passes(graph):
    verify(graph)


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("Linear", {"x": "nothing"}, "reads nothing before it is written"),
        ("Linear", {"out": "nowhere"}, "no tensor nowhere"),
        ("Linear", {"shift": np.full(16, 64)}, r"shift must be 0\.\.63, not 64\.\.64"),
        ("Linear", {"bias": np.zeros(3, np.int64)}, r"bias must have shape \(16,\), not \(3,\)"),
        ("Linear", {"beats": 1}, r"beats must be 8\.\.8, not 1"),
        ("Linear", {"weight": np.zeros((16, 9), np.int8)}, "x must have shape"),
        ("Linear", {"weight": np.zeros((16, 16), np.int16)}, "weight must be int8, not int16"),
        ("Linear", {"table": np.zeros(256, np.int64)}, "a table is there exactly if"),
        ("Attention", {"numerator": 5}, r"numerator must be 32768\.\.65535, not 5"),
        ("Attention", {"heads": 3}, "q must have shape"),
        ("Attention", {"head_channels": 4, "heads": 4}, "head_channels must be a multiple of 8"),
        ("LayerNorm", {"epsilon": 1 << 32}, "epsilon must be 0"),
        ("LayerNorm", {"x": "src"}, "x must have 16 bits, not 8"),
    ],
)
def test_verifier(graph, kind, changes, message):
    with pytest.raises(CompileError, match=message):
        verify(changed(graph, kind, **changes))


def test_output_that_is_never_written(graph):
    with pytest.raises(CompileError, match="output src_x is never written"):
        verify(dataclasses.replace(graph, outputs=("src_x",)))


def test_graph_as_bytes(graph):
    again = graph_from_bytes(graph_to_bytes(graph))
    assert str(again) == str(graph)
    for a, b in zip(graph.ops, again.ops, strict=True):
        for field in dataclasses.fields(a):
            x, y = getattr(a, field.name), getattr(b, field.name)
            assert np.array_equal(x, y) if isinstance(x, np.ndarray) else x == y
    with pytest.raises(ValueError, match="not a graph"):
        graph_from_bytes(b"nothing")
